"""Files of the host, opened so that neither `..` nor a symbolic link leads out of what the capability file allows.

A link counts only if it belongs to root or to the agent's own user; for reading also if it belongs to whoever owns the
directory it leads to, since he could have put the file there himself. Anybody else's would lead root astray.
"""

# ruff: noqa: PTH118

from __future__ import annotations

import errno
import os
import stat

from agent.executors.forbidden import Forbidden
from protocol.capabilities import matches_file

MOST_LINKS = 16

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


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

    def open_itself(self) -> int:
        """A descriptor that only stands for the entry, also if it is a link."""
        return os.open(self.name, _PATH, dir_fd=self.folder)

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


def find(path: str, patterns: tuple[str, ...], is_entry: bool = False, is_read: bool = False) -> Place:
    """The place that an absolute path means, links resolved. Raises Forbidden if it, or where it leads, is not allowed;
    PermissionError if somebody's link stands in the way.

    `is_entry`: the last name is meant itself, also if it is a link (to delete it, say).
    `is_read`: nothing will be changed there.
    """
    steps = path.split("/")
    if not path.startswith("/") or ".." in steps or "\0" in path:
        raise Forbidden(f"{path!r} is not a plain absolute path")
    steps = [step for step in steps if step not in ("", ".")]
    plain = "/" + "/".join(steps)
    _check(plain, plain, patterns)
    # Every directory on the way stays open until the end, so that `..` of a link goes back where we came from.
    folders = [os.open("/", _PATH | os.O_DIRECTORY)]
    try:
        names, owners = _walk(folders, steps, plain, is_entry)
        real = "/" + "/".join(names)
        _check(real, plain, patterns)
        if not names:
            raise Forbidden("the root directory is not a place to work on")
        if len(names) > len(folders):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), plain)
        folder = folders[len(names) - 1]
        if owners and (not is_read or owners != {os.fstat(folder).st_uid}):
            raise PermissionError(errno.EACCES, "a symbolic link of another user stands in the way", plain)
        return Place(os.dup(folder), names[-1], real)
    finally:
        for fd in folders:
            os.close(fd)


def _check(path: str, asked: str, patterns: tuple[str, ...]) -> None:
    if not matches_file(path, patterns):
        led = "" if path == asked else ", which leads out of what is allowed"
        raise Forbidden(f"this host does not allow {asked}{led}")


def _walk(folders: list[int], steps: list[str], path: str, is_entry: bool) -> tuple[list[str], set[int]]:
    """Go on from the root in `folders`, which grows. The names on the way, and whose links besides ours and root's.

    The way ends at what is no directory or not there; the names go on, so that they can be checked.
    """
    todo = steps[::-1]
    names: list[str] = []
    owners: set[int] = set()
    links = 0
    while todo:
        step = todo.pop()
        if step == "..":
            if names:
                names.pop()
                os.close(folders.pop())
            continue
        fd = None if is_entry and not todo else _open(step, folders[-1])
        if fd is None:
            return [*names, step, *todo[::-1]], owners
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            folders.append(fd)
            names.append(step)
            continue
        # By the descriptor: whose the link is and where it leads must be told of the same link.
        target = os.readlink("", dir_fd=fd) if stat.S_ISLNK(found.st_mode) else None
        os.close(fd)
        if target is None:
            return [*names, step, *todo[::-1]], owners
        links += 1
        if links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        owners |= {found.st_uid} - {0, os.geteuid()}
        todo += [word for word in target.split("/")[::-1] if word not in ("", ".")]
        if target.startswith("/"):
            names.clear()
            while len(folders) > 1:
                os.close(folders.pop())
    return names, owners


def _open(name: str, folder: int) -> int | None:
    """A descriptor that stands for the entry itself, whatever it is; None if there is none."""
    try:
        # As a directory first: only so is mounted what is mounted on demand.
        return os.open(name, _PATH | os.O_DIRECTORY, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise OSError(error.errno, error.strerror, name) from None
    try:
        return os.open(name, _PATH, dir_fd=folder)
    except FileNotFoundError:
        return None
