"""A log as bytes for a stream: followed as it grows, over every kind of rotation, or handed out whole."""

from __future__ import annotations

import os

from daemon.logreader import Bounds, pieces_backwards
from daemon.places import open_to_read

PIECE_BYTES = 64 * 1024
LONGEST_LINE = 64 * 1024
LOOK_BACK_BYTES = 16 * 1024 * 1024
LOOK_BACK_S = 2.0
MARK_BYTES = 256
COPIED_BYTES = 1024 * 1024


class Follower:
    """One file that grows, or does not exist yet. `read` never waits and brings whole lines."""

    def __init__(self, path: str, query: bytes, first_lines: int) -> None:
        self._path = path
        self._needle = query.lower()
        self._fd = open_quietly(self._path)
        self._offset = 0
        self._rest = b""
        # The last bytes before the offset: by them what was read is found again in a copy.
        self._mark = b""
        self._first = b"" if self._fd < 0 else self._last_lines(first_lines)

    def read(self, max_bytes: int) -> bytes:
        """What was written since the last call, as far as it matches; empty if there is nothing just now."""
        found = [self._first]
        size, self._first = len(self._first), b""
        while size < max_bytes:
            raw = self._next()
            if not raw:
                break
            found.append(self._matching(raw))
            size += len(found[-1])
        return b"".join(found)

    def close(self) -> None:
        """Forget the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _last_lines(self, count: int) -> bytes:
        """The newest whole lines; what comes behind them is read next."""
        size = os.fstat(self._fd).st_size
        start = max(0, size - LONGEST_LINE)
        tail = os.pread(self._fd, size - start, start)
        self._offset = start + len(tail) - len(tail.rpartition(b"\n")[2]) if b"\n" in tail else size
        self._mark = tail[: self._offset - start][-MARK_BYTES:]
        found: list[bytes] = []
        for piece in pieces_backwards(
            self._fd, self._offset, self._needle, Bounds(LOOK_BACK_BYTES, LOOK_BACK_S), bool(self._needle)
        ):
            if len(found) >= count:
                break
            if piece.is_match:
                found.append(piece.raw + b"\n")
        return b"".join(found[::-1])

    def _next(self) -> bytes:
        if self._fd < 0:
            self._fd = open_quietly(self._path)
            if self._fd < 0:
                return b""
        if os.fstat(self._fd).st_size < self._offset:
            # Cut off in place (copytruncate): it begins again, but first comes what only the copy has.
            missed = self._copied()
            self._offset, self._mark = 0, b""
            if missed:
                return missed if missed.endswith(b"\n") else missed + b"\n"
            self._rest = b""
        raw = os.pread(self._fd, PIECE_BYTES, self._offset)
        self._offset += len(raw)
        self._mark = (self._mark + raw)[-MARK_BYTES:]
        if raw or not self._has_switched():
            return raw
        # The old one was read to its end; it may have ended in the middle of a line.
        left, self._rest = self._rest, b""
        return left + b"\n" if left else self._next()

    def _copied(self) -> bytes:
        """What was written after the last look and before the file was cut, if `log.1` is the copy of it."""
        fd = open_quietly(self._path + ".1") if self._mark else -1
        if fd < 0:
            return b""
        try:
            size = os.fstat(fd).st_size
            start = max(0, size - COPIED_BYTES)
            copied = os.pread(fd, size - start, start)
        finally:
            os.close(fd)
        found = copied.rfind(self._mark)
        return b"" if found < 0 else copied[found + len(self._mark) :]

    def _has_switched(self) -> bool:
        """Whether another file has taken the name. The old one stays open until then: its number cannot come back."""
        fresh = open_quietly(self._path)
        if fresh < 0:
            return False
        if os.path.samestat(os.fstat(fresh), os.fstat(self._fd)):
            os.close(fresh)
            return False
        os.close(self._fd)
        self._fd, self._offset, self._mark = fresh, 0, b""
        return True

    def _matching(self, raw: bytes) -> bytes:
        whole, line_break, self._rest = (self._rest + raw).rpartition(b"\n")
        if not line_break and len(self._rest) > LONGEST_LINE:
            # A line without an end is handed on in pieces.
            whole, self._rest = self._rest, b""
        if not self._needle or not whole:
            return whole + line_break
        found = [line for line in whole.split(b"\n") if self._needle in line.lower()]
        return b"".join(line + b"\n" for line in found)


class FollowedFiles:
    """Several logs at once. Where the file changes, a line says which one comes next."""

    is_over = False

    def __init__(self, paths: list[str], query: str, first_lines: int) -> None:
        self._all = [(path, Follower(path, query.encode("utf-8"), first_lines)) for path in paths]
        self._last = paths[0] if len(paths) == 1 else ""

    def read(self, max_bytes: int) -> bytes:
        """New lines of any of them."""
        found = b""
        for path, follower in self._all:
            lines = follower.read(max_bytes - len(found)) if len(found) < max_bytes else b""
            if lines and path != self._last:
                found += f"==> {path} <==\n".encode("utf-8", "surrogateescape")
                self._last = path
            found += lines
        return found

    def close(self) -> None:
        """Forget them."""
        for _, follower in self._all:
            follower.close()


class WholeFile:
    """One file as it was when it was opened, byte for byte. OSError if it cannot be."""

    def __init__(self, path: str) -> None:
        self._fd = open_to_read(path)
        self._left = os.fstat(self._fd).st_size
        self._offset = 0

    @property
    def is_over(self) -> bool:
        """Whether all of it was read."""
        return self._left <= 0

    def read(self, max_bytes: int) -> bytes:
        """The next bytes. A file that shrinks meanwhile ends there."""
        raw = os.pread(self._fd, min(max_bytes, self._left), self._offset)
        self._offset += len(raw)
        self._left = self._left - len(raw) if raw else 0
        return raw

    def close(self) -> None:
        """Forget it."""
        os.close(self._fd)


def open_quietly(path: str) -> int:
    """A descriptor, or -1."""
    try:
        return open_to_read(path)
    except OSError:
        return -1
