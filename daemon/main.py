"""The resident process: puts the parts together, waits for signals and commands, and takes everything down in order."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections import deque

from daemon import logs
from daemon.agent_config import AgentConfigs
from daemon.capabilities import CapabilityFile
from daemon.checkin import CheckIns
from daemon.clock import Clock
from daemon.collector import Collector
from daemon.commands import Runner, Surroundings, handlers
from daemon.courier import Courier
from daemon.credentials import Credentials
from daemon.gpu import GpuReader
from daemon.identity import Identity, IdentityError
from daemon.intake import Intake
from daemon.inventory import InventoryReader, read_machine
from daemon.journal import Journal
from daemon.link import Link
from daemon.local import LocalSettings, SettingsError, load_local
from daemon.measure import Logbook
from daemon.notify import Notifier
from daemon.outbox import Outbox
from daemon.procfs import Kernel
from daemon.rpc import RpcServer
from daemon.sampling import Sampler
from daemon.spool import Spool
from daemon.state import InstanceState, load_settings
from daemon.streams import DAEMON, Logs
from daemon.supervisor.orders import agent_handlers
from daemon.supervisor.supervisor import Supervisor
from daemon.system import System
from daemon.tasks import CANCEL, RUN, Tasks
from daemon.version import VERSION
from protocol.checkin import AgentStatus
from protocol.commands import Command
from protocol.settings import Settings

EXIT_SETTINGS = 2
EXIT_REJECTED = 3
EXIT_RUNNING = 4

STOP_S = 10.0
AGENTS_STOP_S = 6.0
BRIEFLY_S = 1.0
TICK_S = 60.0
NEWS_S = 0.3
NEWS_AGAIN_S = 10.0
NEVER = float("inf")

# Commands that a crash cuts short, but whose work has a journal of its own.
RESUMABLE = frozenset({"agent.configure", RUN, CANCEL})
SOCKET_VARIABLE = "OPS_DAEMON_SOCKET"
"""Tells agents where the Daemon's local socket is."""

log = logging.getLogger("daemon")


