"""One attempt of a health check over the network or by a command, advanced whenever its descriptor is ready."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import sys
from typing import Callable, NamedTuple
from urllib.parse import urlsplit

from daemon.supervisor.poller import READ, WRITE, Poller
from daemon.system import Child, System

BODY_BYTES = 65536
DETAIL_CHARS = 200
LOOK_S = 0.01

_RESOLVE = "import socket, sys; print(socket.getaddrinfo(sys.argv[1], None, type=socket.SOCK_STREAM)[0][4][0], end='')"


class Verdict(NamedTuple):
    """What one attempt found."""

    is_ok: bool
    detail: str


class CommandProbe:
    """Runs a program; exit code 0 is well. What it says first is the detail."""

    def __init__(self, system: System, poller: Poller, argv: list[str], stdin: bytes, environ: dict[str, str],
                 timeout_s: float, on_end: Callable[[int, bytes, bool], None]) -> None:  # fmt: skip
        self._poller = poller
        self._on_end = on_end
        self._system = system
        self.deadline = system.boottime() + timeout_s
        self._child: Child | None = system.start(argv, stdin, BODY_BYTES, environ, is_quiet=False)
        self._fd = self._child.fileno()
        self._look = self.deadline
        os.set_blocking(self._fd, False)
        poller.add(self._fd, READ, self.advance)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self._child is None

    def next_due(self) -> float:
        """When to advance without being asked."""
        return min(self.deadline, self._look)

    def advance(self) -> None:
        """Read what there is; end it when its time is up."""
        child = self._child
        if child is None:
            return
        finished = child.wait(0.0)
        if child.fileno() < 0:
            # It has said all, but not ended; nothing will tell when it does.
            self._poller.remove(self._fd)
            self._look = self._system.boottime() + LOOK_S
        if finished is None and self._system.boottime() >= self.deadline:
            self._poller.remove(self._fd)
            finished = child.kill()
        if finished is not None:
            self._child = None
            self._on_end(finished.code, finished.out, finished.timed_out)

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        if self._child is not None:
            self._poller.remove(self._fd)
            self._child.kill()
            self._child = None


def first_line(out: bytes) -> str:
    """The first words of an output that are worth showing."""
    lines = out.decode("utf-8", "replace").strip().splitlines()
    return "".join(letter for letter in lines[0] if letter.isprintable())[:DETAIL_CHARS] if lines else ""


def resolver(host: str) -> list[str]:
    """A child that looks a name up, because the resolver would block."""
    return [sys.executable, "-I", "-S", "-c", _RESOLVE, host]


def literal(host: str) -> str | None:
    """The address, if the host is one or needs no question."""
    if host == "localhost":
        return "127.0.0.1"
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return host
    return None


class Target(NamedTuple):
    """Where a socket probe goes and what it wants to see. `request` empty: a connection is enough."""

    port: int
    is_tls: bool
    host: str
    request: bytes
    status: int | None
    contains: str | None


def tcp_target(host: str, port: int) -> Target:
    """Something must listen there."""
    return Target(port, False, host, b"", None, None)


def http_target(url: str, status: int | None, contains: str | None) -> Target:
    """A page must answer. Certificates are not judged: whether the program answers is the question."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    is_tls = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    request = f"GET {path} HTTP/1.0\r\nHost: {parts.netloc}\r\nUser-Agent: ops-scaffold\r\nAccept: */*\r\n"
    return Target(
        parts.port or (443 if is_tls else 80), is_tls, host, (request + "Connection: close\r\n\r\n").encode("ascii"),
        status, contains,
    )  # fmt: skip


class SocketProbe:
    """Connects, asks and reads without ever waiting."""

    def __init__(self, poller: Poller, address: str, target: Target, deadline: float,
                 on_end: Callable[[Verdict], None]) -> None:  # fmt: skip
        self._poller = poller
        self._target = target
        self._on_end = on_end
        self.deadline = deadline
        self._left = target.request
        self._answer = bytearray()
        self.is_over = False
        self._is_connected = False
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._fd = self._socket.fileno()
        problem = self._socket.connect_ex((address, target.port))
        poller.add(self._fd, WRITE, self.advance)
        if problem not in (0, errno.EINPROGRESS):
            self._end(Verdict(False, f"cannot connect: {os.strerror(problem)}"))

    def next_due(self) -> float:
        """When to advance without being asked."""
        return self.deadline

    def advance(self) -> None:
        """As far as it goes now."""
        if self.is_over:
            return
        try:
            self._proceed()
        except (BlockingIOError, ssl.SSLWantReadError):
            self._poller.change(self._fd, READ)
        except ssl.SSLWantWriteError:
            self._poller.change(self._fd, WRITE)
        except (OSError, ValueError) as error:
            words = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            self._end(Verdict(False, words[:DETAIL_CHARS]))

    def expire(self) -> None:
        """Its time is up."""
        if not self.is_over:
            self._end(Verdict(False, "no answer in time" if self._is_connected else "no connection in time"))

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        if not self.is_over:
            self._close()

    def _proceed(self) -> None:
        if not self._is_connected:
            problem = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if problem:
                self._end(Verdict(False, f"cannot connect: {os.strerror(problem)}"))
                return
            self._is_connected = True
            if not self._target.request:
                self._end(Verdict(True, f"port {self._target.port} answers"))
                return
            if self._target.is_tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                self._socket = context.wrap_socket(
                    self._socket, do_handshake_on_connect=False, server_hostname=self._target.host
                )
        if isinstance(self._socket, ssl.SSLSocket) and not self._answer:
            self._socket.do_handshake()
        while self._left:
            self._left = self._left[self._socket.send(self._left) :]
        self._poller.change(self._fd, READ)
        while len(self._answer) < BODY_BYTES:
            piece = self._socket.recv(16384)
            self._answer += piece
            verdict = self._judge(is_whole=not piece)
            if verdict is not None:
                self._end(verdict)
                return
        self._end(self._judge(is_whole=True) or Verdict(False, "no answer"))

    def _judge(self, is_whole: bool) -> Verdict | None:
        """None: read on."""
        head, gap, body = bytes(self._answer).partition(b"\r\n\r\n")
        if not gap and not is_whole:
            return None
        words = head.split(b"\r\n", 1)[0].split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
            return Verdict(False, "what answers does not speak HTTP")
        status, wanted = int(words[1]), self._target.status
        if not (status == wanted if wanted else 200 <= status < 400):
            return Verdict(False, f"HTTP {status}")
        if self._target.contains is None or self._target.contains.encode("utf-8") in body:
            return Verdict(True, f"HTTP {status}")
        return Verdict(False, f"HTTP {status} without the expected text") if is_whole else None

    def _end(self, verdict: Verdict) -> None:
        self._close()
        self._on_end(verdict)

    def _close(self) -> None:
        self.is_over = True
        self._poller.remove(self._fd)
        self._socket.close()
