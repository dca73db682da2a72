"""A short-lived child that becomes another program: the shim, which orphans fall to, or a command of an agent.

What the agent's manifest adds to the environment comes on stdin and counts only once root has been given up: variables
like LD_PRELOAD would otherwise be a way to run code as root.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys
from typing import NoReturn

NOT_STARTED = 125
LOCK_FD = 9

_SET_CHILD_SUBREAPER = 36


def become_shim(argv: list[str], keeps_orphans: bool) -> NoReturn:
    """Children of the agent that have lost their parent become the shim's, so that they are still found; unless they
    are to go their own way.
    """
    if keeps_orphans:
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        # Whoever started the Daemon may have left it more than it knows of.
        if fd > 2 and fd != LOCK_FD and os.path.lexists(f"/proc/self/fd/{fd}"):
            os.close(fd)
    os.execv(argv[0], argv)  # noqa: S606


def become_user(name: str, argv: list[str]) -> NoReturn:
    """Give up root for good, then become the program. The output's files go to the user, who may open them again."""
    given = read_given()
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        fail(f"there is no user {name}")
    os.environ.setdefault("HOME", user.pw_dir)
    os.environ.setdefault("SHELL", user.pw_shell or "/bin/sh")
    os.environ.setdefault("USER", name)
    os.environ.setdefault("LOGNAME", name)
    if os.geteuid() != user.pw_uid or os.getuid() != user.pw_uid:
        try:
            for fd in (1, 2):
                if os.fstat(fd).st_nlink:
                    os.fchown(fd, user.pw_uid, user.pw_gid)
            os.initgroups(name, user.pw_gid)
            os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
            os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        except OSError as error:
            fail(f"cannot become {name}: {error.strerror}; only root can")
    become(argv, given)


def become_self(argv: list[str]) -> NoReturn:
    """The program as who we are."""
    become(argv, read_given())


def read_given() -> dict[bytes, bytes]:
    """The variables on stdin, which is empty afterwards."""
    with open(0, "rb") as stdin:
        words = stdin.read().split(b"\0")
    # Descriptor 0 is closed now, and the lowest that is free is taken.
    os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(0, True)
    pairs = (word.partition(b"=") for word in words if word)
    return {name: value for name, _, value in pairs}


def become(argv: list[str], given: dict[bytes, bytes]) -> NoReturn:
    """The program itself, in the whole environment."""
    os.environb.update(given)
    try:
        os.execvp(argv[0], argv)  # noqa: S606
    except OSError as error:
        fail(f"cannot run {argv[0]}: {error.strerror}", 126 if error.errno == 13 else 127)


def fail(words: str, code: int = NOT_STARTED) -> NoReturn:
    """Say why, where the agent's output goes."""
    sys.stderr.write(f"ops-scaffold: {words}\n")
    sys.exit(code)


if __name__ == "__main__":
    # Python ignores these for itself; another program must not inherit that.
    for _number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(_number, signal.SIG_DFL)
    # It also sets this where there is no locale (PEP 538).
    with open("/proc/self/environ", "rb") as _given:  # noqa: PTH123
        if b"LC_CTYPE=" not in _given.read():
            os.environ.pop("LC_CTYPE", None)
    if sys.argv[1] in ("shim", "bare-shim"):
        become_shim(sys.argv[2:], sys.argv[1] == "shim")
    if sys.argv[1] == "self":
        become_self(sys.argv[2:])
    become_user(sys.argv[2], sys.argv[3:])
