"""What this agent was told to execute, on disk before it is done, so that one id is run once and never again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from agent import disk
from agent.disk import Record, pack_record, scan_records

ACCEPTED = 1
STARTED = 2
FINISHED = 3

COMPACT_BYTES = 1024 * 1024

_ID_BYTES = 16

log = logging.getLogger("agent.journal")


class Entry(NamedTuple):
    """Where an execution stands as the disk knows it. `order` is there until it is finished, `result` from then on."""

    stage: int
    digest: str
    at: float
    order: dict[str, Any] | None
    result: dict[str, Any] | None


class Line(NamedTuple):
    """One step of one execution."""

    stage: int
    id: str
    content: dict[str, Any]


class Journal:
    """An append-only file of checksummed lines, rewritten without what is forgotten when it has grown.

    Forgotten executions leave their id (its hash) in a second file, which is only searched, never held in memory.
    """

    def __init__(self, directory: str) -> None:
        self._path = f"{directory}/executions.log"
        self._archive = Archive(f"{directory}/executions.ids")
        self._entries: dict[str, Entry] = {}
        self._fd = -1
        self._size = 0
        self._size_rewritten = 0
        self.is_damaged = False
        self._load()

    def entries(self) -> dict[str, Entry]:
        """Every execution that is not forgotten, oldest first."""
        return self._entries

    def knows(self, execution_id: str) -> bool:
        """Whether this id was ever written down."""
        return execution_id in self._entries or self._archive.holds(execution_id)

    def write(self, lines: list[Line], syncer: disk.Syncer | None = None) -> None:
        """Durable when this returns; with a `syncer` only soon, which is enough for what has happened already.

        OSError: none of it counts, and none of it may be acted on.
        """
        if self._fd < 0:
            self._rewrite()
        data = b"".join(_pack(line) for line in lines)
        try:
            disk.write_all(self._fd, data)
            if syncer is None:
                os.fsync(self._fd)
            else:
                syncer.ask("the journal", self._fd)
        except OSError:
            # What the disk made of it is not known: the next write makes the whole file anew.
            os.close(self._fd)
            self._fd = -1
            raise
        self._size += len(data)
        for line in lines:
            self._apply(line)

    def forget(self, ids: Iterable[str]) -> None:
        """Keep nothing but the ids. OSError: they are not forgotten."""
        gone = [name for name in ids if name in self._entries]
        if gone:
            self._archive.add(gone)
            for name in gone:
                del self._entries[name]
        if self._size > max(COMPACT_BYTES, 2 * self._size_rewritten):
            self._rewrite()

    def close(self) -> None:
        """What was only to be on the disk soon, is."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._archive.close()

    def _load(self) -> None:
        data = disk.read_file(self._path)
        found = scan_records(data)
        for record in found.records:
            self._replay(record)
        # What was moved to the archive just before a crash need not be here as well.
        for name in [name for name, entry in self._entries.items() if entry.stage == FINISHED]:
            if self._archive.holds(name):
                del self._entries[name]
        if found.damaged or found.end != len(data):
            self.is_damaged = self.is_damaged or bool(found.damaged)
            log.error("the journal has %d damaged places and a torn end or not; what is left is kept", found.damaged)
        if not data or found.damaged or found.end != len(data):
            self._rewrite()
        else:
            self._size = len(data)
            self._fd = disk.open_append(self._path)

    def _replay(self, record: Record) -> None:
        try:
            content = json.loads(record.payload)
            self._apply(Line(record.kind, str(content.pop("id")), content))
        except (ValueError, KeyError, TypeError, AttributeError):
            self.is_damaged = True

    def _apply(self, line: Line) -> None:
        known = self._entries.get(line.id)
        content = line.content
        stage = max(line.stage, known.stage if known else 0)
        order = content.get("order") or (known.order if known else None)
        result = content.get("result") or (known.result if known else None)
        self._entries[line.id] = Entry(
            stage=stage,
            digest=str(content.get("digest") or (known.digest if known else "")),
            at=float(content.get("at") or (known.at if known else 0.0)),
            order=None if stage == FINISHED else order,
            result=result,
        )

    def _rewrite(self) -> None:
        data = b"".join(
            _pack(
                Line(
                    entry.stage,
                    name,
                    {"digest": entry.digest, "at": entry.at, "order": entry.order, "result": entry.result},
                )
            )
            for name, entry in self._entries.items()
        )
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        disk.write_file(self._path, data)
        self._fd = disk.open_append(self._path)
        self._size = self._size_rewritten = len(data)


class Archive:
    """Hashes of ids, 16 bytes each, one after the other. A million of them are searched in a few milliseconds."""

    def __init__(self, path: str) -> None:
        self._fd = disk.open_append(path)
        size = os.fstat(self._fd).st_size
        if size % _ID_BYTES:
            # A torn end: those ids are still in the journal, which forgets only what is safe here.
            os.ftruncate(self._fd, size - size % _ID_BYTES)

    def holds(self, name: str) -> bool:
        """Whether an id was added."""
        size = os.fstat(self._fd).st_size
        if not size:
            return False
        wanted = _hash(name)
        with mmap.mmap(self._fd, size, access=mmap.ACCESS_READ) as found:
            place = found.find(wanted)
            while place >= 0 and place % _ID_BYTES:
                place = found.find(wanted, place + 1)
        return place >= 0

    def add(self, names: Iterable[str]) -> None:
        """On the disk when this returns; an OSError leaves at most whole hashes and one torn end, which is cut."""
        size = os.fstat(self._fd).st_size
        try:
            disk.write_all(self._fd, b"".join(_hash(name) for name in names))
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size)
            raise

    def close(self) -> None:
        """Forget the descriptor."""
        os.close(self._fd)


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8"), digest_size=_ID_BYTES).digest()


def _pack(line: Line) -> bytes:
    text = json.dumps({"id": line.id, **line.content}, separators=(",", ":"), ensure_ascii=False)
    return pack_record(Record(line.stage, text.encode("utf-8")))
