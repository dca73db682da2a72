"""Files of the host, opened so that neither `..` nor a symbolic link leads out of what the capability file allows."""

# ruff: noqa: PTH118

from __future__ import annotations

import errno
import os
import stat

from agent.executors.forbidden import Forbidden
from protocol.capabilities import matches_file


class Place:
    """An open directory and a name in it: what is done to it cannot be led astray by whoever renames directories."""

    __slots__ = ("folder", "name", "path")

    def __init__(self, folder: int, name: str, path: str) -> None:
        self.folder = folder
        self.name = name
        self.path = path

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.folder)

    def facts(self) -> os.stat_result | None:
        """Of the entry itself; None if there is none."""
        try:
            return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
        """Open the entry, never through a link, never waiting for anything."""
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        return os.open(self.name, flags, mode, dir_fd=self.folder)

    def open_regular(self) -> int:
        """Open a regular file for reading."""
        fd = self.open()
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "is not a regular file", self.path)
        return fd

    def beside(self, name: str) -> Place:
        """Another name in the same directory."""
        return Place(os.dup(self.folder), name, os.path.join(os.path.dirname(self.path), name))  # noqa: PTH120

    def sync(self) -> None:
        """The names in this directory are on the disk when this returns."""
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.folder)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def find(path: str, patterns: tuple[str, ...], is_entry: bool = False) -> Place:
    """The place that an absolute path means, links resolved. Raises Forbidden if it, or where it leads, is not allowed.

    `is_entry`: the last name is meant itself, also if it is a link (to delete it, say).
    """
    steps = path.split("/")
    if not path.startswith("/") or ".." in steps or "\0" in path:
        raise Forbidden(f"{path!r} is not a plain absolute path")
    plain = "/" + "/".join(step for step in steps if step not in ("", "."))
    _check(plain, plain, patterns)
    parent, _, name = plain.rpartition("/")
    if is_entry:
        real = f"{os.path.realpath(parent or '/').rstrip('/')}/{name}"
    else:
        real = os.path.realpath(plain)
    _check(real, plain, patterns)
    parent, _, name = real.rpartition("/")
    if not name:
        raise Forbidden("the root directory is not a place to work on")
    return Place(_walk(parent or "/"), name, real)


def _check(path: str, asked: str, patterns: tuple[str, ...]) -> None:
    if not matches_file(path, patterns):
        led = "" if path == asked else ", which leads out of what is allowed"
        raise Forbidden(f"this host does not allow {asked}{led}")


def _walk(path: str) -> int:
    """Descriptor of a directory, step by step; what became a link since it was resolved is refused."""
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for step in path.split("/"):
            if step:
                following = os.open(step, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = following
    except OSError as error:
        os.close(fd)
        raise OSError(error.errno, error.strerror, path) from None
    except BaseException:
        os.close(fd)
        raise
    return fd
