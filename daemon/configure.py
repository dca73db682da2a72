"""A short-lived child: command line over environment over YAML over defaults, checked as a whole, printed as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Callable, NamedTuple
from urllib.parse import urlsplit

from daemon.builtin import task_agent
from daemon.yamlread import YamlProblem, read_yaml
from protocol.limits import AGENTS as AGENT_COUNT
from protocol.manifests import problem_of

# A list of manifests, which only the file can hold.
AGENTS = "agents"
CAPABILITIES = "/etc/ops-scaffold/capabilities.yaml"


class Key(NamedTuple):
    """One setting: its name in the file, its default, what is allowed in words, and the check."""

    name: str
    default: str | None
    allowed: str
    is_valid: Callable[[str], bool]


def _is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme == "https" and bool(parts.hostname) and parts.path in ("", "/") and parts.port != 0
    except ValueError:
        return False


def _is_proxy(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme == "http" and bool(parts.hostname) and bool(parts.port) and parts.path in ("", "/")
    except ValueError:
        return False


KEYS = (
    Key("manager.url", None, "an address such as https://manager.example:9443", _is_url),
    Key("manager.proxy", None, "an HTTP proxy such as http://proxy.example:3128", _is_proxy),
    Key("state_dir", "/var/lib/ops-scaffold/daemon", "an absolute path", lambda value: value.startswith("/")),
    Key("log.format", "text", "text or json", lambda value: value in ("text", "json")),
    Key("log.level", None, "debug, info, warning or error", lambda v: v in ("debug", "info", "warning", "error")),
    Key("collector.gpu", "auto", "auto or off", lambda value: value in ("auto", "off")),
    Key("rpc.socket", None, "an absolute path", lambda value: value.startswith("/")),
    Key("agents_at_exit", "keep", "keep or stop", lambda value: value in ("keep", "stop")),
    Key("task_agent.config", None, "an absolute path", lambda value: value.startswith("/")),
    Key("task_agent.home", None, "an absolute path", lambda value: value.startswith("/")),
)


class Problems(Exception):
    """Everything that is wrong, each with its name and what is allowed."""


def arguments_parser() -> argparse.ArgumentParser:
    """The command line of `python -m daemon`."""
    parser = argparse.ArgumentParser(prog="python -m daemon", description="The Ops Scaffold Daemon, in the foreground.")
    parser.add_argument("--config", metavar="FILE", help="YAML file with the settings below")
    parser.add_argument("--capabilities", metavar="FILE", default=CAPABILITIES, help="what this host allows")
    for key in KEYS:
        text = key.allowed if key.default is None else f"{key.allowed} (default {key.default})"
        parser.add_argument("--" + _flag(key.name), metavar="VALUE", dest=key.name, help=text)
    return parser


def resolve(arguments: list[str], environ: dict[str, str]) -> dict[str, Any]:
    """Every setting by its flat name; Problems if any of them is wrong."""
    given = vars(arguments_parser().parse_args(arguments))
    problems: list[str] = []
    from_file = _flatten(_load_file(given["config"], problems), problems)
    found: dict[str, Any] = {"capabilities": given["capabilities"]}
    for key in KEYS:
        variable = "OPS_" + key.name.upper().replace(".", "__")
        value: object = key.default
        source = "default"
        if key.name in from_file:
            value, source = from_file[key.name], str(given["config"])
        if environ.get(variable):
            value, source = environ[variable], variable
        if given[key.name] is not None:
            value, source = given[key.name], "--" + _flag(key.name)
        if key.name == "log.level" and isinstance(value, str):
            value = value.lower()
        if value is not None and not (isinstance(value, str) and key.is_valid(value)):
            problems.append(f"{key.name} = {value!r} (from {source}): must be {key.allowed}")
        found[key.name.replace(".", "_")] = value
    found[AGENTS] = _agents(from_file.get(AGENTS), str(given["config"]), problems)
    found["builtin"] = _builtin(found)
    if not given["capabilities"].startswith("/"):
        problems.append("--capabilities: must be an absolute path")
    if problems:
        raise Problems("\n".join(problems))
    return found


def _agents(raw: object, source: str, problems: list[str]) -> list[Any]:
    """The manifests that the host declares itself; each problem with its name."""
    if raw is None:
        return []
    if not isinstance(raw, list) or len(raw) > AGENT_COUNT:
        problems.append(f"{AGENTS} (from {source}): must be a list of at most {AGENT_COUNT} manifests")
        return []
    names: set[object] = set()
    for index, manifest in enumerate(raw):
        problem = problem_of(manifest, f"{AGENTS}.{index}")
        if problem is not None:
            problems.append(f"{problem} (from {source})")
        elif manifest["name"] in names:
            problems.append(f"{AGENTS}.{index}.name: is used twice (from {source})")
        else:
            names.add(manifest["name"])
    return raw


def _builtin(found: dict[str, Any]) -> list[Any]:
    """The manifests of what comes along; their settings become these."""
    config, home = found.pop("task_agent_config"), found.pop("task_agent_home")
    return [] if config is None else [task_agent(config, home, found["state_dir"], found["capabilities"])]


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
    names = {AGENTS, *(key.name for key in KEYS)}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if path in names:
            flat[path] = value
        elif isinstance(value, dict) and any(known.startswith(path + ".") for known in names):
            flat.update(_flatten(value, problems, path + "."))
        else:
            problems.append(f"{path}: is not a setting; there are {', '.join(sorted(names))}")
    return flat


def _flag(name: str) -> str:
    return name.replace(".", "-").replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())
