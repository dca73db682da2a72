"""The Daemon's log: JSON or text lines on stdout, secrets blackened, the newest kept in memory for `log.tail`."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections import deque

from protocol.times import to_text

TAIL_LINES = 500
LINE_CHARS = 2000

_SECRETS = re.compile(
    r"(?i)(?P<name>[\w-]*(?:token|password|passwd|secret|authorization|api[_-]?key|command_key|ticket|lease)[\w-]*)"
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


_tail = _Tail()


def set_up(log_format: str, level: str) -> None:
    """Direct everything to stdout; called again when the settings change."""
    root = logging.getLogger()
    formatter = _Formatter(log_format == "json")
    _tail.setFormatter(formatter)
    stream = logging.StreamHandler(sys.stdout)
    stream.setFormatter(formatter)
    root.handlers[:] = [stream, _tail]
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
