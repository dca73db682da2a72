"""Services of the host, by systemd where it runs, else by their init scripts; the programs say how it went."""

# ruff: noqa: PTH112, PTH113

from __future__ import annotations

import os

from agent.contents import ServiceWork, Task
from agent.executors.forbidden import Surroundings
from agent.processes import CannotStart, Launch, account_of, environment

SYSTEMD = "/run/systemd/system"
INIT_SCRIPTS = ("/etc/init.d", "/etc/rc.d/init.d")


def plan(content: ServiceWork, task: Task, around: Surroundings) -> Launch:  # noqa: ARG001 - every service may be asked
    """Which program is run. Raises CannotStart."""
    account = account_of(None)
    argv = _systemd(content) if os.path.isdir(SYSTEMD) else _sysv(content)
    return Launch(argv=argv, env=environment(account, task.id, {"SYSTEMD_PAGER": ""}), account=account, cwd="/")


def _systemd(content: ServiceWork) -> tuple[str, ...]:
    program = _program("systemctl")
    extra = ("--lines=20",) if content.op == "status" else ()
    return (program, "--no-pager", "--no-ask-password", *extra, content.op, "--", content.name)


def _sysv(content: ServiceWork) -> tuple[str, ...]:
    if content.op in ("enable", "disable"):
        for name, words in (
            ("update-rc.d", (content.name, content.op)),
            ("chkconfig", (content.name, _ON[content.op])),
        ):
            found = _find(name)
            if found is not None:
                return (found, *words)
        raise CannotStart("this host has neither systemd nor update-rc.d nor chkconfig")
    for directory in INIT_SCRIPTS:
        script = f"{directory}/{content.name}"
        if "/" not in content.name and os.path.isfile(script) and os.access(script, os.X_OK):
            return (script, content.op)
    raise CannotStart(f"this host has no systemd and no init script of the name {content.name}")


def _program(name: str) -> str:
    found = _find(name)
    if found is None:
        raise CannotStart(f"there is no {name} on this host")
    return found


def _find(name: str) -> str | None:
    for directory in ("/usr/bin", "/bin", "/usr/sbin", "/sbin"):
        if os.access(f"{directory}/{name}", os.X_OK):
            return f"{directory}/{name}"
    return None


_ON = {"enable": "on", "disable": "off"}
