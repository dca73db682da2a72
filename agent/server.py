"""HTTP/1.1 on sockets that never block: heads, bodies and answers within bounds of size and time. Knows no route."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
import stat
import struct
from typing import Any, Callable, NamedTuple, Optional, Protocol

from agent import disk
from agent.loop import READ, WRITE, Loop, Timer

HEAD_BYTES = 16 * 1024
HEADERS = 64
HEAD_S = 10.0
BODY_S = 60.0
WRITE_S = 60.0
IDLE_S = 75.0
LINGER_S = 2.0
READ_BYTES = 256 * 1024
UNIX_CONNECTIONS = 64
PER_ADDRESS = 32
FREE_BYTES = 64 * 1024
BODIES_HELD = 4
SERVER = "ops-agent"

REASONS = {
    200: "OK", 202: "Accepted", 206: "Partial Content", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden",
    404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict", 411: "Length Required",
    413: "Content Too Large", 416: "Range Not Satisfiable", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip

_CREDENTIALS = struct.Struct("3i")
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]{1,8192}) HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_ONCE = ("content-length", "x-ops-key", "x-ops-timestamp", "x-ops-nonce", "x-ops-signature", "host")

log = logging.getLogger("agent.server")


class Peer(NamedTuple):
    """Who is at the other end: a process of this host that the kernel vouches for, or an address."""

    is_local: bool
    name: str


class Request(NamedTuple):
    """One whole request. `path` and `query` are as they were sent; header names are in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    peer: Peer


class Answer(NamedTuple):
    """What is said. After `body` come `length` bytes of `file` from `offset`, which is then closed."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "application/json"
    file: int | None = None
    offset: int = 0
    length: int = 0


class Channel(Protocol):
    """A socket, or TLS over one. Both raise BlockingIOError if they would have to wait."""

    def fileno(self) -> int:
        """For the loop."""

    def recv(self, size: int) -> bytes:
        """At most that much; nothing at the end."""

    def send(self, data: memoryview) -> int:
        """How much of it went."""

    def shutdown(self, how: int) -> None:
        """Say that nothing more will be sent."""

    def close(self) -> None:
        """Forget it."""


class Broken(Exception):
    """A request that is none."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


# What a request without its body is refused with, if it is.
Look = Callable[[Request], Optional[Answer]]
Handler = Callable[[Request, "Exchange"], Any]
Complain = Callable[[int, str], Answer]


class Exchange:
    """A request's way back: answered once, now or later. `on_gone` is called if the caller left before that."""

    __slots__ = ("_connection", "is_over", "on_gone")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.is_over = False
        self.on_gone: Callable[[], Any] | None = None

    def answer(self, answer: Answer) -> None:
        """Say it; nothing happens if the caller left or was answered."""
        if self.is_over:
            if answer.file is not None:
                os.close(answer.file)
            return
        self.is_over = True
        self._connection.answer(answer)

    def leave(self) -> None:
        """The caller is gone."""
        if not self.is_over:
            self.is_over = True
            if self.on_gone is not None:
                self.on_gone()


