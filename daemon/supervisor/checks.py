"""An agent's health checks: when each is due, what it found last, and whether all of them together call it healthy."""

from __future__ import annotations

from typing import Callable, NamedTuple, Union

from daemon.supervisor.poller import Poller
from daemon.supervisor.probes import (
    CommandProbe,
    SocketProbe,
    Target,
    Verdict,
    first_line,
    http_target,
    literal,
    resolver,
    tcp_target,
)
from daemon.system import System
from protocol.manifests import HealthCheck, Manifest

FIRST_S = 1.0
RESOLVED_S = 300.0

Probe = Union[CommandProbe, SocketProbe]


class Ways(NamedTuple):
    """How commands of an agent are run. `check_allowed` raises PermissionError where the host forbids it."""

    command_line: Callable[[tuple[str, ...]], list[str]]
    given: Callable[[], bytes]
    environ: Callable[[], dict[str, str]]
    check_allowed: Callable[[], None]


class Check:
    """One health check of a running agent. Starts optimistic: it has failed only after so many attempts in a row."""

    def __init__(self, system: System, poller: Poller, wanted: HealthCheck, now: float, ways: Ways) -> None:
        self._system = system
        self._poller = poller
        self._ways = ways
        self._probe: Probe | None = None
        self._address: str | None = None
        self._address_until = 0.0
        self.heard = now
        self.wanted = wanted
        self.failures = 0
        self.is_ok = True
        self.detail = ""
        self.checked_at: float | None = None
        # The first look comes early; a heartbeat may take its time.
        self.due = now + (wanted.interval_s if wanted.kind == "heartbeat" else min(FIRST_S, wanted.interval_s))

    @property
    def has_failed(self) -> bool:
        """Whether it missed as often in a row as is allowed."""
        return self.failures >= self.wanted.failures

    def next_due(self) -> float:
        """When `advance` has something to do."""
        return self.due if self._probe is None else self._probe.next_due()

    def hurry(self, now: float, regular: Check | None) -> None:
        """Do it now, once; the heartbeats that the regular check has heard count."""
        self.due = now
        if regular is not None:
            self.heard = regular.heard

    def beat(self, now: float) -> None:
        """The agent has said that it lives."""
        self.heard = now
        if self.wanted.kind == "heartbeat" and self.failures:
            self._take(Verdict(True, "heartbeat"))

    def advance(self, now: float) -> None:
        """Begin an attempt, or end one whose time is up."""
        if self._probe is None:
            if now >= self.due:
                # On whole seconds, so that many checks wake the Daemon once.
                self.due = float(int(now + self.wanted.interval_s))
                self._begin(now)
        elif isinstance(self._probe, CommandProbe):
            self._probe.advance()
        elif now >= self._probe.deadline:
            self._probe.expire()

    def cancel(self) -> None:
        """The agent is no more."""
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    def _begin(self, now: float) -> None:
        wanted = self.wanted
        if wanted.kind == "process":
            self._take(Verdict(True, "alive"))
        elif wanted.kind == "heartbeat":
            silence = now - self.heard
            is_ok = silence <= wanted.interval_s * 1.2
            self._take(Verdict(is_ok, "heartbeat" if is_ok else f"no heartbeat for {silence:.0f} s"))
        elif wanted.kind == "command":
            try:
                self._ways.check_allowed()
            except PermissionError as error:
                self._take(Verdict(False, str(error)[:200]))
            else:
                self._run(self._ways.command_line(wanted.command), self._ways.given(), self._command_ended)
        else:
            self._connect(now)

    def _connect(self, now: float) -> None:
        target = self._target()
        address = literal(target.host) or (self._address if now < self._address_until else None)
        if address is None:
            self._run(resolver(target.host), b"", self._resolved)
            return
        # The probe may end while it is being made; then it must not be kept.
        self._probe = None
        probe = SocketProbe(self._poller, address, target, now + self.wanted.timeout_s, self._take)
        self._probe = None if probe.is_over else probe

    def _target(self) -> Target:
        wanted = self.wanted
        if wanted.kind == "tcp":
            return tcp_target(wanted.host or "127.0.0.1", wanted.port or 0)
        return http_target(wanted.url or "", wanted.status, wanted.contains)

    def _run(self, argv: list[str], stdin: bytes, on_end: Callable[[int, bytes, bool], None]) -> None:
        try:
            self._probe = CommandProbe(
                self._system, self._poller, argv, stdin, self._ways.environ(), self.wanted.timeout_s, on_end
            )  # fmt: skip
        except OSError as error:
            self._take(Verdict(False, f"cannot run {argv[0]}: {error.strerror}"[:200]))

    def _command_ended(self, code: int, out: bytes, timed_out: bool) -> None:
        words = first_line(out)
        if timed_out:
            words = f"took longer than {self.wanted.timeout_s:g} s"
        elif code:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            words = f"{how}: {words}" if words else how
        self._take(Verdict(code == 0 and not timed_out, words))

    def _resolved(self, code: int, out: bytes, timed_out: bool) -> None:
        self._probe = None
        address = out.decode("ascii", "replace").strip()
        if code or timed_out or literal(address) is None:
            self._take(Verdict(False, f"{self._target().host} cannot be resolved"))
            return
        now = self._system.boottime()
        self._address, self._address_until = address, now + RESOLVED_S
        self._connect(now)

    def _take(self, verdict: Verdict) -> None:
        self._probe = None
        self.failures = 0 if verdict.is_ok else self.failures + 1
        self.is_ok, self.detail = verdict.is_ok, verdict.detail
        self.checked_at = self._system.boottime()


class Checks:
    """All checks of one run of an agent."""

    def __init__(self, system: System, poller: Poller, manifest: Manifest, now: float, ways: Ways) -> None:
        self.all = [Check(system, poller, wanted, now, ways) for wanted in manifest.health]

    def next_due(self) -> float:
        """When `advance` has something to do."""
        return min((check.next_due() for check in self.all), default=float("inf"))

    def advance(self, now: float) -> None:
        """Whatever is due."""
        for check in self.all:
            if now >= check.next_due():
                check.advance(now)

    def beat(self, now: float) -> None:
        """The agent has said that it lives."""
        for check in self.all:
            check.beat(now)

    def failed(self) -> Check | None:
        """The first check that has failed for good; None: healthy."""
        return next((check for check in self.all if check.has_failed), None)

    def hurry(self, regular: Checks | None, now: float) -> None:
        """Each of them once and at once, beside the regular ones."""
        others: list[Check | None] = [None] * len(self.all) if regular is None else list(regular.all)
        for check, other in zip(self.all, others):
            check.hurry(now, other)

    def are_done(self) -> bool:
        """Whether each has found something."""
        return all(check.checked_at is not None for check in self.all)

    def cancel(self) -> None:
        """The agent is no more."""
        for check in self.all:
            check.cancel()
