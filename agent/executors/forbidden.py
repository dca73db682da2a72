"""What executors know about the host they run on, and how they say that it forbids something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from protocol.capabilities import matches_user
from protocol.checkin import Capabilities

FORBIDDEN_EXIT = 93
"""How our own children say `forbidden_by_host`; scripts and plugins may end as they like."""


class Forbidden(Exception):
    """The host's capability file does not allow this."""


class Surroundings(NamedTuple):
    """Directories of the agent, and what the host allows at this moment."""

    state_dir: str
    plugins_dir: str
    capabilities: Capabilities


def check_scripts(around: Surroundings, user: str) -> None:
    """Whether somebody may run programs of the caller's here. Raises Forbidden."""
    if not around.capabilities.scripts:
        raise Forbidden("this host does not allow scripts")
    if not matches_user(user, around.capabilities.run_as):
        raise Forbidden(f"this host does not allow running as {user}")


def parameters_of(parameters: Mapping[str, str]) -> dict[str, str]:
    """Environment variables of a task's parameters."""
    return {f"OPS_PARAM_{name.upper()}": value for name, value in parameters.items()}
