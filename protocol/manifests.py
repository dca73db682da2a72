"""What a host is told about a program it supervises: one manifest format for the Manager, packages and `daemon.yaml`.

The shape and its bounds only; what they mean is done by `daemon.supervisor`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from re import Pattern
from typing import NamedTuple

from protocol.errors import ProtocolError
from protocol.fields import Fields
from protocol.limits import BIG, MIB

TYPES = ("task", "filebeat", "telegraf", "node_exporter", "custom")
HEALTH_KINDS = ("process", "http", "tcp", "heartbeat", "command")
LIMIT_ACTIONS = ("restart", "alert")
SIGNALS = ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "WINCH", "KILL")
DESIRED = ("running", "stopped")
END, LEAVE = DETACHED = ("end", "leave")
ENTRY_SOURCES = ("manager", "builtin")

CONFIG_PLACEHOLDER = "{config}"
"""In an argument of `validate` it stands for the path of the candidate file."""

TASK_AGENT = "task"
"""The name of the task agent, to which a host's tasks go."""

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")

ARGUMENTS = 100
ARGUMENT_CHARS = 4096
CONFIG_FILES = 8
HEALTH_CHECKS = 16
LOG_PATHS = 16
ENV_NAMES = 100

_PATH = re.compile(r"/[^\0\n]*")
_TEXT = re.compile(r"[^\0]*")
_LINE = re.compile(r"[^\0\r\n]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?")
_MODE = re.compile(r"0?[0-7]{3}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_URL = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?(/[\x21-\x7e]*)?")
_HOST = re.compile(r"[A-Za-z0-9._:-]+")

# What makes a regular expression explode: repeated groups, look-around, back-references.
_EXPLOSIVE = re.compile(r"\)[*+{]|\(\?[^:]|\\[1-9]")
_REPEATS = re.compile(r"(?<!\\)[*+{]")
REPEATS = 2


class Stop(NamedTuple):
    """How it is asked to end, and how long it is waited for before the whole process group is killed.

    `detached`: whether processes that left its session and lost their parents end with it, or are left alone and not
    counted either.
    """

    signal: str
    timeout_s: float
    command: tuple[str, ...]
    detached: str = END


class Reload(NamedTuple):
    """How it is told to read its configuration again: a signal or a command, never both."""

    signal: str | None
    command: tuple[str, ...]


class ConfigFile(NamedTuple):
    """A file of this agent that the Manager may manage."""

    path: str
    mode: str
    owner: str | None
    group: str | None


class HealthCheck(NamedTuple):
    """One check; which of the fields count depends on `kind`. `status` null: anything from 200 to 399."""

    kind: str
    url: str | None
    status: int | None
    contains: str | None
    host: str | None
    port: int | None
    command: tuple[str, ...]
    interval_s: float
    timeout_s: float
    failures: int


class Limits(NamedTuple):
    """Of the whole process group; CPU in percent of one core. Null: no limit."""

    cpu_percent: float | None
    cpu_for_s: float
    memory_bytes: int | None
    action: str


class Adopt(NamedTuple):
    """Which process that somebody else started this is; what is given must all fit. `control`: may be stopped too."""

    pid_file: str | None
    process: str | None
    command_line: str | None
    control: bool


class Manifest(NamedTuple):
    """A program to supervise. Empty `start`: it is only adopted."""

    name: str
    type: str
    description: str
    start: tuple[str, ...]
    cwd: str | None
    user: str | None
    env: Mapping[str, str]
    stop: Stop
    reload: Reload | None
    validate: tuple[str, ...]
    version: tuple[str, ...]
    config: tuple[ConfigFile, ...]
    health: tuple[HealthCheck, ...]
    logs: tuple[str, ...]
    limits: Limits
    adopt: Adopt | None
    autostart: bool


class AgentEntry(NamedTuple):
    """An agent in the Manager's settings. `seq` grows with each change of `desired`; commands carry it too."""

    name: str
    desired: str
    seq: int
    source: str
    manifest: Manifest


DEFAULT_STOP = Stop("TERM", 10.0, ())
DEFAULT_LIMITS = Limits(50.0, 60.0, None, "restart")

_HEALTH_NAMES = {
    "process": frozenset(),
    "http": frozenset({"url", "status", "contains"}),
    "tcp": frozenset({"host", "port"}),
    "heartbeat": frozenset(),
    "command": frozenset({"command"}),
}
_HEALTH_COMMON = frozenset({"kind", "interval_s", "timeout_s", "failures"})


