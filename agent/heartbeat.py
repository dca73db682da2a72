"""Tells the Daemon over its local socket that the agent lives: JSON-RPC 2.0, one object a line, never waiting."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from typing import Any, Callable

from agent import disk
from agent.loop import READ, Loop
from agent.usage import Usage
from agent.version import VERSION

FIRST_S = 0.2
AGAIN_S = 5.0
LINE_BYTES = 65536

log = logging.getLogger("agent.heartbeat")


class Heartbeat:
    """Keeps one connection and makes a new one when the Daemon was restarted. No Daemon is no error."""

    def __init__(self, loop: Loop, path: str, interval_s: float, usage: Usage, state: Callable[[], str]) -> None:
        self._loop = loop
        self._path = path
        self._interval_s = interval_s
        self._usage = usage
        self._state = state
        self._channel: socket.socket | None = None
        self._incoming = b""
        self._count = 0
        self._is_heard = False
        self._is_over = False
        loop.later(FIRST_S, self._beat)

    def close(self) -> None:
        """No more."""
        self._is_over = True
        self._drop()

    def _beat(self) -> None:
        if self._is_over:
            return
        is_sent = self._send()
        self._loop.later(self._interval_s if is_sent else min(AGAIN_S, self._interval_s), self._beat)

    def _send(self) -> bool:
        used = self._usage.now()
        self._count += 1
        message = {
            "jsonrpc": "2.0",
            "id": self._count,
            "method": "heartbeat",
            "params": {
                "pid": os.getpid(),
                "cpu": used.cpu_percent,
                "memory": used.memory_bytes,
                "state": self._state(),
                "version": VERSION,
            },
        }
        line = json.dumps(message, separators=(",", ":")).encode("utf-8") + b"\n"
        return self._write(line)

    def _write(self, line: bytes) -> bool:
        try:
            channel = self._channel or self._connect()
            return channel.send(line) == len(line)
        except OSError as error:
            self._complain(str(error.strerror or error))
            self._drop()
            return False

    def _connect(self) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            with disk.near(self._path) as address:
                channel.connect(address)
        except OSError:
            channel.close()
            raise
        self._channel, self._incoming = channel, b""
        self._loop.watch(channel.fileno(), READ, lambda _: self._read(channel))
        return channel

    def _read(self, channel: socket.socket) -> None:
        if channel is not self._channel:
            return
        try:
            data = channel.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop()
            return
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        self._incoming = self._incoming[-LINE_BYTES:]
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        answer: Any = None
        with contextlib.suppress(ValueError):
            answer = json.loads(line)
        error = answer.get("error") if isinstance(answer, dict) else None
        if isinstance(error, dict):
            self._complain(str(error.get("message"))[:200])
        elif isinstance(answer, dict) and not self._is_heard:
            self._is_heard = True
            log.info("the daemon hears the heartbeat")

    def _complain(self, words: str) -> None:
        if self._is_heard or self._count == 1:
            self._is_heard = False
            log.info("the daemon does not hear the heartbeat: %s", words)

    def _drop(self) -> None:
        if self._channel is not None:
            self._loop.forget(self._channel.fileno())
            self._channel.close()
            self._channel = None
