"""`python -m daemon end-agents`: ends every program that the Daemon keeps running, before it is taken off the host."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from typing import Any, cast

from daemon import logs
from daemon.clock import Clock
from daemon.configure import Problems, resolve
from daemon.inventory import read_machine
from daemon.main import EXIT_RUNNING, EXIT_SETTINGS
from daemon.measure import Logbook
from daemon.procfs import Kernel
from daemon.supervisor.supervisor import Supervisor
from daemon.system import System
from protocol.manifests import NAME

EXIT_LEFT = 1
PATIENCE_S = 120.0
KILL_S = 10.0
LOOK_S = 0.1

log = logging.getLogger("daemon.end_agents")


class _Silent:
    """Stands for the logbook: nobody will ask this host any more. The supervisor's own log tells the same."""

    def add_event(self, *_: Any) -> None:
        """Nothing."""


def end_agents(system: System, state_dir: str, patience_s: float) -> bool:
    """As if nobody declared any: each is asked to end, then killed. False: some are left."""
    directory = f"{state_dir}/agents"
    boot_id = read_machine(system, Kernel(system)).boot_id
    clock = Clock(system, boot_id)
    supervisor = Supervisor(system, clock, cast(Logbook, _Silent()), state_dir, boot_id, lambda: None)

    def left() -> list[str]:
        return [name for name in system.names(directory) if NAME.fullmatch(name) is not None]

    supervisor.use_settings(1, ())
    deadline = time.monotonic() + patience_s
    while left() and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    supervisor.stop(KILL_S, with_agents=True)
    return not left()


def main(arguments: list[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m daemon end-agents", description=__doc__)
    parser.add_argument("--config", metavar="FILE", help="the Daemon's settings file")
    parser.add_argument("--state-dir", metavar="DIR", help="where the Daemon keeps its state")
    given = parser.parse_args(arguments)
    logs.set_up("text", "info")
    words = [word for name in ("config", "state_dir") if getattr(given, name) for word in
             (f"--{name.replace('_', '-')}", getattr(given, name))]  # fmt: skip
    try:
        state_dir = resolve(words, dict(os.environ))["state_dir"]
    except Problems as error:
        log.error("%s", error)  # noqa: TRY400
        return EXIT_SETTINGS
    system = System()
    if not system.exists(state_dir):
        return 0
    if not system.lock(f"{state_dir}/lock"):
        log.error("a daemon runs with %s; stop it first", state_dir)
        return EXIT_RUNNING
    if not end_agents(system, state_dir, PATIENCE_S):
        log.error("some agents could not be ended")
        return EXIT_LEFT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