def parse_manifest(fields: Fields, is_strict: bool = False) -> Manifest:
    """Read a manifest. ProtocolError names the field with dots: `health.1.url`.

    `is_strict` refuses unknown names, for what people write; on the wire they are ignored, because a newer Manager may
    say more.
    """
    if is_strict:
        _refuse_unknown(fields, frozenset(Manifest._fields))
    adopt = fields.inner_or_none("adopt", lambda inner: _parse_adopt(inner, is_strict))
    start = _argv(fields, "start")
    if not start and adopt is None:
        raise fields.refuse("start", "is required unless the program is adopted")
    config = fields.each("config", CONFIG_FILES, lambda inner: _parse_config(inner, is_strict))
    paths = [file.path for file in config]
    if len(set(paths)) < len(paths):
        raise fields.refuse("config", "must not name a path twice")
    validate = _argv(fields, "validate")
    return Manifest(
        name=fields.text("name", 64, 1, NAME),
        type=fields.choice("type", TYPES),
        description=fields.text_or_none("description", 500, 0, _TEXT) or "",
        start=start,
        cwd=fields.text_or_none("cwd", 1024, 1, _PATH),
        user=fields.text_or_none("user", 64, 1, _USER),
        env=_parse_env(fields),
        stop=fields.inner_or_none("stop", lambda inner: _parse_stop(inner, is_strict)) or DEFAULT_STOP,
        reload=fields.inner_or_none("reload", lambda inner: _parse_reload(inner, is_strict)),
        validate=validate,
        version=_argv(fields, "version"),
        config=config,
        health=_parse_health_list(fields, is_strict),
        logs=fields.texts("logs", LOG_PATHS, 1024, _PATH),
        limits=fields.inner_or_none("limits", lambda inner: _parse_limits(inner, is_strict)) or DEFAULT_LIMITS,
        adopt=adopt,
        autostart=fields.flag("autostart", True),
    )


def parse_entry(fields: Fields) -> AgentEntry:
    """Read an agent of the Manager's settings. Its name and the manifest's must be the same."""
    entry = AgentEntry(
        name=fields.text("name", 64, 1, NAME),
        desired=fields.choice("desired", DESIRED),
        seq=fields.integer("seq", 0, BIG),
        source=fields.choice("source", ENTRY_SOURCES),
        manifest=parse_manifest(fields.inner("manifest")),
    )
    if entry.name != entry.manifest.name:
        raise fields.refuse("name", "must be the manifest's name")
    return entry


def _parse_env(fields: Fields) -> dict[str, str]:
    found = fields.free("env", ENV_NAMES) or {}
    for name, value in found.items():
        if _ENV_NAME.fullmatch(name) is None:
            raise fields.refuse(f"env.{name}", "must be a name of letters, digits and _")
        if not isinstance(value, str) or len(value) > ARGUMENT_CHARS or "\0" in value:
            raise fields.refuse(f"env.{name}", f"must be a string of at most {ARGUMENT_CHARS} characters")
    return dict(found)


def _parse_stop(fields: Fields, is_strict: bool) -> Stop:
    if is_strict:
        _refuse_unknown(fields, frozenset(Stop._fields))
    return Stop(
        signal=fields.choice("signal", SIGNALS) if fields.has("signal") else DEFAULT_STOP.signal,
        timeout_s=_number(fields, "timeout_s", 0, 3600, DEFAULT_STOP.timeout_s),
        command=_argv(fields, "command"),
        detached=fields.choice("detached", DETACHED) if fields.has("detached") else DEFAULT_STOP.detached,
    )


def _parse_reload(fields: Fields, is_strict: bool) -> Reload:
    if is_strict:
        _refuse_unknown(fields, frozenset(Reload._fields))
    command = _argv(fields, "command")
    if bool(command) == fields.has("signal"):
        raise fields.refuse("signal", "must be given, or command, but not both")
    return Reload(fields.choice("signal", SIGNALS) if fields.has("signal") else None, command)


def _parse_config(fields: Fields, is_strict: bool) -> ConfigFile:
    if is_strict:
        _refuse_unknown(fields, frozenset(ConfigFile._fields))
    path = fields.text("path", 1024, 2, _PATH)
    if path.endswith("/") or "/../" in path + "/" or "//" in path or "/./" in path + "/":
        raise fields.refuse("path", "must be a plain absolute path of a file")
    return ConfigFile(
        path=path,
        mode=fields.text_or_none("mode", 4, 3, _MODE) or "0640",
        owner=fields.text_or_none("owner", 64, 1, _USER),
        group=fields.text_or_none("group", 64, 1, _USER),
    )


def _parse_health_list(fields: Fields, is_strict: bool) -> tuple[HealthCheck, ...]:
    """Nothing said means that the process must live; an empty list means no check at all."""
    if not fields.has("health"):
        return (HealthCheck("process", None, None, None, None, None, (), 30.0, 5.0, 1),)
    return fields.each("health", HEALTH_CHECKS, lambda inner: _parse_health(inner, is_strict))


