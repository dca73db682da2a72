"""The task agent's API over its Unix socket: one request at a time, every size and every wait bounded."""

from __future__ import annotations

import http.client
import os
import socket
import struct
import time
from typing import Any

from daemon.places import open_folder
from protocol.codec import decode
from protocol.errors import ProtocolError
from protocol.limits import MIB

ROOT = "/api/v1/"
CONNECT_S = 2.0
ANSWER_S = 10.0
ANSWER_BYTES = 2 * MIB
PIECE_BYTES = 64 * 1024

_CREDENTIALS = struct.Struct("3i")


class AgentAway(Exception):
    """Nobody answers, or somebody who makes no sense. What was asked may have been done or not."""


class AgentRefused(Exception):
    """The agent answered, and not with 2xx. `code` is the contract's."""

    def __init__(self, status: int, code: int, words: str, data: Any = None) -> None:
        super().__init__(words)
        self.status = status
        self.code = code
        self.data = data


class TaskLine:
    """Opened by `open`, kept between requests, thrown away at the first trouble."""

    def __init__(self) -> None:
        self._http: http.client.HTTPConnection | None = None
        self._deadline = 0.0

    def open(self, path: str | None) -> None:
        """Be connected. AgentAway; then nothing was asked."""
        if self._http is not None:
            return
        if path is None:
            raise AgentAway("this host has no task agent")
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            channel.settimeout(CONNECT_S)
            directory, _, name = path.rpartition("/")
            # The directory by its descriptor: the path of a Unix socket has room for 107 bytes only.
            with open_folder(directory) as folder:
                channel.connect(folder.path(name))
            uid = _CREDENTIALS.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
            if uid not in (0, os.geteuid()):
                raise AgentAway(f"a process of user {uid} listens where the task agent should")
        except OSError as error:
            channel.close()
            raise AgentAway(f"the task agent does not answer: {error.strerror or error}") from None
        except BaseException:
            channel.close()
            raise
        self._http = http.client.HTTPConnection("agent")
        self._http.auto_open = 0
        self._http.sock = channel

    def fileno(self) -> int:
        """For `select`, while something is asked."""
        return -1 if self._http is None or self._http.sock is None else self._http.sock.fileno()

    def ask(self, method: str, path: str, body: bytes = b"") -> Any:
        """Send and wait. The envelope's data; AgentAway, AgentRefused."""
        self.begin(method, path, body)
        return self.finish()

    def fetch(self, path: str, offset: int, most: int) -> tuple[bytes, int]:
        """Bytes of a file from an offset on, and how many it has in all."""
        self.begin("GET", path, b"", {"Range": f"bytes={offset}-{offset + most - 1}"})
        status, headers, raw = self._answer()
        total = headers.get("content-range", "").rpartition("/")[2]
        if status == 416:
            raw = b""
        elif status == 200:
            total = str(len(raw))
        elif status != 206:
            self._judge(status, raw)
        if not (total.isascii() and total.isdigit() and len(total) <= 15):
            self.close()
            raise AgentAway("the task agent makes no sense: a file of unknown size")
        return raw, int(total)

    def begin(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Only send."""
        connection = self._http
        if connection is None:
            raise AgentAway("there is no connection to the task agent")
        try:
            connection.sock.settimeout(ANSWER_S)
            connection.request(method, ROOT + path, body or None, headers or {})
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise AgentAway(f"the task agent went away: {type(error).__name__}") from None

    def finish(self) -> Any:
        """The answer to what was sent."""
        status, _, raw = self._answer()
        return self._judge(status, raw)

    def _judge(self, status: int, raw: bytes) -> Any:
        try:
            body = decode(raw, ANSWER_BYTES)
            code, words = body["code"], body["message"]
        except (ProtocolError, KeyError, TypeError) as error:
            self.close()
            raise AgentAway(f"the task agent makes no sense: {type(error).__name__}: {error}") from None
        if not 200 <= status < 300:
            raise AgentRefused(status, code if type(code) is int else 0, str(words)[:500], body.get("data"))
        return body.get("data")

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        connection = self._http
        if connection is None:
            raise AgentAway("there is no connection to the task agent")
        self._deadline = time.monotonic() + ANSWER_S
        try:
            response = connection.getresponse()
            raw = self._read(response)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise AgentAway(f"the task agent makes no sense or went away: {type(error).__name__}: {error}") from None
        if response.will_close:
            self.close()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, raw

    def close(self) -> None:
        """Forget the socket, whatever state it is in."""
        connection, self._http = self._http, None
        if connection is not None:
            connection.close()

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """At most one byte more than an answer may have, and not for ever."""
        pieces: list[bytes] = []
        left = ANSWER_BYTES + 1
        while left > 0:
            piece = response.read(min(left, PIECE_BYTES))
            if not piece:
                break
            if time.monotonic() > self._deadline:
                raise TimeoutError("it takes too long")
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)
