"""How an agent takes a new configuration: what is asked of the supervisor, and when an agent counts as well."""

from __future__ import annotations

import threading
from typing import NamedTuple, Protocol

from daemon.system import Finished, System
from protocol.checkin import Health
from protocol.manifests import Manifest

LOOK_S = 1.0
FOUND_S = 20.0
DETAIL_CHARS = 1500


class Condition(NamedTuple):
    """How an agent is at this moment. `is_wanted`: it should be running."""

    is_wanted: bool
    is_running: bool
    pid: int | None
    restart_count: int


class Supervising(Protocol):
    """What is asked of the supervisor, from other threads than its own. Unknown names: None."""

    def names(self) -> list[str]:
        """All agents."""

    def manifest(self, name: str) -> Manifest | None:
        """What the agent is."""

    def is_local(self, name: str) -> bool:
        """Whether the host itself declared it, so that its files are not the Manager's."""

    def condition(self, name: str) -> Condition | None:
        """How it is now."""

    def check_health(self, name: str) -> tuple[Health, ...]:
        """Every check's outcome, made now."""

    def run(self, name: str, argv: list[str], timeout_s: float) -> Finished:
        """Run a command as the agent's user, in its directory and environment; both outputs in one."""

    def reload(self, name: str) -> str | None:
        """Have it read its configuration again; why that failed, or None."""

    def restart(self, name: str) -> str | None:
        """Stop and start it; why that failed, or None when it runs."""

    def config_changed(self, name: str, version: int | None) -> None:
        """Another configuration is in force; told again after each start of the Daemon."""

    def set_drifted(self, name: str, is_drifted: bool) -> None:
        """Whether its files are not what the Manager made them."""


class BrokenOff(Exception):
    """The Daemon stops; the transaction stays in the journal for the next one."""


class Probation:
    """Looks at one agent for a while, from the thread of its configuration."""

    def __init__(self, system: System, supervising: Supervising, stopping: threading.Event) -> None:
        self._system = system
        self._supervising = supervising
        self._stopping = stopping

    def is_wanted(self, name: str) -> bool:
        """Whether it should be running."""
        condition = self._supervising.condition(name)
        return condition is not None and condition.is_wanted

    def is_sound(self, name: str) -> bool:
        """Whether it is well now; one that should not run is."""
        condition = self._supervising.condition(name)
        if condition is None or not condition.is_wanted:
            return True
        return condition.is_running and all(check.ok for check in self._supervising.check_health(name))

    def await_agent(self, name: str) -> None:
        """The supervisor has just begun: give it time to find, or start, what it supervises."""
        deadline = self._system.boottime() + FOUND_S
        while self._system.boottime() < deadline:
            condition = self._supervising.condition(name)
            if condition is not None and (condition.is_running or not condition.is_wanted):
                return
            if self._stopping.wait(0.1):
                raise BrokenOff

    def watch(self, name: str, probation_s: float) -> tuple[str | None, tuple[Health, ...]]:
        """What is wrong with it, or None. The process must live all the time. Each check must become good in the first
        half, may not fail as often as its manifest tolerates in the second, and must be good at the end.
        """
        first, manifest = self._supervising.condition(name), self._supervising.manifest(name)
        if first is None or manifest is None or not first.is_wanted or not probation_s:
            return None, ()
        failed = [0] * len(manifest.health)
        begun = self._system.boottime()
        while True:
            passed = self._system.boottime() - begun
            is_over = passed >= probation_s
            checks = self._supervising.check_health(name)
            if _has_ended(first, self._supervising.condition(name)):
                return "it ended during its probation", checks
            for index, (check, spec) in enumerate(zip(checks, manifest.health)):
                failed[index] = 0 if check.ok or passed < probation_s / 2 else failed[index] + 1
                if failed[index] and (is_over or failed[index] >= max(2, spec.failures)):
                    return f"its {check.kind} check fails: {check.detail}"[:DETAIL_CHARS], checks
            if is_over:
                return None, checks
            if self._stopping.wait(min(LOOK_S, max(0.05, probation_s - passed))):
                raise BrokenOff


def _has_ended(first: Condition, now: Condition | None) -> bool:
    """Whether the process of the beginning is gone, also if another one runs by now. Stopped on purpose is fine."""
    if now is None or not now.is_wanted:
        return False
    return not now.is_running or now.restart_count > first.restart_count or now.pid != first.pid
