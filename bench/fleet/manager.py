"""A Manager of its own for a measurement: real processes on free ports, on SQLite or on a private MariaDB."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psutil

from bench.mariadb import GrownMariaDb

ROOT = Path(__file__).resolve().parents[2]
ADMIN_PASSWORD = "bench-password-1"
START_S = 120


class Manager:
    """Started on entering, stopped and forgotten on leaving."""

    def __init__(self, database: str, **environment: str) -> None:
        self._database, self._given = database, environment
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.data = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ops-bench-")))
        web, gateway = free_port(), free_port()
        self.web_url, self.gateway_url = f"http://127.0.0.1:{web}", f"https://127.0.0.1:{gateway}"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("OPS_")} | {
            "OPS_DATA_DIR": str(self.data),
            "OPS_WEB_PORT": str(web),
            "OPS_GATEWAY_PORT": str(gateway),
            "OPS_ADMIN_PASSWORD": ADMIN_PASSWORD,
            "OPS_LOG__LEVEL": "warning",
            **self._given,
        }
        if self._database == "mariadb":
            server = self._stack.enter_context(GrownMariaDb())
            self.environment["OPS_DATABASE_URL"] = server.create_database()
        self.log = self.data / "manager.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.launch"], cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )
        self._stack.callback(self._stop)
        self._wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def flask(self, *arguments: str) -> str:
        """`flask ops …` against this Manager."""
        command = [sys.executable, "-m", "flask", "--app", "wsgi", "ops", *arguments]
        found = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, check=True)
        return found.stdout.decode().strip().splitlines()[-1]

    def api(self, method: str, path: str, body: Any = None, token: str = "") -> Any:
        request = urllib.request.Request(
            f"{self.web_url}/api/v1{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {}),
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]

    def sign_in(self) -> str:
        signed_in = self.api("POST", "/auth/login", {"username": "admin", "password": ADMIN_PASSWORD})
        return str(signed_in["access_token"])

    def browser(self) -> urllib.request.OpenerDirector:
        """Somebody who signed in by the form."""
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        form = opener.open(f"{self.web_url}/login", timeout=60).read().decode()
        found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', form)
        values = {"username": "admin", "password": ADMIN_PASSWORD, "csrf_token": found[1] if found else ""}
        answer = opener.open(f"{self.web_url}/login", urllib.parse.urlencode(values).encode(), timeout=60)
        if answer.url.endswith("/login"):
            raise SystemExit("nobody could sign in by the form")
        return opener

    def processes(self) -> dict[str, psutil.Process]:
        """The children of the launcher that matter, by what they do; of gunicorn the workers, not the master."""
        found: dict[str, psutil.Process] = {}
        for child in psutil.Process(self._process.pid).children(recursive=True):
            line = " ".join(child.cmdline())
            for name, mark in (("gateway", "servers.gateway"), ("web", "servers.web"), ("worker", "app.worker")):
                if mark in line and (name == "worker" or child.ppid() != self._process.pid):
                    found[f"{name} {child.pid}" if name in found else name] = child
            if "redis-server" in line or "valkey-server" in line:
                found["redis"] = child
        return found

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise SystemExit(f"the Manager did not start:\n{self.log.read_text()}")
            if "is running" in self.log.read_text("utf-8", "replace"):
                return
            time.sleep(0.2)
        raise SystemExit("the Manager did not start in time")

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
