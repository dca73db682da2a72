"""Reads logs on the host: the newest lines, those that match, those since a moment, over rotated files as well.

Every read goes backwards from the end in blocks, within bounds of bytes and time, whatever is in the file. Following a
log as it grows is the business of `logfollow`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from daemon.logtimes import time_of
from daemon.places import open_folder, open_to_read
from daemon.system import System
from protocol.times import to_text

BLOCK_BYTES = 64 * 1024
LINE_BYTES = 4 * 1024
ANSWER_BYTES = 180_000
TAIL_BYTES = 64 * 1024 * 1024
READ_BYTES = 2 * 1024 * 1024 * 1024
READ_S = 8.0
ROTATED = 10
# Lines of several writers are not strictly in order; after so many too old ones in a row nothing newer is expected.
TOO_OLD = 500

CUT = " […]"


class Line(NamedTuple):
    """A line of a log. `at`: when it says it was written, or the line before it that does."""

    text: str
    at: float | None
    has_time: bool


class Wish(NamedTuple):
    """What is wanted of a log. `query` is looked for as it stands; only the case of a–z does not count."""

    lines: int
    query: str
    since: float | None


class Bounds:
    """What one request may cost, over all its files."""

    def __init__(self, max_bytes: int = READ_BYTES, max_s: float = READ_S) -> None:
        self.bytes_left = max_bytes
        self._until = time.monotonic() + max_s
        self.are_reached = False

    def take(self, count: int) -> bool:
        """Whether that much more may be read."""
        self.bytes_left -= count
        if self.bytes_left < 0 or time.monotonic() > self._until:
            self.are_reached = True
        return not self.are_reached


class Piece(NamedTuple):
    """One line as bytes: at most its first LINE_BYTES, whether there was more, and whether it matches."""

    raw: bytes
    is_cut: bool
    is_match: bool


def read_logs(system: System, paths: list[str], wish: Wish, bounds: Bounds | None = None) -> dict[str, Any]:
    """`result.data` of `agent.logs`: the newest lines over all these files, oldest first, as much as fits an answer."""
    bounds = bounds or Bounds(READ_BYTES if wish.query or wish.since is not None else TAIL_BYTES)
    found: list[tuple[float, int, int, Line]] = []
    files: list[dict[str, Any]] = []
    current = set(current_only(paths))
    for number, path in enumerate(paths):
        size, modified = _facts(path)
        files.append({"path": path, "size": size})
        if size is not None and path in current:
            lines = read_lines(system, path, wish, bounds)
            found += [
                (at, number, index, line) for index, (at, line) in enumerate(zip(_moments(lines, modified), lines))
            ]
    found.sort(key=lambda entry: entry[:3])
    kept: list[dict[str, Any]] = []
    left = ANSWER_BYTES - len(json.dumps(files))
    for _, number, _, line in reversed(found[-wish.lines :]):
        at = to_text(line.at) if line.at is not None and line.has_time else None
        told = {"file": paths[number], "text": line.text, "at": at}
        left -= len(json.dumps(told, ensure_ascii=False).encode("utf-8")) + 1
        if left < 0:
            break
        kept.append(told)
    return {"lines": kept[::-1], "truncated": left < 0 or bounds.are_reached, "files": files}


def read_lines(system: System, path: str, wish: Wish, bounds: Bounds) -> list[Line]:
    """The newest lines of a log and of what was rotated out of it, oldest first."""
    found: list[Line] = []
    for generation in [path, *rotated(system, path)]:
        if len(found) >= wish.lines or bounds.are_reached:
            break
        if wish.since is not None and (_facts(generation)[1] or 0.0) < wish.since:
            break
        try:
            fd = open_to_read(generation)
        except OSError:
            continue
        try:
            older = _newest(system, fd, wish._replace(lines=wish.lines - len(found)), bounds)
        finally:
            os.close(fd)
        found = older + found
    return found


def rotated(system: System, path: str) -> list[str]:
    """What was rotated out of a log, newest first: `log.1`, `log.2`, `log-20260131`. Packed ones are left out."""
    parent, _, name = path.rpartition("/")
    try:
        with open_folder(parent or "/") as folder:
            entries = []
            for entry in system.names(folder.path()):
                facts = folder.facts(entry) if _is_rotated(entry, name) else None
                if facts is not None:
                    entries.append((-facts.st_mtime_ns, len(entry), entry))
    except OSError:
        return []
    return [f"{parent}/{entry}" for _, _, entry in sorted(entries)[:ROTATED]]


def current_only(paths: list[str]) -> list[str]:
    """Without those that are another one of them, rotated."""
    return [path for path in paths if not any(_is_rotated(path, other) for other in paths)]


def pieces_backwards(fd: int, end: int, query: bytes, bounds: Bounds, may_skip: bool = False) -> Iterator[Piece]:
    """The lines before byte `end`, newest first. What is beyond LINE_BYTES of a line is searched but not kept.

    `may_skip`: lines that do not match may be left out, which is much faster.
    """
    needle = query.lower()
    overlap = max(0, len(needle) - 1)
    # The beginning of the line that reaches over the last block's border, as far as it is known.
    carry, is_cut, is_match, is_first = b"", False, False, True
    position = end
    while position > 0:
        size = min(BLOCK_BYTES, position)
        if not bounds.take(size):
            return
        position -= size
        block = os.pread(fd, size, position)
        if len(block) < size:
            # Cut off under our hands (copytruncate): what was behind is gone.
            carry, is_cut, is_match = b"", False, False
        is_dull = may_skip and needle not in (block + carry[:overlap]).lower()
        parts = _ends(block) if is_dull else block.split(b"\n")
        for index in range(len(parts) - 1, -1, -1):
            part = parts[index]
            if index == len(parts) - 1:
                is_match = is_match or (not is_dull and needle in (part + carry[:overlap]).lower())
                part += carry
            else:
                is_cut, is_match = False, not is_dull and needle in part.lower()
            is_cut = is_cut or len(part) > LINE_BYTES
            carry = part[: LINE_BYTES + overlap]
            if index:
                # Behind the last line break there is a line only if somebody is writing it right now.
                if carry or not is_first:
                    yield Piece(carry[:LINE_BYTES], is_cut, is_match)
                is_first = False
    if carry or not is_first:
        yield Piece(carry[:LINE_BYTES], is_cut, is_match)


def readable(raw: bytes) -> str:
    """Bytes as text that survives the wire: no NUL, no carriage return at the end, nothing that is not UTF-8."""
    return raw.rstrip(b"\r").decode("utf-8", "replace").replace("\0", "\ufffd")


def _ends(block: bytes) -> list[bytes]:
    """As `split`, but of the lines in the middle, which do not match, only that they are there."""
    first, last = block.find(b"\n"), block.rfind(b"\n")
    return [block] if first < 0 else [block[:first], block[last + 1 :]]


def _newest(system: System, fd: int, wish: Wish, bounds: Bounds) -> list[Line]:
    now = system.wall()
    query = wish.query.encode("utf-8")
    found: list[tuple[str, float | None]] = []
    loose: list[str] = []
    size = 0
    too_old = 0
    may_skip = bool(query) and wish.since is None
    for piece in pieces_backwards(fd, os.fstat(fd).st_size, query, bounds, may_skip):
        if query and not piece.is_match and wish.since is None:
            continue
        text = readable(piece.raw) + (CUT if piece.is_cut else "")
        at = time_of(text, now)
        is_wanted = not query or piece.is_match
        if wish.since is None:
            found.append((text, at))
        elif at is None:
            # The rest of an entry whose first line comes next.
            if is_wanted and len(loose) < wish.lines:
                loose.append(text)
            continue
        elif at >= wish.since:
            too_old = 0
            found += [(rest, None) for rest in loose]
            if is_wanted:
                found.append((text, at))
            loose = []
        else:
            loose = []
            too_old += 1
            if too_old > TOO_OLD:
                break
        size += len(text)
        if len(found) >= wish.lines or size > 2 * ANSWER_BYTES:
            break
    if loose and not found and not too_old:
        # A log that tells no times at all: the file was written to since then, so its end is taken.
        found = [(text, None) for text in loose]
    return _timed(found[: wish.lines][::-1])


def _moments(lines: list[Line], modified: float) -> list[float]:
    """Where each line stands among those of other files. Its own file's order is never changed."""
    first = next((line.at for line in lines if line.at is not None), modified)
    moments: list[float] = []
    for line in lines:
        first = max(first, line.at if line.at is not None else first)
        moments.append(first)
    return moments


def _timed(found: list[tuple[str, float | None]]) -> list[Line]:
    """In order of writing: a line without a time has that of the one before it."""
    lines: list[Line] = []
    last: float | None = None
    for text, at in found:
        last = at if at is not None else last
        lines.append(Line(text, last, at is not None))
    return lines


def _facts(path: str) -> tuple[int | None, float]:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None, 0.0
    return found.st_size, found.st_mtime


def _is_rotated(name: str, log: str) -> bool:
    """`log.1`, `log.20260131`, `log-2026-01-31`, `log-20260131-12`."""
    tail = name[len(log) :]
    is_behind = name.startswith(log) and tail[:1] in (".", "-") and 1 < len(tail) <= 20
    return is_behind and all(part.isdigit() for part in tail[1:].split("-"))
