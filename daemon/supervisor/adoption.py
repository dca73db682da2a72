"""Finds the process that somebody else started: by pid file, name or command line; all that is given must fit.

Names, command lines and many pid files are any user's to choose, so it also matters whose process it is.
"""

from __future__ import annotations

import os
import pwd
import re

from daemon.places import open_to_read
from daemon.supervisor.processes import Identity, Process, ProcessTable
from daemon.system import System
from protocol.manifests import Adopt, count_repeats

# How much of a command line a pattern may look at: each repetition costs a power of it.
_SEARCHED = (32768, 8192, 1024)

_TRUSTED = frozenset({0, os.geteuid()})


def find_process(system: System, processes: ProcessTable, adopt: Adopt, user: str | None, own: frozenset[int]
                 ) -> Identity | None:  # fmt: skip
    """The process, the oldest of several; None if there is none. Neither init nor `own` processes are ever meant.

    It must be `user`'s. Without one anybody's may be watched, but only root's or our own controlled.
    """
    owners = _owners(user, adopt.control)
    if adopt.pid_file is not None:
        pid, writer = _pid_in(system, adopt.pid_file)
        if writer not in _TRUSTED:
            # Who writes the file must not point at somebody else's process.
            owners = frozenset({writer}) if owners is None else owners & {writer}
        found = processes.one(pid)
        candidates = [] if found is None else [found]
    else:
        candidates = list(processes.read().values())
    fitting = [
        one for one in candidates
        if one.pid > 1 and one.pid not in own and _fits(processes, one, adopt)
        and (owners is None or processes.users(one.pid) <= owners)
    ]  # fmt: skip
    # The parent of several of the same name came first.
    best = min(fitting, key=lambda one: (one.start, one.pid), default=None)
    return None if best is None else Identity(best.pid, best.start)


def _fits(processes: ProcessTable, one: Process, adopt: Adopt) -> bool:
    if adopt.process is not None and processes.name(one.pid) != adopt.process[:15]:
        return False
    if adopt.command_line is None:
        return True
    line = processes.command_line(one.pid)[: _SEARCHED[min(count_repeats(adopt.command_line), 2)]]
    return re.search(adopt.command_line, line) is not None


def _owners(user: str | None, is_controlled: bool) -> frozenset[int] | None:
    """Whose processes are meant; None: anybody's."""
    if user is None:
        return _TRUSTED if is_controlled else None
    try:
        return frozenset({pwd.getpwnam(user).pw_uid})
    except KeyError:
        return frozenset()


def _pid_in(system: System, path: str) -> tuple[int, int]:
    """The pid and whose word it is; 0 if the file says nothing that makes sense."""
    try:
        # Never waits: it may be a pipe that nobody writes to.
        fd = open_to_read(path)
    except OSError:
        return 0, 0
    try:
        word = system.read_fd(fd, 64).split()[:1]
        return int(word[0]) if word and word[0].isdigit() and len(word[0]) < 10 else 0, os.fstat(fd).st_uid
    except OSError:
        return 0, 0
    finally:
        system.close(fd)
