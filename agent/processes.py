"""Children: started as another user in a session of their own, and ended with everything that came of them."""

# ruff: noqa: PTH112, PTH208

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

MARK = "OPS_EXECUTION_ID"
SCRIPT = "{script}"
PIPE_BYTES = 256 * 1024

_F_SETPIPE_SZ = 1031
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class CannotStart(Exception):
    """Why nothing runs, in words for people."""


class Account(NamedTuple):
    """Who something runs as. No `uid`: as the agent itself."""

    name: str
    home: str
    shell: str
    uid: int | None
    gid: int | None
    groups: tuple[int, ...]


class Launch(NamedTuple):
    """Everything about a child to be. `script` is handed over as an open file, whose path replaces `SCRIPT` in one word
    of `argv`, the one at `script_at`.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    account: Account
    cwd: str | None
    stdin: bytes | None = None
    script: bytes | None = None
    script_at: int = 1


class Child(NamedTuple):
    """A running child and our ends of its pipes, which never block."""

    process: subprocess.Popen[bytes]
    out: int
    err: int


def account_of(name: str | None) -> Account:
    """The account of that name, or the agent's own. Raises CannotStart."""
    try:
        found = pwd.getpwuid(os.geteuid()) if name is None else pwd.getpwnam(name)
    except KeyError:
        if name is None:
            return Account(str(os.geteuid()), "/", "/bin/sh", None, None, ())
        raise CannotStart(f"there is no user {name} on this host") from None
    if found.pw_uid == os.geteuid():
        return Account(found.pw_name, found.pw_dir, found.pw_shell or "/bin/sh", None, None, ())
    if os.geteuid() != 0:
        raise CannotStart(f"cannot become {name}: the agent does not run as root")
    groups = tuple(os.getgrouplist(found.pw_name, found.pw_gid))
    return Account(found.pw_name, found.pw_dir, found.pw_shell or "/bin/sh", found.pw_uid, found.pw_gid, groups)


def environment(account: Account, mark: str, extra: Mapping[str, str]) -> dict[str, str]:
    """A clean environment; what the agent itself was started with is nobody's business."""
    found = {
        "PATH": os.environ.get("PATH", _DEFAULT_PATH) if account.uid is None else _DEFAULT_PATH,
        "LANG": "C.UTF-8",
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": account.shell,
    }
    return {**found, **extra, MARK: mark}


def open_file_of(content: bytes, name: str) -> int:
    """A descriptor to read the content from; a file without a name, so nothing is left behind whatever happens."""
    made = getattr(os, "memfd_create", None)
    if made is not None:
        fd = int(made(name, os.MFD_CLOEXEC))
    else:
        # It gets no name there.
        fd = os.open("/tmp", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)  # noqa: S108  # nosec B108
        os.fchmod(fd, 0o444)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def start(launch: Launch) -> Child:
    """Start it; when this returns its first instruction is under way. Raises CannotStart."""
    ours: list[int] = []
    theirs: list[int] = []
    try:
        for _ in range(2):
            read, write = os.pipe2(os.O_CLOEXEC)
            ours.append(read)
            theirs.append(write)
            os.set_blocking(read, False)
            with contextlib.suppress(OSError):
                fcntl.fcntl(read, _F_SETPIPE_SZ, PIPE_BYTES)
        stdin = subprocess.DEVNULL
        if launch.stdin is not None:
            stdin = open_file_of(launch.stdin, "ops-input")
            theirs.append(stdin)
        argv = list(launch.argv)
        passed: tuple[int, ...] = ()
        if launch.script is not None:
            fd = open_file_of(launch.script, "ops-script")
            theirs.append(fd)
            argv[launch.script_at] = argv[launch.script_at].replace(SCRIPT, f"/dev/fd/{fd}")
            passed = (fd,)
        return Child(_spawn(launch, argv, passed, stdin, theirs), ours[0], ours[1])
    except OSError as error:
        _close(ours)
        place = f"{error.filename!r}: " if error.filename else ""
        raise CannotStart(f"cannot start: {place}{error.strerror or error}") from None
    except subprocess.SubprocessError as error:
        _close(ours)
        raise CannotStart(f"cannot start: {error}") from None
    finally:
        _close(theirs)


def _spawn(
    launch: Launch, argv: list[str], passed: tuple[int, ...], stdin: int, ends: list[int]
) -> subprocess.Popen[bytes]:
    account = launch.account
    cwd = launch.cwd or (account.home if os.path.isdir(account.home) else "/")
    who: dict[str, object] = {}
    if account.uid is not None:
        who = {"user": account.uid, "group": account.gid, "extra_groups": list(account.groups)}
    process: subprocess.Popen[bytes] = subprocess.Popen(
        argv,
        env=dict(launch.env),
        cwd=cwd,
        stdin=stdin,
        stdout=ends[0],
        stderr=ends[1],
        pass_fds=passed,
        start_new_session=True,
        umask=0o022,
        **who,  # type: ignore[call-overload]
    )
    return process


def owner_ids(text: str) -> tuple[int, int]:
    """`user` or `user:group` as numbers; -1 leaves the group as it is. Raises CannotStart."""
    user, _, group = text.partition(":")
    try:
        return pwd.getpwnam(user).pw_uid, (grp.getgrnam(group).gr_gid if group else -1)
    except KeyError as error:
        raise CannotStart(f"there is no such account: {error.args[0]}") from None


class Family:
    """All processes that came of one child: by session, group, descent, and the mark in their environment.

    A process that left the session, lost its parents *and* cleared its environment is nobody's any more.
    """

    def __init__(self, mark: str, leader: int | None) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._leader = leader
        found = _stat(str(leader)) if leader is not None else None
        self._start = found[3] if found is not None else None
        self._known: set[tuple[int, int]] = set()

    def signal(self, number: int) -> int:
        """Send a signal to every one of them; how many there are."""
        members = self._members()
        if self._leader is not None and self._leader in members.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._leader, number)
        for pid, group in members.items():
            if group != self._leader:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        return len(members)

    def _members(self) -> dict[int, int]:
        """Their pids and process groups."""
        table: dict[int, tuple[int, int, int, int]] = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                found = _stat(name)
                if found is not None:
                    table[int(name)] = found
        leader = self._leader
        if leader in table and table[leader][3] != self._start:
            # Another process has this pid by now, so no group or session of ours bears it any more.
            leader = None
        chosen: set[int] = set()
        for pid, (_, group, session, start) in table.items():
            if (
                (leader is not None and leader in (pid, group, session))
                or (pid, start) in self._known
                or self._is_marked(pid)
            ):
                chosen.add(pid)
        grown = True
        while grown:
            more = {pid for pid, found in table.items() if pid not in chosen and found[0] in chosen}
            chosen |= more
            grown = bool(more)
        chosen.discard(os.getpid())
        self._known = {(pid, table[pid][3]) for pid in chosen}
        return {pid: table[pid][1] for pid in chosen}

    def _is_marked(self, pid: int) -> bool:
        environ = _read(f"/proc/{pid}/environ", 1024 * 1024)
        return environ.startswith(self._mark + b"\0") or b"\0" + self._mark + b"\0" in environ


def _stat(pid: str) -> tuple[int, int, int, int] | None:
    """Parent, group, session and start time; None for zombies and what has gone."""
    words = _read(f"/proc/{pid}/stat", 1024).rpartition(b")")[2].split()
    if len(words) < 20 or words[0] in (b"Z", b"X"):
        return None
    return int(words[1]), int(words[2]), int(words[3]), int(words[19])


def _read(path: str, limit: int) -> bytes:
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


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
