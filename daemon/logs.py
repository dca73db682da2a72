"""The Daemon's log: JSON or text lines on stdout, secrets blackened; the newest in memory, more in a bounded file.

Wherever stdout goes (systemd, a terminal, nowhere), the file in the state directory is what `agent.logs` reads.
"""

# Paths are plain strings and `os` calls: pathlib would cost the resident process memory for nothing.
# ruff: noqa: PTH105

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections import deque

from protocol.times import to_text

TAIL_LINES = 500
LINE_CHARS = 2000
FILE_BYTES = 2 * 1024 * 1024
FILES_KEPT = 2

_SECRETS = re.compile(
    r"(?i)(?P<name>[\w-]{0,64}(?:token|password|passwd|secret|authorization|api[_-]?key|command_key|ticket|lease)[\w-]*)"
    r"(?P<gap>[\"']?\s*[:=]\s*[\"']?)(?P<value>(?:bearer\s+|basic\s+)?[^\s\"',;&}]+)"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_PRIVATE = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL)

_EXTRA = ("request_id", "node_uuid", "ip", "duration_ms", "command", "kind")


def redact(text: str) -> str:
    """The text without passwords, tokens and private keys."""
    text = _PRIVATE.sub("[private key]", text)
    text = _BEARER.sub(r"\1 [hidden]", text)
    return _SECRETS.sub(r"\g<name>\g<gap>[hidden]", text)


class _Formatter(logging.Formatter):
    """One line per record, with the keys every program of the house uses."""

    def __init__(self, is_json: bool) -> None:
        super().__init__()
        self._is_json = is_json

    def format(self, record: logging.LogRecord) -> str:
        message = redact(record.getMessage()).replace("\r", "\\r").replace("\n", "\\n")
        if record.exc_info:
            message += "\n" + redact(self.formatException(record.exc_info))
        message = message[:LINE_CHARS]
        stamp = to_text(record.created)
        caller = f"{record.name}:{record.lineno}"
        extra = {name: getattr(record, name) for name in _EXTRA if hasattr(record, name)}
        if self._is_json:
            line = {"level": record.levelname.lower(), "ts": stamp, "caller": caller, "msg": message, **extra}
            return json.dumps(line, ensure_ascii=False, separators=(",", ":"))
        words = "".join(f" {name}={value}" for name, value in extra.items())
        return f"{stamp} {record.levelname.lower():7} {caller} {message}{words}"


class _Tail(logging.Handler):
    """Keeps the newest lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=TAIL_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class _File(logging.Handler):
    """Keeps more of them, in a file that is renamed when it is full. A disk that refuses costs lines, nothing else."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._fd = -1
        self._size = 0

    def emit(self, record: logging.LogRecord) -> None:
        data = self.format(record).encode("utf-8", "replace") + b"\n"
        try:
            if self._fd < 0 or self._size + len(data) > FILE_BYTES:
                self._open(len(data))
            self._size += os.write(self._fd, data)
        except OSError:
            # There is nowhere to say it but stdout, where the line itself is.
            return

    def _open(self, room: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        # Never through a link; made anew if somebody took it away.
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._size = os.fstat(self._fd).st_size
        if self._size and self._size + room > FILE_BYTES:
            for number in range(FILES_KEPT, 0, -1):
                older = self._path if number == 1 else f"{self._path}.{number - 1}"
                if os.path.lexists(older):
                    os.replace(older, f"{self._path}.{number}")
            os.close(self._fd)
            self._fd = -1
            self._open(room)


_tail = _Tail()
_files: list[_File] = []


def file_path(directory: str) -> str:
    """Where the log of a Daemon with this state directory is."""
    return f"{directory}/daemon.log"


def keep_in(directory: str) -> None:
    """From the next line on, keep a bounded file as well."""
    handler = _File(file_path(directory))
    handler.setFormatter(_tail.formatter)
    _files[:] = [handler]
    logging.getLogger().addHandler(handler)


def set_up(log_format: str, level: str) -> None:
    """Direct everything to stdout; called again when the settings change."""
    root = logging.getLogger()
    formatter = _Formatter(log_format == "json")
    _tail.setFormatter(formatter)
    stream = logging.StreamHandler(sys.stdout)
    stream.setFormatter(formatter)
    for handler in _files:
        handler.setFormatter(formatter)
    root.handlers[:] = [stream, _tail, *_files]
    root.setLevel(level.upper())


def tail(lines: int, max_bytes: int) -> list[str]:
    """The newest lines, oldest first, as many as fit."""
    kept: list[str] = []
    for line in reversed(list(_tail.lines)[-lines:]):
        max_bytes -= len(line.encode("utf-8")) + 1
        if max_bytes < 0:
            break
        kept.append(line)
    return kept[::-1]
