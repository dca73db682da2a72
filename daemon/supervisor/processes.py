"""Who is who among the host's processes: identity by pid and start time, the members of an agent, what they use."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from daemon.system import System

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_KERNEL_THREADS = 2


class Process(NamedTuple):
    """One line of the table. Times are clock ticks, `start` since boot: with the pid it names a process for good."""

    pid: int
    ppid: int
    group: int
    session: int
    start: int
    ticks: int
    child_ticks: int
    rss_bytes: int
    is_zombie: bool


class Identity(NamedTuple):
    """A process of this boot that is never mistaken for a later one with the same pid."""

    pid: int
    start: int


class Usage(NamedTuple):
    """What an agent's processes use: CPU in percent of one core since the last look, resident bytes."""

    cpu_percent: float | None
    memory_bytes: int


def parse_stat(content: bytes) -> Process | None:
    """A line of /proc/PID/stat; the name in it may hold anything, also blanks and parentheses."""
    head, _, rest = content.rpartition(b")")
    words = rest.split()
    pid = head.partition(b" ")[0]
    if len(words) < 22 or not pid.isdigit():
        return None
    return Process(
        int(pid),
        int(words[1]),
        int(words[2]),
        int(words[3]),
        int(words[19]),
        int(words[11]) + int(words[12]),
        int(words[13]) + int(words[14]),
        int(words[21]) * PAGE_BYTES,
        words[0] in (b"Z", b"X"),
    )


class ProcessTable:
    """Reads /proc. A table is one pass over it, shared by all agents of that moment."""

    def __init__(self, system: System, proc: str = "/proc") -> None:
        self._system = system
        self._proc = proc

    def read(self) -> dict[int, Process]:
        """All processes but kernel threads and zombies."""
        found = {}
        for name in self._system.names(self._proc):
            if not name.isdigit():
                continue
            process = parse_stat(self._system.read_proc(f"{self._proc}/{name}/stat", 1024))
            if process is not None and process.ppid != _KERNEL_THREADS and not process.is_zombie:
                found[process.pid] = process
        return found

    def one(self, pid: int) -> Process | None:
        """One process; None if there is none of this pid or it has ended."""
        process = parse_stat(self._system.read_proc(f"{self._proc}/{pid}/stat", 1024))
        return None if process is None or process.is_zombie else process

    def is_alive(self, identity: Identity) -> bool:
        """Whether this very process still runs."""
        process = self.one(identity.pid)
        return process is not None and process.start == identity.start

    def name(self, pid: int) -> str:
        """The short name of a process, at most 15 characters of it."""
        return self._system.read_proc(f"{self._proc}/{pid}/comm", 64).decode("utf-8", "replace").rstrip("\n")

    def command_line(self, pid: int) -> str:
        """Its arguments with blanks between them."""
        raw = self._system.read_proc(f"{self._proc}/{pid}/cmdline", 65536)
        return raw.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")

    def users(self, pid: int) -> frozenset[int]:
        """As whom it runs: the real, effective and saved user. -1 alone if it is gone."""
        for line in self._system.read_proc(f"{self._proc}/{pid}/status", 4096).splitlines():
            if line.startswith(b"Uid:"):
                return frozenset(map(int, line.split()[1:4]))
        return frozenset({-1})

    def has_environment(self, pid: int, marker: bytes) -> bool:
        """Whether a process was started with this `NAME=value`."""
        raw = self._system.read_proc(f"{self._proc}/{pid}/environ", 262144)
        return raw.startswith(marker + b"\0") or b"\0" + marker + b"\0" in raw

    def share_bytes(self, pid: int) -> int | None:
        """Its proportional share of memory, where pages used by several count once; None if that is not told."""
        for line in self._system.read_proc(f"{self._proc}/{pid}/smaps_rollup", 4096).splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
        return None


def members(table: dict[int, Process], roots: Iterable[Identity]) -> list[Process]:
    """The processes of an agent: its roots, whatever is in their sessions and groups, and all descendants."""
    leaders = set()
    for root in roots:
        found = table.get(root.pid)
        # A pid is not given away again while a group or session bears it; if it has a new owner, there is none.
        if found is None or found.start == root.start:
            leaders.add(root.pid)
    children: dict[int, list[Process]] = {}
    waiting = []
    for process in table.values():
        children.setdefault(process.ppid, []).append(process)
        if process.pid in leaders or process.session in leaders or process.group in leaders:
            waiting.append(process)
    chosen: dict[int, Process] = {}
    while waiting:
        process = waiting.pop()
        if process.pid not in chosen:
            chosen[process.pid] = process
            waiting += children.get(process.pid, ())
    return list(chosen.values())


class Meter:
    """CPU of a group of processes that come and go, from one look to the next."""

    __slots__ = ("_at", "_last")

    def __init__(self) -> None:
        self._at: float | None = None
        self._last: dict[Identity, tuple[int, int]] = {}

    def reset(self) -> None:
        """Another process: nothing to compare with."""
        self._at, self._last = None, {}

    def known(self) -> list[Identity]:
        """The processes seen at the last look."""
        return list(self._last)

    def look(self, group: list[Process], now: float) -> Usage:
        """What the group uses. A child's time counts once: while it lives, or when its parent has taken it over."""
        spent = inherited = 0
        seen: dict[Identity, tuple[int, int]] = {}
        for process in group:
            identity = Identity(process.pid, process.start)
            ticks, child_ticks = self._last.pop(identity, (0, 0))
            if self._at is not None:
                spent += process.ticks - ticks
                inherited += process.child_ticks - child_ticks
            seen[identity] = (process.ticks, process.child_ticks)
        gone = sum(ticks + child_ticks for ticks, child_ticks in self._last.values())
        at, self._at, self._last = self._at, now, seen
        memory = sum(process.rss_bytes for process in group)
        if at is None or now - at < 0.05:
            return Usage(None, memory)
        total = max(0, spent) + max(0, inherited - gone)
        return Usage(round(100.0 * total / TICKS_PER_S / (now - at), 1), memory)
