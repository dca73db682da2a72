"""The host's own settings as the resident process holds them. Where they come from is `daemon.configure`'s business."""

from __future__ import annotations

import json
import sys
from typing import NamedTuple

from daemon.system import System

CONFIGURE_S = 30.0


class LocalSettings(NamedTuple):
    """What only the host decides. `log_level` null leaves the level to the Manager."""

    manager_url: str | None
    manager_proxy: str | None
    state_dir: str
    log_format: str
    log_level: str | None
    collector_gpu: str
    capabilities: str


class SettingsError(Exception):
    """The settings are wrong; the child has said on stderr what is."""


def load_local(system: System, arguments: list[str]) -> LocalSettings:
    """Ask a short-lived child, so that no YAML and no argument parser stays resident."""
    finished = system.run([sys.executable, "-m", "daemon.configure", *arguments], timeout_s=CONFIGURE_S)
    if finished.code != 0:
        raise SettingsError("the settings could not be read" if finished.timed_out else "the settings are wrong")
    return LocalSettings(**json.loads(finished.out))
