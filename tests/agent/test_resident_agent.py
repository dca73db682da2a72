"""The resident task agent: what it imports and weighs, its heartbeat, plugins, services, capability patterns."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.contents import parse_task
from agent.executors import plan, service
from agent.executors.forbidden import Surroundings
from agent.processes import CannotStart
from protocol.capabilities import matches_file, parse_capabilities, uniform_capabilities
from tests.agent.processes import ROOT, AgentProcess, wait_for

FORBIDDEN = {
    "requests", "urllib3", "cryptography", "sqlite3", "asyncio", "ruamel", "yaml", "psutil", "ssl", "argparse",
    "pathlib", "uuid", "dataclasses", "tempfile", "shutil", "inspect", "importlib.metadata", "concurrent", "xml",
    "multiprocessing", "gzip", "pickle", "unittest", "http.server", "http.client", "http.cookies", "app", "daemon",
    "agent.configure", "agent.tls", "agent.formats", "agent.executors.file", "agent.executors.config",
}  # fmt: skip


def test_the_resident_agent_imports_only_what_it_needs() -> None:
    ended = subprocess.run(
        [sys.executable, "-S", "-c", "import agent.main, sys; print(' '.join(sys.modules))"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    names = set(ended.stdout.split())
    assert {name for name in names if name in FORBIDDEN or name.split(".")[0] in FORBIDDEN} == set()


def test_it_stays_small_and_idle(agent: AgentProcess) -> None:
    for number in range(30):
        agent.run(f"echo {number}; head -c 200000 /dev/zero")
    found = agent.get("status").data
    assert found["memory_usage"] < 40_000_000
    process = agent.process
    assert process is not None

    def ticks() -> int:
        return sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

    before = ticks()
    time.sleep(2)
    assert ticks() - before <= 2


class FakeDaemon:
    """Takes heartbeats as the Daemon's socket does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[dict[str, object]] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                channel, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(channel)
            with channel.makefile("rwb") as file:
                for line in file:
                    self.heard.append(json.loads(line))
                    file.write(b'{"jsonrpc":"2.0","result":{"interval_s":30},"id":1}\n')
                    file.flush()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for channel in self.connections:
            channel.shutdown(socket.SHUT_RDWR)
            channel.close()
        self.path.unlink()


def test_the_daemon_hears_a_heartbeat_also_after_its_restart(new_agent: Callable[..., AgentProcess]) -> None:
    path = Path(f"/tmp/ops-test-daemon-{os.getpid()}.sock")
    agent = new_agent(daemon_socket=path, heartbeat_interval_s=1)
    agent.start()
    process = agent.process
    assert process is not None
    daemon = FakeDaemon(path)
    first = wait_for(lambda: daemon.heard[:1], "a heartbeat")[0]
    assert (first["jsonrpc"], first["method"]) == ("2.0", "heartbeat")
    params = first["params"]
    assert isinstance(params, dict)
    assert set(params) == {"pid", "cpu", "memory", "state", "version"}
    assert (params["pid"], params["state"], params["version"]) == (process.pid, "idle", "0.1.0")
    wait_for(lambda: len(daemon.heard) >= 2, "another one")
    daemon.close()
    again = FakeDaemon(path)
    wait_for(lambda: again.heard, "a heartbeat after the restart")
    again.close()


def test_plugins_are_executables_or_python_files(agent: AgentProcess) -> None:
    shell = agent.plugins / "shout"
    shell.write_text('#!/bin/sh\ntr a-z A-Z; echo "$OPS_PARAM_X" >&2; exit 3\n')
    shell.chmod(0o755)
    (agent.plugins / "adder.py").write_text("def run(arguments):\n    return {'sum': sum(arguments)}\n")
    (agent.plugins / "code.py").write_text("import sys\ndef run(arguments):\n    print('said'); return 7\n")
    (agent.plugins / "broken.py").write_text("def run(arguments):\n    raise ValueError('no')\n")
    found = agent.do("custom", {"plugin": "shout", "arguments": {"a": "b"}}, parameters={"x": "y"})
    assert (found["stdout"], found["stderr"], found["exit_code"]) == ('{"A": "B"}', "y\n", 3)
    assert agent.do("custom", {"plugin": "adder", "arguments": [1, 2]})["stdout"] == '{"sum": 3}\n'
    found = agent.do("custom", {"plugin": "code"})
    assert (found["stdout"], found["exit_code"]) == ("said\n", 7)
    found = agent.do("custom", {"plugin": "broken"})
    assert (found["status"], found["exit_code"]) == ("failed", 1)
    assert "ValueError: no" in found["stderr"]
    assert "no plugin absent" in agent.do("custom", {"plugin": "absent"})["stderr"]
    shell.chmod(0o777)
    found = agent.do("custom", {"plugin": "shout"})
    assert (found["status"], found["exit_code"]) == ("failed", None)
    assert "writable by nobody else" in found["error"]


