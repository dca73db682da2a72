"""Measurements and events on their way to the Manager: on disk before anything else, gone only when acknowledged."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from typing import Callable, NamedTuple

from daemon.disk import Record, SlotFile, pack_record, scan_records
from daemon.system import System
from protocol.settings import SpoolLimits

METRICS = 1
EVENT = 2

SEGMENT_BYTES = 64 * 1024
MEMORY_RECORDS = 120
RECORD_BYTES = 512 * 1024

_BLOCK = 4096

log = logging.getLogger("daemon.spool")


class Item(NamedTuple):
    """A record that waits for its acknowledgement, under the id it is sent with."""

    id: str
    kind: int
    payload: bytes


class Losses(NamedTuple):
    """Records lost since the epoch began, whatever the cause."""

    epoch: str
    records: int
    since_wall: float | None


class _Segment:
    """One file of the spool and the range of numbers in it; `last` is `first - 1` while it is empty."""

    __slots__ = ("first", "last", "name", "size")

    def __init__(self, first: int) -> None:
        self.name = f"{first:020d}.seg"
        self.first = first
        self.last = first - 1
        self.size = 0


class Spool:
    """Append-only segments of checksummed records, numbered without gaps: a gap found later is a loss and is counted.

    A slot file tells where the settled part ends; a killed process cannot lose it, a power cut may leave an old one.
    Then some records are sent twice, and the Manager knows them by their timestamps. Segments of earlier runs are never
    written to again. When the disk takes nothing more, the newest records wait in memory; what does not fit there is
    counted as lost.
    Two threads come here: the collector appends, the link takes and settles.
    """

    def __init__(self, system: System, directory: str, limits: SpoolLimits) -> None:
        self._system = system
        self._directory = directory
        self._limits = limits
        self._lock = threading.Lock()
        self._segments: list[_Segment] = []
        self._memory: deque[Record] = deque()
        self._settled: set[int] = set()
        self._fd = -1
        self._is_disk_bad = False
        self._run = system.random_bytes(4).hex()
        self._damaged: set[str] = set()
        system.make_dir(directory)
        self._cursor = SlotFile(system, directory, "cursor")
        self._open()

    def append(self, kind: int, payload: bytes) -> None:
        """Take a record. Durable when this returns, unless the disk refuses: then it waits in memory."""
        if len(payload) > RECORD_BYTES:
            raise ValueError("a record must not exceed 512 KiB")
        with self._lock:
            self._memory.append(Record(self._next, kind, payload))
            self._next += 1
            while self._memory and self._write(self._memory[0]):
                self._memory.popleft()
            if self._memory:
                while len(self._memory) > MEMORY_RECORDS:
                    self._lose({self._memory.popleft().sequence})
                self._store_cursor(is_durable=False)
            self._bound_size()

    def take(self, max_bytes: int, max_records: int) -> list[Item]:
        """The oldest unsettled records, at least one if there is any; they stay until they are settled."""
        with self._lock:
            items: list[Item] = []
            size = 0
            for record in self._unsettled():
                size += len(record.payload)
                if items and (size > max_bytes or len(items) >= max_records):
                    break
                items.append(Item(f"{self._run}-{record.sequence}", record.kind, record.payload))
            self._advance()
            return items

    def settle(self, taken: list[str], refused: list[str]) -> None:
        """The Manager has the ones and will never have the others: both leave; the latter are counted as lost."""
        with self._lock:
            self._settled |= self._numbers(taken)
            self._lose(self._numbers(refused))
            self._memory = deque(record for record in self._memory if record.sequence not in self._settled)
            self._advance()
            self._store_cursor(is_durable=False)

    def pending(self) -> int:
        """How many records wait, on disk and in memory."""
        with self._lock:
            return self._next - 1 - self._acked - len(self._settled)

    def losses(self) -> Losses:
        """What was lost so far."""
        with self._lock:
            return Losses(self._epoch, self._lost, self._lost_since)

    def damaged_files(self) -> int:
        """How many files of the spool were found damaged by this process."""
        with self._lock:
            return len(self._damaged)

    def set_limits(self, limits: SpoolLimits) -> None:
        """New bounds from the Manager."""
        with self._lock:
            self._limits = limits
            self._bound_size()

    def expire(self, is_too_old: Callable[[bytes], bool]) -> None:
        """Drop whole segments from the old end as long as even their newest record is too old."""
        with self._lock:
            while self._segments:
                segment = self._segments[0]
                records = self._read(segment)
                if not records or not is_too_old(records[-1].payload):
                    return
                self._drop(segment)

    def close(self) -> None:
        """Close the files; everything is on disk already."""
        with self._lock:
            self._seal()
            self._cursor.close()

    # Everything below runs under the lock.

    def _open(self) -> None:
        cursor = self._cursor.load() or {}
        self._epoch = str(cursor.get("epoch") or self._system.random_bytes(4).hex())
        self._lost = int(cursor.get("lost", 0))
        self._lost_since: float | None = cursor.get("since")
        present: set[int] = set()
        for name in self._system.names(self._directory):
            if not name.endswith(".seg") or not name[:-4].isdigit():
                continue
            segment = _Segment(int(name[:-4]))
            numbers = [record.sequence for record in self._read(segment)]
            segment.last = max(numbers, default=segment.first - 1)
            self._segments.append(segment)
            present.update(numbers)
        first = self._segments[0].first if self._segments else 1
        self._acked = int(cursor.get("acked", first - 1))
        self._next = max(int(cursor.get("next", 1)), self._acked + 1, max(present, default=0) + 1)
        if self._segments:
            self._next = max(self._next, self._segments[-1].first)
        self._lose(set(range(self._acked + 1, self._next)) - present)
        self._advance()
        self._store_cursor(is_durable=True)

    def _unsettled(self) -> Iterator[Record]:
        """The records to send next, oldest first; holes that show on the way are counted as lost."""
        for segment in list(self._segments):
            if segment.last <= self._acked:
                continue
            records = self._read(segment)
            expected = set(range(max(segment.first, self._acked + 1), segment.last + 1)) - self._settled
            missing = expected - {record.sequence for record in records}
            if missing:
                self._lose(missing)
                self._store_cursor(is_durable=True)
            yield from (record for record in records if self._is_open(record) and record.sequence <= segment.last)
        yield from (record for record in self._memory if self._is_open(record))

    def _is_open(self, record: Record) -> bool:
        return record.sequence > self._acked and record.sequence not in self._settled

    def _write(self, record: Record) -> bool:
        data = pack_record(record)
        try:
            if self._fd >= 0 and self._segments[-1].size + len(data) > SEGMENT_BYTES:
                self._seal()
            if self._fd < 0:
                self._begin(record.sequence)
            self._system.write(self._fd, data)
            self._system.sync(self._fd)
        except OSError as error:
            if not self._is_disk_bad:
                log.error("the spool cannot write (%s); new measurements wait in memory", error)  # noqa: TRY400
            self._is_disk_bad = True
            self._abandon()
            return False
        if self._is_disk_bad:
            log.warning("the spool can write again")
            self._is_disk_bad = False
        self._segments[-1].size += len(data)
        self._segments[-1].last = record.sequence
        return True

    def _begin(self, first: int) -> None:
        segment = _Segment(first)
        self._fd = self._system.open_append(f"{self._directory}/{segment.name}")
        self._segments.append(segment)
        self._system.sync_dir(self._directory)

    def _seal(self) -> None:
        if self._fd >= 0:
            self._system.close(self._fd)
            self._fd = -1

    def _abandon(self) -> None:
        """After a failed write nothing more goes into this file: what the disk made of it is not known."""
        if self._fd < 0:
            return
        segment = self._segments[-1]
        self._seal()
        if segment.last < segment.first:
            self._segments.pop()
            self._remove(segment)

    def _read(self, segment: _Segment) -> list[Record]:
        try:
            data = self._system.read(f"{self._directory}/{segment.name}")
        except OSError as error:
            log.error("cannot read %s: %s", segment.name, error)  # noqa: TRY400
            return []
        found = scan_records(data)
        segment.size = len(data)
        if found.damaged:
            if segment.name not in self._damaged:
                log.warning("%s is damaged in %d places", segment.name, found.damaged)
            self._damaged.add(segment.name)
        return [record for record in found.records if record.sequence >= segment.first]

    def _advance(self) -> None:
        while self._acked + 1 in self._settled:
            self._acked += 1
            self._settled.discard(self._acked)
        done = [segment for segment in self._segments if segment.last <= self._acked]
        if self._fd >= 0 and self._segments[-1] in done:
            done.remove(self._segments[-1])
        if done:
            # First the cursor, durably: files that are gone below an old cursor would look like losses.
            self._store_cursor(is_durable=True)
        for segment in done:
            self._segments.remove(segment)
            self._remove(segment)

    def _bound_size(self) -> None:
        def on_disk() -> int:
            return sum(max(segment.size, 1) + _BLOCK - 1 & -_BLOCK for segment in self._segments)

        while len(self._segments) > 1 and on_disk() > self._limits.max_bytes:
            self._drop(self._segments[0])

    def _drop(self, segment: _Segment) -> None:
        if segment is self._segments[-1]:
            self._seal()
        self._lose(set(range(max(segment.first, self._acked + 1), segment.last + 1)) - self._settled)
        self._advance()

    def _remove(self, segment: _Segment) -> None:
        try:
            self._system.remove(f"{self._directory}/{segment.name}")
        except OSError as error:
            log.warning("cannot remove %s: %s", segment.name, error)

    def _lose(self, numbers: set[int]) -> None:
        """These will never be sent. Told once in the log, and in every check-in as a running total."""
        if not numbers:
            return
        self._settled |= numbers
        self._lost += len(numbers)
        if self._lost_since is None:
            self._lost_since = self._system.wall()
        log.warning("%d measurements or events are lost, %d since the spool was made", len(numbers), self._lost)

    def _numbers(self, ids: list[str]) -> set[int]:
        """The numbers behind ids of this run; foreign and already settled ones count for nothing."""
        found = set()
        for name in ids:
            run, _, number = name.partition("-")
            if run == self._run and number.isdigit() and self._acked < int(number) < self._next:
                found.add(int(number))
        return found - self._settled

    def _store_cursor(self, is_durable: bool) -> None:
        content = {
            "epoch": self._epoch,
            "acked": self._acked,
            "next": self._next,
            "lost": self._lost,
            "since": self._lost_since,
        }
        try:
            self._cursor.store(content, is_durable)
        except OSError as error:
            log.warning("cannot store the spool's cursor: %s", error)
