"""Plugins: an executable or a Python file in the plugin directory, or an entry point of an installed package.

Whichever it is runs as a child like a script, with its arguments as JSON on stdin. As a program of its own this module
runs the Python ones: `run(arguments)`, whose text, or whose JSON, is the output, and whose integer is the exit code.
"""

# ruff: noqa: PTH113

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import stat
import sys
from typing import Any, Callable

from agent.contents import Custom, Task
from agent.executors.forbidden import Surroundings, check_scripts, parameters_of
from agent.processes import CannotStart, Launch, account_of, environment

GROUP = "ops_scaffold.executors"


def plan(content: Custom, task: Task, around: Surroundings) -> Launch:
    """Which program is run. Raises Forbidden, CannotStart."""
    account = account_of(None)
    check_scripts(around, account.name)
    extra = parameters_of(task.parameters)
    program = f"{around.plugins_dir}/{content.plugin}"
    if os.path.isfile(program):
        _check_owner(around.plugins_dir, program)
        argv: tuple[str, ...] = (program,)
    else:
        where = f"{program}.py" if os.path.isfile(f"{program}.py") else content.plugin
        if where != content.plugin:
            _check_owner(around.plugins_dir, where)
        argv = (sys.executable, "-m", "agent.executors.custom", where)
        extra["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    return Launch(
        argv=argv,
        env=environment(account, task.id, extra),
        account=account,
        cwd=None,
        stdin=json.dumps(content.arguments).encode("utf-8"),
    )


def _check_owner(directory: str, path: str) -> None:
    """What others can write is not ours to run."""
    for place in (directory, path):
        found = os.stat(place)  # noqa: PTH116
        if found.st_uid not in (0, os.geteuid()) or stat.S_IMODE(found.st_mode) & 0o022:
            raise CannotStart(f"{place} must belong to root or the agent's user and be writable by nobody else")


def main() -> int:
    """The child: load the plugin and call it."""
    where = sys.argv[1]
    arguments = json.loads(sys.stdin.buffer.read())
    run = _of_file(where) if where.startswith("/") else _of_package(where)
    if run is None:
        sys.stderr.write(f"there is no plugin {where} on this host\n")
        return 1
    result = run(arguments)
    if isinstance(result, int) and not isinstance(result, bool):
        return result
    if result is not None:
        sys.stdout.write(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False) + "\n")
    return 0


def _of_file(path: str) -> Callable[[Any], Any] | None:
    spec = importlib.util.spec_from_file_location("ops_plugin", path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[Any], Any] | None = getattr(module, "run", None)
    return found


def _of_package(name: str) -> Callable[[Any], Any] | None:
    # Only the child has use for this module, which is expensive to load.
    metadata = importlib.import_module("importlib.metadata")
    for distribution in metadata.distributions():
        for point in distribution.entry_points:
            if point.group == GROUP and point.name == name:
                found: Callable[[Any], Any] = point.load()
                return found
    return None


if __name__ == "__main__":
    sys.exit(main())
