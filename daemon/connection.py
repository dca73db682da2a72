"""One TLS connection to the Manager and one request at a time on it, every wait bounded; knows no message."""

from __future__ import annotations

import http.client
import socket
import ssl
from typing import Any, Callable, NamedTuple
from urllib.parse import urlsplit

from daemon.version import VERSION
from protocol.codec import compress, decode
from protocol.errors import CERTIFICATE_EXPIRED, ProtocolError, Refusal, parse_refusal
from protocol.fields import Fields
from protocol.limits import ANSWER_BYTES
from protocol.version import CURRENT, HEADER, INSTANCE_HEADER, accept_answer

CONNECT_S = 10.0
ANSWER_S = 30.0
GZIP_FROM_BYTES = 8 * 1024
PIECE_BYTES = 64 * 1024
PREFIX = "/daemon/v1/"

# The CA is our own and pinned; a host with a wrong clock must still find its Manager.
_NO_CHECK_TIME = 0x200000


class LinkDown(Exception):
    """The Manager could not be reached, or the connection broke. `is_silent_end`: a bare end at the first read."""

    def __init__(self, message: str, is_silent_end: bool = False, was_reused: bool = False) -> None:
        super().__init__(message)
        self.is_silent_end = is_silent_end
        self.was_reused = was_reused


class Refused(Exception):
    """The Manager answered, and not with 2xx."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.status} {refusal.reason or refusal.message}")
        self.refusal = refusal


class Peer(NamedTuple):
    """Where the Manager is and how to trust it. `certificate` is a file with certificate and key, or None."""

    server_url: str
    proxy: str | None
    ca_pem: str
    certificate: str | None


def make_context(peer: Peer) -> ssl.SSLContext:
    """TLS 1.3, our CA only, dates not looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=peer.ca_pem)
    context.verify_flags |= _NO_CHECK_TIME
    if peer.certificate is not None:
        context.load_cert_chain(peer.certificate)
    return context


