"""Scripts: the text goes to its interpreter as an open file, never through a shell's quoting or a process list."""

from __future__ import annotations

import json
import os
import sys

from agent.contents import Script, Task
from agent.executors.forbidden import Surroundings, check_scripts, parameters_of
from agent.processes import SCRIPT, CannotStart, Launch, account_of, environment

_PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3", "/bin/python3")
_POWERSHELLS = ("/usr/bin/pwsh", "/usr/local/bin/pwsh", "/snap/bin/pwsh", "/opt/microsoft/powershell/7/pwsh")
_POWERSHELL_WORDS = ("-NoProfile", "-NonInteractive", "-Command")
# pwsh reads files only by the ending .ps1; arguments come as JSON, so that none of them is ever parsed as code.
_POWERSHELL_LINE = (
    "$a = @(ConvertFrom-Json $env:OPS_ARGUMENTS); "
    f"& ([ScriptBlock]::Create([IO.File]::ReadAllText('{SCRIPT}'))) @a; exit $LASTEXITCODE"
)


def plan(content: Script, task: Task, around: Surroundings) -> Launch:
    """How the script is started. Raises Forbidden, CannotStart."""
    account = account_of(content.user)
    check_scripts(around, account.name)
    extra = {**content.env, **parameters_of(task.parameters)}
    script_at = 1
    if content.interpreter == "powershell":
        extra["OPS_ARGUMENTS"] = json.dumps(content.args)
        argv: tuple[str, ...] = (_first(_POWERSHELLS, "powershell"), *_POWERSHELL_WORDS, _POWERSHELL_LINE)
        script_at = len(argv) - 1
    else:
        argv = (_interpreter(content.interpreter), SCRIPT, *content.args)
    return Launch(
        argv=argv,
        env=environment(account, task.id, extra),
        account=account,
        cwd=content.cwd,
        script=content.script.encode("utf-8"),
        script_at=script_at,
    )


def _interpreter(name: str) -> str:
    if name == "shell":
        return "/bin/sh"
    if name == "python":
        return _first((*_PYTHONS, sys.executable), "python")
    return name


def _first(paths: tuple[str, ...], name: str) -> str:
    for path in paths:
        if os.access(path, os.X_OK):
            return path
    raise CannotStart(f"there is no {name} on this host")
