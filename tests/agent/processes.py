"""Starts real task agents and speaks with them as the Daemon does, and as strangers do."""

import hashlib
import hmac
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
# Another interpreter, such as the oldest that hosts may have; PYTHONPATH then says where its packages are.
PYTHON = os.environ.get("OPS_TEST_PYTHON", sys.executable)
KEY = "tester"
SECRET = "a secret of the tests"


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


class Said(NamedTuple):
    """An answer. `data` is the envelope's."""

    status: int
    code: int
    data: Any
    message: str
    headers: dict[str, str]
    body: bytes


class LocalConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float = 60.0) -> None:
        super().__init__("agent", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def said(answer: http.client.HTTPResponse) -> Said:
    body = answer.read()
    headers = {name.lower(): value for name, value in answer.getheaders()}
    if headers["content-type"] != "application/json":
        return Said(answer.status, 0, None, "", headers, body)
    found = json.loads(body)
    assert set(found) == {"code", "message", "data", "timestamp"}
    return Said(answer.status, found["code"], found["data"], found["message"], headers, body)


def sign(
    method: str, path: str, query: str, body: bytes, *, secret: str = SECRET, at: int | None = None, nonce: str = ""
) -> dict[str, str]:
    """The headers of a signed request."""
    stamp, once = str(int(time.time()) if at is None else at), nonce or uuid.uuid4().hex
    text = "\n".join((method, path, query, stamp, once, hashlib.sha256(body).hexdigest()))
    signature = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return {"X-Ops-Key": KEY, "X-Ops-Timestamp": stamp, "X-Ops-Nonce": once, "X-Ops-Signature": signature}


class AgentProcess:
    """One state directory and the agents that run on it, one after the other."""

    def __init__(self, directory: Path, **settings: object) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.state_dir = directory / "state"
        self.capabilities = directory / "capabilities.yaml"
        self.plugins = directory / "plugins"
        self.plugins.mkdir(exist_ok=True)
        self.log = directory / "agent.log"
        # The path of a Unix socket has little room.
        self.socket = f"/tmp/ops-test-{os.getpid()}-{uuid.uuid4().hex[:8]}.sock"
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self, *prefix: str, wait: bool = True, **variables: str) -> subprocess.Popen[bytes]:
        argv = [PYTHON, *(prefix or ("-m", "agent")), "--state-dir", str(self.state_dir)]
        argv += ["--socket", self.socket, "--capabilities", str(self.capabilities), "--plugins-dir", str(self.plugins)]
        given = {"daemon_socket": "off", "http_addr": "", **self.settings}
        for name, value in given.items():
            argv += ["--" + name.replace("_", "-"), str(value) if value != "" else "null"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OPS_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                env={**kept, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", **variables},
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_until_up()
        return self.process

    def wait_until_up(self) -> None:
        process = self.process
        assert process is not None

        def is_up() -> bool:
            assert process.poll() is None, self.output()
            try:
                return self.get("health").status == 200
            except OSError:
                return False

        wait_for(is_up, "the agent")
        found = [line for line in self.output().splitlines() if "listens at 127.0.0.1:" in line]
        if found:
            self.port = int(found[-1].rpartition("127.0.0.1:")[2].split()[0])

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 20.0) -> int:
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

    # ---- requests

    def connect(self) -> LocalConnection:
        return LocalConnection(self.socket)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Said:
        connection = self.connect()
        try:
            connection.request(
                method, f"/api/v1/{path}", body, {key.replace("_", "-"): v for key, v in headers.items()}
            )
            return said(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str) -> Said:
        return self.ask("GET", path)

    def post(self, path: str, content: object = None) -> Said:
        return self.ask("POST", path, json.dumps(content).encode() if content is not None else b"")

    def ask_tcp(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Said:
        """Signed, unless headers are given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        plain, _, query = f"/api/v1/{path}".partition("?")
        try:
            connection.request(
                method, f"/api/v1/{path}", body, sign(method, plain, query, body) if headers is None else headers
            )
            return said(connection.getresponse())
        finally:
            connection.close()

    # ---- executions

    def order(self, kind: str = "script", content: object = None, **fields: object) -> Said:
        order = {"id": uuid.uuid4().hex, "type": kind, "content": content, **fields}
        return self.post("task/execute", order)

    def script(self, text: str, **fields: Any) -> str:
        """The id of a started script."""
        content = {"interpreter": "shell", "script": text}
        content.update(
            {name: fields.pop(name) for name in ("interpreter", "args", "env", "user", "cwd") if name in fields}
        )
        answer = self.order("script", content, **fields)
        assert answer.status == 202, answer
        return str(answer.data["id"])

    def status(self, execution_id: str) -> dict[str, Any]:
        answer = self.get(f"task/{execution_id}/status")
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.data
        return found

    def events(self, execution_id: str, after: int = 0, wait_s: int = 0) -> dict[str, Any]:
        answer = self.get(f"task/{execution_id}/events?after={after}&wait_s={wait_s}")
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.data
        return found

    def wait_end(self, execution_id: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """Its status once it is over, heard over the events."""
        deadline, after = time.monotonic() + timeout_s, 0
        while time.monotonic() < deadline:
            found = self.events(execution_id, after, 2)
            if found["done"]:
                return self.status(execution_id)
            after = found["next"]
        raise AssertionError(f"{execution_id} did not end in {timeout_s} s: {self.status(execution_id)}")

    def run(self, text: str, **fields: Any) -> dict[str, Any]:
        return self.wait_end(self.script(text, **fields))

    def do(self, kind: str, content: object, **fields: object) -> dict[str, Any]:
        answer = self.order(kind, content, **fields)
        assert answer.status == 202, answer
        return self.wait_end(answer.data["id"])

    def stream(self, execution_id: str, name: str = "stdout") -> bytes:
        """Put together from the events, which must fit."""
        found, after = b"", 0
        while True:
            told = self.events(execution_id, after)
            for event in told["events"]:
                if event["type"] == "output" and event["stream"] == name:
                    found += b64decode(event["data"])
            after = told["next"]
            if told["done"] or not told["events"]:
                return found
