"""Starts real Daemons and waits for what they do; nothing here sleeps for luck."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.daemon.manager import FakeManager

ROOT = Path(__file__).parents[2]


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """The first true value of `condition`; fails by name."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(0.01)


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPS_")}
    return {**kept, "PYTHONPATH": str(ROOT), **extra}


class DaemonProcess:
    """One state directory and the Daemons that run on it, one after the other."""

    def __init__(self, directory: Path, python: str = sys.executable) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        self.capabilities = directory / "capabilities.yaml"
        self.log = directory / "daemon.log"
        self.python = python
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def enroll(self, manager: FakeManager, *extra: str, token: str | None = "join-me", timeout_s: float = 60.0) -> int:
        argv = [self.python, "-m", "daemon", "enroll", "--server", manager.url, "--state-dir", str(self.state_dir)]
        if "--ca-file" not in extra and "--ca-fingerprint" not in extra:
            argv += ["--ca-fingerprint", manager.authority.fingerprint()]
        if token is not None:
            argv += ["--token-env", "JOIN"]
        with self.log.open("ab") as log:
            return subprocess.run(
                [*argv, *extra],
                env=environment(JOIN=token or ""),
                stdout=log,
                stderr=log,
                timeout=timeout_s,
                check=False,
            ).returncode

    def start(self, *extra: str, **variables: str) -> subprocess.Popen[bytes]:
        argv = [self.python, "-m", "daemon", "--state-dir", str(self.state_dir), "--collector-gpu", "off"]
        argv += ["--capabilities", str(self.capabilities), *extra]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, env=environment(**variables), stdout=log, stderr=log)
        return self.process

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 15.0) -> int:
        process = self.process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(number)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def stored(self, name: str) -> Any:
        return json.loads((self.state_dir / name).read_text())
