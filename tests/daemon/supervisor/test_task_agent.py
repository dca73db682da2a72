"""The task agent that comes along with the Daemon: real Daemon, real agent, and what may be in their way."""

import contextlib
import json
import os
import signal
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.version import VERSION
from protocol.checkin import AgentStatus
from tests.agent.processes import AgentProcess
from tests.daemon.manager import FakeManager
from tests.daemon.processes import DaemonProcess, wait_for
from tests.daemon.supervisor.box import is_alive, kill_marked, processes_of

SYSTEMD = Path("/run/systemd/system")
INIT_SCRIPTS = Path("/etc/init.d")
SCRIPT = {"interpreter": "shell", "script": "echo done"}


class Host(AgentProcess):
    """A Daemon with its task agent, which is spoken to over the socket where the Daemon looks for it."""

    def __init__(self, manager: FakeManager, daemon: DaemonProcess, short: Path) -> None:
        super().__init__(daemon.directory / "agent")
        self.manager = manager
        self.daemon = daemon
        self.place = daemon.state_dir / "agents" / "task"
        self.config = self.directory / "agent.yaml"
        self.kept = self.directory / "kept"
        # The address of a socket has little room.
        short.symlink_to(self.place)
        self.socket = str(short / "agent.sock")
        self.configure()

    def configure(self, **more: object) -> None:
        given = {"state_dir": str(self.kept), "plugins_dir": str(self.plugins), "heartbeat_interval_s": 1, **more}
        self.config.write_text(json.dumps(given))

    def begin(self, *extra: str) -> None:
        self.daemon.start("--task-agent-config", str(self.config), *extra)

    @property
    def told(self) -> AgentStatus | None:
        """What the Manager heard last."""
        reports = [checkin.agents for checkin in self.manager.node.checkins if checkin.agents is not None]
        return next((agent for agent in reports[-1] if agent.name == "task"), None) if reports else None

    def run_up(self, than: int | None = None) -> int:
        """Its pid, once it answers; the Manager hears of it later."""

        def pid() -> int | None:
            with contextlib.suppress(OSError, IndexError):
                found = int((self.place / "pid").read_text().split()[1])
                return found if found != than and is_alive(found) and self.answers() else None
            return None

        return int(wait_for(pid, f"the agent to run, not as {than}:\n{self.daemon.output()}", 40))

    def hears(self, **facts: object) -> AgentStatus:
        """What the Manager hears of it, once that is so."""

        def told() -> AgentStatus | None:
            found = self.told
            is_so = found is not None and all(getattr(found, name) == value for name, value in facts.items())
            return found if is_so else None

        found: AgentStatus = wait_for(told, f"{facts}, not {self.told}", 40)
        return found

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("health").status == 200
        return False

    def beats(self) -> None:
        """Its heartbeat has reached the Daemon, and the Manager hears that it did."""

        def is_fine() -> bool:
            return self.told is not None and [one.ok for one in self.told.health if one.kind == "heartbeat"] == [True]

        wait_for(is_fine, "its heartbeat", 40)

    def fails(self, words: str) -> AgentStatus:
        def told() -> AgentStatus | None:
            found = self.told
            is_told = found is not None and words in (found.last_error or "")
            # It is tried again and again, so that it "runs" for moments.
            return found if is_told and found.status != "running" else None

        failed: AgentStatus = wait_for(told, f"{words!r} as its last error, not {self.told}", 30)
        return failed

    def command(self, kind: str, **payload: Any) -> Any:
        sent = self.manager.send(kind, {"name": "task", **payload})
        return wait_for(lambda: self.manager.node.result(sent), f"the result of {kind}", 40)

    def pid_in(self, path: Path) -> int:
        return int(wait_for(lambda: path.exists() and path.read_text().strip(), f"a pid in {path}"))


@pytest.fixture
def host(manager: FakeManager, enrolled: DaemonProcess) -> Iterator[Host]:
    short = Path(f"/tmp/ops-{uuid.uuid4().hex[:12]}")
    found = Host(manager, enrolled, short)
    yield found
    enrolled.stop(signal.SIGKILL)
    kill_marked(enrolled.state_dir)
    short.unlink()


