"""The task agent's log: JSON or text lines on stdout, secrets blackened. Output of tasks never enters it."""

from __future__ import annotations

import json
import logging
import re
import sys

from protocol.times import to_text

LINE_CHARS = 2000

_SECRETS = re.compile(
    r"(?i)(?P<name>[\w-]*(?:token|password|passwd|secret|authorization|api[_-]?key|signature)[\w-]*)"
    r"(?P<gap>[\"']?\s*[:=]\s*[\"']?)(?P<value>[^\s\"',;&}]+)"
)
_EXTRA = ("request_id", "node_uuid", "ip", "duration_ms", "execution")


class _Formatter(logging.Formatter):
    """One line per record, with the keys every program of the house uses."""

    def __init__(self, is_json: bool) -> None:
        super().__init__()
        self._is_json = is_json

    def format(self, record: logging.LogRecord) -> str:
        message = _SECRETS.sub(r"\g<name>\g<gap>[hidden]", record.getMessage())
        message = message.replace("\r", "\\r").replace("\n", "\\n")[:LINE_CHARS]
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        stamp = to_text(record.created)
        caller = f"{record.name}:{record.lineno}"
        extra = {name: getattr(record, name) for name in _EXTRA if hasattr(record, name)}
        if self._is_json:
            line = {"level": record.levelname.lower(), "ts": stamp, "caller": caller, "msg": message, **extra}
            return json.dumps(line, ensure_ascii=False, separators=(",", ":"))
        words = "".join(f" {name}={value}" for name, value in extra.items())
        return f"{stamp} {record.levelname.lower():7} {caller} {message}{words}"


def set_up(log_format: str, level: str) -> None:
    """Direct everything to stdout."""
    root = logging.getLogger()
    stream = logging.StreamHandler(sys.stdout)
    stream.setFormatter(_Formatter(log_format == "json"))
    root.handlers[:] = [stream]
    root.setLevel(level.upper())
