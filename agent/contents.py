"""The order to execute something, as the contract shapes it: one NamedTuple for each kind of work."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Callable, NamedTuple, Union

from protocol.codec import canonical
from protocol.errors import ProtocolError
from protocol.fields import HEX_64, Fields

KINDS = ("script", "file", "config", "service", "custom")
FILE_OPS = ("upload", "download", "copy", "delete")
CONFIG_OPS = ("read", "set", "unset", "replace_line", "backup", "restore")
FORMATS = ("ini", "properties", "json", "yaml", "xml", "lines")
SERVICE_OPS = ("start", "stop", "restart", "reload", "status", "enable", "disable")

SCRIPT_CHARS = 256 * 1024
VALUE_CHARS = 64 * 1024
ARGUMENTS = 200
ARGUMENT_CHARS = 32 * 1024
TIMEOUT_S = 86400
DEFAULT_TIMEOUT_S = 300

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?")
_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?(:[A-Za-z0-9_][A-Za-z0-9_.-]*\$?)?")
_MODE = re.compile(r"[0-7]{3,4}")
_TEXT = re.compile(r"[^\0]*", re.DOTALL)
_PATH = re.compile(r"/[^\0]*", re.DOTALL)
_SERVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:\\-]*")
_PLUGIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


class Script(NamedTuple):
    """Text for an interpreter of the host. No `user`: the agent's own."""

    interpreter: str
    script: str
    args: tuple[str, ...]
    env: dict[str, str]
    user: str | None
    cwd: str | None


class FileWork(NamedTuple):
    """Something done to files; which fields count depends on `op`."""

    op: str
    path: str | None
    dest: str | None
    mode: str | None
    owner: str | None
    sha256: str | None
    file_id: int | str | None
    recursive: bool


class ConfigWork(NamedTuple):
    """Something done to one key or line of a configuration file."""

    op: str
    path: str
    format: str
    key: str | None
    value: Any


class ServiceWork(NamedTuple):
    """Something asked of the host's service manager."""

    op: str
    name: str


class Custom(NamedTuple):
    """A plugin and what it is given."""

    plugin: str
    arguments: Any


Content = Union[Script, FileWork, ConfigWork, ServiceWork, Custom]


class Task(NamedTuple):
    """One execution as it was ordered. `digest` tells a repetition from another order with the same id."""

    id: str
    kind: str
    content: Content
    timeout_s: int
    parameters: dict[str, str]
    not_after: str | None
    digest: str


def parse_task(body: object) -> Task:
    """Read the body of `execute`. ProtocolError names the first field that is wrong."""
    fields = Fields(body)
    _only(fields, "", "id type content timeout parameters not_after")
    kind = fields.choice("type", KINDS)
    content = fields.inner("content")
    timeout = fields.integer_or_none("timeout", 1, TIMEOUT_S)
    task = Task(
        id=fields.text("id", 64, 1, ID),
        kind=kind,
        content=_PARSERS[kind](content),
        timeout_s=DEFAULT_TIMEOUT_S if timeout is None else timeout,
        parameters=_parameters(fields),
        not_after=fields.time_or_none("not_after"),
        digest="",
    )
    return task._replace(digest=hashlib.sha256(canonical(task).encode("utf-8")).hexdigest()[:32])


def order_of(task: Task) -> dict[str, Any]:
    """What `parse_task` reads: for the journal."""
    return {
        "id": task.id,
        "type": task.kind,
        "content": task.content._asdict(),
        "timeout": task.timeout_s,
        "parameters": task.parameters,
        "not_after": task.not_after,
    }


def _parse_script(fields: Fields) -> Script:
    _only(fields, "content", "interpreter script args env user cwd")
    env = fields.free("env", 200) or {}
    for name, value in env.items():
        if VARIABLE.fullmatch(name) is None or not isinstance(value, str) or "\0" in value:
            raise fields.refuse("env", "must hold names of variables and strings")
    interpreter = fields.text_or_none("interpreter", 4096, 1, _TEXT) or "shell"
    if interpreter not in ("shell", "python", "powershell") and not interpreter.startswith("/"):
        raise fields.refuse("interpreter", "must be shell, python, powershell or an absolute path")
    args = _arguments(fields)
    return Script(
        interpreter=interpreter,
        script=fields.text("script", SCRIPT_CHARS, 0, _TEXT),
        args=args,
        env=env,
        user=fields.text_or_none("user", 64, 1, _USER),
        cwd=fields.text_or_none("cwd", 4096, 1, _PATH),
    )


