"""Files on disk that people and hosts bring: under names of our own making, written once, read by range.

What they are, whose they are and for how long is for the feature that keeps a row about each.
"""

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from app.kernel.clock import now
from app.kernel.errors import TooLarge

PLACE_BYTES = 16
PLACE = re.compile(r"[0-9a-f]{32}")
YIELD_BYTES = 1024 * 1024
MODE, DIRECTORY_MODE = 0o640, 0o750


def new_place() -> str:
    """A name that nobody chose and nobody guesses."""
    return secrets.token_hex(PLACE_BYTES)


def path_of(root: Path, place: str) -> Path:
    if not PLACE.fullmatch(place):
        raise ValueError(f"not a place: {place!r}")
    return root / place[:2] / place


class Incoming:
    """A file on its way in. Whatever parses a request may write to it as to any file; use it as a context."""

    def __init__(self, root: Path, most: int) -> None:
        self.place, self._most = new_place(), most
        self._path = path_of(root, self.place)
        self._path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "wb")
        self._digest, self._since_yield = hashlib.sha256(), 0
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes) -> int:
        """Raises TooLarge for more than is allowed."""
        self.size += len(data)
        if self.size > self._most:
            raise TooLarge
        self._file.write(data)
        self._digest.update(data)
        self._since_yield += len(data)
        if self._since_yield >= YIELD_BYTES:
            self._since_yield = 0
            time.sleep(0)  # others have requests too
        return len(data)

    def seek(self, offset: int, _whence: int = 0) -> int:
        """For parsers that hand over what they wrote, from its beginning."""
        return offset

    def keep(self) -> None:
        """All of it is on the disk, and its name as well."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sync_directory(self._path.parent)

    def discard(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, _error: object, _trace: object) -> None:
        if kind is not None:
            self.discard()


def write_at(path: Path, offset: int, data: bytes) -> None:
    """A piece of a file that comes in pieces."""
    path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, MODE)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written
    finally:
        os.close(fd)


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def finished_digest(path: Path) -> str:
    """Of all that came, which is on the disk from now on."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(YIELD_BYTES):
            digest.update(data)
            time.sleep(0)
        os.fsync(file.fileno())
    sync_directory(path.parent)
    return digest.hexdigest()


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(root: Path, place: str) -> None:
    path_of(root, place).unlink(missing_ok=True)


def old_places(root: Path, older_than: timedelta) -> Iterator[str]:
    """Names of all files that have not been written to for so long."""
    before = now() - older_than
    for folder in sorted(root.glob("[0-9a-f][0-9a-f]")):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                if PLACE.fullmatch(path.name) and datetime.fromtimestamp(path.stat().st_mtime, before.tzinfo) < before:
                    yield path.name
