"""A TCP proxy that misbehaves on demand: holes, resets, half-open connections, and CONNECT for tunnels."""

import contextlib
import socket
import struct
import threading
import time


class FaultProxy:
    """`mode`: pass; hole (accepts, swallows, says nothing); reset (closes with RST at once); mute (goes on reading from
    the host but delivers nothing and never closes: what a dead peer behind a live router looks like)."""

    def __init__(self, target: tuple[str, int], is_tunnel: bool = False) -> None:
        self.target = target
        self.mode = "pass"
        self.is_tunnel = is_tunnel
        self.accepted: list[float] = []
        self.tunnels: list[str] = []
        self._pairs: list[tuple[socket.socket, socket.socket | None]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self, with_reset: bool = False) -> None:
        """End every connection there is."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for channel in pair:
                if channel is not None:
                    _end(channel, with_reset)

    def _accept(self) -> None:
        while True:
            try:
                channel = self._listener.accept()[0]
            except OSError:
                return
            self.accepted.append(time.monotonic())
            if self.mode == "reset":
                _end(channel, True)
                continue
            if self.mode == "hole":
                self._pairs.append((channel, None))
                continue
            try:
                if self.is_tunnel:
                    self._answer_connect(channel)
                far = socket.create_connection(self.target, 5)
                far.settimeout(None)
            except OSError:
                _end(channel, True)
                continue
            self._pairs.append((channel, far))
            threading.Thread(target=self._pump, args=(channel, far, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, channel, False), daemon=True).start()

    def _answer_connect(self, channel: socket.socket) -> None:
        asked = b""
        while b"\r\n\r\n" not in asked:
            asked += channel.recv(1000)
        self.tunnels.append(asked.split(b"\r\n")[0].decode())
        channel.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")

    def _pump(self, source: socket.socket, target: socket.socket, is_outward: bool) -> None:
        try:
            while True:
                data = source.recv(65536)
                if self.mode == "mute":
                    if not data and not is_outward:
                        return
                    if not data:
                        break
                    continue
                if not data:
                    break
                target.sendall(data)
        except OSError:
            pass
        _end(target, False)


def _end(channel: socket.socket, with_reset: bool) -> None:
    with contextlib.suppress(OSError):
        if with_reset:
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Wakes our own thread that reads from it; until then the kernel would not close, and so not reset.
            channel.shutdown(socket.SHUT_RD)
        else:
            channel.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        channel.close()
