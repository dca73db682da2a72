"""Opens files and directories that others may have laid out, step by step, so that no symbolic link leads root astray.

A link counts only if it belongs to root or to the Daemon's own user; with `may_follow_owner` also to whoever owns the
file behind it, since he could have handed that out anyway.
"""

# Paths are plain strings and `os` calls: pathlib would cost the resident process memory for nothing.
# ruff: noqa: PTH115

from __future__ import annotations

import errno
import os
import stat

MOST_LINKS = 16


class PlaceError(OSError):
    """What stands there is not what it should be."""


class Folder:
    """An open directory. Paths made by `path` reach into this very directory, whatever is renamed meanwhile."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def path(self, name: str = "") -> str:
        """For calls that take a path; of no use to other processes."""
        return f"/proc/self/fd/{self._fd}/{name}" if name else f"/proc/self/fd/{self._fd}"

    def facts(self, name: str) -> os.stat_result | None:
        """Of the entry itself, not of what a link points to; None if there is none."""
        try:
            return os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def link(self, name: str, other: str) -> None:
        """A second name for a file."""
        os.link(name, other, src_dir_fd=self._fd, dst_dir_fd=self._fd, follow_symlinks=False)

    def open(self, name: str) -> int:
        """Open a regular file for reading, not through a link, never waiting for anything."""
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=self._fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise PlaceError(errno.EINVAL, "is not a regular file", name)
        return fd


def open_folder(path: str) -> Folder:
    """The directory of an absolute path. OSError if it is not there, or if somebody's link stands in the way."""
    return Folder(_walk(path, None))


def open_to_read(path: str) -> int:
    """A regular file for reading, through links as well. The caller closes it."""
    owners: set[int] = set()
    parent, _, name = path.rpartition("/")
    for _step in range(MOST_LINKS):
        with Folder(_walk(parent or "/", owners)) as folder:
            found = folder.facts(name)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if not stat.S_ISLNK(found.st_mode):
                fd = folder.open(name)
                if owners - {os.fstat(fd).st_uid}:
                    os.close(fd)
                    raise PlaceError(errno.EACCES, "a link of another user leads there", path)
                return fd
            _note_owner(found.st_uid, owners)
            target = os.readlink(folder.path(name))
        parent, _, name = (target if target.startswith("/") else f"{parent}/{target}").rpartition("/")
        if name in ("", ".", ".."):
            raise PlaceError(errno.EISDIR, "is not a regular file", path)
    raise PlaceError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _walk(path: str, owners: set[int] | None) -> int:
    """Descriptor of a directory. Owners of links that are neither root nor we go to `owners`."""
    todo = [part for part in path.split("/")[::-1] if part]
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    links = 0
    try:
        while todo:
            part = todo.pop()
            found = os.stat(part, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > MOST_LINKS:
                    raise PlaceError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                _note_owner(found.st_uid, owners)
                target = os.readlink(part, dir_fd=fd)
                todo += [step for step in target.split("/")[::-1] if step]
                if not target.startswith("/"):
                    continue
                part = "/"
            following = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = following
    except BaseException:
        os.close(fd)
        raise
    return fd


def _note_owner(owner: int, owners: set[int] | None) -> None:
    if owner in (0, os.geteuid()):
        return
    if owners is None:
        raise PlaceError(errno.EACCES, "a link of another user stands in the way")
    owners.add(owner)
