"""The resident process: puts the parts together, waits for signals, and takes everything down in order."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import logging
import os
import signal
import socket
import sys
from typing import Any

from agent import disk, logs
from agent.answers import complaint
from agent.api import Api
from agent.capabilities import CapabilityFile
from agent.files_api import FilesApi
from agent.heartbeat import Heartbeat
from agent.jobs import Jobs
from agent.journal import Journal
from agent.loop import Loop
from agent.runner import Runner
from agent.server import UNIX_CONNECTIONS as UNIX_MOST
from agent.server import Channel, Listener, Peer, listen_tcp, listen_unix, uid_of
from agent.settings import Settings, SettingsError, load_settings
from agent.signature import Gate, Nonces
from agent.usage import Usage
from agent.version import VERSION

EXIT_SETTINGS = 2
EXIT_RUNNING = 4
ORDER_BYTES = 1024 * 1024
STOP_LOOK_S = 0.05
FAREWELL_S = 2.0
TIDY_S = 3600.0

log = logging.getLogger("agent")


class Agent:
    """Owns the loop, which is the only thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        state_dir = settings.state_dir
        for name in ("staging", "outbox", "backups"):
            disk.make_dir(f"{state_dir}/{name}")
        self._loop = Loop()
        self._usage = Usage()
        self._capabilities = CapabilityFile(settings.capabilities)
        self._journal = Journal(state_dir)
        self._nonces = Nonces(f"{state_dir}/nonces", _boot_id())
        self._jobs = Jobs(self._loop)
        self._runner = Runner(self._loop, settings, self._journal, self._capabilities)
        self._files = files = FilesApi(settings, self._capabilities, self._jobs)
        self._api = Api(self._loop, settings, self._runner, files, Gate(settings.keys, self._nonces), self._usage)
        self._listeners: list[Listener] = []
        self._heartbeat: Heartbeat | None = None
        self._is_stopping = False

    def run(self) -> int:
        """Until a signal says otherwise. The exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, self._stop)
        self._loop.on_signal(signal.SIGHUP, self._capabilities.now)
        self._loop.on_signal(signal.SIGCHLD, self._poll_children)
        self._capabilities.now()
        self._runner.recover()
        self._listen()
        if self._settings.daemon_socket is not None:
            self._heartbeat = Heartbeat(
                self._loop, self._settings.daemon_socket, self._settings.heartbeat_interval_s, self._usage, self._state
            )
        self._tidy()
        log.info("agent %s runs", VERSION)
        self._loop.run()
        self._nonces.close()
        self._journal.close()
        log.info("stopped")
        return 0

    def _listen(self) -> None:
        body_max = max(self._settings.http_body_max_bytes, ORDER_BYTES)
        if self._settings.socket is not None:
            self._add(listen_unix(self._settings.socket), UNIX_MOST, body_max, self._admit_local)
            log.info("listens at %s", self._settings.socket)
        if self._settings.http_addr is not None and self._settings.keys:
            wrap = None
            if self._settings.http_tls_cert is not None:
                # Only here is `ssl` worth its memory.
                wrap = importlib.import_module("agent.tls").wrapper(self._settings)
            listener = listen_tcp(self._settings.http_addr)
            log.info("listens at %s:%d%s", *listener.getsockname()[:2], " with TLS" if wrap else "")
            self._add(
                listener, self._settings.http_max_connections, body_max, lambda channel: self._admit_tcp(channel, wrap)
            )

    def _add(self, channel: socket.socket, most: int, body_max: int, admit: Any) -> None:
        api = self._api
        self._listeners.append(Listener(self._loop, channel, most, body_max, api.look, api.handle, complaint, admit))

    def _admit_local(self, channel: socket.socket) -> tuple[Channel, Peer] | None:
        uid = uid_of(channel)
        if uid not in (0, os.geteuid()):
            log.warning("a process of user %d is not let in", uid)
            return None
        return channel, Peer(True, f"uid {uid}")

    def _admit_tcp(self, channel: socket.socket, wrap: Any) -> tuple[Channel, Peer] | None:
        try:
            address = str(channel.getpeername()[0])
            channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not self._api.is_allowed(address):
                log.info("%s is not let in: its address is not allowed", address)
                return None
            return (channel if wrap is None else wrap(channel)), Peer(False, address)
        except OSError:
            return None

    def _tidy(self) -> None:
        self._files.tidy()
        self._loop.later(TIDY_S, self._tidy)

    def _state(self) -> str:
        running, _ = self._runner.counts()
        return "stopping" if self._is_stopping else "busy" if running else "idle"

    def _poll_children(self) -> None:
        self._runner.poll_children()
        self._jobs.poll_children()

    def _stop(self) -> None:
        if self._is_stopping:
            return
        log.info("stopping")
        self._is_stopping = True
        if self._heartbeat is not None:
            self._heartbeat.close()
        self._runner.stop()
        self._jobs.stop()
        self._stop_when_idle()

    def _stop_when_idle(self) -> None:
        """Callers still hear how what ran has ended; then everything is closed."""
        if not self._runner.is_idle():
            self._loop.later(STOP_LOOK_S, self._stop_when_idle)
            return
        for listener in self._listeners:
            listener.close()
        if self._settings.socket is not None:
            disk.remove(self._settings.socket)
        self._loop.later(FAREWELL_S, self._loop.stop)
        self._leave_when_quiet()

    def _leave_when_quiet(self) -> None:
        if all(listener.is_quiet() for listener in self._listeners):
            self._loop.stop()
        else:
            self._loop.later(STOP_LOOK_S, self._leave_when_quiet)


def main(arguments: list[str]) -> int:
    """Run in the foreground."""
    logs.set_up("text", "info")
    try:
        settings = load_settings(arguments)
    except SettingsError as error:
        (sys.stdout if error.code == 0 else sys.stderr).write(f"{error}\n")
        return 0 if error.code == 0 else EXIT_SETTINGS
    logs.set_up(settings.log_format, settings.log_level)
    try:
        disk.make_dir(settings.state_dir)
        os.chmod(settings.state_dir, 0o700)  # noqa: PTH101
        if not _lock(f"{settings.state_dir}/lock"):
            log.error("another agent runs with %s", settings.state_dir)
            return EXIT_RUNNING
        return Agent(settings).run()
    except OSError as error:
        log.error("cannot start: %s", error)  # noqa: TRY400
        return EXIT_SETTINGS


def _lock(path: str) -> bool:
    """A lock that ends with this process, however it ends; its descriptor stays open on purpose."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    os.close(fd)
    return False


def _boot_id() -> str:
    return disk.read_file("/proc/sys/kernel/random/boot_id").decode("ascii", "replace").strip()
