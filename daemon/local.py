"""The host's own settings as the resident process holds them. Where they come from is `daemon.configure`'s business."""

from __future__ import annotations

import json
import sys
from typing import NamedTuple

from daemon.system import System
from protocol.fields import Fields
from protocol.manifests import Manifest, parse_manifest

CONFIGURE_S = 30.0
STATE_DIR = "/var/lib/ops-scaffold/daemon"
SOCKET = "/run/ops-scaffold/daemon.sock"


class LocalSettings(NamedTuple):
    """What only the host decides. `log_level` null leaves the level to the Manager.

    `agents` are the host's own, `builtin` what comes along: the task agent. `agents_at_exit`: whether all agents run on
    (`keep`) or are stopped first (`stop`).
    """

    manager_url: str | None
    manager_proxy: str | None
    state_dir: str
    log_format: str
    log_level: str | None
    collector_gpu: str
    capabilities: str
    agents_at_exit: str
    rpc_socket: str | None
    agents: tuple[Manifest, ...]
    builtin: tuple[Manifest, ...]

    @property
    def socket_path(self) -> str:
        """Of the local socket. Beside the state if that is not where it usually is: several Daemons on one machine."""
        if self.rpc_socket is not None:
            return self.rpc_socket
        return SOCKET if self.state_dir == STATE_DIR else f"{self.state_dir}/daemon.sock"


class SettingsError(Exception):
    """The settings are wrong; the child has said on stderr what is."""


def load_local(system: System, arguments: list[str]) -> LocalSettings:
    """Ask a short-lived child, so that no YAML and no argument parser stays resident."""
    finished = system.run([sys.executable, "-m", "daemon.configure", *arguments], timeout_s=CONFIGURE_S)
    if finished.code != 0:
        raise SettingsError("the settings could not be read" if finished.timed_out else "the settings are wrong")
    found = json.loads(finished.out)
    agents, builtin = (tuple(parse_manifest(Fields(raw)) for raw in found.pop(kind)) for kind in ("agents", "builtin"))
    return LocalSettings(**found, agents=agents, builtin=builtin)
