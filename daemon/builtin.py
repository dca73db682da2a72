"""What comes along with the Daemon on every host: the task agent, as a manifest that the host's own settings make."""

from __future__ import annotations

import os
import sys
from typing import Any

from protocol.limits import MIB
from protocol.manifests import LEAVE, TASK_AGENT

SOCKET = "agent.sock"
"""In the directory that the task agent has under the Daemon's state."""
STOP_S = 30.0
MEMORY_BYTES = 512 * MIB


def task_agent(config: str, home: str | None, state_dir: str, capabilities: str) -> dict[str, Any]:
    """Its manifest. It runs as the Daemon's own user, in a release of its own or in the Daemon's.

    Services and whatever else its scripts leave behind are the host's, not the agent's: they stay when it ends, and
    what its scripts use is theirs. Scripts that still run it ends itself.
    """
    place, path = _release(home)
    python = [sys.executable, "-m", "agent"]
    socket = f"{state_dir}/agents/{TASK_AGENT}/{SOCKET}"
    return {
        "name": TASK_AGENT,
        "type": "task",
        "description": "Executes tasks",
        "start": [*python, "--config", config, "--capabilities", capabilities, "--socket", socket],
        "cwd": place,
        "env": {"PYTHONPATH": path, "MALLOC_ARENA_MAX": "2", **_kept()},
        "stop": {"signal": "TERM", "timeout_s": STOP_S, "detached": LEAVE},
        "reload": {"signal": "HUP"},
        "version": [*python, "--version"],
        "health": [{"kind": "process"}, {"kind": "heartbeat", "interval_s": 30, "failures": 3}],
        "limits": {"cpu_percent": None, "memory_bytes": MEMORY_BYTES, "action": "alert"},
    }


def _release(home: str | None) -> tuple[str, str]:
    """Where the package lies, and what finds it. Libraries that lie in it, it finds itself."""
    if home is not None:
        return home, home
    own = __file__.rpartition("/daemon/")[0] or "/"
    further = [part for part in os.environ.get("PYTHONPATH", "").split(":") if part and part != own]
    return own, ":".join([own, *further])


def _kept() -> dict[str, str]:
    """A release that root laid out is not written to."""
    return {"PYTHONDONTWRITEBYTECODE": "1"} if sys.dont_write_bytecode else {}
