"""What one execution said, in order: a file of frames that is kept until it is forgotten, and the cap on it."""

from __future__ import annotations

import logging
import os
import struct
import time
import zlib
from array import array
from collections import deque
from typing import Any, Callable, NamedTuple

from agent import disk
from agent.loop import Loop, Timer
from protocol.limits import OUTPUT_BYTES

START = 0
STDOUT = 1
STDERR = 2
RESULT = 9
STREAM_NAMES = {STDOUT: "stdout", STDERR: "stderr"}

PIECE_BYTES = 32 * 1024
TAIL_BYTES = 64 * 1024
TAIL_JOIN_BYTES = 4096
GATHER_S = 0.04

_FRAME = struct.Struct(">BBQII")
_CUT = 1

log = logging.getLogger("agent.output")


class Frame(NamedTuple):
    """A start (JSON), a piece of a stream, or the result (JSON). `offset` counts the bytes of this stream before it.

    `is_cut`: output was left out after this piece.
    """

    kind: int
    is_cut: bool
    offset: int
    data: bytes


class FrameFile:
    """Appends frames and reads them by number. A disk that refuses costs pieces of output, never start or result."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = disk.open_append(path)
        self._places = array("Q")
        self._in_memory: dict[int, Frame] = {}
        self._end = 0
        self._scan()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def is_kept_in_memory(self) -> bool:
        """Whether closing it would lose something."""
        return bool(self._in_memory)

    def append(self, frame: Frame) -> bool:
        """False: there was no room for it; a start or a result is kept in memory then."""
        head = _FRAME.pack(frame.kind, _CUT if frame.is_cut else 0, frame.offset, len(frame.data), _check(frame))
        try:
            disk.write_all(self._fd, head + frame.data)
        except OSError as error:
            log.warning("cannot keep output: %s", error)
            self._trim()
            if frame.kind in STREAM_NAMES and frame.data:
                return False
            self._in_memory[len(self._places)] = frame
            self._places.append(self._end)
            return True
        self._places.append(self._end)
        self._end += len(head) + len(frame.data)
        return True

    def read(self, number: int) -> Frame:
        """One frame; IndexError if there is none of this number."""
        place = self._places[number]
        if number in self._in_memory:
            return self._in_memory[number]
        kind, flags, offset, length, _ = _FRAME.unpack(os.pread(self._fd, _FRAME.size, place))
        return Frame(kind, bool(flags & _CUT), offset, os.pread(self._fd, length, place + _FRAME.size))

    def size(self) -> int:
        """Bytes on the disk."""
        return self._end

    def sync(self, syncer: disk.Syncer) -> None:
        """On the disk soon."""
        syncer.ask(self._path, self._fd)

    def close(self) -> None:
        """Forget the descriptor."""
        os.close(self._fd)

    def _trim(self) -> None:
        try:
            os.ftruncate(self._fd, self._end)
        except OSError as error:
            log.warning("cannot cut a torn piece of output: %s", error)

    def _scan(self) -> None:
        size = os.fstat(self._fd).st_size
        while self._end + _FRAME.size <= size:
            kind, flags, offset, length, check = _FRAME.unpack(os.pread(self._fd, _FRAME.size, self._end))
            if self._end + _FRAME.size + length > size:
                break
            frame = Frame(kind, bool(flags & _CUT), offset, os.pread(self._fd, length, self._end + _FRAME.size))
            if _check(frame) != check:
                break
            self._places.append(self._end)
            self._end += _FRAME.size + length
        if self._end < size:
            self._trim()


class Output:
    """Takes what the pipes bring, gathers small pieces a moment, and keeps the beginning and the end of too much."""

    def __init__(self, loop: Loop, frames: FrameFile, max_bytes: int, on_news: Callable[[], Any]) -> None:
        self._loop = loop
        self._frames = frames
        self._on_news = on_news
        self._tail_room = min(TAIL_BYTES, max_bytes // 4)
        self._room = max_bytes - self._tail_room
        self._tail: deque[Frame] = deque()
        self._tail_size = 0
        self._gathered: list[bytes] = []
        self._gathered_size = 0
        self._kind = STDOUT
        self._timer: Timer | None = None
        self._last = 0.0
        self._is_cut: set[int] = set()
        self.sizes = {STDOUT: 0, STDERR: 0}
        self._kept = {STDOUT: 0, STDERR: 0}

    @property
    def is_truncated(self) -> bool:
        """Whether anything was left out."""
        return bool(self._is_cut)

    def take(self, kind: int, data: bytes) -> None:
        """What a stream said."""
        if kind != self._kind:
            self.flush()
            self._kind = kind
        if self._room <= 0:
            self._take_tail(kind, data)
            return
        head = data[: self._room]
        self._room -= len(head)
        self._gathered.append(head)
        self._gathered_size += len(head)
        self.sizes[kind] += len(head)
        if len(head) < len(data):
            self.flush()
            self._take_tail(kind, data[len(head) :])
        elif self._gathered_size >= PIECE_BYTES or time.monotonic() - self._last > GATHER_S:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.later(GATHER_S, self.flush)

    def flush(self) -> None:
        """Make a piece of what was gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._gathered:
            return
        data, self._gathered, self._gathered_size = b"".join(self._gathered), [], 0
        kind, offset = self._kind, self.sizes[self._kind] - len(data)
        for start in range(0, len(data), OUTPUT_BYTES):
            self._keep(kind, offset + start, data[start : start + OUTPUT_BYTES])
        self._last = time.monotonic()
        self._on_news()

    def end(self) -> None:
        """Both streams are over: what was kept of the end follows."""
        self.flush()
        while self._tail:
            frame = self._tail.popleft()
            for start in range(0, len(frame.data), OUTPUT_BYTES):
                self._keep(frame.kind, frame.offset + start, frame.data[start : start + OUTPUT_BYTES])
        self._on_news()

    def _keep(self, kind: int, offset: int, data: bytes) -> None:
        if offset > self._kept[kind]:
            self._mark_cut(kind)
        if self._frames.append(Frame(kind, False, offset, data)):
            self._kept[kind] = offset + len(data)
        else:
            self._mark_cut(kind)

    def _mark_cut(self, kind: int) -> None:
        if kind not in self._is_cut:
            self._is_cut.add(kind)
            self._frames.append(Frame(kind, True, self._kept[kind], b""))

    def _take_tail(self, kind: int, data: bytes) -> None:
        last = self._tail[-1] if self._tail else None
        if last is not None and last.kind == kind and len(last.data) + len(data) < TAIL_JOIN_BYTES:
            self._tail[-1] = last._replace(data=last.data + data)
        else:
            self._tail.append(Frame(kind, False, self.sizes[kind], data))
        self.sizes[kind] += len(data)
        self._tail_size += len(data)
        while self._tail_size > self._tail_room:
            oldest = self._tail.popleft()
            surplus = self._tail_size - self._tail_room
            rest = oldest.data[surplus:]
            self._tail_size -= len(oldest.data) - len(rest)
            if rest:
                self._tail.appendleft(Frame(oldest.kind, False, oldest.offset + len(oldest.data) - len(rest), rest))
            if oldest.kind not in self._is_cut:
                self._mark_cut(oldest.kind)
                self._on_news()


def _check(frame: Frame) -> int:
    return zlib.crc32(frame.data, zlib.crc32(b"%d.%d" % (frame.kind, frame.offset)))
