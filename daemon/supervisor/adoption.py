"""Finds the process that somebody else started: by pid file, name or command line; all that is given must fit."""

from __future__ import annotations

import re

from daemon.supervisor.processes import Identity, Process, ProcessTable
from daemon.system import System
from protocol.manifests import Adopt, count_repeats

# How much of a command line a pattern may look at: each repetition costs a power of it.
_SEARCHED = (32768, 8192, 1024)


def find_process(system: System, processes: ProcessTable, adopt: Adopt, own: frozenset[int]) -> Identity | None:
    """The process, the oldest of several; None if there is none. Neither init nor `own` processes are ever meant."""
    if adopt.pid_file is not None:
        found = processes.one(_pid_in(system, adopt.pid_file))
        candidates = [] if found is None else [found]
    else:
        candidates = list(processes.read().values())
    fitting = [one for one in candidates if one.pid > 1 and one.pid not in own and _fits(processes, one, adopt)]
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


def _pid_in(system: System, path: str) -> int:
    """0 if the file says nothing that makes sense."""
    try:
        word = system.read(path, 64).split()[:1]
        return int(word[0]) if word and word[0].isdigit() and len(word[0]) < 10 else 0
    except OSError:
        return 0
