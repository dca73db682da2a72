"""One agent: does what the policy decides, sees what becomes of its process, and reports both."""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import Any, Callable, NamedTuple

from daemon.supervisor import output, policy
from daemon.supervisor.checks import Checks, Ways
from daemon.supervisor.lifetime import ALIVE, IDLE, LOCKED, SPAWNED, Around, Gone, Lifetime
from daemon.supervisor.limits import Excess, Watch
from daemon.supervisor.policy import Ask, Down, Judged, Kill, Restart, Spawn, State, Tell, Tick, Up, Want
from daemon.supervisor.probes import CommandProbe, first_line
from daemon.supervisor.processes import Identity, Process
from daemon.supervisor.roster import LOCAL
from daemon.supervisor.runs import command_of, given
from daemon.supervisor.words import dossier, end_in_words, is_failure, version_in
from protocol.checkin import AgentStatus, Health
from protocol.manifests import Manifest
from protocol.times import to_text

SEARCH_S = 5.0
PROOF_S = 1.0
START_S = 60.0
VERSION_S = 5.0
COMMAND_S = 60.0

log = logging.getLogger("daemon.supervisor")


class Answer(NamedTuple):
    """How an order ended. `problem` null: as it was ordered."""

    problem: str | None
    status: str
    pid: int | None


class _Order(NamedTuple):
    verb: str
    on_end: Callable[[Answer], None]
    deadline: float
    crashes: int
    identity: Identity | None