@pytest.fixture
def leftovers(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Files for pids of processes that are meant to outlive what started them."""
    made: list[Path] = []

    def make() -> Path:
        made.append(tmp_path / f"pid-{len(made)}")
        return made[-1]

    yield make
    for path in made:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(path.read_text()), signal.SIGKILL)


def test_it_runs_and_is_told_of_as_what_comes_along(host: Host) -> None:
    host.begin()
    pid = host.run_up()
    told = host.hears(status="running", version=VERSION)
    assert (told.type, told.source, told.desired, told.pid) == ("task", "builtin", "running", pid)
    host.beats()
    socket = host.place / "agent.sock"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(host.place.stat().st_mode) == 0o700
    assert stat.S_IMODE(host.kept.stat().st_mode) == 0o700
    assert socket.stat().st_uid == os.geteuid()
    assert host.run("echo done")["stdout"] == "done\n"


def test_killed_it_is_back_at_once_and_runs_nothing_twice(host: Host, leftovers: Callable[[], Path]) -> None:
    host.begin()
    pid = host.run_up()
    path = leftovers()
    execution = host.script(f"echo $$ > {path}; exec sleep 1000")
    script = host.pid_in(path)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    wait_for(lambda: not host.answers(), "its end")
    wait_for(host.answers, "the next one")
    assert time.monotonic() - killed < 8.0
    assert host.run_up(pid) != pid
    found = host.status(execution)
    assert (found["status"], found["error_code"]) == ("interrupted", "interrupted")
    assert not is_alive(script)
    host.hears(status="running", restart_count=1)


def test_without_its_settings_it_says_why_and_the_daemon_goes_on(host: Host) -> None:
    host.config.unlink()
    host.begin()
    assert host.daemon.process is not None
    told = host.fails(str(host.config))
    assert "No such file" in str(told.last_error)
    assert told.source == "builtin"
    assert host.daemon.process.poll() is None
    host.configure()
    assert host.command("agent.restart", seq=1).status == "succeeded"
    host.run_up()


def test_a_directory_that_cannot_be_written_is_named(host: Host) -> None:
    host.kept.write_text("in the way")
    host.begin()
    host.fails(str(host.kept))
    host.kept.unlink()
    assert host.command("agent.restart", seq=1).status == "succeeded"
    host.run_up()


def test_its_own_place_may_be_taken_and_is_made_anew(host: Host) -> None:
    host.place.parent.mkdir(parents=True)
    host.place.write_text("in the way")
    host.begin()
    host.fails(str(host.place))
    host.place.unlink()
    assert host.command("agent.start", seq=1).status == "succeeded"
    host.run_up()


def test_a_file_in_the_place_of_its_socket_is_named_and_a_dead_socket_is_not_in_its_way(host: Host) -> None:
    host.place.mkdir(parents=True)
    (host.place / "agent.sock").write_text("in the way")
    host.begin()
    host.fails("agent.sock")
    (host.place / "agent.sock").unlink()
    assert host.command("agent.restart", seq=1).status == "succeeded"
    pid = host.run_up()
    os.kill(pid, signal.SIGKILL)
    host.run_up(pid)


def test_it_outlives_the_daemon_and_is_found_again(host: Host, leftovers: Callable[[], Path]) -> None:
    host.begin()
    pid = host.run_up()
    execution = host.script("sleep 3; echo whole")
    host.daemon.stop(signal.SIGKILL)
    assert host.answers()
    host.manager.node.checkins.clear()
    host.begin()
    assert host.run_up() == pid
    assert len(processes_of(host.daemon.state_dir)) == 2
    assert host.wait_end(execution)["stdout"] == "whole\n"
    # It speaks with the new Daemon, too.
    host.beats()
    host.hears(status="running", pid=pid, restart_count=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's capability file counts")
def test_the_capability_file_bounds_its_scripts_and_not_the_agent(host: Host) -> None:
    folder = host.directory / "etc"
    folder.mkdir(mode=0o755)
    host.daemon.capabilities = folder / "capabilities.yaml"
    host.daemon.capabilities.write_text("allow: {scripts: false}")
    host.daemon.capabilities.chmod(0o644)
    manifest = {"name": "sly", "type": "custom", "start": ["/bin/sleep", "1000"]}
    entry = {"name": "sly", "desired": "running", "seq": 1, "source": "builtin", "manifest": manifest}
    host.manager.settings = host.manager.settings._replace(version=2, agents=(entry,))
    host.begin()
    host.run_up()
    found = host.do("script", SCRIPT)
    assert (found["status"], found["error_code"]) == ("failed", "forbidden_by_host")

    def sly() -> AgentStatus | None:
        agents = host.manager.node.checkins[-1].agents or ()
        return next((agent for agent in agents if agent.name == "sly" and agent.last_error), None)

    # What the Manager declares does not come along, whatever it says.
    told = wait_for(sly, "the other agent's refusal", 40)
    assert told.source == "manager"
    assert "scripts" in told.last_error


def test_the_manager_starts_and_stops_it_and_can_do_no_more(host: Host) -> None:
    manifest = {"name": "task", "type": "custom", "start": ["/bin/sleep", "1000"]}
    entry = {"name": "task", "desired": "stopped", "seq": 0, "source": "manager", "manifest": manifest}
    host.manager.settings = host.manager.settings._replace(version=2, agents=(entry,))
    host.begin()
    pid = host.run_up()
    host.hears(status="running", source="builtin")
    stopped = host.command("agent.stop", seq=1)
    assert (stopped.status, stopped.data) == ("succeeded", {"status": "stopped", "pid": None})
    assert not is_alive(pid)
    host.hears(status="stopped", desired="stopped")
    host.daemon.stop(signal.SIGTERM)
    host.begin()
    time.sleep(1)
    assert processes_of(host.daemon.state_dir) == []
    assert host.command("agent.start", seq=2).status == "succeeded"
    second = host.run_up()
    assert host.command("agent.restart", seq=3).status == "succeeded"
    host.run_up(second)
    files = [{"path": str(host.config), "content": "{}"}]
    refused = host.command("agent.configure", version=1, files=files, probation_s=0, apply="none")
    assert refused.error_code == "forbidden_by_host"


def test_it_goes_when_the_host_no_longer_wants_it(host: Host) -> None:
    config = host.directory / "daemon.yaml"
    config.write_text(json.dumps({"task_agent": {"config": str(host.config)}}))
    process = host.daemon.start("--config", str(config))
    pid = host.run_up()
    config.write_text("{}")
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: not is_alive(pid), "its end", 30)
    wait_for(lambda: not host.place.exists(), "its directory to go")
    assert host.kept.exists()


@pytest.mark.parametrize("end", ["crash", "stop", "kill"])
def test_what_a_script_left_behind_is_the_host_s_and_what_still_runs_is_the_agent_s(
    host: Host, leftovers: Callable[[], Path], end: str
) -> None:
    host.configure(tasks={"kill_grace_s": 300 if end == "kill" else 1})
    host.begin("--agents-at-exit", "stop")
    pid = host.run_up()
    service, running = leftovers(), leftovers()
    # As an init script does: a session of its own, and its parent is gone.
    begin = f"setsid sh -c 'echo $$ > {service}; exec sleep 1000' >/dev/null 2>&1 </dev/null &"
    assert host.run(begin)["exit_code"] == 0
    host.script(f"trap '' TERM; echo $$ > {running}; while :; do sleep 0.1; done")
    left, script = host.pid_in(service), host.pid_in(running)
    if end == "crash":
        os.kill(pid, signal.SIGKILL)
        host.run_up(pid)
    elif end == "stop":
        assert host.command("agent.stop", seq=1).status == "succeeded"
    else:
        # The agent waits for its script, which does not mean to end, and the Daemon for neither.
        assert host.daemon.stop(signal.SIGTERM, 40) == 0
    wait_for(lambda: not is_alive(script), "the end of the script", 30)
    assert not is_alive(pid)
    assert is_alive(left)


@pytest.mark.skipif(os.geteuid() != 0 or SYSTEMD.exists(), reason="a host of root without systemd is needed")
def test_a_service_that_a_task_started_stays(host: Host, leftovers: Callable[[], Path]) -> None:
    service = leftovers()
    init = INIT_SCRIPTS / f"ops-test-{uuid.uuid4().hex[:8]}"
    begin = f"setsid sh -c 'echo $$ >{service}; exec sleep 1000' >/dev/null 2>&1 </dev/null &"
    init.write_text(f"#!/bin/sh\ncase $1 in start) {begin}\n;; *) kill -0 $(cat {service});; esac\n")
    init.chmod(0o755)
    try:
        host.begin()
        pid = host.run_up()
        assert host.do("service", {"op": "start", "name": init.name})["exit_code"] == 0
        left = host.pid_in(service)
        os.kill(pid, signal.SIGKILL)
        pid = host.run_up(pid)
        assert is_alive(left)
        assert host.command("agent.stop", seq=1).status == "succeeded"
        assert host.command("agent.start", seq=2).status == "succeeded"
        host.run_up(pid)
        assert is_alive(left)
        assert host.do("service", {"op": "status", "name": init.name})["exit_code"] == 0
    finally:
        init.unlink()


def test_the_path_of_its_socket_may_be_long(manager: FakeManager, enrolled: DaemonProcess, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    enrolled.state_dir.rename(deep / "state")
    enrolled.state_dir = deep / "state"
    short = Path(f"/tmp/ops-{uuid.uuid4().hex[:12]}")
    host = Host(manager, enrolled, short)
    try:
        host.begin()
        host.run_up()
        assert len(str(host.place / "agent.sock")) > 107
        host.beats()
    finally:
        enrolled.stop(signal.SIGKILL)
        kill_marked(enrolled.state_dir)
        short.unlink()
