"""The agent's settings once they are resolved by `agent.configure`, which costs a child and no memory."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, NamedTuple


class SettingsError(Exception):
    """Everything that is wrong with the settings, or the answer to --help."""

    def __init__(self, words: str, code: int) -> None:
        super().__init__(words)
        self.code = code


class Settings(NamedTuple):
    """One field for each key of `configs/agent.example.yaml`, dots as underscores."""

    capabilities: str
    state_dir: str
    socket: str | None
    daemon_socket: str | None
    heartbeat_interval_s: int
    plugins_dir: str
    http_addr: tuple[str, int] | None
    http_keys_file: str | None
    http_allow: tuple[str, ...]
    http_rate_per_s: int
    http_burst: int
    http_max_connections: int
    http_body_max_bytes: int
    http_tls_cert: str | None
    http_tls_key: str | None
    http_tls_client_ca: str | None
    tasks_max_running: int
    tasks_max_queued: int
    tasks_output_max_bytes: int
    tasks_kill_grace_s: int
    tasks_keep_days: int
    tasks_keep_max_bytes: int
    files_max_bytes: int
    log_format: str
    log_level: str
    keys: dict[str, str]


def load_settings(arguments: list[str]) -> Settings:
    """Raises SettingsError."""
    done = subprocess.run(
        [sys.executable, "-m", "agent.configure", *arguments],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0 or not done.stdout.startswith(b"{"):
        raise SettingsError((done.stderr or done.stdout).decode("utf-8", "replace").rstrip(), done.returncode)
    found: dict[str, Any] = json.loads(done.stdout)
    found["http_addr"] = tuple(found["http_addr"]) if found["http_addr"] else None
    found["http_allow"] = tuple(found["http_allow"])
    return Settings(**found)