class _Head(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    is_kept: bool
    length: int


class Held:
    """The bytes that callers over TCP have sent before it is known who they are, beyond a small part of each."""

    __slots__ = ("most", "size")

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = 0


class Connection:
    """One caller, one request at a time; what he sends early waits in its buffer."""

    def __init__(
        self, loop: Loop, channel: Channel, peer: Peer, body_max: int, held: Held, look: Look, handle: Handler,
        complain: Complain, on_close: Callable[[Connection], Any],
    ) -> None:  # fmt: skip
        self.peer = peer
        self._loop = loop
        self._channel = channel
        self._fd = channel.fileno()
        self._body_max = body_max
        self._held = held
        self._held_size = 0
        self._look = look
        self._handle = handle
        self._complain = complain
        self._on_close = on_close
        self._incoming = bytearray()
        self._outgoing = memoryview(b"")
        self._answer: Answer | None = None
        self._file_left = 0
        self._head: _Head | None = None
        self._exchange: Exchange | None = None
        self._is_last = False
        self._is_broken = False
        self._is_closed = False
        self._timer: Timer | None = None
        self._wait(HEAD_S)
        loop.watch(self._fd, READ, self._on_ready)

    # ---- for the exchange

    def answer(self, answer: Answer) -> None:
        """Begin to send."""
        self._exchange = None
        if self._is_closed:
            if answer.file is not None:
                os.close(answer.file)
            return
        self._answer, self._file_left = answer, answer.length
        self._outgoing = memoryview(_head_of(answer, self._is_last) + answer.body)
        self._wait(WRITE_S)
        self._write()

    def close(self) -> None:
        """Now, whatever was going on."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._loop.forget(self._fd)
        self._close_file()
        self._channel.close()
        self._incoming.clear()
        self._count_held()
        self._on_close(self)
        if self._exchange is not None:
            self._exchange.leave()

    def close_when_idle(self) -> None:
        """After the answer that is under way or awaited, if any."""
        self._is_last = True
        if self._exchange is None and self._answer is None:
            self.close()

    # ---- from the loop

    def _on_ready(self, events: int) -> None:
        if self._is_closed:
            return
        if events & WRITE:
            self._write()
        if events & READ and not self._is_closed:
            self._read()

    def _read(self) -> None:
        try:
            data = self._channel.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
            return
        if self._is_broken:
            return
        self._incoming += data
        if self._exchange is not None or self._answer is not None:
            if len(self._incoming) > HEAD_BYTES:
                # Somebody who sends on and on without listening.
                self.close()
            return
        if self._count_held():
            self._advance()
        else:
            self._break_off(self._complain(429, "too much is on its way"))

    def _count_held(self) -> bool:
        """Whether all callers together hold no more than they may."""
        size = 0 if self.peer.is_local else max(0, len(self._incoming) - FREE_BYTES)
        self._held.size += size - self._held_size
        self._held_size = size
        return not size or self._held.size <= self._held.most

    def _break_off(self, answer: Answer) -> None:
        """Say it, and take nothing more."""
        self._is_last = self._is_broken = True
        self._head = None
        self._incoming.clear()
        self._count_held()
        self.answer(answer)

    def _advance(self) -> None:
        """Make a request of what has come, if it is all there."""
        try:
            if self._head is None:
                self._head = self._take_head()
                if self._head is None:
                    return
                refused = self._look(self._request(self._head, b""))
                if refused is not None:
                    self._refuse(self._head, refused)
                    return
                self._encourage(self._head)
            if len(self._incoming) < self._head.length:
                return
        except Broken as error:
            self._break_off(self._complain(error.status, str(error)))
            return
        head, self._head = self._head, None
        request = self._request(head, self._take_body(head))
        self._exchange = exchange = Exchange(self)
        self._wait(None)
        try:
            self._handle(request, exchange)
        except Exception:
            # The edge of the API: a traceback never leaves the process.
            log.exception("%s %s failed", head.method, request.path[:200])
            exchange.answer(self._complain(500, "something went wrong; the agent's log says what"))

    def _request(self, head: _Head, body: bytes) -> Request:
        path, _, query = head.target.partition("?")
        return Request(head.method, path, query, head.headers, body, self.peer)

    def _refuse(self, head: _Head, answer: Answer) -> None:
        """Without its body, unless that is here already and another request may follow."""
        if len(self._incoming) < head.length:
            self._break_off(answer)
            return
        self._head = None
        self._take_body(head)
        self.answer(answer)

    def _take_body(self, head: _Head) -> bytes:
        body = bytes(self._incoming[: head.length])
        del self._incoming[: head.length]
        self._count_held()
        self._is_last = self._is_last or not head.is_kept
        return body

    def _encourage(self, head: _Head) -> None:
        if head.headers.get("expect", "").lower() == "100-continue" and len(self._incoming) < head.length:
            with contextlib.suppress(OSError):
                self._channel.send(memoryview(b"HTTP/1.1 100 Continue\r\n\r\n"))

    def _take_head(self) -> _Head | None:
        end = self._incoming.find(b"\r\n\r\n", 0, HEAD_BYTES + 4)
        if end < 0:
            if len(self._incoming) > HEAD_BYTES:
                raise Broken(431, f"the head of a request must not exceed {HEAD_BYTES} bytes")
            return None
        head = _parse_head(bytes(self._incoming[:end]))
        del self._incoming[: end + 4]
        if head.length > self._body_max:
            raise Broken(413, f"the body must not exceed {self._body_max} bytes")
        self._wait(BODY_S)
        return head

    def _write(self) -> None:
        try:
            while self._outgoing or self._fill():
                sent = self._channel.send(self._outgoing)
                self._outgoing = self._outgoing[sent:]
                if not self._outgoing and self._file_left:
                    self._wait(WRITE_S)
        except (BlockingIOError, InterruptedError):
            self._loop.watch(self._fd, READ | WRITE, self._on_ready)
            return
        except OSError:
            self.close()
            return
        self._close_file()
        if self._is_closed:
            return
        self._answer = None
        if self._is_broken:
            # What he still sends must be taken, or the network throws our answer away with it.
            self._wait(LINGER_S)
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_WR)
            self._loop.watch(self._fd, READ, self._on_ready)
            return
        if self._is_last:
            self.close()
            return
        self._loop.watch(self._fd, READ, self._on_ready)
        self._wait(HEAD_S if self._incoming else IDLE_S)
        if self._incoming:
            self._loop.soon(self._go_on)

    def _go_on(self) -> None:
        if not self._is_closed and self._exchange is None and self._answer is None:
            self._advance()

    def _fill(self) -> bool:
        """Take the next part of the file. False: that was all. A file that shrank ends the connection."""
        answer = self._answer
        if answer is None or answer.file is None or not self._file_left:
            return False
        offset = answer.offset + answer.length - self._file_left
        data = os.pread(answer.file, min(READ_BYTES, self._file_left), offset)
        if not data:
            raise OSError("the file ended early")
        self._file_left -= len(data)
        self._outgoing = memoryview(data)
        return True

    def _close_file(self) -> None:
        if self._answer is not None and self._answer.file is not None:
            os.close(self._answer.file)
        self._answer = None

    def _wait(self, delay_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if delay_s is None else self._loop.later(delay_s, self.close)


class Listener:
    """Accepts within bounds: so many connections in all, so many from one address, and so many bytes."""

    def __init__(
        self, loop: Loop, channel: socket.socket, most: int, body_max: int, look: Look, handle: Handler,
        complain: Complain, admit: Callable[[socket.socket], tuple[Channel, Peer] | None],
    ) -> None:  # fmt: skip
        self._loop = loop
        self._channel = channel
        self._most = most
        self._body_max = body_max
        self._held = Held(BODIES_HELD * body_max)
        self._look = look
        self._handle = handle
        self._complain = complain
        self._admit = admit
        self._connections: set[Connection] = set()
        loop.watch(channel.fileno(), READ, self._on_ready)

    def close(self) -> None:
        """No more callers; those who wait for an answer get it."""
        if self._channel.fileno() >= 0:
            self._loop.forget(self._channel.fileno())
            self._channel.close()
        for connection in list(self._connections):
            connection.close_when_idle()

    def is_quiet(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return not self._connections

    def _on_ready(self, _: int) -> None:
        for _round in range(16):
            try:
                channel, _address = self._channel.accept()
            except OSError:
                # Nobody (any more), or no descriptors left.
                return
            channel.setblocking(False)
            admitted = self._admit(channel)
            if admitted is None:
                channel.close()
                continue
            made, peer = admitted
            same = sum(connection.peer == peer for connection in self._connections)
            if len(self._connections) >= self._most or (not peer.is_local and same >= PER_ADDRESS):
                log.warning("too many connections, one from %s is closed", peer.name)
                made.close()
                continue
            self._connections.add(
                Connection(
                    self._loop,
                    made,
                    peer,
                    self._body_max,
                    self._held,
                    self._look,
                    self._handle,
                    self._complain,
                    self._connections.discard,
                )
            )


def listen_unix(path: str) -> socket.socket:
    """A socket for this host's root and our own user; what a dead agent left is taken away."""
    disk.make_dir(path.rpartition("/")[0] or "/", 0o755)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "something that is no socket is in its place", path)
        os.unlink(path)  # noqa: PTH108
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        with disk.near(path) as address:
            listener.bind(address)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(128)
    return listener


