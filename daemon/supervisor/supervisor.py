"""The thread that supervises: knows all agents, keeps time for each, takes orders and questions from other threads."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any, Callable

from daemon.builtin import SOCKET
from daemon.clock import Clock
from daemon.measure import Logbook
from daemon.probation import Condition
from daemon.supervisor import output, policy
from daemon.supervisor.desires import Desires
from daemon.supervisor.lifetime import Around
from daemon.supervisor.poller import READ, Poller
from daemon.supervisor.processes import ProcessTable
from daemon.supervisor.program import Answer, Program
from daemon.supervisor.roster import LOCAL, Declared, Roster
from daemon.system import Finished, System
from protocol.checkin import AgentStatus, Health
from protocol.limits import AGENTS
from protocol.manifests import TASK_AGENT, Manifest

SAMPLE_S = 5.0
SAMPLE_SHARE = 200.0
SAMPLE_MAX_S = 15.0
UNKNOWN_S = 10.0
STEP_S = 60.0
LONGEST_WAIT_S = 30.0
ANSWER_S = 120.0

VERBS = ("start", "stop", "restart", "reload")

# What an agent gets from the Daemon's own environment, before what its manifest says.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = ("LANG", "LC_ALL", "TZ")

log = logging.getLogger("daemon.supervisor")


class Supervisor:
    """All agents of this host. Every public method may be called from any thread.

    For whoever configures, reads logs or listens to agents:

    - `names()`, `manifest(name)`, `source(name)`, `is_local(name)`: what there is, and whose it is;
    - `agents()` and `find(name)`: the `AgentStatus` of the check-in (pid, status, restart count, health);
      `condition(name)` in short;
    - `directory(name)`: the agent's own directory under the state directory, for files that belong to it;
    - `task_socket()`: where the task agent is reached;
    - `log_paths(name)`: the captured output, newest file first, then the manifest's logs as far as the host allows;
    - `reload(name)`, `restart(name)`: block until it is done, and answer what went wrong, or None; `order` does not;
    - `check_health(name)`: makes every check now; `run(name, argv, timeout_s)`: a command as the agent's user;
    - `note_heartbeat(name, version)`: it has said that it lives;
    - `config_changed(name, version)`, `set_drifted(name, is_drifted)`: told in check-ins and in crash reports.

    Its thread begins with the first agent: a host without any has none.
    """

    def __init__(
        self,
        system: System,
        clock: Clock,
        logbook: Logbook,
        state_dir: str,
        boot_id: str,
        on_change: Callable[[], None],
        environ: dict[str, str] | None = None,
        forbids: Callable[[str | None], str | None] = lambda _: None,
        forbids_file: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self._system = system
        self._directory = f"{state_dir}/agents"
        system.make_dir(self._directory)
        self._desires = Desires(system, self._directory)
        self._roster = Roster(system, self._directory, logbook, self._desires)
        self._poller = Poller()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poller.add(self._wake_read, READ, self._drain)
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        processes = ProcessTable(system)
        self._around = Around(
            system, processes, self._poller, clock, logbook, boot_id, {"PATH": _PATH, **kept, **(environ or {})},
            on_change, forbids, forbids_file,
        )  # fmt: skip
        self._processes = processes
        self._programs: dict[str, Program] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._unknown: list[tuple[float, str, str, int | None, Callable[[Answer], None]]] = []
        self._lock = threading.Lock()
        self._is_stopping = False
        self._must_stop_agents = False
        self._next_sample = 0.0
        self._sample_s = SAMPLE_S
        self._thread: threading.Thread | None = None
        self.alive_until = float("inf")

    # ---- from any thread: life

    def use_host(self, manifests: Iterable[Manifest], along: Iterable[Manifest] = ()) -> None:
        """What the host's own `daemon.yaml` declares, and what comes with the Daemon.

        The first time before `use_settings`, which sets all going.
        """
        self._roster.use_host(manifests, along)
        if self._roster.is_set_up:
            self._apply()

    def use_settings(self, version: int, entries: tuple[dict[str, Any], ...]) -> None:
        """What the Manager declares. Version 0 are no settings at all: then nothing of the Manager's is taken away."""
        self._roster.use_settings(version, entries)
        self._apply()

    def stop(self, timeout_s: float, with_agents: bool) -> None:
        """End the thread. The agents run on, unless they are to be stopped first; then they start with the Daemon."""
        self._must_stop_agents = with_agents

        def begin() -> None:
            self._is_stopping = True
            if with_agents:
                for program in self._programs.values():
                    if not program.is_watch_only:
                        program.want(policy.STOPPED)

        self._post(begin)
        thread = self._thread
        if thread is None:
            return
        thread.join(timeout_s)
        if thread.is_alive() and with_agents:
            self._post(self._kill_all)
            thread.join(3.0)
        if thread.is_alive():
            log.warning("some agents did not stop in time")
            self._must_stop_agents = False
            self._wake()
            thread.join(1.0)

    # ---- from any thread: questions

    def names(self) -> list[str]:
        """Every agent that is not being removed."""
        return [name for name, program in list(self._programs.items()) if not program.is_leaving]

    def agents(self) -> tuple[AgentStatus, ...]:
        """All of them, for the check-in."""
        found = [program.status() for _, program in sorted(self._programs.items()) if not program.is_leaving]
        return tuple(found[:AGENTS])

    def find(self, name: str) -> AgentStatus | None:
        """How one is."""
        program = self._programs.get(name)
        return None if program is None else program.status()

    def manifest(self, name: str) -> Manifest | None:
        """What one is."""
        program = self._programs.get(name)
        return None if program is None else program.manifest

    def source(self, name: str) -> str | None:
        """`host`, `manager` or `builtin`."""
        program = self._programs.get(name)
        return None if program is None else program.source

    def is_local(self, name: str) -> bool:
        """Whether it is declared on the host itself, so that its files are not the Manager's."""
        return self.source(name) in LOCAL

    def condition(self, name: str) -> Condition | None:
        """How one is, in short."""
        program = self._programs.get(name)
        if program is None:
            return None
        state, identity = program.state, program.identity
        pid = None if identity is None else identity.pid
        is_running = state.phase == policy.RUNNING and pid is not None
        # Restarts that were ordered do not count; those after a crash do, also when the series began anew.
        return Condition(state.desired == policy.RUNNING, is_running, pid, program.crashes)

    def directory(self, name: str) -> str | None:
        """Where files of one agent may be kept; they go when the agent is removed."""
        program = self._programs.get(name)
        return None if program is None else program.directory

    def task_socket(self) -> str | None:
        """Where the task agent listens when it runs; None if this host has none. Longer than 107 bytes, perhaps."""
        directory = self.directory(TASK_AGENT)
        return None if directory is None else f"{directory}/{SOCKET}"

    def log_paths(self, name: str) -> list[str] | None:
        """What it writes: captured output, newest first, then its own logs that may be read. They need not exist."""
        program = self._programs.get(name)
        return None if program is None else [*output.paths(program.output_path), *program.logs()]

    def forbids_log(self, name: str, path: str) -> str | None:
        """Why this log of its must not be read, or None; also for what is no log of its."""
        program = self._programs.get(name)
        return program.forbids_file(path) if program is not None and path in program.manifest.logs else None

    def run(self, name: str, argv: list[str], timeout_s: float) -> Finished:
        """Run a command as the agent's user, in its directory and environment; both outputs in one. KeyError."""
        program = self._programs[name]
        command = program.command_line(tuple(argv))
        child = self._system.start(command, program.given(), 1 << 20, program.environ(), is_quiet=False)
        return child.wait(timeout_s) or child.kill()

    def check_health(self, name: str) -> tuple[Health, ...]:
        """Make every check now and wait for what they find."""
        done = threading.Event()
        found: list[tuple[Health, ...]] = []

        def take(checks: tuple[Health, ...]) -> None:
            found.append(checks)
            done.set()

        def begin() -> None:
            program = self._programs.get(name)
            if program is None:
                take(())
            else:
                program.check_now(take)

        self._post(begin)
        program = self._programs.get(name)
        timeouts = [check.timeout_s for check in program.manifest.health] if program is not None else []
        done.wait(max(timeouts, default=1.0) * 2 + 5.0)
        return found[0] if found else ()

    # ---- from any thread: orders and news

    def order(self, verb: str, name: str, seq: int | None, on_end: Callable[[Answer], None]) -> None:
        """start, stop, restart or reload. `on_end` is called once, in the supervisor's thread.

        An agent that is not known yet gets some seconds: its settings may be on their way.
        """

        def begin() -> None:
            if self._order(verb, name, seq, on_end):
                return
            self._unknown.append((self._system.boottime() + UNKNOWN_S, verb, name, seq, on_end))
            self._around.on_change()

        self._post(begin)
        self._begin()

    def reload(self, name: str) -> str | None:
        """Have it read its configuration again; why that failed, or None."""
        return self._order_and_wait("reload", name)

    def restart(self, name: str) -> str | None:
        """Stop and start it; why that failed, or None when it runs."""
        return self._order_and_wait("restart", name)

    def note_heartbeat(self, name: str, version: str | None = None) -> None:
        """The agent has said that it lives, and perhaps which version it is."""
        self._with(name, lambda program: program.heartbeat(version))

    def config_changed(self, name: str, version: int | None) -> None:
        """Another configuration is in force."""
        self._with(name, lambda program: program.set_config(version))

    def set_drifted(self, name: str, is_drifted: bool) -> None:
        """Whether its files are not what the Manager made them."""

        def take(program: Program) -> None:
            program.is_drifted = is_drifted

        self._with(name, take)

    # ---- between the threads

    def _post(self, call: Callable[[], None]) -> None:
        self._inbox.append(call)
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            # The pipe is full of reasons to wake up already.
            return

    def _with(self, name: str, call: Callable[[Program], None]) -> None:
        def begin() -> None:
            program = self._programs.get(name)
            if program is not None:
                call(program)

        self._post(begin)

    def _order_and_wait(self, verb: str, name: str) -> str | None:
        done = threading.Event()
        answers: list[Answer] = []

        def take(answer: Answer) -> None:
            answers.append(answer)
            done.set()

        self.order(verb, name, None, take)
        program = self._programs.get(name)
        done.wait(ANSWER_S if program is None else ANSWER_S + 2 * program.manifest.stop.timeout_s)
        return answers[0].problem if answers else "no answer in time"

    def _apply(self) -> None:
        if self._programs or not self._roster.is_empty():
            self._post(self._reconcile)
            self._begin()

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="supervisor", daemon=True)
                self._thread.start()

    # ---- the thread

    def _loop(self) -> None:
        while not (self._is_stopping and self._are_agents_done()):
            self._guarded_turn()

    def _guarded_turn(self) -> None:
        try:
            self._turn()
        except Exception:
            # A loop's iteration: the other agents must not be left alone.
            log.exception("the supervisor stumbled")
            self._poller.wait(0.2)

    def _turn(self) -> None:
        now = self._system.boottime()
        self.alive_until = now + STEP_S
        while self._inbox:
            self._inbox.popleft()()
        for name, program in list(self._programs.items()):
            if program.next_due() <= now:
                self._advance(name, program)
        self._expire_unknown(now)
        if now >= self._next_sample and self._programs:
            self._sample(now)
        if self._inbox or (self._is_stopping and self._are_agents_done()):
            return
        due = min((program.next_due() for program in self._programs.values()), default=now + LONGEST_WAIT_S)
        if self._programs:
            due = min(due, self._next_sample)
        if self._unknown:
            due = min(due, self._unknown[0][0])
        self._poller.wait(min(LONGEST_WAIT_S, max(0.0, due - self._system.boottime())))

    def _advance(self, name: str, program: Program) -> None:
        try:
            program.advance()
        except Exception:
            # A loop's iteration: one agent's trouble is not the others'.
            log.exception("%s: the supervisor stumbled", name)
        if program.is_leaving and program.is_idle:
            self._remove(name, program)

    def _drain(self) -> None:
        os.read(self._wake_read, 4096)

    def _sample(self, now: float) -> None:
        """One pass over all processes for all agents; never more than a small share of a core."""
        begun = self._system.thread_cpu()
        table = self._processes.read()
        for program in list(self._programs.values()):
            program.measure(table, now)
        # By its own work, not by the clock: on a busy host it waits much, and just then limits matter.
        spent = self._system.thread_cpu() - begun
        self._next_sample = now + max(self._sample_s, min(SAMPLE_MAX_S, spent * SAMPLE_SHARE))

    def _are_agents_done(self) -> bool:
        return not self._must_stop_agents or all(
            program.is_idle or program.is_watch_only for program in self._programs.values()
        )

    def _kill_all(self) -> None:
        for program in self._programs.values():
            if not program.is_idle and program.is_controlled:
                program.kill_now()

    # ---- what there should be

    def _reconcile(self) -> None:
        if self._is_stopping:
            return
        declared = self._roster.declared(self._as_declared)
        for name, (manifest, source, desired) in declared.items():
            program = self._programs.get(name)
            if program is None:
                self._add(name, manifest, source, desired)
                continue
            program.use(manifest, source)
            if desired != program.state.desired and not program.is_watch_only:
                program.want(desired)
        for stray in self._roster.strays({*declared, *self._programs}):
            if stray.declared is not None:
                self._add(stray.name, *stray.declared)
            elif self._roster.is_authority(None):
                self._clear_away(stray.name)
        for name, program in list(self._programs.items()):
            if name not in declared and not program.is_leaving and self._roster.is_authority(program.source):
                self._leave(name, program)
        spans = [program.manifest.limits.cpu_for_s for program in self._programs.values()]
        self._sample_s = min([SAMPLE_S, *(max(1.0, span / 6) for span in spans)])
        self._retry_unknown()

    def _as_declared(self, name: str) -> Declared | None:
        program = self._programs.get(name)
        return None if program is None else Declared(program.manifest, program.source, program.state.desired)

    def _add(self, name: str, manifest: Manifest, source: str, desired: str) -> None:
        directory = f"{self._directory}/{name}"
        try:
            self._system.make_dir(directory)
        except OSError as error:
            # Each start tries again, and says of the agent what is in its way.
            log.error("%s: %s", name, error)  # noqa: TRY400
        program = Program(self._around, directory, manifest, source)
        self._programs[name] = program
        program.recover(desired)
        self._around.on_change()

    def _leave(self, name: str, program: Program) -> None:
        program.is_leaving = True
        if program.is_adopted or program.is_watch_only:
            self._remove(name, program)
        else:
            program.want(policy.STOPPED)
            if program.is_idle:
                self._remove(name, program)

    def _remove(self, name: str, program: Program) -> None:
        del self._programs[name]
        program.forget()
        self._desires.forget(name)
        self._clear_away(name)
        self._around.on_change()

    def _clear_away(self, name: str) -> None:
        try:
            self._system.remove_tree(f"{self._directory}/{name}")
        except OSError as error:
            log.warning("%s: cannot clear away its files: %s", name, error)

    # ---- orders

    def _order(self, verb: str, name: str, seq: int | None, on_end: Callable[[Answer], None]) -> bool:
        """False: there is no such agent."""
        program = self._programs.get(name)
        if program is None or program.is_leaving or self._is_stopping:
            return False
        if verb != "reload" and seq is not None:
            if self._desires.is_old(name, seq):
                status = program.status()
                on_end(Answer("a newer change of this agent was made meanwhile", status.status, status.pid))
                return True
            if program.obstacle(verb) is None:
                # Durable first: a host that dies now does after its reboot what it was told.
                self._desires.put(name, policy.STOPPED if verb == "stop" else policy.RUNNING, seq)
        program.order(verb, on_end)
        return True

    def _retry_unknown(self) -> None:
        waiting, self._unknown = self._unknown, []
        for item in waiting:
            _, verb, name, seq, on_end = item
            if not self._order(verb, name, seq, on_end):
                self._unknown.append(item)

    def _expire_unknown(self, now: float) -> None:
        while self._unknown and (now >= self._unknown[0][0] or self._is_stopping):
            _, _, name, _, on_end = self._unknown.pop(0)
            on_end(Answer(f"this host has no agent {name}", "unknown", None))
