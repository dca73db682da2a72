"""The whole agent in the test's own process, so that coverage sees it: one long day of it, and its executors alone."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.configure import resolve
from agent.executors import config, custom, file
from agent.executors.forbidden import Forbidden
from agent.executors.inner import Given, WorkFailed
from agent.main import Agent
from agent.settings import Settings
from protocol.codec import canonical
from tests.agent.conftest import make_keys
from tests.agent.processes import ROOT, AgentProcess, sign, wait_for

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Inside:
    """Runs agents in the main thread while `act` speaks with them from another."""

    def __init__(self, directory: Path) -> None:
        self.client = AgentProcess(directory)
        self.keys = make_keys(directory)

    def run(self, act: Callable[[AgentProcess], Any], *more: str) -> None:
        arguments = [
            "--state-dir",
            str(self.client.state_dir),
            "--socket",
            self.client.socket,
            "--daemon-socket",
            "off",
        ]
        arguments += ["--capabilities", str(self.client.capabilities), "--plugins-dir", str(self.client.plugins)]
        arguments += ["--http-addr", "127.0.0.1:0", "--http-keys-file", str(self.keys), "--tasks-kill-grace-s", "1"]
        found = resolve([*arguments, *more], {})
        found["http_addr"], found["http_allow"] = tuple(found["http_addr"]), tuple(found["http_allow"])
        agent = Agent(Settings(**found))
        failures: list[BaseException] = []

        def work() -> None:
            try:
                wait_for(lambda: Path(self.client.socket).exists(), "the socket")
                act(self.client)
            except BaseException as error:  # noqa: BLE001 - it is raised again in the test's thread
                failures.append(error)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            assert agent.run() == 0
        finally:
            thread.join()
        if failures:
            raise failures[0]


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inside]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before = {number: signal.getsignal(number) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(-1)
    # The agent makes its directories below one that is there; the test's own is 0700.
    (tmp_path / "state").mkdir()
    yield Inside(tmp_path)
    signal.set_wakeup_fd(wakeup)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_day_of_an_agent(inside: Inside, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agent")

    def morning(agent: AgentProcess) -> None:
        assert agent.run("echo a; echo b >&2; exit 3")["exit_code"] == 3
        assert agent.run("kill -9 $$")["signal"] == 9
        assert agent.run("x", interpreter="/absent")["status"] == "failed"
        assert agent.run("print('py')", interpreter="python", user="nobody")["stdout"] == "py\n"
        assert agent.run("x", interpreter="powershell")["error"].startswith("there is no powershell")
        assert agent.run("sleep 60 & sleep 60", timeout=1)["status"] == "timeout"
        assert agent.run("(sleep 1.3) & echo on")["stdout"] == "on\n"
        assert agent.run("echo late", not_after="2026-01-01T00:00:00Z")["status"] == "expired"
        first, second = agent.script("trap '' TERM; sleep 60; sleep 60"), agent.script("echo next")
        assert agent.status(second)["waiting_for"] == "agent_queue"
        assert agent.order("script", {"script": "true"}).code == 1005
        time.sleep(0.2)
        assert agent.post(f"task/{first}/cancel").status == 202
        assert agent.wait_end(second)["stdout"] == "next\n"
        assert agent.wait_end(first)["status"] == "cancelled"
        name = agent.script("head -c 300000 /dev/zero | tr '\\0' x; echo; echo end; echo err >&2")
        found = agent.wait_end(name)
        assert found["truncated"]
        assert found["stdout"].endswith("x\nend\n")
        assert agent.get(f"events?after={name}:0,none:0").data["unknown"] == ["none"]
        assert len(agent.get(f"task/{name}/output?offset=10").body) > 1000
        assert agent.get("status").data["running"] == 0
        agent.script("sleep 60", id="night")
        agent.script("echo tomorrow", id="tomorrow")

    def files(agent: AgentProcess) -> None:
        assert agent.wait_end("tomorrow")["stdout"] == "tomorrow\n"
        assert agent.status("night")["status"] == "interrupted"
        agent.plugins.joinpath("p.py").write_text("def run(arguments):\n    return arguments\n")
        assert agent.do("custom", {"plugin": "p", "arguments": [1]})["stdout"] == "[1]\n"
        target = tmp_path / "target"
        digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
        query = f"path={target}&offset=0&total=1&sha256={digest}"
        assert agent.ask("POST", f"file/upload?{query}", b"x").data["complete"] is True
        assert agent.ask("POST", f"file/upload?{query.replace('total=1', 'total=0')}", b"").code == 3003
        assert agent.ask("POST", f"file/stage?offset=0&total=1&sha256={digest}", b"x").data["complete"] is True
        assert agent.get(f"file/upload?sha256={digest}").data["complete"] is True
        assert agent.ask("GET", f"file/download?path={target}&sha256=1").headers["x-ops-sha256"] == digest
        assert agent.ask("GET", f"file/download?path={target}", None, Range="bytes=0-0").status == 206
        assert agent.get(f"file/download?path={tmp_path}/../x").code == 1003
        agent.do("file", {"op": "download", "path": str(target)}, id="load")
        assert agent.get("task/load/file").body == b"x"
        assert agent.post("task/load/forget").status == 200
        assert agent.order("script", {"script": "true"}, id="load").code == 1006
        agent.capabilities.write_text("allow: {config: false}\n")
        assert agent.do("config", {"op": "read", "path": "/x"})["error_code"] == "forbidden_by_host"
        os.kill(os.getpid(), signal.SIGHUP)

    def strangers(agent: AgentProcess) -> None:
        said = [record.getMessage() for record in caplog.records if "listens at 127.0.0.1:" in record.getMessage()]
        agent.port = int(said[-1].rpartition(":")[2])
        assert agent.ask_tcp("GET", "status").status == 200
        headers = sign("GET", "/api/v1/status", "", b"")
        assert agent.ask_tcp("GET", "status", headers=headers).status == 200
        assert agent.ask_tcp("GET", "status", headers=headers).status == 401
        assert agent.ask_tcp("GET", "health", headers={}).status == 200
        assert agent.ask_tcp("GET", "status", headers={}).status == 401

    inside.run(morning, "--tasks-max-running", "1", "--tasks-max-queued", "1", "--tasks-output-max-bytes", "200000")
    inside.run(files)
    inside.run(strangers)


def given(tmp_path: Path, **content: Any) -> Given:
    state = tmp_path / "state"
    for name in ("staging", "outbox", "backups"):
        (state / name).mkdir(parents=True, exist_ok=True)
    names = "op path dest mode owner sha256 file_id format key value offset total".split()
    return Given("it", {**dict.fromkeys(names), "recursive": False, **content}, (f"{tmp_path}/**",), str(state))


def do(work: Callable[[Given], str], tmp_path: Path, **content: Any) -> Any:
    text = work(given(tmp_path, **content))
    return json.loads(text) if text.startswith("{") else text


def test_file_work(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("text")
    assert do(file.work, tmp_path, op="copy", path=str(a), dest=str(b), mode="0600")["size"] == 4
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    assert do(file.work, tmp_path, op="copy", path=str(a), dest=str(tmp_path / "folder"))["dest"].endswith("folder/a")
    (tmp_path / "folder" / "link").symlink_to(a)
    tree = {"op": "copy", "path": str(tmp_path / "folder"), "dest": str(tmp_path / "tree"), "recursive": True}
    assert do(file.work, tmp_path, **tree)["files"] == 2
    assert do(file.work, tmp_path, **tree)["files"] == 2
    assert do(file.work, tmp_path, op="delete", path=str(tmp_path / "tree"), recursive=True)["deleted"] == 4
    assert do(file.work, tmp_path, op="delete", path=str(tmp_path / "tree"))["deleted"] == 0
    assert do(file.work, tmp_path, op="delete", path=str(b))["deleted"] == 1
    (tmp_path / "empty").mkdir()
    assert do(file.work, tmp_path, op="delete", path=str(tmp_path / "empty"))["deleted"] == 1
    digest = do(file.work, tmp_path, op="hash", path=str(a))["sha256"]
    assert do(file.work, tmp_path, op="download", path=str(a), sha256=digest)["size"] == 4
    (tmp_path / "state" / "staging" / digest).write_text("text")
    assert do(file.work, tmp_path, op="upload", dest=str(b), sha256=digest, owner="nobody:nogroup")["size"] == 4
    assert b.owner() == "nobody"
    for wrong in (
        {"op": "download", "path": str(a), "sha256": "0" * 64},
        {"op": "upload", "dest": str(b), "sha256": "0" * 64},
        {"op": "copy", "path": str(tmp_path / "folder"), "dest": str(b)},
        {**tree, "dest": str(tmp_path / "folder" / "inner" / "x")},
    ):
        with pytest.raises(WorkFailed):
            do(file.work, tmp_path, **wrong)
    for path in ("/etc/passwd", f"{tmp_path}/../x", "relative"):
        with pytest.raises(Forbidden):
            do(file.work, tmp_path, op="delete", path=path)
    with pytest.raises(FileNotFoundError):
        do(file.work, tmp_path, op="copy", path=str(tmp_path / "absent"), dest=str(b))
    everywhere = given(tmp_path, op="copy", path=str(a), dest="/dev/null")._replace(files=("/**",))
    with pytest.raises(OSError, match="not a regular file"):
        file.work(everywhere)


def test_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, body = tmp_path / "target", tmp_path / "body"
    monkeypatch.setattr("sys.argv", ["file", str(body)])
    digest = "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"
    piece = {"op": "piece", "path": str(target), "total": 4, "sha256": digest}
    body.write_bytes(b"cd")
    assert do(file.work, tmp_path, **piece, offset=2)["is_gap"] is True
    body.write_bytes(b"ab")
    assert do(file.work, tmp_path, **piece, offset=0) == {"next": 2, "complete": False}
    assert do(file.work, tmp_path, op="progress", path=str(target), sha256=digest)["next"] == 2
    body.write_bytes(b"cd")
    assert do(file.work, tmp_path, **piece, offset=2)["complete"] is True
    assert target.read_bytes() == b"abcd"
    body.write_bytes(b"wxyz")
    with pytest.raises(file.WrongHash):
        do(file.work, tmp_path, **piece, offset=0)
    assert target.read_bytes() == b"abcd"
    body.write_bytes(b"abcd")
    assert do(file.work, tmp_path, **{**piece, "path": None}, offset=0)["complete"] is True
    assert do(file.work, tmp_path, op="progress", sha256=digest)["complete"] is True


def test_config_work(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}\n')
    base = {"path": str(path), "format": "json"}
    with pytest.raises(WorkFailed, match="no backup"):
        do(config.work, tmp_path, **base, op="restore")
    kept = do(config.work, tmp_path, **base, op="backup")["backup"]
    assert do(config.work, tmp_path, **base, op="set", key="b", value=[2])["changed"] is True
    assert do(config.work, tmp_path, **base, op="unset", key="a")["changed"] is True
    assert json.loads(path.read_text()) == {"b": [2]}
    assert config.work(given(tmp_path, **base, op="read", key="b")) == "[2]\n"
    assert json.loads(config.work(given(tmp_path, **base, op="read"))) == {"b": [2]}
    assert do(config.work, tmp_path, **base, op="replace_line", key="b", value="{}")["changed"] is True
    assert do(config.work, tmp_path, **base, op="restore", value=kept)["restored"] == kept
    assert path.read_text() == '{"a": 1}\n'
    for wrong in ({"op": "read", "key": "x"}, {"op": "set", "key": "..", "value": 1}, {"op": "restore", "value": "x"}):
        with pytest.raises(WorkFailed):
            do(config.work, tmp_path, **base, **wrong)
    path.write_bytes(b"\xff")
    with pytest.raises(WorkFailed, match="not UTF-8"):
        do(config.work, tmp_path, **base, op="read")


def test_plugins_in_their_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "p.py"
    plugin.write_text("def run(arguments):\n    return arguments\n")
    for arguments, code, out in ((3, 3, ""), ("text", 0, "text"), ({"a": 1}, 0, '{"a": 1}\n'), (None, 0, "")):
        with (tmp_path / "stdin").open("w+") as stdin:
            stdin.write(canonical(arguments))
            stdin.seek(0)
            monkeypatch.setattr("sys.stdin", stdin)
            monkeypatch.setattr("sys.argv", ["custom", str(plugin)])
            assert custom.main() == code
        assert capsys.readouterr().out == out
    with (tmp_path / "stdin").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        stdin.seek(0)
        monkeypatch.setattr("sys.argv", ["custom", "absent"])
        assert custom.main() == 1
