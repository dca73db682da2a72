"""The one place that touches the operating system: clocks, files, processes. Tests put faults here and nowhere else."""

# Paths are plain strings and `os` calls: pathlib would cost the resident process memory for nothing.
# ruff: noqa: PTH101, PTH102, PTH105, PTH106, PTH108, PTH115, PTH116, PTH208

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
import time
from collections.abc import Mapping
from typing import NamedTuple

SHIM_LOCK_FD = 9


class Finished(NamedTuple):
    """How a child ended. `code` is negative for a signal; `timed_out` says that it was killed by us."""

    code: int
    out: bytes
    timed_out: bool


class FileFacts(NamedTuple):
    """What decides whether a file may be trusted."""

    owner: int
    mode: int
    is_regular: bool
    size: int
    modified_ns: int


class Child:
    """A running short-lived child whose output is read through a pipe, without ever blocking the caller."""

    __slots__ = ("_chunks", "_fd", "_limit", "_pid", "_size", "started")

    def __init__(self, pid: int, fd: int, limit: int, started: float) -> None:
        self._pid = pid
        self._fd = fd
        self._limit = limit
        self._chunks: list[bytes] = []
        self._size = 0
        self.started = started

    def fileno(self) -> int:
        """Readable when `wait` has something to do; -1 once its output is closed."""
        return self._fd

    def wait(self, timeout_s: float) -> Finished | None:
        """Read until the child closes its output and ends, at most `timeout_s`; None: still running."""
        deadline = time.monotonic() + timeout_s
        while self._fd >= 0:
            left = deadline - time.monotonic()
            if not select.select([self._fd], [], [], max(0.0, left))[0]:
                return None
            chunk = os.read(self._fd, 65536)
            if chunk and self._size < self._limit:
                self._chunks.append(chunk[: self._limit - self._size])
                self._size += len(chunk)
            elif not chunk:
                os.close(self._fd)
                self._fd = -1
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                return Finished(_exit_code(status), b"".join(self._chunks), False)
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.002)

    def kill(self) -> Finished:
        """End its whole process group and reap it; a child stuck in the kernel is left to init after a second."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        finished = self.wait(1.0)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        return Finished(-signal.SIGKILL, b"" if finished is None else finished.out, True)


class System:
    """The real thing. Every change of the disk is a method of its own, so that a test can stop between any two."""

    # ---- time and chance

    def wall(self) -> float:
        """Seconds since 1970 as the host believes."""
        return time.time()

    def boottime(self) -> float:
        """Seconds since boot, sleep included: the only clock that nobody sets."""
        return time.clock_gettime(_BOOT_CLOCK)

    def thread_cpu(self) -> float:
        """Seconds of CPU that the calling thread has used."""
        return time.thread_time()

    def random_bytes(self, count: int) -> bytes:
        """From the kernel."""
        return os.urandom(count)

    def random_uuid(self) -> str:
        """A version 4 UUID."""
        raw = bytearray(self.random_bytes(16))
        raw[6] = raw[6] & 0x0F | 0x40
        raw[8] = raw[8] & 0x3F | 0x80
        text = raw.hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    # ---- files: reading

    def read(self, path: str, limit: int = 16 * 1024 * 1024) -> bytes:
        """The first `limit` bytes of a file; also of one in /proc, whose size is not known beforehand."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _read_all(fd, limit)
        finally:
            os.close(fd)

    def read_with_facts(self, path: str, limit: int) -> tuple[bytes, FileFacts]:
        """Content and facts of the very same file, whatever is renamed meanwhile."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            facts = _facts(os.fstat(fd))
            return (_read_all(fd, limit) if facts.is_regular else b""), facts
        finally:
            os.close(fd)

    def read_fd(self, fd: int, limit: int) -> bytes:
        """The next `limit` bytes of an open file."""
        return _read_all(fd, limit)

    def facts(self, path: str) -> FileFacts:
        """Owner, mode, size and time of a path."""
        return _facts(os.stat(path))

    def stamp(self, path: str) -> tuple[int, ...]:
        """What changes whenever an entry is written to or replaced."""
        found = os.stat(path, follow_symlinks=False)
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def names(self, path: str) -> list[str]:
        """What is in a directory, sorted."""
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        """Whether there is anything under this path."""
        return os.path.lexists(path)

    def link_target(self, path: str) -> str:
        """Where a symbolic link points; empty if it is none."""
        try:
            return os.readlink(path)
        except OSError:
            return ""

    def space(self, path: str) -> tuple[int, int]:
        """Total and used bytes of the file system at `path`; used counts what root may not use as free."""
        found = os.statvfs(path)
        total = found.f_blocks * found.f_frsize
        return total, total - found.f_bfree * found.f_frsize

    # ---- files: writing

    def make_dir(self, path: str) -> None:
        """A directory for root alone, on the disk when this returns; fine if it is there."""
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            os.chmod(path, 0o700)
        else:
            self.sync_dir(path.rpartition("/")[0] or "/")

    def open_append(self, path: str) -> int:
        """Open for appending, made if missing."""
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def open_new(self, path: str) -> int:
        """Open an empty file, whatever was there."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def open_fresh(self, path: str) -> int:
        """Open a file that nobody else can have open: whatever had the name loses it."""
        self.remove(path)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def dress(self, fd: int, mode: int, uid: int, gid: int) -> None:
        """Owner, group and mode of an open file; in this order, since a new owner may cost it mode bits."""
        found = os.fstat(fd)
        if (found.st_uid, found.st_gid) != (uid, gid):
            os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)

    def link(self, source: str, target: str) -> None:
        """A second name for the file, not for what a link points to."""
        os.link(source, target, follow_symlinks=False)

    def open_slots(self, path: str) -> int:
        """Open for writing in place, made if missing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, fd: int, data: bytes) -> None:
        """Write all of it at the end or where the file stands."""
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of it at `offset`."""
        view = memoryview(data)
        while view:
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done

    def sync(self, fd: int) -> None:
        """What was written to this file is on the disk when this returns."""
        os.fsync(fd)

    def sync_dir(self, path: str) -> None:
        """The names in this directory are on the disk when this returns."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self, fd: int) -> None:
        """Forget a descriptor."""
        os.close(fd)

    def lock(self, path: str) -> bool:
        """Take a lock that ends with this process, however it ends; False if another process has it."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        return True

    def replace(self, source: str, target: str) -> None:
        """Rename over whatever is there."""
        os.replace(source, target)

    def remove(self, path: str) -> None:
        """Delete a file; fine if it is gone."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def hold_lock(self, path: str) -> int | None:
        """A descriptor that holds a lock as long as anybody has a copy of it open; None if somebody has one."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def read_end(self, fd: int, limit: int) -> bytes:
        """The last `limit` bytes of an open file."""
        size = os.fstat(fd).st_size
        start = max(0, size - limit)
        return os.pread(fd, size - start, start)

    def cut_file(self, path: str, kept: str, size: int) -> None:
        """Move what is in an appended file to `kept` and empty it, under the hands of whoever writes to it.

        Of a file larger than `size` only the end is kept. What is written meanwhile is lost: a copy that tried to
        catch up with the writer might never end.
        """
        source = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            end = os.fstat(source).st_size
            target = self.open_new(f"{kept}.new")
            try:
                offset = max(0, end - size)
                while offset < end:
                    done = os.sendfile(target, source, offset, min(1024 * 1024, end - offset))
                    if not done:
                        break
                    offset += done
                os.ftruncate(source, 0)
            except OSError:
                # On a full disk of all places it must not stay.
                self.remove(f"{kept}.new")
                raise
            finally:
                os.close(target)
        finally:
            os.close(source)
        os.replace(f"{kept}.new", kept)

    def remove_tree(self, path: str) -> None:
        """Delete a directory and what is in it; links are deleted, not followed. Fine if it is gone."""
        try:
            names = os.listdir(path)
        except FileNotFoundError:
            return
        for name in names:
            inner = f"{path}/{name}"
            if stat.S_ISDIR(os.lstat(inner).st_mode):
                self.remove_tree(inner)
            else:
                os.unlink(inner)
        os.rmdir(path)

    # ---- processes

    def read_proc(self, path: str, limit: int) -> bytes:
        """A small file of /proc, whose whole content one read brings; empty if the process is gone."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return os.read(fd, limit)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def pidfd(self, pid: int) -> int | None:
        """A descriptor that becomes readable when this process ends; None if it has, or where there are none."""
        if _pidfd_open is None:
            return None
        try:
            return int(_pidfd_open(pid, 0))
        except OSError:
            return None

    def kill(self, pid: int, number: int) -> bool:
        """Send a signal to one process; False if it is gone or not ours to end."""
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def reap(self, pid: int) -> bool:
        """Take a child's remains away; True if there is nothing (more) to take."""
        try:
            return os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:
            return True

    def start_apart(self, argv: list[str], environ: Mapping[str, str], output: int, lock: int) -> int:
        """Start a process in a session of its own, with `output` as stdout and stderr and `lock` as descriptor 9."""
        actions: list[tuple[int, ...]] = [
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
            (os.POSIX_SPAWN_DUP2, lock, SHIM_LOCK_FD),
        ]
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.posix_spawn(
                argv[0],
                argv,
                environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, null, 0), *actions],
                setsid=True,
                setsigmask=[],
                setsigdef=[number for number in range(1, signal.NSIG) if number not in _NOT_RESET],
            )
        finally:
            os.close(null)

    def start(
        self,
        argv: list[str],
        stdin: bytes,
        limit: int = 1024 * 1024,
        environ: Mapping[str, str] | None = None,
        is_quiet: bool = True,
    ) -> Child:
        """Start a short-lived child in a process group of its own. `stdin` must fit a pipe, which may be made larger.

        Its stderr is ours, unless `is_quiet` is False: then both its outputs are what is read.
        """
        in_read, in_write = os.pipe2(os.O_CLOEXEC)
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        try:
            if len(stdin) > _PIPE_BYTES:
                fcntl.fcntl(in_write, _SET_PIPE_SIZE, len(stdin))
            pid = os.posix_spawnp(
                argv[0],
                argv,
                os.environ if environ is None else environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, in_read, 0),
                    (os.POSIX_SPAWN_DUP2, out_write, 1),
                    *([] if is_quiet else [(os.POSIX_SPAWN_DUP2, out_write, 2)]),
                ],
                setpgroup=0,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP],
            )
        except OSError:
            os.close(out_read)
            raise
        finally:
            os.close(in_read)
            os.close(out_write)
            with contextlib.suppress(BrokenPipeError):
                os.write(in_write, stdin)
            os.close(in_write)
        return Child(pid, out_read, limit, self.boottime())

    def run(self, argv: list[str], stdin: bytes = b"", timeout_s: float = 30.0, limit: int = 1024 * 1024) -> Finished:
        """Run a short-lived child to its end, or kill it when the time is up."""
        child = self.start(argv, stdin, limit)
        return child.wait(timeout_s) or child.kill()


def is_disk_full(error: OSError) -> bool:
    """No space, quota used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _read_all(fd: int, limit: int) -> bytes:
    chunks: list[bytes] = []
    while limit > 0:
        chunk = os.read(fd, min(limit, 1024 * 1024))
        if not chunk:
            break
        chunks.append(chunk)
        limit -= len(chunk)
    return b"".join(chunks)


def _facts(found: os.stat_result) -> FileFacts:
    return FileFacts(
        found.st_uid, stat.S_IMODE(found.st_mode), stat.S_ISREG(found.st_mode), found.st_size, found.st_mtime_ns
    )


def _exit_code(status: int) -> int:
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


# Python 3.9 knows pidfds, but only where it was built with a kernel that does.
_pidfd_open = getattr(os, "pidfd_open", None)
_PIPE_BYTES = 65536
# Python 3.9 has no name for it.
_SET_PIPE_SIZE = 1031
_NOT_RESET = (signal.SIGKILL, signal.SIGSTOP, 32, 33)
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