def _parse_file(fields: Fields) -> FileWork:
    _only(fields, "content", "op path dest mode owner sha256 file_id recursive")
    op = fields.choice("op", FILE_OPS)
    file_id = fields.plain().get("file_id")
    if file_id is not None and (isinstance(file_id, bool) or not isinstance(file_id, (int, str))):
        raise fields.refuse("file_id", "must be a number or a string")
    work = FileWork(
        op=op,
        path=fields.text_or_none("path", 4096, 1, _PATH),
        dest=fields.text_or_none("dest", 4096, 1, _PATH),
        mode=fields.text_or_none("mode", 4, 3, _MODE),
        owner=fields.text_or_none("owner", 129, 1, _OWNER),
        sha256=fields.text_or_none("sha256", 64, 64, HEX_64),
        file_id=file_id,
        recursive=fields.flag("recursive", False),
    )
    if op == "upload" and work.dest is None and work.path is None:
        raise fields.refuse("dest", "is required")
    if op == "upload" and work.sha256 is None:
        raise fields.refuse("sha256", "is required")
    if op != "upload" and work.path is None:
        raise fields.refuse("path", "is required")
    if op == "copy" and work.dest is None:
        raise fields.refuse("dest", "is required")
    return work


def _parse_config(fields: Fields) -> ConfigWork:
    _only(fields, "content", "op path format key value")
    op = fields.choice("op", CONFIG_OPS)
    work = ConfigWork(
        op=op,
        path=fields.text("path", 4096, 1, _PATH),
        format=fields.choice("format", FORMATS) if fields.has("format") else "lines",
        key=fields.text_or_none("key", 4096, 1, _TEXT),
        value=fields.plain().get("value"),
    )
    if op in ("set", "unset", "replace_line") and work.key is None:
        raise fields.refuse("key", "is required")
    if op in ("set", "replace_line") and "value" not in fields.plain():
        raise fields.refuse("value", "is required")
    if op == "replace_line" and not isinstance(work.value, str):
        raise fields.refuse("value", "must be a string")
    if len(canonical(work.value)) > VALUE_CHARS:
        raise fields.refuse("value", f"must not exceed {VALUE_CHARS} characters")
    return work


def _parse_service(fields: Fields) -> ServiceWork:
    _only(fields, "content", "op name")
    return ServiceWork(fields.choice("op", SERVICE_OPS), fields.text("name", 255, 1, _SERVICE))


def _parse_custom(fields: Fields) -> Custom:
    _only(fields, "content", "plugin arguments")
    return Custom(fields.text("plugin", 64, 1, _PLUGIN), fields.plain().get("arguments"))


def _parameters(fields: Fields) -> dict[str, str]:
    """Scalars by name; they reach the work as OPS_PARAM_NAME in its environment."""
    found = fields.free("parameters", 100) or {}
    made = {}
    for name, value in found.items():
        if VARIABLE.fullmatch(name) is None:
            raise fields.refuse(f"parameters.{name}", "must be a name of letters, digits and _")
        if isinstance(value, (list, dict)) or (isinstance(value, str) and "\0" in value):
            raise fields.refuse(f"parameters.{name}", "must be a text, a number, true, false or null")
        text = value if isinstance(value, str) else canonical(value)
        made[name] = "" if value is None else text
    return made


def _arguments(fields: Fields) -> tuple[str, ...]:
    """A list of texts, of which some may be empty."""
    found = fields.plain().get("args")
    if found is None:
        return ()
    if not isinstance(found, list) or len(found) > ARGUMENTS:
        raise fields.refuse("args", f"must be a list of at most {ARGUMENTS} strings")
    for index, value in enumerate(found):
        if not isinstance(value, str) or len(value) > ARGUMENT_CHARS or "\0" in value:
            raise fields.refuse(f"args.{index}", f"must be a string of at most {ARGUMENT_CHARS} characters")
    return tuple(found)


def _only(fields: Fields, path: str, names: str) -> None:
    unknown = sorted(set(fields.plain()) - set(names.split()))
    if unknown:
        name = str(unknown[0])[:100]
        raise ProtocolError(f"{path}.{name}" if path else name, "is not a field of this")


_PARSERS: dict[str, Callable[[Fields], Content]] = {
    "script": _parse_script,
    "file": _parse_file,
    "config": _parse_config,
    "service": _parse_service,
    "custom": _parse_custom,
}
