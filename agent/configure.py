"""A short-lived child: command line over environment over YAML over defaults, checked as a whole, printed as JSON."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any, Callable, NamedTuple

from agent.yamlread import YamlProblem, read_yaml

CAPABILITIES = "/etc/ops-scaffold/capabilities.yaml"
STATE_DIR = "/var/lib/ops-scaffold/agent"
SOCKET = "/run/ops-scaffold/agent.sock"
DAEMON_SOCKET = "/run/ops-scaffold/daemon.sock"
OFF = "off"
MIB = 1024 * 1024
SECRET_CHARS = 16


class Key(NamedTuple):
    """One setting: its name in the file, its default, what is allowed in words, and the check that also converts."""

    name: str
    default: Any
    allowed: str
    convert: Callable[[Any], Any]


def _path(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError
    return value


def _socket(value: Any) -> Any:
    return value if value == OFF else _path(value)


def _number(low: int, high: int) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        found = int(value) if isinstance(value, str) and value.isdigit() else value
        if type(found) is not int or not low <= found <= high:
            raise ValueError
        return found

    return convert


def _word(*words: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, str) or value.lower() not in words:
            raise ValueError
        return value.lower()

    return convert


def _flag(value: Any) -> Any:
    found = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise ValueError
    return found


def _addr(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError
    host, _, port = value.rpartition(":")
    ipaddress.ip_address(host.strip("[]"))
    if not port.isdigit() or int(port) > 65535:
        raise ValueError
    return [host.strip("[]"), int(port)]


def _networks(value: Any) -> Any:
    found = value.split(",") if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > 256:
        raise ValueError
    return [str(ipaddress.ip_network(word.strip(), strict=False)) for word in found]


KEYS = (
    Key("state_dir", STATE_DIR, "an absolute path", _path),
    Key("socket", None, "an absolute path, off or null", _socket),
    Key("daemon_socket", DAEMON_SOCKET, "an absolute path, or off", _socket),
    Key("heartbeat_interval_s", 30, "a whole number from 1 to 300", _number(1, 300)),
    Key("plugins_dir", "/etc/ops-scaffold/plugins", "an absolute path", _path),
    Key("http.addr", "127.0.0.1:9101", "an address and a port such as 127.0.0.1:9101, or null", _addr),
    Key("http.keys_file", None, "the absolute path of a file with `name: secret` lines", _path),
    Key("http.allow", ["127.0.0.0/8", "::1/128"], "a list of networks such as 10.0.0.0/8", _networks),
    Key("http.rate_per_s", 20, "a whole number from 1 to 10000", _number(1, 10000)),
    Key("http.burst", 60, "a whole number from 1 to 10000", _number(1, 10000)),
    Key("http.max_connections", 64, "a whole number from 1 to 1024", _number(1, 1024)),
    Key("http.body_max_bytes", 8 * MIB, "a whole number from 65536 to 67108864", _number(65536, 64 * MIB)),
    Key("http.tls.cert", None, "the absolute path of a PEM file", _path),
    Key("http.tls.key", None, "the absolute path of a PEM file", _path),
    Key("http.tls.client_ca", None, "the absolute path of a PEM file; clients must then show a certificate", _path),
    Key("tasks.max_running", 10, "a whole number from 1 to 200", _number(1, 200)),
    Key("tasks.max_queued", 100, "a whole number from 0 to 10000", _number(0, 10000)),
    Key("tasks.output_max_bytes", MIB, "a whole number from 4096 to 268435456", _number(4096, 256 * MIB)),
    Key("tasks.kill_grace_s", 5, "a whole number from 0 to 300", _number(0, 300)),
    Key("tasks.keep_days", 7, "a whole number from 1 to 365", _number(1, 365)),
    Key("tasks.keep_max_bytes", 256 * MIB, "a whole number from 1048576 to 1099511627776", _number(MIB, 2**40)),
    Key("files.max_bytes", 4096 * MIB, "a whole number from 1 to 1099511627776", _number(1, 2**40)),
    Key("log.format", "text", "text or json", _word("text", "json")),
    Key("log.level", "info", "debug, info, warning or error", _word("debug", "info", "warning", "error")),
)
NULLABLE = frozenset("socket http.addr http.keys_file http.tls.cert http.tls.key http.tls.client_ca".split())

_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Problems(Exception):
    """Everything that is wrong, each with its name and what is allowed."""


def arguments_parser() -> argparse.ArgumentParser:
    """The command line of `python -m agent`."""
    parser = argparse.ArgumentParser(prog="python -m agent", description="The task agent, in the foreground.")
    parser.add_argument("--version", action="store_true", help="print the version and nothing else")
    parser.add_argument("--config", metavar="FILE", help="YAML file with the settings below")
    parser.add_argument("--capabilities", metavar="FILE", default=CAPABILITIES, help="what this host allows")
    for key in KEYS:
        text = f"{key.allowed} (default {json.dumps(key.default)})"
        parser.add_argument("--" + _option(key.name), metavar="VALUE", dest=key.name, help=text)
    return parser


def resolve(arguments: list[str], environ: dict[str, str]) -> dict[str, Any]:
    """Every setting by its flat name; Problems if any of them is wrong."""
    given = vars(arguments_parser().parse_args(arguments))
    problems: list[str] = []
    from_file = _flatten(_load_file(given["config"], problems), problems)
    found: dict[str, Any] = {"capabilities": given["capabilities"]}
    for key in KEYS:
        variable = "OPS_" + key.name.upper().replace(".", "__")
        value, source = key.default, "default"
        if key.name in from_file:
            value, source = from_file[key.name], str(given["config"])
        if environ.get(variable):
            value, source = environ[variable], variable
        if given[key.name] is not None:
            value, source = given[key.name], "--" + _option(key.name)
        if key.name in NULLABLE and value in (None, "", "null"):
            found[key.name] = None
            continue
        try:
            found[key.name] = key.convert(value)
        except (ValueError, TypeError):
            problems.append(f"{key.name} = {value!r} (from {source}): must be {key.allowed}")
            found[key.name] = key.default
    if not given["capabilities"].startswith("/"):
        problems.append("--capabilities: must be an absolute path")
    found["keys"] = _keys(found["http.keys_file"], problems)
    _check_together(found, problems)
    if problems:
        raise Problems("\n".join(problems))
    return {name.replace(".", "_"): value for name, value in found.items()}


def _check_together(found: dict[str, Any], problems: list[str]) -> None:
    if (found["http.tls.cert"] is None) != (found["http.tls.key"] is None):
        problems.append("http.tls.cert, http.tls.key: must be given together")
    if found["http.tls.client_ca"] is not None and found["http.tls.cert"] is None:
        problems.append("http.tls.client_ca: needs http.tls.cert and http.tls.key")
    for name in ("http.tls.cert", "http.tls.key", "http.tls.client_ca"):
        path = found[name]
        if path is not None and not os.access(path, os.R_OK):
            problems.append(f"{name} = {path!r}: cannot be read")
    if found["socket"] is None:
        # Beside the state if that is not where it usually is: several agents on one machine.
        found["socket"] = SOCKET if found["state_dir"] == STATE_DIR else f"{found['state_dir']}/agent.sock"
    for name in ("socket", "daemon_socket"):
        found[name] = None if found[name] == OFF else found[name]
    if found["http.addr"] is None and found["socket"] is None:
        problems.append("socket, http.addr: one of them must be given")


def _keys(path: str | None, problems: list[str]) -> dict[str, str]:
    """Names and secrets of those who may call over TCP; a file that others can read is no secret."""
    if path is None:
        return {}
    try:
        mode = stat.S_IMODE(Path(path).stat().st_mode)
        loaded = read_yaml(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, YamlProblem) as error:
        problems.append(f"http.keys_file = {path!r}: {error}")
        return {}
    if mode & 0o077:
        problems.append(f"http.keys_file = {path!r}: must be readable by its owner alone (mode 0600)")
    if not isinstance(loaded, dict) or not loaded:
        problems.append(f"http.keys_file = {path!r}: must hold `name: secret` lines")
        return {}
    for name, secret in loaded.items():
        if not isinstance(name, str) or _KEY_NAME.fullmatch(name) is None:
            problems.append(f"http.keys_file: {name!r} must be a name of letters, digits, '.', '_' and '-'")
        elif not isinstance(secret, str) or len(secret) < SECRET_CHARS:
            problems.append(f"http.keys_file: the secret of {name} must be a text of {SECRET_CHARS} characters or more")
    return loaded


def main() -> int:
    """Print the settings as JSON, or every problem on stderr."""
    try:
        settings = resolve(sys.argv[1:], dict(os.environ))
    except Problems as error:
        sys.stderr.write(f"The settings are wrong:\n{error}\n")
        return 2
    sys.stdout.write(json.dumps(settings))
    return 0


def _load_file(name: str | None, problems: list[str]) -> dict[str, Any]:
    if name is None:
        return {}
    try:
        loaded = read_yaml(Path(name).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, YamlProblem) as error:
        problems.append(f"{name}: {error}")
        return {}
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        problems.append(f"{name}: must hold names and values")
        return {}
    return loaded


def _flatten(tree: dict[str, Any], problems: list[str], prefix: str = "") -> dict[str, Any]:
    """`{"log": {"format": …}}` as `{"log.format": …}`; names that nobody knows are problems."""
    flat: dict[str, Any] = {}
    names = [key.name for key in KEYS]
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if path in names:
            flat[path] = value
        elif any(known.startswith(path + ".") for known in names):
            if isinstance(value, dict):
                flat.update(_flatten(value, problems, path + "."))
            elif value is not None:
                problems.append(f"{path}: must hold names and values")
        else:
            problems.append(f"{path}: is not a setting; there are {', '.join(sorted(names))}")
    return flat


def _option(name: str) -> str:
    return name.replace(".", "-").replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())
