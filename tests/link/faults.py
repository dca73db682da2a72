"""A TCP proxy that can be told to misbehave: swallow everything, cut connections, or fall silent in one direction."""

import socket
import struct
import threading
from contextlib import suppress
from typing import Literal

Mode = Literal["pass", "hole", "reset", "mute"]


class FaultProxy:
    """Between a host and a gateway. `mute` lets requests through and swallows answers: a link that broke one way."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.mode: Mode = "pass"
        self.answered_bytes = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.mode == "reset":
                self._reset(client)
                continue
            server = socket.create_connection(("127.0.0.1", self._target_port))
            self._open += [client, server]
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        try:
            while data := source.recv(65536):
                if self.mode == "hole" or (self.mode == "mute" and is_answer):
                    self.answered_bytes += len(data) if is_answer else 0
                    continue
                target.sendall(data)
        except OSError:
            pass
        if self.mode == "pass":
            for end in (source, target):
                self._end(end)

    def reset_all(self) -> None:
        """Cut every connection hard."""
        for end in self._open:
            self._reset(end)
        self._open.clear()

    def _reset(self, end: socket.socket) -> None:
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._end(end)

    @staticmethod
    def _end(end: socket.socket) -> None:
        """Wakes whoever reads it. It is closed with its last reference, so that its number is not reused too soon."""
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.reset_all()
