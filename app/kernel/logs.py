"""One structured log for every process: its lines, its files, and what may never stand in them.

Where requests and jobs get their ids from is the business of the edges; they put them into `log_context`.
"""

import fcntl
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from config import Settings

log_context: ContextVar[Mapping[str, object]] = ContextVar("log_context", default=MappingProxyType({}))
"""What every line of the present request or job carries: `request_id`, `node_uuid`, `ip`."""

MASK = "***"
# Libraries that tell at level info what they do all day.
CHATTY = ("alembic.runtime.plugins", "rq.worker", "rq.job")
OPTIONAL_KEYS = ("request_id", "node_uuid", "ip", "duration_ms")
LONGEST_MESSAGE = 32 * 1024
SECONDS_PER_DAY = 86400
PROJECT = str(Path(__file__).resolve().parents[2]) + os.sep
OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

SECRET_WORDS = frozenset(
    {"password", "passwords", "passwd", "pwd", "passphrase", "secret", "secrets", "token", "authorization", "cookie"}
    | {"cookies", "credential", "credentials", "apikey", "privatekey", "secretkey", "otp", "totp", "jwt"}
)
SECRET_PAIRS = frozenset(
    {("api", "key"), ("private", "key"), ("secret", "key"), ("access", "key"), ("encryption", "key"), ("form", "key")}
    | {("session", "key"), ("ops", "session"), ("recovery", "code"), ("recovery", "codes")}
)
# A password stays one when it is asked for twice or stored as a hash.
AFTER_SECRET = frozenset(("again", "confirm", "confirmation", "repeat", "repeated", "hash", "value", "text"))
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")

# A cheap look that most lines pass, before the expensive ones.
SUSPICIOUS = re.compile(
    r"passw|pwd|passphrase|secret|token|authoriz|cookie|credential|key|ops_|bearer|basic |://|eyj", re.IGNORECASE
)
NAME = (
    r"((?:passw(?:or)?d|pwd|passphrase|secret|token|authorization|cookie|credential|ops_session"
    r"|(?:api|private|secret|access)[_-]?key)\d?(?:\\*[\"'])?\s{0,3}"
)
QUOTED = r'\\*"(?:[^"\\]|\\[^"])*\\*"?|\\*\'(?:[^\'\\]|\\[^\'])*\\*\'?'


def _rule(
    pattern: str, replacement: str = rf"\1{MASK}", flags: re.RegexFlag = re.IGNORECASE
) -> tuple[re.Pattern[str], str]:
    return re.compile(pattern, flags), replacement