class Daemon:
    """Owns the threads. Its own one runs commands and handles signals; whatever else happens, happens in theirs."""

    def __init__(self, system: System, local: LocalSettings, arguments: list[str], notifier: Notifier) -> None:
        self._system = system
        self._local = local
        self._arguments = arguments
        self._notifier = notifier
        self._inbox: deque[Command] = deque()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._signals: deque[int] = deque()
        self._is_news = False
        self._last_news = 0.0
        self._next_news = NEVER
        state_dir = local.state_dir
        kernel = Kernel(system)
        machine = read_machine(system, kernel)
        self._settings = load_settings(system, state_dir)
        self._state = InstanceState(system, state_dir, machine.boot_id)
        self._clock = Clock(system, machine.boot_id, self._state.anchor, self._state.first_anchor)
        self._spool = Spool(system, f"{state_dir}/spool", self._settings.spool)
        self._logbook = Logbook(system, self._spool, self._clock)
        self._journal = Journal(system, f"{state_dir}/journal")
        self._outbox = Outbox(self._journal)
        self._identity = Identity(system, f"{state_dir}/identity")
        self._inventory = InventoryReader(system, kernel, self._server_url())
        self._capabilities = CapabilityFile(system, local.capabilities)
        self._intake = Intake(
            self._identity, self._clock, self._journal, self._outbox, self._logbook, self._hand_over, {RUN}
        )  # fmt: skip
        self._gpu = GpuReader(system, local.collector_gpu == "auto")
        self._supervisor = Supervisor(
            system, self._clock, self._logbook, state_dir, machine.boot_id, self._agents_changed,
            {SOCKET_VARIABLE: local.socket_path}, self._capabilities.forbids_command, self._capabilities.forbids_file,
        )  # fmt: skip
        self._configs = AgentConfigs(
            system, f"{state_dir}/config", self._supervisor, self._logbook,
            lambda: self._capabilities.present().config, self._agents_changed, self._capabilities.forbids_command,
            self._capabilities.forbids_file,
        )  # fmt: skip
        self._rpc = RpcServer(system, self._supervisor)
        self._checkins = CheckIns(
            system, state_dir, self._state, self._clock, self._spool, self._logbook, self._capabilities, machine,
            self._inventory.read, self._settings, self._apply, self._read_agents,
        )  # fmt: skip
        credentials = Credentials(system, self._identity, self._clock, self._state, self._logbook, machine)
        self._link = Link(
            system, credentials, self._checkins, self._clock, self._intake, self._outbox, self._inventory.read,
            self._watch_until, self._wake, local.manager_url, local.manager_proxy,
        )  # fmt: skip
        self._sampler = Sampler(
            system, self._clock, lambda: Collector(system, kernel, self._clock, self._gpu), self._gpu, self._logbook,
            lambda: self._link.next_checkin, self._nudge,
        )  # fmt: skip
        self._courier = Courier(self._link, self._outbox, self._sampler, self._clock)
        around = Surroundings(system, lambda: self._checkins.settings.version, self._link.check_in_now)
        self._logs = Logs(system, self._clock, self._log_paths, self._link.new_connection, self._supervisor.forbids_log)
        self._tasks = Tasks(
            system, self._clock, self._intake, self._outbox, self._supervisor.task_socket, self._nudge,
            self._link.new_connection,
        )  # fmt: skip
        table = {
            **handlers(around),
            **self._tasks.handlers(),
            **agent_handlers(self._supervisor),
            "agent.configure": self._configs.configure,
            "agent.read_config": self._configs.read,
            "agent.logs": self._logs.read,
            "agent.stream_logs": self._logs.stream,
        }
        self._runner = Runner(system, self._clock, table, self._intake, self._outbox, self._nudge)

    def run(self) -> int:
        """Until a signal says otherwise. The exit code."""
        if self._identity.node is None and self._identity.pending is None:
            log.error("this host is not enrolled; run `python -m daemon enroll` first")
            return EXIT_SETTINGS
        self._listen_to_signals()
        self._set_up_logs()
        self._report_start()
        self._configs.settle()
        self._supervisor.use_host(self._local.agents, self._local.builtin)
        self._apply(self._settings)
        self._intake.catch_up(RESUMABLE)
        self._configs.resume()
        self._rpc.listen(self._local.socket_path)
        self._sampler.start()
        self._link.start()
        self._notifier.send("READY=1")
        log.info("daemon %s runs, instance %s", VERSION, self._state.instance_id)
        try:
            return self._loop()
        finally:
            self._stop()

    # ---- the main thread

    def _loop(self) -> int:
        pause = min(TICK_S, self._notifier.watchdog_s / 3) if self._notifier.watchdog_s else TICK_S
        next_tick = 0.0
        while True:
            try:
                left = max(0.0, min(next_tick, self._next_news) - self._system.boottime())
                ready = select.select([self._wake_read, self._rpc.fileno()], [], [], left)[0]
                if self._wake_read in ready:
                    os.read(self._wake_read, 4096)
                self._rpc.serve()
                if self._system.boottime() >= next_tick:
                    self._tick()
                    next_tick = self._system.boottime() + pause
                self._tell_news()
                while self._inbox:
                    self._runner.run(self._inbox.popleft())
                    self._nudge()
                while self._signals:
                    number = self._signals.popleft()
                    if number != signal.SIGHUP:
                        log.info("%s: stopping", signal.Signals(number).name)
                        return 0
                    self._reload()
            except Exception:
                # A loop's iteration: the next command may succeed.
                log.exception("the main loop stumbled")
            if self._link.is_over:
                return EXIT_REJECTED

    def _tick(self) -> None:
        now = self._system.boottime()
        if now < min(self._link.alive_until, self._sampler.alive_until, self._supervisor.alive_until):
            self._notifier.send("WATCHDOG=1")
        else:
            log.error("a thread has not moved for too long; the watchdog is not told that all is well")
        manager_now = self._clock.manager_now()
        if manager_now is not None:
            self._journal.forget(manager_now)
        self._rpc.tend()

    def _tell_news(self) -> None:
        """What changed among the agents is told soon, but not every little step of it."""
        now = self._system.boottime()
        if self._is_news and self._next_news == NEVER:
            self._next_news = max(now + NEWS_S, self._last_news + NEWS_AGAIN_S)
        if now >= self._next_news:
            self._is_news, self._last_news, self._next_news = False, now, NEVER
            self._link.check_in_now()

    def _reload(self) -> None:
        """SIGHUP: read the settings again. Wrong ones change nothing; a new state directory needs a restart."""
        self._notifier.send(f"RELOADING=1\nMONOTONIC_USEC={int(self._system.boottime() * 1e6)}")
        try:
            fresh = load_local(self._system, self._arguments)
        except SettingsError as error:
            log.error("%s; nothing is changed", error)  # noqa: TRY400
        else:
            if fresh.state_dir != self._local.state_dir or fresh.collector_gpu != self._local.collector_gpu:
                log.warning("state_dir and collector.gpu change only with a restart")
            is_moved = (fresh.manager_url, fresh.manager_proxy) != (self._local.manager_url, self._local.manager_proxy)
            self._local = fresh
            self._set_up_logs()
            self._inventory.refresh()
            self._supervisor.use_host(fresh.agents, fresh.builtin)
            if is_moved:
                self._link.use(fresh.manager_url, fresh.manager_proxy)
            else:
                self._link.check_in_now()
            log.info("the settings were read again")
        self._notifier.send("READY=1")

    def _stop(self) -> None:
        self._notifier.send("STOPPING=1")
        self._rpc.close()
        self._configs.stop(BRIEFLY_S)
        self._logs.stop(BRIEFLY_S)
        self._tasks.stop(BRIEFLY_S)
        self._supervisor.stop(AGENTS_STOP_S, self._local.agents_at_exit == "stop")
        self._link.stop(STOP_S)
        self._courier.stop(STOP_S)
        self._sampler.stop(STOP_S)
        self._logbook.add_event("daemon.stopping", "info", f"daemon {VERSION} stops")
        self._spool.close()
        self._journal.close()
        self._state.close()
        log.info("stopped")

    def _report_start(self) -> None:
        version = ".".join(str(part) for part in sys.version_info[:3])
        self._logbook.add_event("daemon.started", "info", f"daemon {VERSION} started", {"python": version})
        if self._spool.damaged_files():
            self._logbook.add_event(
                "spool.damaged", "warning", f"{self._spool.damaged_files()} files of the spool are damaged"
            )
        if self._journal.is_damaged:
            self._logbook.add_event("state.damaged", "warning", "the command journal is damaged; what is left is kept")

    def _listen_to_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda found, _: self._signals.append(found))

    def _set_up_logs(self) -> None:
        logs.set_up(self._local.log_format, self._local.log_level or self._checkins.settings.log_level)

    def _server_url(self) -> str | None:
        return self._local.manager_url or (self._identity.node.server_url if self._identity.node else None)

    # ---- called from other threads

    def _apply(self, settings: Settings) -> None:
        self._supervisor.use_settings(settings.version, settings.agents)
        self._spool.set_limits(settings.spool)
        self._sampler.use(settings.metrics_interval_s, settings.live_max_s)
        self._set_up_logs()

    def _read_agents(self) -> tuple[AgentStatus, ...]:
        if self._configs.look():
            self._agents_changed()
        return self._supervisor.agents()

    def _log_paths(self, name: str) -> list[str] | None:
        if name == DAEMON:
            return [logs.file_path(self._local.state_dir)]
        return self._supervisor.log_paths(name)

    def _hand_over(self, command: Command) -> None:
        self._inbox.append(command)
        self._wake()

    def _watch_until(self, until: str) -> None:
        self._sampler.watch_until(until)

    def _agents_changed(self) -> None:
        self._is_news = True
        self._wake()

    def _nudge(self) -> None:
        self._courier.nudge()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            # The pipe is full of reasons to wake up already.
            return


def main(arguments: list[str]) -> int:
    """Run in the foreground."""
    notifier = Notifier(os.environ)
    logs.set_up("text", "info")
    system = System()
    try:
        local = load_local(system, arguments)
    except SettingsError as error:
        log.error("%s", error)  # noqa: TRY400
        return EXIT_SETTINGS
    logs.set_up(local.log_format, local.log_level or "info")
    try:
        system.make_dir(local.state_dir)
        if not system.lock(f"{local.state_dir}/lock"):
            log.error("another daemon runs with %s", local.state_dir)
            return EXIT_RUNNING
        logs.keep_in(local.state_dir)
        daemon = Daemon(system, local, arguments, notifier)
    except (OSError, IdentityError) as error:
        log.error("cannot start: %s", error)  # noqa: TRY400
        return EXIT_SETTINGS
    return daemon.run()
