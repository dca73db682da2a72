"""TLS 1.2 or newer for callers over TCP; loaded only where it is set up, since `ssl` costs memory."""

from __future__ import annotations

import socket
import ssl
from typing import Callable

from agent.settings import Settings


class TlsChannel:
    """A TLS connection that asks for patience the way a socket does. The handshake happens at the first read."""

    def __init__(self, channel: ssl.SSLSocket) -> None:
        self._channel = channel

    def fileno(self) -> int:
        """For the loop."""
        return self._channel.fileno()

    def recv(self, size: int) -> bytes:
        """As much as has come, also what OpenSSL holds back from `select`."""
        try:
            data = self._channel.recv(size)
            while data and self._channel.pending():
                # The rest of a record, which no event would ever tell of.
                data += self._channel.recv(self._channel.pending())
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        except ssl.SSLEOFError:
            return b""
        return data

    def send(self, data: memoryview) -> int:
        """How much of it went."""
        try:
            return self._channel.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def shutdown(self, how: int) -> None:
        """Of the socket below: what still comes is decrypted as before."""
        socket.socket.shutdown(self._channel, how)

    def close(self) -> None:
        """Without a farewell: lengths say where answers end."""
        self._channel.close()


def wrapper(settings: Settings) -> Callable[[socket.socket], TlsChannel]:
    """What makes TLS of an accepted connection. OSError if the files are of no use."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.load_cert_chain(settings.http_tls_cert or "", settings.http_tls_key)
    if settings.http_tls_client_ca is not None:
        context.load_verify_locations(settings.http_tls_client_ca)
        context.verify_mode = ssl.CERT_REQUIRED

    def wrap(channel: socket.socket) -> TlsChannel:
        return TlsChannel(context.wrap_socket(channel, server_side=True, do_handshake_on_connect=False))

    return wrap
