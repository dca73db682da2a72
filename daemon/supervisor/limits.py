"""What an agent used lately, and when that is more than it may."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from daemon.supervisor.processes import Usage
from protocol.manifests import Limits

CURVE_POINTS = 60

_MIB = 1024 * 1024


class Excess(NamedTuple):
    """A limit that is broken: `cpu` in percent or `memory` in bytes."""

    what: str
    value: float
    limit: float
    words: str


class Watch:
    """The usage curve of one run, and how long its CPU has been above the limit without a break."""

    def __init__(self) -> None:
        self._points = array("d")
        self._last_at: float | None = None
        self._hot_since: float | None = None
        self._told: set[str] = set()
        self.last: Usage | None = None

    def look(self, usage: Usage, limits: Limits, now: float, memory_bytes: int) -> Excess | None:
        """Take a measurement; the limit that is broken now. One that is only reported is told once until it ends.

        `memory_bytes`: what counts for the limit, which need not be the sum of resident pages.
        """
        cpu = usage.cpu_percent
        self._points.extend((now, -1.0 if cpu is None else cpu, float(usage.memory_bytes)))
        del self._points[: max(0, len(self._points) - 3 * CURVE_POINTS)]
        before, self._last_at, self.last = self._last_at, now, usage
        found = self._cpu(cpu, limits, before, now) or self._memory(memory_bytes, limits)
        if found is not None and limits.action == "alert":
            if found.what in self._told:
                return None
            self._told.add(found.what)
        return found

    def curve(self, now: float) -> list[list[float | None]]:
        """The last points, oldest first: seconds before now, CPU percent, bytes."""
        points = self._points
        return [
            [round(points[n] - now, 1), None if points[n + 1] < 0 else points[n + 1], points[n + 2]]
            for n in range(0, len(points), 3)
        ]

    def _cpu(self, cpu: float | None, limits: Limits, before: float | None, now: float) -> Excess | None:
        if limits.cpu_percent is None or cpu is None or cpu <= limits.cpu_percent:
            self._hot_since = None
            self._told.discard("cpu")
            return None
        if self._hot_since is None:
            self._hot_since = now if before is None else before
        if now - self._hot_since < limits.cpu_for_s:
            return None
        words = f"CPU above {limits.cpu_percent:g} % for {limits.cpu_for_s:g} s, now {cpu:.0f} %"
        return Excess("cpu", cpu, limits.cpu_percent, words)

    def _memory(self, used: int, limits: Limits) -> Excess | None:
        if limits.memory_bytes is None or used <= limits.memory_bytes:
            self._told.discard("memory")
            return None
        words = f"{used / _MIB:.0f} MiB of memory, more than {limits.memory_bytes / _MIB:.0f} MiB"
        return Excess("memory", float(used), float(limits.memory_bytes), words)
