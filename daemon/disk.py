"""How state gets to the disk and back: whole files by rename, small state in two slots, records with checksums."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any, NamedTuple

from daemon.system import System

MAX_RECORD_BYTES = 4 * 1024 * 1024

_MAGIC = b"\xa5\x4f"
_HEADER = struct.Struct(">2sBIQI")
_CHECKED = struct.Struct(">BIQ")
_SLOT_BYTES = 4096
_SLOT = struct.Struct(">QII")


class Record(NamedTuple):
    """One record of an append-only file: a number that only grows, a one-byte kind, and bytes."""

    sequence: int
    kind: int
    payload: bytes


class Found(NamedTuple):
    """What could be read of an append-only file. `end` is behind the last good record; `damaged` counts the holes."""

    records: list[Record]
    end: int
    damaged: int


def write_file(system: System, directory: str, name: str, data: bytes) -> None:
    """Replace a file so that after a power cut it is the old or the new one, whole."""
    path, fresh = f"{directory}/{name}", f"{directory}/{name}.new"
    fd = system.open_new(fresh)
    try:
        system.write(fd, data)
        system.sync(fd)
    finally:
        system.close(fd)
    system.replace(fresh, path)
    system.sync_dir(directory)


def remove_file(system: System, directory: str, name: str) -> None:
    """Delete a file so that it stays deleted."""
    system.remove(f"{directory}/{name}")
    system.sync_dir(directory)


def read_json(system: System, path: str) -> Any:
    """A JSON file of ours; None if there is none. ValueError if it is damaged."""
    try:
        return json.loads(system.read(path))
    except FileNotFoundError:
        return None


def pack_record(record: Record) -> bytes:
    """The bytes of a record."""
    checked = _CHECKED.pack(record.kind, len(record.payload), record.sequence)
    crc = zlib.crc32(record.payload, zlib.crc32(checked))
    return _HEADER.pack(_MAGIC, record.kind, len(record.payload), record.sequence, crc) + record.payload


def scan_records(data: bytes) -> Found:
    """Read every sound record, stepping over whatever is damaged: flipped bits, zeroes, torn ends, foreign bytes."""
    records: list[Record] = []
    offset = end = damaged = 0
    while True:
        record = _record_at(data, offset)
        if record is not None:
            damaged += offset > end
            records.append(record)
            offset += _HEADER.size + len(record.payload)
            end = offset
            continue
        offset = data.find(_MAGIC, offset + 1)
        if offset < 0:
            return Found(records, end, damaged)


class SlotFile:
    """A small JSON object that is rewritten often: two slots in place, the newer sound one counts.

    Writing in place needs no new blocks, so it works on a full disk; a torn write loses only what was being written.
    """

    def __init__(self, system: System, directory: str, name: str) -> None:
        self._system = system
        path = f"{directory}/{name}"
        is_new = not system.exists(path)
        self._fd = system.open_slots(path)
        self._stamp = 0
        if is_new:
            system.write_at(self._fd, bytes(2 * _SLOT_BYTES), 0)
            system.sync(self._fd)
            system.sync_dir(directory)
        self._path = path

    def load(self) -> dict[str, Any] | None:
        """The newest sound content; None if both slots are damaged or empty."""
        data = self._system.read(self._path, 2 * _SLOT_BYTES)
        newest: dict[str, Any] | None = None
        for start in (0, _SLOT_BYTES):
            found = _slot(data[start : start + _SLOT_BYTES])
            if found is not None and found[0] > self._stamp:
                self._stamp, newest = found
        return newest

    def store(self, content: dict[str, Any], is_durable: bool = True) -> None:
        """Write the older slot. Without `is_durable` a power cut may lose it, a killed process not."""
        text = json.dumps(content, separators=(",", ":")).encode("utf-8")
        if len(text) > _SLOT_BYTES - _SLOT.size:
            raise ValueError("does not fit a slot")
        self._stamp += 1
        crc = zlib.crc32(text, zlib.crc32(struct.pack(">QI", self._stamp, len(text))))
        block = (_SLOT.pack(self._stamp, len(text), crc) + text).ljust(_SLOT_BYTES, b"\0")
        self._system.write_at(self._fd, block, self._stamp % 2 * _SLOT_BYTES)
        if is_durable:
            self._system.sync(self._fd)

    def close(self) -> None:
        """Forget the descriptor."""
        self._system.close(self._fd)


def _record_at(data: bytes, offset: int) -> Record | None:
    if offset + _HEADER.size > len(data):
        return None
    magic, kind, length, sequence, crc = _HEADER.unpack_from(data, offset)
    start = offset + _HEADER.size
    if magic != _MAGIC or length > MAX_RECORD_BYTES or start + length > len(data):
        return None
    payload = data[start : start + length]
    if zlib.crc32(payload, zlib.crc32(_CHECKED.pack(kind, length, sequence))) != crc:
        return None
    return Record(sequence, kind, payload)


def _slot(block: bytes) -> tuple[int, dict[str, Any]] | None:
    if len(block) < _SLOT.size:
        return None
    stamp, length, crc = _SLOT.unpack_from(block)
    text = block[_SLOT.size : _SLOT.size + length]
    if not stamp or zlib.crc32(text, zlib.crc32(struct.pack(">QI", stamp, length))) != crc:
        return None
    content = json.loads(text)
    return (stamp, content) if isinstance(content, dict) else None