RULES = (
    _rule(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)", MASK, re.DOTALL),
    _rule(r"\b((?:set-cookie|cookie|authorization|proxy-authorization)\s{0,3}:\s{0,3})[^\r\n\"']+"),
    _rule(r"\b((?:bearer|basic)\s{1,3})[\w.~+/=-]+"),
    _rule(r"\b(ops_pat_)\w[\w-]*"),
    _rule(r"\b(ops_[a-z]{2,12}_)[A-Za-z0-9_-]{20,}"),
    _rule(r"\b()eyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?", flags=re.NOFLAG),
    _rule(r"\b([a-z][a-z0-9+.-]{0,20}://)[^\s/]*@", rf"\1{MASK}@"),
    # name=value, name="value", "name": "value"
    _rule(NAME + rf"=\s{{0,3}})(?:{QUOTED}|[^\s\"'&,;)}}\]<>\\]+)"),
    _rule(NAME + rf":\s{{0,3}})(?:{QUOTED})"),
    # name: value, unless a sentence follows
    _rule(NAME + rf":\s{{0,3}})(?!{re.escape(MASK)})[^\s\"',;]+(?=\s*(?:[,;}}\r\n]|\Z))"),
)
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def configure_logging(settings: Settings) -> None:
    """Make this process log as the settings say. Called again, the last call counts."""
    formatter = JsonFormatter() if settings.log.format == "json" else TextFormatter()
    handlers: list[logging.Handler] = [_StreamHandler(sys.stdout if settings.log.output == "stdout" else sys.stderr)]
    if settings.log.file.enabled:
        part = settings.log.file
        path = Path(part.path).absolute() if part.path else settings.data_path / "logs" / "manager.log"
        handlers.append(SharedFileHandler(path, part.max_size * 10**6, part.max_backups, part.max_age))
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _StreamHandler | SharedFileHandler)]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(settings.log.level.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def redact(value: Any) -> Any:
    """A copy without secrets, for logs and audit rows: values of secret names are masked, texts are searched."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {key: MASK if _hides(key, item) else redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item) for item in value]
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    return value


def redact_text(text: str) -> str:
    """A text without whatever looks like a secret in it."""
    if SUSPICIOUS.search(text):
        for pattern, replacement in RULES:
            text = pattern.sub(replacement, text)
    return text


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether values of this name are secret: `password`, `newPassword`, `api_key`; not `token_type`, `public_key`."""
    words = [word.lower() for word in WORDS.findall(name)]
    while len(words) > 1 and (words[-1] in AFTER_SECRET or words[-1].isdigit()):
        words.pop()
    return bool(words) and (words[-1] in SECRET_WORDS or tuple(words[-2:]) in SECRET_PAIRS)


def _hides(key: object, value: object) -> bool:
    """Nothing and yes-or-no are no secrets, and are worth knowing."""
    return value is not None and not isinstance(value, bool) and value != "" and is_secret_name(str(key))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        message, context = _message_and_context(record)
        if record.exc_info or record.exc_text or record.stack_info:
            message = f"{message}\n{redact_text(_traceback(self, record))}"
        line: dict[str, object] = {
            "level": record.levelname.lower(),
            "ts": timestamp(record.created),
            "caller": f"{short_path(record.pathname)}:{record.lineno}",
            "msg": _shortened(message),
        }
        line.update(context)
        return _escaped(json.dumps(line, ensure_ascii=False, default=str))


class TextFormatter(logging.Formatter):
    """A line for people; tracebacks follow indented. Line ends in messages are escaped: nobody forges a line."""

    def format(self, record: logging.LogRecord) -> str:
        message, context = _message_and_context(record)
        line = (
            f"{timestamp(record.created)} {record.levelname.lower():<8} {short_path(record.pathname)}:{record.lineno}"
            f"  {_shortened(message)}"
        ).replace("\r", "\\r").replace("\n", "\\n")  # fmt: skip
        line += "".join(f" {key}={value}" for key, value in context.items()).replace("\n", "\\n")
        if record.exc_info or record.exc_text or record.stack_info:
            line += "\n    " + _shortened(redact_text(_traceback(self, record))).replace("\n", "\n    ")
        return _escaped(line)


class SharedFileHandler(logging.Handler):
    """A log file that all processes of the Manager append to. Whoever finds it full rotates it; the others notice.

    A line is one write in append mode, so lines never mix. Rotated files are `name.1` (newest) to `name.N`.
    """

    def __init__(self, path: Path, max_bytes: int, backups: int, max_age_days: int) -> None:
        super().__init__()
        self._path, self._max_bytes, self._backups, self._max_age_days = path, max_bytes, backups, max_age_days
        self._descriptor = -1
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._open()
        self._remove_old()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
            if self._descriptor < 0:
                self._open()
            size = os.fstat(self._descriptor).st_size
            if size and size + len(line) > self._max_bytes:
                self._rotate()
            os.write(self._descriptor, line)
        except Exception:  # noqa: BLE001 - as every handler: a full disk must not stop the work that is logged
            self.handleError(record)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()

    def _open(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _rotate(self) -> None:
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._is_current():
                for number in range(self._backups - 1, 0, -1):
                    if (older := self._backup(number)).exists():
                        older.replace(self._backup(number + 1))
                self._path.replace(self._backup(1))
                self._remove_old()
            self._open()
        finally:
            os.close(lock)

    def _is_current(self) -> bool:
        """Whether nobody else has rotated since we opened the file."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _remove_old(self) -> None:
        """By age, and by number in case fewer are kept than before."""
        oldest = time.time() - self._max_age_days * SECONDS_PER_DAY
        for path in self._path.parent.glob(f"{self._path.name}.*"):
            number = path.name.removeprefix(f"{self._path.name}.")
            if number.isdigit() and (int(number) > self._backups or path.stat().st_mtime < oldest):
                path.unlink(missing_ok=True)

    def _backup(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


class _StreamHandler(logging.StreamHandler[Any]):
    """Ours, so that a second `configure_logging` knows what to replace."""


def timestamp(created: float) -> str:
    """RFC 3339 in UTC to the millisecond."""
    milliseconds = int(created * 1000)
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@lru_cache(maxsize=4096)
def short_path(path: str) -> str:
    """`app/people/actions.py` for our own files, `sqlalchemy/engine/base.py` for a library's."""
    return path.removeprefix(PROJECT).rpartition("site-packages/")[2]


def _message_and_context(record: logging.LogRecord) -> tuple[str, dict[str, object]]:
    """The message with further `extra` values behind it, and the keys that have a place of their own."""
    message = record.getMessage()
    context = {key: value for key, value in log_context.get().items() if key in OPTIONAL_KEYS and value}
    extras = []
    for key, value in record.__dict__.items():
        if key in OPTIONAL_KEYS:
            if value is not None:
                context[key] = value
        elif key not in OF_EVERY_RECORD and not key.startswith("_"):
            extras.append(f"{key}={MASK if _hides(key, value) else redact(value)}")
    return redact_text(" ".join([message, *extras]) if extras else message), context


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if record.exc_info and not record.exc_text:
        record.exc_text = formatter.formatException(record.exc_info)
    return "\n".join(part for part in (record.exc_text, record.stack_info) if part)


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_MESSAGE:
        return text
    half = LONGEST_MESSAGE // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def _escaped(line: str) -> str:
    """No control characters for terminals, nothing that other programs take for a line's end, nothing unencodable."""
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", line)