class Program:
    """Lives in the supervisor's thread; only `status` and the plain attributes are read from others."""

    def __init__(self, around: Around, directory: str, manifest: Manifest, source: str) -> None:
        self._around = around
        self._system = around.system
        self._lifetime = Lifetime(around, directory, self._is_up, self._is_gone)
        self.directory = directory
        self.manifest = manifest
        self.source = source
        self.is_leaving = False
        self.state = State(since=around.system.boottime())
        self.config_version: int | None = None
        self.is_drifted = False
        self.version: str | None = None
        self.crashes = 0
        self._config_changed_at: float | None = None
        self._search_at = 0.0
        self._queued: deque[policy.Event] = deque()
        self._gone: Gone | None = None
        self._ago_s = 0.0
        self._last_error: str | None = None
        self._watch = Watch()
        self._checks: Checks | None = None
        self._asked: list[tuple[Checks, Callable[[tuple[Health, ...]], None]]] = []
        self._errands: list[CommandProbe] = []
        self._version_due: float | None = None
        self._orders: list[_Order] = []

    # ---- what others see

    @property
    def is_watch_only(self) -> bool:
        """There is no way to start it: it is found, or it is not there."""
        return not self.manifest.start

    @property
    def identity(self) -> Identity | None:
        """Its living process."""
        return self._lifetime.identity if self._lifetime.stage == ALIVE else None

    @property
    def is_adopted(self) -> bool:
        """Whether somebody else started the process."""
        return self._lifetime.is_adopted

    @property
    def is_controlled(self) -> bool:
        """Whether its process may be touched."""
        return not self.is_adopted or (self.manifest.adopt is not None and self.manifest.adopt.control)

    @property
    def is_idle(self) -> bool:
        """Nothing of it runs, and nothing will by itself."""
        return self.state.phase == policy.STOPPED and self._lifetime.stage == IDLE and not self._queued

    @property
    def output_path(self) -> str:
        """Where its stdout and stderr go."""
        return self._lifetime.files.output

    def logs(self) -> tuple[str, ...]:
        """Its own logs, as far as the Manager may read them."""
        return tuple(path for path in self.manifest.logs if self.forbids_file(path) is None)

    def forbids_file(self, path: str) -> str | None:
        """Why the Manager may not read this file of its, or None; what the host itself declared is the host's word."""
        return None if self.source in LOCAL else self._around.forbids_file(path)

    def status(self) -> AgentStatus:
        """For the check-in."""
        state, identity = self.state, self.identity
        usage = None if identity is None else self._watch.last
        return AgentStatus(
            name=self.manifest.name,
            type=self.manifest.type,
            version=self.version,
            status=policy.status(state),
            desired=state.desired,
            pid=None if identity is None else identity.pid,
            cpu_usage=None if usage is None else usage.cpu_percent,
            memory_usage=None if usage is None else usage.memory_bytes,
            start_time=self._lifetime.start_text,
            restart_count=state.restarts,
            last_error=(self._last_error or "")[:1000] or None,
            health=self._health(self._checks),
            config_version=self.config_version,
            drifted=self.is_drifted,
            source="adopted" if self.is_watch_only and self.source == "manager" else self.source,
        )

    @property
    def _can_restart(self) -> bool:
        return self.is_controlled and not self.is_watch_only

    # ---- orders, in the supervisor's thread

    def recover(self, desired: str) -> None:
        """After a start of the Daemon: find the process again, or what became of it, then do what is desired."""
        now = self._system.boottime()
        self.state = State(phase=policy.STOPPED, desired=desired, since=now)
        if self._lifetime.resume():
            phase = policy.STARTING
            if self._lifetime.stage not in (ALIVE, SPAWNED):
                phase = policy.RUNNING if desired == policy.RUNNING else policy.STOPPING
            self.state = self.state._replace(phase=phase, due=now + policy.START_S)
        note = self._lifetime.note
        if note is not None and (note.handled_at is None or now - note.handled_at < policy.QUIET_S):
            self.state = self.state._replace(restarts=note.restarts)
        if self._lifetime.stage != IDLE or self._find_adopted():
            return
        if desired == policy.RUNNING and not self.is_watch_only:
            restarts = self.state.restarts
            self._decide(Want(policy.RUNNING))
            self.state = self.state._replace(restarts=restarts)

    def use(self, manifest: Manifest, source: str) -> None:
        """Another manifest: what concerns the process itself holds from its next start on."""
        is_same_health = (manifest.health, manifest.user, manifest.env) == (
            self.manifest.health, self.manifest.user, self.manifest.env
        )  # fmt: skip
        self.manifest, self.source, self.is_leaving = manifest, source, False
        if self._checks is not None and not is_same_health:
            self._begin_checks()

    def want(self, desired: str) -> None:
        """What should be, by settings or order."""
        if self.is_watch_only and desired == policy.RUNNING:
            self.state = self.state._replace(desired=desired)
            self._search_at = 0.0
        elif self.is_controlled:
            self._decide(Want(desired))

    def order(self, verb: str, on_end: Callable[[Answer], None]) -> None:
        """start, stop, restart or reload; `on_end` hears once how it went."""
        problem = self.obstacle(verb)
        if problem is not None:
            on_end(Answer(problem, self.status().status, None))
            return
        now = self._system.boottime()
        patience = START_S if verb != "stop" else self.manifest.stop.timeout_s + START_S
        if verb == "restart":
            patience += self.manifest.stop.timeout_s
        order = _Order(verb, on_end, now + patience, self.crashes, self.identity if verb == "restart" else None)
        if verb == "reload":
            self._reload(order)
            return
        self._orders.append(order)
        if verb == "restart":
            self._decide(Restart("restarted by order", is_penalty=False))
        else:
            self.want(policy.RUNNING if verb == "start" else policy.STOPPED)
        self._answer(now)

    def check_now(self, on_end: Callable[[tuple[Health, ...]], None]) -> None:
        """Make every health check at once, beside the regular ones."""
        now = self._system.boottime()
        if self.identity is None:
            text = self._around.clock.text()
            on_end(tuple(Health(check.kind, False, "does not run", text) for check in self.manifest.health))
            return
        checks = self._new_checks(now)
        checks.hurry(self._checks, now)
        self._asked.append((checks, on_end))

    def heartbeat(self, version: str | None) -> None:
        """It says that it lives."""
        if version:
            self._note_version(version[:64])
        if self._checks is not None:
            self._checks.beat(self._system.boottime())
            self._judge()

    def set_config(self, version: int | None) -> None:
        """Another configuration is in force."""
        if version != self.config_version:
            self.config_version, self._config_changed_at = version, self._system.boottime()

    def forget(self) -> None:
        """Let go of it, whether it runs or not."""
        self._end_checks()
        self._lifetime.clear()
        for errand in self._errands:
            errand.cancel()
        for checks, _ in self._asked:
            checks.cancel()
        self._errands, self._asked = [], []

    def kill_now(self) -> None:
        """The Daemon goes, its agents must be gone first, and this one took too long."""
        self._perform((Kill(),))

    # ---- the loop

    def next_due(self) -> float:
        """When `advance` has something to do."""
        if self._queued:
            return 0.0
        due = [self._lifetime.due]
        if self._may_appear():
            due.append(self._search_at)
        if self.state.due is not None:
            due.append(self.state.due)
        if self._checks is not None:
            due.append(self._checks.next_due())
        if self._version_due is not None:
            due.append(self._version_due)
        # Answers that are complete wait for nothing else.
        due += [0.0 if checks.are_done() else checks.next_due() for checks, _ in self._asked]
        due += [errand.next_due() for errand in self._errands]
        due += [order.deadline for order in self._orders]
        if self._orders and self.state.phase == policy.RUNNING:
            due.append(max(self.state.since + PROOF_S, self._system.boottime() + 0.02))
        return min(due)

    def advance(self) -> None:
        """Whatever is due."""
        now = self._system.boottime()
        if now >= self._lifetime.due:
            self._lifetime.look(now)
        if self._may_appear() and now >= self._search_at:
            self._search_at = now + SEARCH_S
            self._find_adopted()
        while self._queued:
            self._decide(self._queued.popleft())
        if self.state.due is not None and now >= self.state.due:
            self._decide(Tick())
        if self._checks is not None:
            self._checks.advance(now)
            self._judge()
        if self._version_due is not None and now >= self._version_due:
            self._ask_version()
        self._advance_errands(now)
        self._answer(now)

    def measure(self, table: dict[int, Process], now: float) -> None:
        """Take part in a look at all processes."""
        output.rotate(self._system, self._lifetime.files.output)
        self._lifetime.reap()
        if self._lifetime.stage != ALIVE:
            return
        group = self._lifetime.group(table)
        usage = self._lifetime.meter.look(group, now)
        memory = usage.memory_bytes
        limits = self.manifest.limits
        if limits.memory_bytes is not None and memory > limits.memory_bytes and len(group) > 1:
            # Pages that several processes share were counted several times.
            shares = [self._around.processes.share_bytes(process.pid) for process in group]
            memory = sum(process.rss_bytes if share is None else share for process, share in zip(group, shares))
        if not self._can_restart:
            limits = limits._replace(action="alert")
        excess = self._watch.look(usage, limits, now, memory)
        if excess is not None and self.state.phase == policy.RUNNING:
            self._exceeded(excess, limits.action)

    def _advance_errands(self, now: float) -> None:
        for checks, on_end in list(self._asked):
            checks.advance(now)
            if checks.are_done():
                self._asked.remove((checks, on_end))
                on_end(self._health(checks))
        for errand in self._errands:
            if now >= errand.next_due():
                errand.advance()
        self._errands = [errand for errand in self._errands if not errand.is_over]

    # ---- deciding and acting

    def _decide(self, event: policy.Event) -> None:
        now = self._system.boottime()
        before = policy.status(self.state)
        if isinstance(event, Down) and self.state.phase in (policy.STARTING, policy.RUNNING):
            self.crashes += 1
            self._last_error = event.how
        self.state, effects = policy.step(self.state, event, now, self.manifest.stop.timeout_s)
        self._perform(effects)
        if policy.status(self.state) != before:
            self._around.on_change()

    def _perform(self, effects: tuple[policy.Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, Spawn):
                self._spawn()
            elif isinstance(effect, Ask):
                self._ask()
            elif isinstance(effect, Kill):
                self._kill()
            else:
                self._tell(effect)

    def _tell(self, told: Tell) -> None:
        data: dict[str, Any] = {"agent": self.manifest.name}
        if told.kind in ("agent.started", "agent.adopted") and self.identity is not None:
            data["pid"] = self.identity.pid
        if told.kind in ("agent.crashed", "agent.exited"):
            data.update(self._dossier())
        elif told.kind == "agent.unhealthy":
            self._last_error = told.message
        elif told.kind == "agent.error":
            data["last_error"] = self._last_error
        words = f"{self.manifest.name}: {told.message}"
        log.log(logging.INFO if told.severity == "info" else logging.WARNING, "%s", words)
        self._around.logbook.add_event(told.kind, told.severity, words, data, self._ago_s)

    def _spawn(self) -> None:
        self._end_checks()
        self._lifetime.clear()
        if self._find_adopted():
            return
        try:
            self._check_allowed()
            self._lifetime.start(
                self.manifest, self.source, self.environ(), self.config_version, self.state.restarts
            )  # fmt: skip
        except (OSError, ValueError) as error:
            self._gone = None
            self._queued.append(Down(f"cannot be started: {error}"[:500], True))

    def _check_allowed(self) -> None:
        """PermissionError if the host does not let the Manager run commands; its own agents are its own business."""
        words = None if self.source in LOCAL else self._around.forbids(self.manifest.user)
        if words is not None:
            raise PermissionError(words)

    def _ask(self) -> None:
        self._lifetime.doom()
        if self._lifetime.cancel():
            self._queued.append(Down("it had not begun yet", False))
        elif not self.manifest.stop.command:
            self._lifetime.signal(self.manifest.stop.signal)
        elif self._lifetime.stage == ALIVE:

            def ended(code: int, out: bytes, _: bool) -> None:
                if code and self._lifetime.stage == ALIVE:
                    log.warning("%s: its stop command failed: %s", self.manifest.name, first_line(out))
                    self._lifetime.signal(self.manifest.stop.signal)

            self._run_errand(self.manifest.stop.command, max(1.0, self.manifest.stop.timeout_s), ended)

    def _kill(self) -> None:
        if self._lifetime.cancel():
            self._queued.append(Down("it had not begun yet", self.state.phase == policy.STARTING))
        else:
            self._lifetime.kill()

    # ---- what becomes of the process

    def _is_up(self, is_found: bool) -> None:
        self._watch = Watch()
        self._gone = None
        self._version_due = self._system.boottime() + PROOF_S if self.manifest.version else None
        self._begin_checks()
        self._queued.append(Up(is_found))

    def _is_gone(self, gone: Gone) -> None:
        now = self._system.boottime()
        # Its own start comes first, if that was not dealt with yet.
        while self._queued:
            self._decide(self._queued.popleft())
        self._gone = gone
        self._ago_s = 0.0 if gone.ended is None else max(0.0, now - gone.ended.at - 0.01)
        self._search_at = now + SEARCH_S
        words = end_in_words(gone, self._lifetime.early_words(now - self._ago_s))
        if self.is_watch_only:
            was_asked = self.state.phase == policy.STOPPING
            self.state = State(desired=self.state.desired, since=now)
            kind, severity = ("agent.stopped", "info") if was_asked else ("agent.exited", "warning")
            self._last_error = None if was_asked else words
            self._tell(Tell(kind, severity, words))
            self._around.on_change()
        else:
            self._decide(Down(words, is_failure(gone)))
        self._ago_s = 0.0
        if self._lifetime.stage in (IDLE, LOCKED):
            self._end_checks()
            self._lifetime.handled(self.state.restarts)
        if self._lifetime.stage == IDLE:
            self._lifetime.clear()

    def _may_appear(self) -> bool:
        return self.is_watch_only and self._lifetime.stage == IDLE and not self.is_leaving

    def _find_adopted(self) -> bool:
        adopt = self.manifest.adopt
        if adopt is None or not self._lifetime.adopt(adopt, self.manifest.user):
            return False
        if self.is_watch_only:
            # Somebody started it, whatever was wanted here.
            now = self._system.boottime()
            self.state = State(phase=policy.RUNNING, desired=policy.RUNNING, since=now)
            self._around.on_change()
        elif self.state.phase == policy.STOPPED:
            self.state = self.state._replace(phase=policy.STARTING)
        pid = None if self.identity is None else self.identity.pid
        self._tell(Tell("agent.adopted", "info", f"process {pid} was found and is watched"))
        return True

    def _begin_checks(self) -> None:
        self._end_checks()
        self._checks = self._new_checks(self._system.boottime())

    def _new_checks(self, now: float) -> Checks:
        ways = Ways(self.command_line, self.given, self.environ, self._check_allowed)
        return Checks(self._system, self._around.poller, self.manifest, now, ways)

    def _end_checks(self) -> None:
        if self._checks is not None:
            self._checks.cancel()
            self._checks = None

    # ---- health, version, orders

    def _judge(self) -> None:
        if self._checks is None or self.state.phase != policy.RUNNING:
            return
        failed = self._checks.failed()
        if (failed is not None) == self.state.is_unhealthy:
            return
        detail = "" if failed is None else f"{failed.wanted.kind} check failed: {failed.detail}"
        self._decide(Judged(failed is None, detail))
        if failed is not None and failed.wanted.kind == "heartbeat" and self._can_restart:
            self._decide(Restart(detail, is_penalty=True))

    def _exceeded(self, excess: Excess, action: str) -> None:
        data = {"agent": self.manifest.name, "what": excess.what, "value": excess.value, "limit": excess.limit,
                "action": action, "curve": self._watch.curve(self._system.boottime())}  # fmt: skip
        words = f"{self.manifest.name}: {excess.words}"
        log.warning("%s", words)
        self._last_error = excess.words
        self._around.logbook.add_event("agent.limit", "warning", words, data)
        if action == "restart":
            self._decide(Restart(excess.words, is_penalty=True))

    def _ask_version(self) -> None:
        self._version_due = None

        def ended(code: int, out: bytes, _: bool) -> None:
            found = version_in(out.decode("utf-8", "replace")) if code == 0 else None
            self._note_version(found or self.version)

        self._run_errand(self.manifest.version, VERSION_S, ended)

    def _note_version(self, version: str | None) -> None:
        if version != self.version:
            self.version = version
            self._around.on_change()

    def obstacle(self, verb: str) -> str | None:
        """Why an order cannot even be tried."""
        if verb in ("start", "restart") and self.is_watch_only and self.identity is None:
            return "there is no command to start it; it is only watched"
        if verb == "restart" and self.is_watch_only:
            return "there is no command to start it again; it is only watched"
        if verb != "start" and not self.is_controlled:
            return "it was started by somebody else and is only watched"
        if verb == "reload" and self.manifest.reload is None:
            return "it has no way to reload"
        if verb == "reload" and self._lifetime.stage != ALIVE:
            return "it does not run"
        return None

    def _reload(self, order: _Order) -> None:
        reload = self.manifest.reload
        if reload is not None and reload.signal is not None:
            self._lifetime.signal(reload.signal)
            order.on_end(self._reply(None))
        elif reload is not None:

            def ended(code: int, out: bytes, timed_out: bool) -> None:
                words = "took too long" if timed_out else first_line(out) or f"exit code {code}"
                order.on_end(self._reply(None if code == 0 else f"its reload command failed: {words}"))

            self._run_errand(reload.command, COMMAND_S, ended)

    def _answer(self, now: float) -> None:
        for order in list(self._orders):
            verdict = self._verdict(order, now)
            if verdict is not None:
                self._orders.remove(order)
                order.on_end(verdict)

    def _verdict(self, order: _Order, now: float) -> Answer | None:
        phase = self.state.phase
        if order.verb == "stop":
            if phase == policy.STOPPED and self._lifetime.stage == IDLE:
                return self._reply(None)
        elif self.crashes > order.crashes:
            return self._reply(f"it does not stay up: {self._last_error}")
        elif phase == policy.RUNNING and now - self.state.since >= PROOF_S and self.identity != order.identity:
            return self._reply(None)
        elif phase == policy.STOPPED and not self._queued:
            return self._reply(self._last_error or "it was stopped meanwhile")
        return self._reply(f"it is still {self.status().status}") if now >= order.deadline else None

    def _reply(self, problem: str | None) -> Answer:
        return Answer(problem, self.status().status, None if self.identity is None else self.identity.pid)

    def _run_errand(self, argv: tuple[str, ...], timeout_s: float, on_end: Callable[[int, bytes, bool], None]) -> None:
        try:
            self._check_allowed()
            errand = CommandProbe(
                self._system, self._around.poller, self.command_line(argv), self.given(), self.environ(), timeout_s,
                on_end,
            )  # fmt: skip
        except OSError as error:
            on_end(127, f"cannot run {argv[0]}: {error.strerror or error}".encode(), False)
        else:
            self._errands.append(errand)

    def command_line(self, argv: tuple[str, ...]) -> list[str]:
        """A command as the agent's user in the agent's directory; `given` is its stdin."""
        found = command_of(self.manifest, argv)
        if self.manifest.cwd is None:
            return found
        return ["/bin/sh", "-c", 'cd "$0" && exec "$@"', self.manifest.cwd, *found]

    def given(self) -> bytes:
        """What its manifest adds to the environment, for the stdin of its commands."""
        return given(self.manifest)

    def environ(self) -> dict[str, str]:
        """What its processes are started with, as root where the Daemon is root: nothing of the manifest's."""
        own = {} if self.manifest.user is not None else _home()
        return {**self._around.environ, **own, "OPS_AGENT": self.manifest.name}

    # ---- reports

    def _health(self, checks: Checks | None) -> tuple[Health, ...]:
        if checks is None:
            return ()
        now, best = self._system.boottime(), self._around.clock.best_now()
        return tuple(
            Health(check.wanted.kind, check.is_ok, check.detail, to_text(best - (now - check.checked_at), 0))
            for check in checks.all
            if check.checked_at is not None
        )

    def _dossier(self) -> dict[str, Any]:
        now, changed, lifetime = self._system.boottime(), self._config_changed_at, self._lifetime
        found = dossier(self._system, self.logs(), lifetime, self._gone, self._watch, now - self._ago_s)
        found["restarts"] = self.state.restarts
        found["config"] = {
            "at_start_before": lifetime.config_version_before,
            "at_start": None if lifetime.note is None else lifetime.note.config_version,
            "now": self.config_version,
            "changed_at": None if changed is None else to_text(self._around.clock.best_now() - (now - changed)),
        }
        return found


def _home() -> dict[str, str]:
    return {name: os.environ[name] for name in ("HOME", "USER", "LOGNAME", "SHELL") if name in os.environ}
