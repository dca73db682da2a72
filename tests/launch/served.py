"""A real server of one plane, started as in production, and clients that speak to it byte by byte."""

import contextlib
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from tests.services import ROOT, wait_for

APPLICATION = "tests.launch.tiny:application"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Plane:
    """gunicorn with our configuration around the tiny application."""

    def __init__(self, plane: str, directory: Path, **environment: str) -> None:
        self.plane, self.port, self.directory = plane, free_port(), directory
        self.log = directory / f"{plane}.log"
        variable = "OPS_WEB_PORT" if plane == "web" else "OPS_GATEWAY_PORT"
        self.given = {"OPS_DATA_DIR": str(directory), variable: str(self.port), "HOME": str(directory / "home")}
        self.given |= environment
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", f"python:tests.launch.quick_{plane}", APPLICATION],
                cwd=ROOT,
                env=os.environ | self.given,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        try:
            wait_for(self._answers, 60, "the server to answer")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError, EOFError), self.connect(timeout=5) as client:
            if self.plane == "web" and "OPS_TLS__ENABLED" not in self.given:
                return ask(client, "/hello").status == 200
            with ssl._create_unverified_context().wrap_socket(client) as in_tls:
                return ask(in_tls, "/hello").status == 200
        return False

    def connect(self, timeout: float = 20.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def worker_pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Returns how long it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(30)
        return time.monotonic() - began

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def request(path: str, *headers: str, body: bytes = b"", method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Answer:
    """One HTTP answer read from a socket, and not a byte more, so that the socket stays usable for the next."""

    def __init__(self, sock: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._some(sock, 1, head)
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body, length = bytearray(), int(self.headers.get("content-length", "0"))
        while len(body) < length:
            body += self._some(sock, min(65536, length - len(body)), head)
        self.body = bytes(body)

    @staticmethod
    def _some(sock: socket.socket, size: int, before: bytes) -> bytes:
        if not (data := sock.recv(size)):
            raise EOFError(f"the connection ended after {before!r}")
        return data


def ask(sock: socket.socket, path: str, *headers: str, body: bytes = b"", method: str = "GET") -> Answer:
    sock.sendall(request(path, *headers, body=body, method=method))
    return Answer(sock)


def seconds_until_closed(
    sock: socket.socket, trickle: bytes = b"", every_s: float = 0.1, most_s: float = 20.0
) -> float:
    """How long the server puts up with a client that sends a byte now and then, or nothing."""
    began = time.monotonic()
    remaining = iter(trickle)
    while time.monotonic() - began < most_s:
        readable, _, _ = select.select([sock], [], [], every_s)
        try:
            if readable and not sock.recv(65536):
                return time.monotonic() - began
            if (byte := next(remaining, None)) is not None:
                sock.sendall(bytes([byte]))
        except (ConnectionError, ssl.SSLError):
            return time.monotonic() - began
    raise AssertionError(f"still open after {most_s:g} s")
