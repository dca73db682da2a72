"""A real Daemon and a real agent, told by a Manager: configuration, logs, streams, the local socket."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.commands import Result
from tests.daemon.manager import Drop, FakeManager, Refusal
from tests.daemon.processes import DaemonProcess, wait_for
from tests.daemon.supervisor.box import kill_marked, script

# It says what its configuration says, and dies of a bad one.
AGENT = """
import json, os, signal, sys, time
path = sys.argv[1]
def load(*_):
    global settings
    with open(path) as file: settings = json.load(file)
    print("loaded", settings["word"], flush=True)
    if settings.get("die"): os._exit(3)
signal.signal(signal.SIGHUP, load)
load()
number = 0
while True:
    time.sleep(settings.get("pause", 0.05))
    if "die_after" in settings and time.time() > os.stat(path).st_mtime + settings["die_after"]: os._exit(4)
    number += 1
    print("tick", settings["word"], number, flush=True)
"""
CHECK = "import json, sys; assert 'word' in json.load(open(sys.argv[1])), 'a word is missing'"


class Field:
    """One host with one agent `web`, as the Manager declares it."""

    def __init__(self, manager: FakeManager, daemon: DaemonProcess, base: Path) -> None:
        self.manager, self.daemon, self.config = manager, daemon, base / "web.json"
        self.config.write_text(json.dumps({"word": "one"}))
        manifest: dict[str, Any] = {
            "name": "web", "type": "custom", "start": [*script(AGENT), str(self.config)], "reload": {"signal": "HUP"},
            "validate": [*script(CHECK), "{config}"], "config": [{"path": str(self.config), "mode": "0644"}],
            "stop": {"timeout_s": 2},
        }  # fmt: skip
        entry = {"name": "web", "desired": "running", "seq": 1, "source": "manager", "manifest": manifest}
        manager.settings = manager.settings._replace(version=2, agents=(entry,))
        self.start()

    def start(self) -> None:
        before = len(self.manager.node.checkins) if self.manager.nodes else 0
        self.daemon.start("--agents-at-exit", "stop")
        wait_for(lambda: len(self.manager.node.checkins) > before, "a check-in")
        wait_for(lambda: self.agent() and self.agent().status == "running", "the agent to run", 40)

    def agent(self) -> Any:
        told = [checkin.agents for checkin in self.manager.node.checkins if checkin.agents is not None]
        return told[-1][0] if told and told[-1] else None

    def do(self, kind: str, timeout_s: float = 40, **payload: Any) -> Result:
        return self.result(self.manager.send(kind, {"name": "web", **payload}), timeout_s)

    def result(self, command: str, timeout_s: float = 40) -> Result:
        found = wait_for(lambda: self.manager.node.result(command), "the result", timeout_s)
        assert isinstance(found, Result)
        return found

    def configure(self, version: int, probation_s: float = 1.0, **settings: Any) -> str:
        files = [{"path": str(self.config), "content": json.dumps(settings)}]
        payload = {"name": "web", "version": version, "files": files, "probation_s": probation_s}
        return self.manager.send("agent.configure", payload)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.manager.node.events]


@pytest.fixture
def field(manager: FakeManager, enrolled: DaemonProcess, tmp_path: Path) -> Iterator[Field]:
    found = Field(manager, enrolled, tmp_path)
    yield found
    enrolled.stop()
    kill_marked(enrolled.state_dir)


def test_a_configuration_is_kept_refused_or_taken_back(field: Field) -> None:
    result = field.result(field.configure(1, word="two"))
    assert (result.status, result.data and result.data["outcome"]) == ("succeeded", "kept")
    wait_for(lambda: field.agent().config_version == 1, "the version in a check-in")
    result = field.result(field.configure(2, wort="three"))
    assert (result.error_code, "a word is missing" in (result.error or "")) == ("task_failed", True)
    result = field.result(field.configure(3, probation_s=3, word="four", die=True))
    assert (result.error_code, result.data and result.data["version"]) == ("rolled_back", 1)
    assert json.loads(field.config.read_text()) == {"word": "two"}
    wait_for(lambda: {"agent.configured", "agent.config_reverted"} <= set(field.kinds()), "the events", 30)
    field.config.write_text("{}")
    field.manager.send("settings.refresh", {})
    wait_for(lambda: field.agent().drifted, "the drift", 30)
    wait_for(lambda: "agent.drifted" in field.kinds(), "its event", 30)
    files = field.do("agent.read_config").data
    assert files is not None
    assert files["files"][0]["content"] == "{}"


@pytest.mark.fault
def test_killed_in_the_probation_it_goes_on_and_answers(field: Field) -> None:
    command = field.configure(1, probation_s=3, word="two")
    # Earlier, with the file in its place but nobody told, it is taken back: that is another test's.
    wait_for(lambda: list(field.daemon.state_dir.rglob("transaction-applying")), "the probation")
    field.daemon.stop(signal.SIGKILL)
    assert field.manager.node.result(command) is None
    field.start()
    result = field.result(command)
    assert (result.status, result.data and result.data["outcome"]) == ("succeeded", "kept")
    assert "two" in field.config.read_text()


@pytest.mark.fault
def test_an_agent_that_dies_of_it_while_the_daemon_is_dead_gets_its_old_file_back(field: Field) -> None:
    command = field.configure(1, probation_s=5, word="two", die_after=1.5)
    wait_for(lambda: "two" in field.config.read_text(), "the new file")
    field.daemon.stop(signal.SIGKILL)
    time.sleep(2)
    field.start()
    result = field.result(command)
    assert (result.error_code, result.data and result.data["outcome"]) == ("rolled_back", "reverted")
    assert "one" in field.config.read_text()
    wait_for(lambda: field.agent().status == "running", "the agent to run", 60)


def test_the_capability_file_forbids_at_once(field: Field) -> None:
    field.daemon.capabilities.write_text("allow: {config: false}")
    field.daemon.capabilities.chmod(0o600)
    assert field.result(field.configure(1, word="two")).error_code == "forbidden_by_host"
    assert "one" in field.config.read_text()
    wait_for(lambda: "capabilities.changed" in field.kinds(), "the event", 30)


def test_files_that_the_capability_file_does_not_name_are_the_hosts_own(field: Field) -> None:
    log = f"{field.config.parent}/web.log"
    Path(log).write_text("to be seen\n")
    settings = field.manager.settings
    entry = dict(settings.agents[0])
    entry["manifest"] = {**entry["manifest"], "logs": [log]}
    field.manager.settings = settings._replace(version=3, agents=(entry,))
    field.manager.send("settings.refresh", {})
    wait_for(lambda: field.do("agent.logs", file=log).status == "succeeded", "the log to be known", 30)
    field.daemon.capabilities.write_text(f"allow: {{files: ['{field.config.parent}/else/**']}}")
    field.daemon.capabilities.chmod(0o600)
    assert field.do("agent.logs", file=log).error_code == "forbidden_by_host"
    assert field.do("agent.stream_logs", file=log, follow=False, max_bytes=9, stream="s" * 32,
                    until=field.manager.text(60)).error_code == "forbidden_by_host"  # fmt: skip
    assert (field.do("agent.logs", query="tick one").data or {})["lines"]
    assert not (field.do("agent.logs", query="to be seen").data or {})["lines"]
    assert field.do("agent.read_config").error_code == "forbidden_by_host"
    assert field.result(field.configure(1, word="two")).error_code == "forbidden_by_host"
    assert "one" in field.config.read_text()


def test_logs_are_read_of_the_agent_and_of_the_daemon(field: Field) -> None:
    wait_for(lambda: (field.do("agent.logs", query="tick one 3").data or {})["lines"], "lines")
    data = field.do("agent.logs", lines=5).data
    assert data is not None
    assert len(data["lines"]) == 5
    assert data["files"][0]["path"].endswith("agents/web/output.log")
    own = field.do("agent.logs", name="daemon", query="runs, instance").data
    assert own is not None
    assert len(own["lines"]) == 1
    assert own["files"][0]["path"].endswith("/daemon.log")
    assert field.do("agent.logs", name="nobody").error_code == "task_failed"
    assert field.do("agent.logs", file="/etc/passwd").error_code == "task_failed"
    assert field.do("agent.logs", lines=2001).error_code == "bad_payload"


def stream(field: Field, name: str = "s" * 32, **payload: Any) -> str:
    field.manager.streams[name] = bytearray()
    given = {"follow": True, "max_bytes": 1 << 20, "until": field.manager.text(60), "stream": name, **payload}
    return field.manager.send("agent.stream_logs", {"name": "web", **given})


def test_a_log_is_followed_until_nobody_looks(field: Field) -> None:
    command = stream(field, query="TICK", lines=3)
    found = field.manager.streams["s" * 32]
    wait_for(lambda: found.count(b"\n") > 10, "lines")
    numbers = [int(line.split()[-1]) for line in bytes(found).splitlines()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    with field.manager.changed:
        field.manager.ended.add("s" * 32)
    result = field.result(command)
    assert (result.status, result.data and result.data["reason"]) == ("succeeded", "closed")


def test_a_stream_has_a_size_a_time_and_a_number(field: Field) -> None:
    result = field.result(stream(field, max_bytes=500))
    assert result.data == {"bytes": 500, "reason": "full"}
    assert len(field.manager.streams["s" * 32]) == 500
    assert "s" * 32 in field.manager.ended
    result = field.result(stream(field, "t" * 32, until=field.manager.text(1.5)))
    assert result.data is not None
    assert result.data["reason"] == "time"
    commands = [stream(field, f"u{number}" * 10) for number in range(5)]
    busy = wait_for(lambda: [r for c in commands if (r := field.manager.node.result(c))], "the one too many")
    assert [result.error_code for result in busy] == ["agent_busy"]
    with field.manager.changed:
        field.manager.streams.clear()
    assert {field.result(command).status for command in commands} == {"succeeded", "failed"}


def test_a_file_is_handed_out_whole_however_slow_the_reader(field: Field) -> None:
    path = field.do("agent.logs").data["files"][0]["path"]  # type: ignore[index]
    content = os.urandom(400_000)
    Path(path + ".1").write_bytes(content)
    field.manager.stream_room = 100_000
    command = stream(field, file=path + ".1", follow=False)
    found = field.manager.streams["s" * 32]
    wait_for(lambda: len(found) == 100_000, "the window to be full")
    time.sleep(0.5)
    field.manager.stream_room = None
    assert field.result(command).data == {"bytes": 400_000, "reason": "end"}
    assert bytes(found) == content


@pytest.mark.fault
@pytest.mark.parametrize("how", ["before", "after", "refused"])
def test_a_stream_survives_a_link_that_breaks(field: Field, how: str) -> None:
    failures = 0

    def fail() -> None:
        nonlocal failures
        failures += 1
        if failures % 3 == 1:
            raise Refusal(1005, "busy", retry_after=1) if how == "refused" else Drop

    (field.manager.after if how == "after" else field.manager.faults)[f"streams/{'s' * 32}"] = fail
    command = stream(field, query="tick")
    found = field.manager.streams["s" * 32]
    wait_for(lambda: found.count(b"\n") > 20 and failures > 6, "lines", 60)
    numbers = [int(line.split()[-1]) for line in bytes(found).splitlines()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    with field.manager.changed:
        field.manager.streams.clear()
    assert field.result(command).data["reason"] == "gone"  # type: ignore[index]


def test_the_daemon_stops_at_once_in_the_middle_of_everything(field: Field) -> None:
    stream(field)
    field.configure(1, probation_s=600, word="two")
    wait_for(lambda: field.manager.streams["s" * 32] and "two" in field.config.read_text(), "all of it going on")
    begun = time.monotonic()
    assert field.daemon.stop() == 0
    assert time.monotonic() - begun < 10


def test_agents_find_the_local_socket(field: Field, new_daemon: Callable[..., DaemonProcess]) -> None:
    pid = field.agent().pid
    environ = dict(part.split(b"=", 1) for part in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if part)
    path = environ[b"OPS_DAEMON_SOCKET"].decode()
    assert path == f"{field.daemon.state_dir}/daemon.sock"
    with socket.socket(socket.AF_UNIX) as client:
        folder = os.open(field.daemon.state_dir, os.O_PATH)
        client.connect(f"/proc/self/fd/{folder}/daemon.sock")
        client.settimeout(10)
        # This test belongs to no agent.
        assert json.loads(client.recv(1000))["error"]["code"] == -32001
        os.close(folder)