def test_plugins_of_installed_packages(new_agent: Callable[..., AgentProcess], tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "ops_more-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ops-more\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ops_scaffold.executors]\nmore = ops_more:run\n")
    (site / "ops_more.py").write_text("def run(arguments):\n    return 'more ' + arguments['word']\n")
    agent = new_agent()
    agent.start(PYTHONPATH=f"{ROOT}:{site}")
    assert agent.do("custom", {"plugin": "more", "arguments": {"word": "x"}})["stdout"] == "more x"


def around() -> Surroundings:
    return Surroundings("/state", "/plugins", uniform_capabilities("missing", True))


def order(op: str, name: str = "web@1.service"):  # type: ignore[no-untyped-def]
    return parse_task({"id": "a", "type": "service", "content": {"op": op, "name": name}})


def test_services_by_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(service, "SYSTEMD", str(tmp_path))
    monkeypatch.setattr(service, "_find", lambda name: f"/bin/{name}")
    assert plan(order("restart"), around()).argv == (
        "/bin/systemctl", "--no-pager", "--no-ask-password", "restart", "--", "web@1.service",
    )  # fmt: skip
    assert "--lines=20" in plan(order("status"), around()).argv


def test_services_by_init_scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(service, "SYSTEMD", str(tmp_path / "absent"))
    monkeypatch.setattr(service, "INIT_SCRIPTS", (str(tmp_path),))
    with pytest.raises(CannotStart, match="no init script of the name web"):
        plan(order("start", "web"), around())
    script = tmp_path / "web"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert plan(order("start", "web"), around()).argv == (str(script), "start")
    monkeypatch.setattr(service, "_find", lambda name: "/sbin/chkconfig" if name == "chkconfig" else None)
    assert plan(order("enable", "web"), around()).argv == ("/sbin/chkconfig", "web", "on")


def test_a_real_init_script_is_run(new_agent: Callable[..., AgentProcess], tmp_path: Path) -> None:
    script = tmp_path / "web"
    script.write_text('#!/bin/sh\necho "$1 done"\n[ "$1" = status ] && exit 3\nexit 0\n')
    script.chmod(0o755)
    agent = new_agent()
    code = (
        f"import agent.executors.service as s; s.SYSTEMD = '/absent'; s.INIT_SCRIPTS = ({str(tmp_path)!r},);"
        "from agent.__main__ import run; import sys; sys.exit(run(sys.argv[1:]))"
    )
    agent.start("-c", code)
    assert agent.do("service", {"op": "start", "name": "web"})["stdout"] == "start done\n"
    found = agent.do("service", {"op": "status", "name": "web"})
    assert (found["status"], found["exit_code"], found["stdout"]) == ("failed", 3, "status done\n")


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/**", "/etc/passwd", True),
        ("/**", "/", True),
        ("/data/**", "/data", True),
        ("/data/**", "/data/a/b", True),
        ("/data/**", "/database", False),
        ("/data/*", "/data/a", True),
        ("/data/*", "/data/a/b", False),
        ("/data/*.conf", "/data/a.conf", True),
        ("/data/?", "/data/a", True),
        ("/data/?", "/data//", False),
        ("/data/**/x", "/data/x", True),
        ("/data/**/x", "/data/a/b/x", True),
        ("/data/[a]", "/data/a", False),
        ("/data/a", "/data/a\n", False),
    ],
)
def test_patterns_of_files(pattern: str, path: str, fits: bool) -> None:
    assert matches_file(path, (pattern,)) is fits


def test_what_a_capability_file_may_say() -> None:
    assert parse_capabilities({"allow": {"scripts": False}}).scripts is False
    assert parse_capabilities({"allow": {}}).files == ("/**",)
    for wrong in (None, {}, {"allow": []}, {"allow": {"x": 1}}, {"allow": {"scripts": 1}}, {"allow": {"files": [""]}}):
        with pytest.raises(ValueError, match=r"must|does not know"):
            parse_capabilities(wrong)


def test_an_unsafe_capability_file_denies_everything(agent: AgentProcess) -> None:
    agent.capabilities.write_text("allow: {}\n")
    assert agent.run("true")["status"] == "success"
    agent.capabilities.chmod(0o666)
    assert agent.run("true")["error_code"] == "forbidden_by_host"
    agent.capabilities.chmod(0o600)
    os.chown(agent.capabilities, 65534, -1)
    assert agent.run("true")["error_code"] == "forbidden_by_host"
    os.chown(agent.capabilities, 0, -1)
    assert agent.run("true")["status"] == "success"