def listen_tcp(address: tuple[str, int]) -> socket.socket:
    """A socket for other callers."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    listener.listen(128)
    return listener


def uid_of(channel: socket.socket) -> int:
    """Whose process is at the other end of a Unix socket, by the kernel's word."""
    return int(_CREDENTIALS.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1])


def _parse_head(raw: bytes) -> _Head:
    first, *lines = raw.split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(first)
    if found is None:
        raise Broken(400, "this is not an HTTP/1.1 request")
    if len(lines) > HEADERS:
        raise Broken(431, f"there must not be more than {HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise Broken(400, "a header is not well formed")
        name, value = header.group(1).decode("ascii").lower(), header.group(2).decode("latin-1")
        if name in headers:
            if name in _ONCE:
                raise Broken(400, f"{name} must be there once")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    if "transfer-encoding" in headers:
        raise Broken(411, "a body needs its Content-Length")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) <= 18):
        raise Broken(400, "Content-Length must be a number")
    connection = headers.get("connection", "").lower()
    is_kept = connection == "keep-alive" if found.group(3) == b"0" else connection != "close"
    return _Head(found.group(1).decode("ascii"), found.group(2).decode("ascii"), headers, is_kept, int(length))


def _head_of(answer: Answer, is_last: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Unknown')}",
        f"Server: {SERVER}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body) + answer.length}",
        "Cache-Control: no-store",
        *(f"{name}: {value}" for name, value in answer.headers),
    ]
    if is_last:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
