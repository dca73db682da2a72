"""Faulty operating systems: one that dies at a chosen step, one whose disk forgets what was not synced, a full one."""

import errno
import os
from collections.abc import Callable
from typing import Any

from daemon.system import FileFacts, System

STEPS = (
    "open_append",
    "open_new",
    "open_fresh",
    "open_slots",
    "dress",
    "link",
    "write",
    "write_at",
    "sync",
    "sync_dir",
    "replace",
    "remove",
)


# A slot is torn inside its header and text, not in the padding behind them.
TORN_BYTES = 30


class HastySystem(System):
    """For tests that write much and ask nothing about durability."""

    def sync(self, fd: int) -> None:
        return

    def sync_dir(self, path: str) -> None:
        return


class Died(BaseException):
    """The process or the machine ends here."""


class StepSystem(System):
    """Calls `on_step` before every change of the disk; at a write, the first half is written before it."""

    def __init__(self, on_step: Callable[[str], None]) -> None:
        self.on_step = on_step

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name not in STEPS:
            return found
        on_step = object.__getattribute__(self, "on_step")

        def step(*args: Any) -> Any:
            if name == "write" and len(args[1]) > 1:
                half = len(args[1]) // 2
                found(args[0], args[1][:half])
                on_step(name)
                return found(args[0], args[1][half:])
            if name == "write_at" and len(args[1]) > TORN_BYTES:
                half = TORN_BYTES
                found(args[0], args[1][:half], args[2])
                on_step(name)
                return found(args[0], args[1][half:], args[2] + half)
            on_step(name)
            return found(*args)

        return step


def dies_at(step: int, die: Callable[[], None]) -> Callable[[str], None]:
    """For `on_step`: the step-th change of the disk does not happen."""
    left = step

    def on_step(_: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            die()

    return on_step


class _Inode:
    def __init__(self) -> None:
        self.content = bytearray()
        self.synced: bytes | None = None


class ForgetfulDisk(System):
    """A disk in memory that keeps apart what was written and what would survive a power cut.

    After `cut`, a name survives if its directory was synced, contents if the file was; `names` and `contents` say what
    becomes of the rest, since real file systems differ in what they happen to write early.
    """

    def __init__(self) -> None:
        self.names_now: dict[str, _Inode] = {}
        self.names_synced: dict[str, _Inode] = {}
        self.folders: set[str] = {"/state"}
        self.files: dict[int, tuple[_Inode, bool]] = {}
        self.next_fd = 100
        self.dies_in = 0
        self.steps = 0

    def cut(self, names: bool, contents: bool) -> None:
        """The power fails and comes back."""
        survivors = {**self.names_synced, **self.names_now} if names else dict(self.names_synced)
        if names:
            survivors = dict(self.names_now)
        for inode in set(self.names_now.values()) | set(self.names_synced.values()):
            if not contents:
                inode.content = bytearray(inode.synced or b"")
            inode.synced = bytes(inode.content)
        self.names_now, self.names_synced = dict(survivors), dict(survivors)
        self.files.clear()
        self.dies_in = 0

    def _step(self) -> None:
        self.steps += 1
        if self.dies_in:
            self.dies_in -= 1
            if self.dies_in == 0:
                raise Died

    def _open(self, path: str, is_append: bool, is_new: bool) -> int:
        self._step()
        inode = self.names_now.get(path)
        if inode is None:
            inode = self.names_now[path] = _Inode()
        if is_new:
            inode.content = bytearray()
        self.next_fd += 1
        self.files[self.next_fd] = (inode, is_append)
        return self.next_fd

    # ---- System

    def read(self, path: str, limit: int = 1 << 24) -> bytes:
        if path not in self.names_now:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return bytes(self.names_now[path].content[:limit])

    def names(self, path: str) -> list[str]:
        prefix = path + "/"
        return sorted(name[len(prefix) :] for name in self.names_now if name.startswith(prefix))

    def exists(self, path: str) -> bool:
        return path in self.names_now or path in self.folders

    def facts(self, path: str) -> FileFacts:
        return FileFacts(0, 0o600, True, len(self.names_now[path].content), 0)

    def make_dir(self, path: str) -> None:
        self.folders.add(path)

    def open_append(self, path: str) -> int:
        return self._open(path, True, False)

    def open_new(self, path: str) -> int:
        return self._open(path, True, True)

    def open_slots(self, path: str) -> int:
        return self._open(path, False, False)

    def write(self, fd: int, data: bytes) -> None:
        half = len(data) // 2
        self.files[fd][0].content += data[:half]
        self._step()
        self.files[fd][0].content += data[half:]

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        content, half = self.files[fd][0].content, min(TORN_BYTES, len(data) // 2)
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset : offset + half] = data[:half]
        self._step()
        content[offset : offset + len(data)] = data

    def sync(self, fd: int) -> None:
        self._step()
        self.files[fd][0].synced = bytes(self.files[fd][0].content)

    def sync_dir(self, path: str) -> None:
        self._step()
        prefix = path + "/"
        kept = {name: inode for name, inode in self.names_synced.items() if not name.startswith(prefix)}
        self.names_synced = {
            **kept,
            **{name: inode for name, inode in self.names_now.items() if name.startswith(prefix)},
        }

    def close(self, fd: int) -> None:
        self.files.pop(fd, None)

    def replace(self, source: str, target: str) -> None:
        self._step()
        self.names_now[target] = self.names_now.pop(source)

    def remove(self, path: str) -> None:
        self._step()
        self.names_now.pop(path, None)


class FullDisk(System):
    """A real disk that can be filled and emptied. In-place writes go on, as they do on a full file system."""

    def __init__(self) -> None:
        self.is_full = False
        self.is_torn = False
        self.error = errno.ENOSPC

    def _check(self) -> None:
        if self.is_full:
            raise OSError(self.error, os.strerror(self.error))

    def open_append(self, path: str) -> int:
        if not self.exists(path):
            self._check()
        return super().open_append(path)

    def open_new(self, path: str) -> int:
        self._check()
        return super().open_new(path)

    def write(self, fd: int, data: bytes) -> None:
        if self.is_full and self.is_torn:
            super().write(fd, data[: len(data) // 2])
        self._check()
        super().write(fd, data)


class FixedClocks(System):
    """Clocks that tests set."""

    def __init__(self, wall: float = 1_700_000_000.0, boottime: float = 1000.0) -> None:
        self.wall_s, self.boottime_s = wall, boottime

    def wall(self) -> float:
        return self.wall_s

    def boottime(self) -> float:
        return self.boottime_s

    def forward(self, seconds: float) -> None:
        self.wall_s += seconds
        self.boottime_s += seconds
