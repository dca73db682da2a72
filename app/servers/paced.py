"""Gives every client the time it needs and no more, so that slow or silent ones do not occupy a server.

What is measured is the client's own slowness: seconds that our side spends on a request do not count.
"""

import errno
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import gevent
from gevent import getcurrent
from gevent.hub import get_hub
from greenlet import greenlet
from gunicorn import util

from app.kernel.draining import draining

REQUEST_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
LAST_CHANCE_S = 0.5
PIECE_BYTES = 64 * 1024
LINGER_S = 2.0
LINGER_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Pace:
    """How long a client may take for what, in seconds."""

    handshake_s: float
    first_s: float
    """From the connection to the first byte of a request."""
    idle_s: float
    """Between two requests."""
    read_s: float
    """For a request's head and body, of which large ones get more (see `slowest`); and for any silence inside it."""
    write_s: float
    """For taking an answer, in the same way."""
    slowest: float = 16 * 1024
    """Bytes a second. Every byte earns time by this rate: large bodies may take long, but may not trickle."""


class SlowClientError(ConnectionResetError):
    """We gave up on a client. An OSError, since everything above treats it as a connection that broke."""

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "the client was too slow")


class _InterruptedError(BaseException):
    """Thrown into a greenlet that waits for its client."""


class PacedSocket:
    """A client's socket. Whatever is not paced is passed through, so that it can stand in for the socket itself."""

    def __init__(self, sock: Any, pace: Pace) -> None:
        self._sock, self._pace = sock, pace
        self._reader: greenlet | None = None
        self._is_first = True
        self._lingers = False
        self.begin_request(is_first=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def begin_request(self, *, is_first: bool = False) -> None:
        """From here on a new request is waited for."""
        self._is_first, self._is_idle, self._is_parsed = is_first, True, False
        self._waiting_since = time.monotonic()
        self._read_wait_s = self._write_wait_s = 0.0
        self._received = self._sent = 0

    def request_parsed(self) -> None:
        """The head is there. What the client does now happens inside the application."""
        self._is_parsed = True

    @property
    def awaits_request(self) -> bool:
        """Whether this client has given us nothing to do yet, so that somebody else may have its place."""
        return not self._is_parsed

    @property
    def is_between_requests(self) -> bool:
        """Whether this client was served before and has not begun to ask again."""
        return self.awaits_request and self._is_idle and not self._is_first

    @property
    def can_be_interrupted(self) -> bool:
        return self.awaits_request and self._reader is not None

    @property
    def waiting_since(self) -> float:
        return self._waiting_since

    def shake_hands(self) -> bool:
        """False if this is TLS and the handshake fails or takes too long."""
        if not isinstance(self._sock, ssl.SSLSocket):
            return True
        try:
            self._patiently(self._pace.handshake_s, self._sock.do_handshake)
        except (_InterruptedError, OSError):
            return False
        return True

    def recv(self, size: int, flags: int = 0) -> bytes:
        began = time.monotonic()
        try:
            data: bytes = self._patiently(self._time_to_read(), lambda: self._sock.recv(size, flags))
        except _InterruptedError:
            data = self._interrupted()
        except SlowClientError:
            data = self._too_slow()
        if self._is_idle and data:
            self._is_idle = False
        else:
            self._read_wait_s += time.monotonic() - began
        self._received += len(data)
        return data

    def sendall(self, data: bytes, flags: int = 0) -> None:
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            self._sent += len(piece)
            began = time.monotonic()
            earned_s = self._pace.write_s + self._sent / self._pace.slowest - self._write_wait_s
            with _Limit(min(self._pace.write_s, earned_s)):
                self._sock.sendall(piece, flags)
            self._write_wait_s += time.monotonic() - began

    def send(self, data: bytes, flags: int = 0) -> int:
        self.sendall(data, flags)
        return len(data)

    def linger(self) -> None:
        """The answer stands although the client still sends: closing must not destroy it on its way."""
        self._lingers = True

    def close(self) -> None:
        if self._lingers:
            util.close_graceful(self._sock, timeout=LINGER_S, max_drain=LINGER_BYTES)
        else:
            self._sock.close()

    def interrupt(self) -> None:
        """Take the place from a client that has asked for nothing yet. Does nothing if it just has."""
        get_hub().loop.run_callback(self._throw)

    def _throw(self) -> None:
        """Runs in the hub, as gevent's own time-outs do: nothing can happen between the question and the throw."""
        if self.can_be_interrupted and self._reader is not None:
            reader, self._reader = self._reader, None
            reader.throw(_InterruptedError)

    def _patiently(self, seconds: float, action: Callable[[], Any]) -> Any:
        self._reader = getcurrent()
        try:
            with _Limit(seconds):
                return action()
        finally:
            self._reader = None

    def _time_to_read(self) -> float:
        if not self._is_idle:
            earned_s = self._pace.read_s + self._received / self._pace.slowest - self._read_wait_s
            return min(self._pace.read_s, earned_s)
        if draining.is_set():
            return LAST_CHANCE_S if self._is_first else 0.01
        return self._pace.first_s if self._is_first else self._pace.idle_s

    def _interrupted(self) -> bytes:
        if self._is_idle:
            return b""
        raise SlowClientError

    def _too_slow(self) -> bytes:
        if self._is_idle:
            return b""
        if self.awaits_request:
            with _Limit(1.0):
                self._sock.sendall(REQUEST_TIMEOUT)
        raise SlowClientError


class _Limit:
    """Raises SlowClientError inside the block once the seconds are over; there need not be any left."""

    def __init__(self, seconds: float) -> None:
        if seconds <= 0:
            raise SlowClientError
        self._timeout = gevent.Timeout(seconds, SlowClientError)

    def __enter__(self) -> None:
        self._timeout.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timeout.close()
