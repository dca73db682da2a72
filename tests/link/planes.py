"""A real gateway (gunicorn, TLS, our CA) over one of the test applications' databases, started and stopped at will."""

import http.client
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path

from flask import Flask

from app.kernel.context import Ops
from tests.services import wait_for

ROOT = Path(__file__).resolve().parents[2]


class Plane:
    """One plane of the Manager as processes of its own, on a port that stays the same over restarts."""

    def __init__(self, app: Flask, name: str, port: int, **environment: str) -> None:
        ops: Ops = app.extensions["ops"]
        self.name, self.port, self.ca_path = name, port, ops.settings.keys_path / "ca.pem"
        self.data_path = ops.settings.data_path
        address = f"127.0.0.1:{port}"
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("OPS_")} | {
            "OPS_DATA_DIR": str(self.data_path),
            "OPS_KEYS__DIR": str(ops.settings.keys_path),
            "OPS_DATABASE_URL": ops.settings.database_url,
            "OPS_REDIS_URL": ops.settings.redis_url,
            "OPS_SERVER__HTTP__ADDR" if name == "web" else "OPS_SERVER__GATEWAY__ADDR": address,
            "OPS_LOG__LEVEL": "debug",
            **environment,
        }
        self.log_path = self.data_path / f"{name}-{port}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.live_path = "/health/live"

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            command = [sys.executable, "-m", "gunicorn", "-c", f"python:app.servers.{self.name}"]
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self._answers, 60, f"the {self.name} plane to answer; its log: {self.log_path}")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(self.log())
        try:
            connection = self._connection()
            connection.request("GET", self.live_path)
            return connection.getresponse().status == 200
        except OSError:
            return False

    def _connection(self) -> http.client.HTTPConnection:
        if self.name == "web":
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        context = ssl.create_default_context(cafile=str(self.ca_path))
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5, context=context)

    def terminate(self) -> int:
        """As an operator stops it; returns its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(30)

    def kill(self) -> None:
        """Master and workers at once, as when the machine goes."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def log(self) -> str:
        return self.log_path.read_text("utf-8", "replace")
