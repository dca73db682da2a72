"""How the agent's state gets to the disk and back: whole files by rename, records with checksums."""

# Paths are plain strings and `os` calls: pathlib would cost the resident process memory for nothing.
# ruff: noqa: PTH102, PTH105, PTH108

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import NamedTuple

MAX_RECORD_BYTES = 4 * 1024 * 1024
SUN_PATH = 107

log = logging.getLogger("agent.disk")

_MAGIC = b"\xa5\x61"
_HEADER = struct.Struct(">2sBII")


class Record(NamedTuple):
    """One record of an append-only file: a one-byte kind, and bytes."""

    kind: int
    payload: bytes


class Found(NamedTuple):
    """What could be read of an append-only file; `damaged` counts the holes, `end` is behind the last good record."""

    records: list[Record]
    end: int
    damaged: int


class Syncer:
    """Brings files to the disk in a thread of its own, where nobody has to wait for it.

    What was written survives the death of the agent at once; this is for the power cut.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, int] = {}
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None

    def ask(self, name: str, fd: int) -> None:
        """Soon. Who has asked for the same name already, and was not served yet, is served with it."""
        with self._news:
            if name in self._waiting:
                return
            self._waiting[name] = os.dup(fd)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
                self._thread.start()
            self._news.notify()

    def _run(self) -> None:
        while True:
            with self._news:
                while not self._waiting:
                    self._news.wait()
                name = next(iter(self._waiting))
                fd = self._waiting.pop(name)
            try:
                os.fsync(fd)
            except OSError as error:
                log.warning("cannot bring %s to the disk: %s", name, error)
            finally:
                os.close(fd)


def pack_record(record: Record) -> bytes:
    """The bytes of a record."""
    crc = zlib.crc32(record.payload, zlib.crc32(bytes((record.kind,))))
    return _HEADER.pack(_MAGIC, record.kind, len(record.payload), crc) + record.payload


def scan_records(data: bytes) -> Found:
    """Read every sound record, stepping over whatever is damaged: flipped bits, zeroes, torn ends."""
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


def make_dir(path: str, mode: int = 0o700) -> None:
    """A directory of ours with its parents, on the disk when this returns; fine if it is there."""
    parent = path.rpartition("/")[0] or "/"
    if not os.path.isdir(parent):  # noqa: PTH112
        make_dir(parent, 0o755)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    sync_dir(parent)


@contextlib.contextmanager
def near(path: str) -> Iterator[str]:
    """A Unix socket's path as its address, which has room for 107 bytes: longer ones by way of their open directory."""
    if len(os.fsencode(path)) <= SUN_PATH:
        yield path
        return
    parent, _, name = path.rpartition("/")
    folder = os.open(parent or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{name}"
    finally:
        os.close(folder)


def sync_dir(path: str) -> None:
    """The names in this directory are on the disk when this returns."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_file(path: str) -> bytes:
    """The whole file; nothing if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    with open(fd, "rb", closefd=True) as file:  # noqa: PTH123
        return file.read()


def write_file(path: str, data: bytes) -> None:
    """Replace a file so that after a power cut it is the old or the new one, whole."""
    fresh = f"{path}.new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(fresh, path)
    sync_dir(path.rpartition("/")[0] or "/")


def open_append(path: str) -> int:
    """Open for appending, made if missing."""
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it where the file stands."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def remove(path: str) -> None:
    """Delete a file; fine if it is gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def is_full(error: OSError) -> bool:
    """No space, quota used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _record_at(data: bytes, offset: int) -> Record | None:
    if offset + _HEADER.size > len(data):
        return None
    magic, kind, length, crc = _HEADER.unpack_from(data, offset)
    start = offset + _HEADER.size
    if magic != _MAGIC or length > MAX_RECORD_BYTES or start + length > len(data):
        return None
    payload = data[start : start + length]
    if zlib.crc32(payload, zlib.crc32(bytes((kind,)))) != crc:
        return None
    return Record(kind, payload)
