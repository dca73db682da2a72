"""What this host was told to do, on disk before it is done: answers a second delivery, knows what a crash cut short."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any, NamedTuple

from daemon.disk import Record, pack_record, scan_records, write_file
from daemon.system import System
from protocol.commands import Command

RECEIVED = 1
STARTED = 2
FINISHED = 3
REPORTED = 4

COMPACT_BYTES = 256 * 1024
KEEP_S = 3600

_NAME = "commands.log"

log = logging.getLogger("daemon.journal")


class Open(NamedTuple):
    """A command without a reported end, as the journal knows it after a restart."""

    id: str
    stage: int
    command: dict[str, Any]
    result: dict[str, Any] | None


class _Entry:
    """Where a command stands. Command and result are kept only as long as somebody may ask for them."""

    __slots__ = ("command", "result", "stage", "until")

    def __init__(self, stage: int, until: float) -> None:
        self.stage = stage
        self.until = until
        self.command: dict[str, Any] | None = None
        self.result: dict[str, Any] | None = None


class Journal:
    """One append-only file of checksummed records, rewritten without the forgotten ones when it has grown.

    Every record names its command, so that whichever survives a damaged disk keeps the command from running twice. The
    link writes what it received, the main thread what became of it.
    """

    def __init__(self, system: System, directory: str) -> None:
        self._system = system
        self._directory = directory
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._sequence = 0
        self._size = 0
        self._fd = -1
        self._is_synced = True
        self.is_damaged = False
        system.make_dir(directory)
        self._load()

    def knows(self, command_id: str) -> bool:
        """Whether a command was ever written down and not forgotten since."""
        with self._lock:
            return command_id in self._entries

    def receive(self, command: Command, until: float, starts_now: bool, is_durable: bool = True) -> bool:
        """Write a command down; False if it is known already. OSError: it is not, and must not be acted on.

        `until`: a second delivery could come until then (the Manager's time). `starts_now` saves a trip to the disk.
        What is not durable yet outlives this process, but not the machine: `sync` before anybody relies on it.
        """
        with self._lock:
            if command.id in self._entries:
                return False
            entry = _Entry(STARTED if starts_now else RECEIVED, until)
            entry.command = command._asdict()
            lines: list[tuple[int, dict[str, Any]]] = [
                (RECEIVED, {"id": command.id, "until": until, "command": entry.command})
            ]
            if starts_now:
                lines.append((STARTED, {"id": command.id, "until": until}))
            self._append(lines, is_durable)
            self._is_synced = self._is_synced and is_durable
            self._entries[command.id] = entry
            return True

    def sync(self) -> None:
        """Everything is on the disk. One that refuses costs durability, not the command."""
        with self._lock:
            if self._is_synced:
                return
            try:
                self._append([], is_durable=True)
            except OSError as error:
                log.error("cannot make sure that commands are written down: %s", error)  # noqa: TRY400

    def forestall(self, command_id: str, until: float, result: dict[str, Any]) -> bool:
        """Write down how a command ended that may still come, durably; False if it has come. OSError: it is not."""
        with self._lock:
            if command_id in self._entries:
                return False
            self._append([(FINISHED, {"id": command_id, "until": until, "result": result})], is_durable=True)
            entry = _Entry(FINISHED, until)
            entry.result = result
            self._entries[command_id] = entry
            return True

    def start(self, command_id: str) -> None:
        """The first instruction is about to run. OSError: it must not."""
        with self._lock:
            entry = self._entries[command_id]
            self._append([(STARTED, {"id": command_id, "until": entry.until})], is_durable=True)
            entry.stage = STARTED

    def finish(self, command_id: str, result: dict[str, Any]) -> None:
        """How it ended. A disk that refuses costs durability, not the report."""
        with self._lock:
            entry = self._entries[command_id]
            entry.stage, entry.command, entry.result = FINISHED, None, result
            try:
                self._append([(FINISHED, {"id": command_id, "until": entry.until, "result": result})], is_durable=True)
            except OSError as error:
                log.error("cannot write down how %s ended: %s", command_id, error)  # noqa: TRY400

    def reported(self, command_id: str) -> None:
        """The Manager knows the end, or does not want it. Losing this line only repeats the report."""
        with self._lock:
            entry = self._entries.get(command_id)
            if entry is None:
                return
            entry.stage, entry.command, entry.result = REPORTED, None, None
            try:
                self._append([(REPORTED, {"id": command_id, "until": entry.until})], is_durable=False)
            except OSError as error:
                log.warning("cannot write down that %s was reported: %s", command_id, error)

    def result_of(self, command_id: str) -> dict[str, Any] | None:
        """The result of a command that has ended and is not reported yet."""
        with self._lock:
            entry = self._entries.get(command_id)
            return entry.result if entry is not None else None

    def unreported(self) -> list[Open]:
        """Every command whose end the Manager does not know, oldest first."""
        with self._lock:
            return [
                Open(name, entry.stage, entry.command or {}, entry.result)
                for name, entry in self._entries.items()
                if entry.stage != REPORTED
            ]

    def forget(self, manager_now: float) -> None:
        """Drop what can no longer be delivered, and rewrite the file if it has grown."""
        with self._lock:
            for name, entry in list(self._entries.items()):
                if entry.stage == REPORTED and entry.until + KEEP_S < manager_now:
                    del self._entries[name]
            if self._size > COMPACT_BYTES:
                try:
                    self._compact()
                except OSError as error:
                    log.warning("cannot rewrite the journal: %s", error)

    def close(self) -> None:
        """Close the file; everything is on disk already."""
        with self._lock:
            if self._fd >= 0:
                self._system.close(self._fd)
                self._fd = -1

    def _load(self) -> None:
        path = f"{self._directory}/{_NAME}"
        data = self._system.read(path) if self._system.exists(path) else b""
        found = scan_records(data)
        for record in found.records:
            self._sequence = max(self._sequence, record.sequence)
            self._replay(record)
        if found.damaged:
            self.is_damaged = True
            log.error("the journal is damaged in %d places; what is left is kept", found.damaged)
        if not data or found.damaged or found.end != len(data):
            try:
                self._compact()
            except OSError as error:
                log.error("cannot rewrite the journal: %s", error)  # noqa: TRY400
        else:
            self._size = len(data)
            self._fd = self._system.open_append(path)

    def _replay(self, record: Record) -> None:
        try:
            line = json.loads(record.payload)
            name, until = str(line["id"]), float(line["until"])
        except (ValueError, KeyError, TypeError):
            self.is_damaged = True
            return
        entry = self._entries.setdefault(name, _Entry(record.kind, until))
        entry.stage = max(entry.stage, record.kind)
        if record.kind == RECEIVED:
            entry.command = line.get("command")
        if record.kind == FINISHED:
            entry.result = line.get("result")
        if entry.stage >= FINISHED:
            entry.command = None
        if entry.stage == REPORTED:
            entry.result = None

    def _append(self, lines: list[tuple[int, dict[str, Any]]], is_durable: bool) -> None:
        if self._fd < 0:
            self._compact()
        data = b"".join(self._pack(kind, line) for kind, line in lines)
        try:
            self._system.write(self._fd, data)
            if is_durable:
                self._system.sync(self._fd)
                self._is_synced = True
        except OSError:
            # What the disk made of it is not known: the next append writes the whole file anew.
            self._system.close(self._fd)
            self._fd = -1
            raise
        self._size += len(data)

    def _compact(self) -> None:
        lines = [line for name, entry in self._entries.items() for line in _lines(name, entry)]
        data = b"".join(self._pack(kind, line) for kind, line in lines)
        if self._fd >= 0:
            self._system.close(self._fd)
            self._fd = -1
        write_file(self._system, self._directory, _NAME, data)
        self._fd = self._system.open_append(f"{self._directory}/{_NAME}")
        self._size, self._is_synced = len(data), True

    def _pack(self, kind: int, line: dict[str, Any]) -> bytes:
        self._sequence += 1
        return pack_record(
            Record(self._sequence, kind, json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode("utf-8"))
        )


def _lines(name: str, entry: _Entry) -> list[tuple[int, dict[str, Any]]]:
    """The fewest records that say where a command stands."""
    base = {"id": name, "until": entry.until}
    if entry.stage == FINISHED:
        return [(FINISHED, {**base, "result": entry.result})]
    lines: list[tuple[int, dict[str, Any]]] = []
    if entry.command is not None:
        lines.append((RECEIVED, {**base, "command": entry.command}))
    if entry.stage != RECEIVED:
        lines.append((entry.stage, base))
    return lines
