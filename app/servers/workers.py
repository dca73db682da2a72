"""Our gunicorn worker: gevent's, with time limits for clients, room for new ones, and a stop that takes moments."""

import contextlib
import ctypes
import logging
import os
import signal
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from app.kernel.draining import ENVIRON_KEY, draining
from app.servers.paced import LAST_CHANCE_S, Pace, PacedSocket

log = logging.getLogger(__name__)

DRAIN_S = 5.0
DRAIN_BYTES = 1024 * 1024
UPKEEP_S = 3600.0
PR_SET_PDEATHSIG = 1

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class PlaneWorker(GeventWorker):  # type: ignore[misc]
    """Serves one plane."""

    pace: ClassVar[Pace]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._stopping = Event()
        self._connections: set[PacedSocket] = set()
        self._requests: set[Any] = set()
        self._pool = Pool(self.worker_connections)

    def init_process(self) -> None:
        """Runs in the worker, before the application is imported, so that all of it is cooperative."""
        die_with_parent(self.ppid)
        super().init_process()

    def load_wsgi(self) -> None:
        super().load_wsgi()
        application: Wsgi = self.app.wsgi()
        self.wsgi = _with_draining(application)

    def upkeep(self, context: ssl.SSLContext | None) -> None:
        """What a plane wants done once an hour."""

    def run(self) -> None:
        context = ssl_context(self.cfg) if self.cfg.is_ssl else None
        servers = [self._serve(listener, context) for listener in self.sockets]
        next_upkeep = time.monotonic() + UPKEEP_S
        while self.alive:
            self.notify()
            if self._pool.full():
                self._make_room()
            if time.monotonic() > next_upkeep:
                next_upkeep += UPKEEP_S
                self.upkeep(context)
            self._stopping.wait(1.0)
        self._drain(servers)

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        self._stopping.set()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        connection = PacedSocket(client, self.pace)
        self._connections.add(connection)
        try:
            if self._pool.full():
                self._make_room()
            if connection.shake_hands():
                super().handle(listener, connection, addr)
        finally:
            self._connections.discard(connection)

    def handle_request(self, listener_name: Any, req: Any, sock: PacedSocket, addr: Any) -> None:
        """One request. What its client sends beyond what the application wanted is read and dropped, up to a limit."""
        sock.request_parsed()
        self._requests.add(req)
        is_read = False
        try:
            super().handle_request(listener_name, req, sock, addr)
            is_read = _rest_is_read(req)
        finally:
            self._requests.discard(req)
            if not is_read and not _rest_is_read(req):
                sock.linger()
        if not is_read:
            raise StopIteration
        sock.begin_request()

    def timeout_ctx(self) -> contextlib.AbstractContextManager[None]:
        """Sockets have limits of their own here."""
        return contextlib.nullcontext()

    def _serve(self, listener: Any, context: ssl.SSLContext | None) -> StreamServer:
        listener.setblocking(1)

        def handle(client: Any, address: Any) -> None:
            try:
                stream = _in_tls(client, context) if context else client
            except OSError:  # gone before it came
                return
            self.handle(listener, stream, address)

        server = StreamServer(listener, handle=handle, spawn=self._pool)
        if self.cfg.workers > 1:
            server.max_accept = 1
        server.start()
        return server

    def _make_room(self) -> None:
        """Every place is taken: whoever has waited longest without asking for anything gives up his."""
        waiting = [connection for connection in self._connections if connection.can_be_interrupted]
        if waiting:
            min(waiting, key=lambda connection: connection.waiting_since).interrupt()

    def _drain(self, servers: list[StreamServer]) -> None:
        """Answer what has been asked, accept nothing more, and tell everybody to go elsewhere."""
        draining.set()
        for server in servers:
            server.close()
        for request in self._requests:
            request.force_close()
        for connection in self._connections:
            if connection.is_between_requests:
                connection.interrupt()
            elif connection.awaits_request:
                gevent.spawn_later(LAST_CHANCE_S, connection.interrupt)
        deadline = time.monotonic() + self.cfg.graceful_timeout
        while len(self._pool) and time.monotonic() < deadline:
            self.notify()
            self._pool.join(timeout=0.5)
        if len(self._pool):
            log.warning("%d requests were cut off", len(self._pool))
            self._pool.kill(timeout=1)


def die_with_parent(parent: int) -> None:
    """A worker without its arbiter would keep the port from the next one."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _in_tls(client: Any, context: ssl.SSLContext) -> ssl.SSLSocket:
    """The handshake is done later, by whoever limits its time."""
    return context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)


def _with_draining(application: Wsgi) -> Wsgi:
    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ[ENVIRON_KEY] = draining
        return application(environ, start_response)

    return call


def _rest_is_read(request: Any) -> bool:
    """Read what is left of a body. False if that is too much or takes too long."""
    if request.body.failed:
        return False
    read = 0
    with gevent.Timeout(DRAIN_S, False):  # type: ignore[arg-type]
        while read <= DRAIN_BYTES:
            try:
                data = request.body.read(8192)
            except Exception:  # noqa: BLE001 - foreign bytes; whatever is wrong with them ends the connection
                return False
            if not data:
                return True
            read += len(data)
    return False