class Connection:
    """Opened at the first request, kept between requests, thrown away at the first trouble."""

    def __init__(self, peer: Peer, context: ssl.SSLContext, instance_id: str | None) -> None:
        self._peer = peer
        self._context = context
        self._instance_id = instance_id
        self._http: http.client.HTTPSConnection | None = None
        self._is_used = False
        self._is_aborted = False

    def post(self, path: str, body: bytes, timeout_s: float | None = None) -> tuple[int, Fields]:
        """Send and wait. LinkDown, Refused or ProtocolError."""
        headers = {"Content-Type": "application/json"}
        if len(body) >= GZIP_FROM_BYTES and path in ("checkin", "commands/reports"):
            body = compress(body)
            headers["Content-Encoding"] = "gzip"
        status, raw = self._exchange("POST", path, body, headers, timeout_s or ANSWER_S)
        return status, Fields(decode(raw, ANSWER_BYTES))

    def post_bytes(self, path: str, body: bytes) -> Fields:
        """Send bytes as they are; the answer is JSON as ever."""
        headers = {"Content-Type": "application/octet-stream"}
        return Fields(decode(self._exchange("POST", path, body, headers, ANSWER_S)[1], ANSWER_BYTES))

    def get(self, path: str) -> bytes:
        """Fetch something that is not JSON."""
        return self._exchange("GET", path, None, {}, ANSWER_S)[1]

    def fetch(self, path: str, offset: int, piece_bytes: int, take: Callable[[bytes], None]) -> None:
        """Fetch something large from an offset on, in pieces that `take` gets one after the other."""

        def read(response: http.client.HTTPResponse) -> bytes:
            if not 200 <= response.status < 300:
                return _read_bounded(response)
            if offset and response.status != 206:
                raise LinkDown("the Manager does not begin where it was asked to")
            while piece := response.read(piece_bytes):
                take(piece)
            return b""

        self._exchange("GET", path, None, {"Range": f"bytes={offset}-"}, ANSWER_S, read)

    def abort(self) -> None:
        """From another thread: end whatever this connection waits for, at once, as if the Manager had gone."""
        self._is_aborted = True
        connection = self._http
        channel = connection.sock if connection is not None else None
        if channel is not None:
            try:
                # The plain socket's method: the TLS one would pull the session away from under the waiting thread.
                socket.socket.shutdown(channel, socket.SHUT_RDWR)
            except OSError:
                return

    def close(self) -> None:
        """Forget the socket, whatever state it is in."""
        if self._http is not None:
            self._http.close()
            self._http = None
        self._is_used = False

    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        timeout_s: float,
        read: Callable[[http.client.HTTPResponse], bytes] | None = None,
    ) -> tuple[int, bytes]:
        was_reused = self._is_used
        is_sent = False
        try:
            channel = self._open()
            channel.settimeout(timeout_s)
            connection = self._http
            if connection is None or self._is_aborted:
                raise LinkDown("the connection was given up")
            connection.request(method, PREFIX + path, body, {**self._headers(), **headers})
            is_sent = True
            response = connection.getresponse()
            raw = (read or _read_bounded)(response)
            self._is_used = True
            if response.will_close:
                self.close()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError) as error:
            self.close()
            raise LinkDown(_words(error), is_silent_end=not was_reused, was_reused=was_reused) from error
        except ssl.SSLError as error:
            self.close()
            is_refused = is_sent and "CERTIFICATE" in (error.reason or "")
            raise LinkDown(_words(error), is_silent_end=is_refused) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise LinkDown(_words(error)) from error
        except BaseException:
            self.close()
            raise
        if not 200 <= response.status < 300:
            raise Refused(self._refusal(response.status, response.getheader("Retry-After"), raw))
        if method == "POST":
            accept_answer(response.getheader(HEADER))
        return response.status, raw

    def _refusal(self, status: int, retry_after: str | None, raw: bytes) -> Refusal:
        try:
            body = decode(raw, ANSWER_BYTES)
        except ProtocolError:
            body = None
        return parse_refusal(status, retry_after, body)

    def _headers(self) -> dict[str, str]:
        headers = {HEADER: str(CURRENT), "User-Agent": f"ops-scaffold-daemon/{VERSION}", "Accept": "application/json"}
        if self._instance_id is not None:
            headers[INSTANCE_HEADER] = self._instance_id
        return headers

    def _open(self) -> Any:
        if self._http is not None and self._http.sock is not None:
            return self._http.sock
        parts = urlsplit(self._peer.server_url)
        host, port = parts.hostname or "", parts.port or 443
        if self._peer.proxy is None:
            connection = http.client.HTTPSConnection(host, port, timeout=CONNECT_S, context=self._context)
        else:
            proxy = urlsplit(self._peer.proxy)
            connection = http.client.HTTPSConnection(
                proxy.hostname or "", proxy.port, timeout=CONNECT_S, context=self._context
            )
            connection.set_tunnel(host, port)
        self._http = connection
        self._is_used = False
        connection.connect()
        _watch_for_silence(connection.sock)
        return connection.sock


def _read_bounded(response: http.client.HTTPResponse) -> bytes:
    """At most one byte more than an answer may have; in pieces, since older Pythons set aside all that is asked for."""
    pieces: list[bytes] = []
    left = ANSWER_BYTES + 1
    while left > 0:
        piece = response.read(min(left, PIECE_BYTES))
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _watch_for_silence(channel: Any) -> None:
    """Find a half-open connection in about a minute, even while nothing is to be sent."""
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30000)):
        if hasattr(socket, name):
            channel.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def means_expired(error: Exception) -> bool:
    """Whether an answer says that the certificate has run out; a bare end only hints at it."""
    return isinstance(error, Refused) and error.refusal.reason == CERTIFICATE_EXPIRED