def _parse_health(fields: Fields, is_strict: bool) -> HealthCheck:
    kind = fields.choice("kind", HEALTH_KINDS)
    if is_strict:
        present = {name for name, value in fields.plain().items() if value not in (None, [])}
        _refuse_unknown(fields, frozenset(HealthCheck._fields))
        for name in sorted(present - _HEALTH_COMMON - _HEALTH_NAMES[kind]):
            raise fields.refuse(name, f"means nothing to a check of kind {kind}")
    url = fields.text("url", 1024, 8, _URL) if kind == "http" else None
    if url is not None and not 0 < int(_port(url) or 80) < 65536:
        raise fields.refuse("url", "must have a port between 1 and 65535")
    command = _argv(fields, "command") if kind == "command" else ()
    if kind == "command" and not command:
        raise fields.refuse("command", "is required")
    return HealthCheck(
        kind=kind,
        url=url,
        status=fields.integer_or_none("status", 100, 599) if kind == "http" else None,
        contains=fields.text_or_none("contains", 200, 1, _TEXT) if kind == "http" else None,
        host=(fields.text_or_none("host", 255, 1, _HOST) or "127.0.0.1") if kind == "tcp" else None,
        port=fields.integer("port", 1, 65535) if kind == "tcp" else None,
        command=command,
        interval_s=_number(fields, "interval_s", 1, 86400, 30.0),
        timeout_s=_number(fields, "timeout_s", 0.1, 300, 5.0),
        failures=_integer(fields, "failures", 1, 100, 1 if kind == "process" else 3),
    )


def _parse_limits(fields: Fields, is_strict: bool) -> Limits:
    if is_strict:
        _refuse_unknown(fields, frozenset(Limits._fields))
    cpu_percent: float | None = DEFAULT_LIMITS.cpu_percent
    if "cpu_percent" in fields.plain():
        # Here null says something that absence does not: no limit.
        cpu_percent = fields.number_or_none("cpu_percent", 1, 1e6)
    return Limits(
        cpu_percent=cpu_percent,
        cpu_for_s=_number(fields, "cpu_for_s", 1, 86400, DEFAULT_LIMITS.cpu_for_s),
        memory_bytes=fields.integer_or_none("memory_bytes", MIB, BIG),
        action=fields.choice("action", LIMIT_ACTIONS) if fields.has("action") else DEFAULT_LIMITS.action,
    )


def _parse_adopt(fields: Fields, is_strict: bool) -> Adopt:
    if is_strict:
        _refuse_unknown(fields, frozenset(Adopt._fields))
    adopt = Adopt(
        pid_file=fields.text_or_none("pid_file", 1024, 2, _PATH),
        process=fields.text_or_none("process", 64, 1, _LINE),
        command_line=fields.text_or_none("command_line", 256, 1, _LINE),
        control=fields.flag("control", False),
    )
    if adopt.pid_file is None and adopt.process is None and adopt.command_line is None:
        raise fields.refuse("pid_file", "or process or command_line is required")
    if adopt.command_line is not None:
        _check_pattern(fields, adopt.command_line)
    return adopt


def _check_pattern(fields: Fields, text: str) -> Pattern[str]:
    """A regular expression that every command line can be searched with in bounded time."""
    if _EXPLOSIVE.search(text) or len(_REPEATS.findall(text)) > REPEATS:
        raise fields.refuse(
            "command_line", f"must have at most {REPEATS} repetitions, none of a group, no look-around, no references"
        )
    try:
        return re.compile(text)
    except re.error as error:
        raise fields.refuse("command_line", f"is not a regular expression: {error}") from None


def count_repeats(pattern: str) -> int:
    """How many repetitions a pattern of `adopt.command_line` has: what bounds the text that it may be searched in."""
    return len(_REPEATS.findall(pattern))


def _argv(fields: Fields, name: str) -> tuple[str, ...]:
    argv = fields.plain().get(name)
    if isinstance(argv, str):
        raise fields.refuse(name, "must be a list of arguments; a shell's line is [sh, -c, …]")
    found: tuple[str, ...] = ()
    if isinstance(argv, list):
        for index, value in enumerate(argv[: ARGUMENTS + 1]):
            # Unlike other lists of texts, arguments may be empty.
            if not isinstance(value, str) or len(value) > ARGUMENT_CHARS or "\0" in value:
                raise fields.refuse(f"{name}.{index}", f"must be a string of at most {ARGUMENT_CHARS} characters")
        found = tuple(argv)
    elif argv is not None:
        raise fields.refuse(name, "must be a list")
    if len(found) > ARGUMENTS:
        raise fields.refuse(name, f"must have at most {ARGUMENTS} items")
    if found and not found[0]:
        raise fields.refuse(f"{name}.0", "must name a program")
    return found


def _number(fields: Fields, name: str, low: float, high: float, default: float) -> float:
    value = fields.number_or_none(name, low, high)
    return default if value is None else value


def _integer(fields: Fields, name: str, low: int, high: int, default: int) -> int:
    value = fields.integer_or_none(name, low, high)
    return default if value is None else value


def _port(url: str) -> str:
    match = _URL.fullmatch(url)
    return (match.group(2) or "")[1:] if match else ""


def _refuse_unknown(fields: Fields, names: frozenset[str]) -> None:
    for name in sorted(set(fields.plain()) - names):
        raise fields.refuse(str(name), "is unknown; there are " + ", ".join(sorted(names)))


def problem_of(values: object, path: str = "") -> ProtocolError | None:
    """The first thing wrong with a manifest that a person wrote, or None."""
    try:
        parse_manifest(Fields(values, path), is_strict=True)
    except ProtocolError as error:
        return error
    return None
