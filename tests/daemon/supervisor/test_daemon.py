"""The supervisor inside the real Daemon: settings, commands, check-ins, a Manager that is away, kill -9, memory."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.checkin import AgentStatus
from protocol.times import to_epoch
from tests.daemon.manager import Drop, FakeManager
from tests.daemon.processes import DaemonProcess, wait_for
from tests.daemon.supervisor.box import has_become_itself, kill_marked, processes_of

REPEATS = int(os.environ.get("OPS_TEST_REPEATS", "5"))
SLEEP = ["/bin/sleep", "1000"]


def entry(name: str, start: list[str], desired: str = "running", seq: int = 1, **more: Any) -> dict[str, Any]:
    manifest = {"name": name, "type": "custom", "start": start, **more}
    return {"name": name, "desired": desired, "seq": seq, "source": "manager", "manifest": manifest}


def declare(manager: FakeManager, *entries: dict[str, Any]) -> None:
    manager.settings = manager.settings._replace(version=manager.settings.version + 1, agents=entries)


@pytest.fixture
def daemon(enrolled: DaemonProcess) -> Any:
    yield enrolled
    enrolled.stop(signal.SIGKILL)
    kill_marked(enrolled.state_dir)


def agents(manager: FakeManager) -> dict[str, AgentStatus]:
    """The newest report of all agents."""
    reports = [checkin.agents for checkin in manager.node.checkins if checkin.agents is not None]
    return {agent.name: agent for agent in reports[-1]} if reports else {}


def running(manager: FakeManager, name: str, than: int | None = None) -> int:
    def pid() -> int | None:
        found = agents(manager).get(name)
        return found.pid if found is not None and found.status == "running" and found.pid != than else None

    found = int(wait_for(pid, f"{name} to run", 30))
    wait_for(lambda: has_become_itself(found), f"{name} to be itself")
    return found


def kinds(manager: FakeManager) -> list[str]:
    return [event.kind for event in manager.node.events if event.kind.startswith("agent.")]


def test_agents_of_the_settings_run_and_are_reported(manager: FakeManager, daemon: DaemonProcess) -> None:
    declare(manager, entry("one", SLEEP), entry("two", SLEEP, desired="stopped"))
    daemon.start()
    pid = running(manager, "one")
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"/bin/sleep\x001000\x00"
    assert agents(manager)["two"].status == "stopped"
    assert agents(manager)["two"].desired == "stopped"
    assert "agent.started" in kinds(manager)


def test_commands_end_when_it_is_so(manager: FakeManager, daemon: DaemonProcess) -> None:
    declare(manager, entry("one", SLEEP), entry("two", SLEEP, desired="stopped"))
    daemon.start()
    pid = running(manager, "one")
    command = manager.send("agent.stop", {"name": "one", "seq": 2})
    result = wait_for(lambda: manager.node.result(command), "the result")
    assert (result.status, result.data) == ("succeeded", {"status": "stopped", "pid": None})
    assert not Path(f"/proc/{pid}").exists()
    command = manager.send("agent.start", {"name": "two", "seq": 2})
    result = wait_for(lambda: manager.node.result(command), "the result")
    assert (result.status, result.data["status"]) == ("succeeded", "running")
    command = manager.send("agent.start", {"name": "nobody", "seq": 2})
    result = wait_for(lambda: manager.node.result(command), "the result")
    assert (result.status, result.error_code) == ("failed", "task_failed")
    for payload in ({"name": "../x"}, {}, {"name": "one", "seq": "x"}):
        command = manager.send("agent.stop", payload)
        assert wait_for(lambda sent=command: manager.node.result(sent), "the result").error_code == "bad_payload"


def test_a_slow_stop_holds_up_no_other_command(manager: FakeManager, daemon: DaemonProcess) -> None:
    slow = ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]
    declare(manager, entry("slow", slow, stop={"timeout_s": 4}))
    daemon.start()
    running(manager, "slow")
    stop = manager.send("agent.stop", {"name": "slow", "seq": 2})
    time.sleep(0.3)
    ping = manager.send("ping", {})
    wait_for(lambda: manager.node.result(ping), "the answer", 2)
    assert manager.node.result(stop) is None
    assert wait_for(lambda: manager.node.result(stop), "the stop").status == "succeeded"


def test_everything_goes_on_while_the_manager_is_away(manager: FakeManager, daemon: DaemonProcess) -> None:
    declare(manager, entry("one", SLEEP))
    daemon.start()
    first = running(manager, "one")

    def away() -> None:
        raise Drop

    for path in ("checkin", "poll"):
        manager.faults[path] = away
    time.sleep(0.5)
    killed_at = time.time()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(processes_of(daemon.state_dir)) == 2, "the next one")
    time.sleep(3)
    manager.faults.clear()
    running(manager, "one", first)
    crash = wait_for(lambda: [e for e in manager.node.events if e.kind == "agent.crashed"], "the event", 60)[0]
    assert abs(to_epoch(crash.timestamp) - killed_at) < 1.5
    assert crash.data["signal"] == 9


def test_agents_are_stopped_first_where_that_is_wanted(manager: FakeManager, daemon: DaemonProcess) -> None:
    declare(manager, entry("one", SLEEP), entry("two", SLEEP))
    daemon.start("--agents-at-exit", "stop")
    running(manager, "one"), running(manager, "two")
    assert daemon.stop(signal.SIGINT) == 0
    assert processes_of(daemon.state_dir) == []
    before = agents(manager)
    daemon.start()
    running(manager, "one", before["one"].pid), running(manager, "two", before["two"].pid)
    assert daemon.stop(signal.SIGTERM) == 0
    assert len(processes_of(daemon.state_dir)) == 4


def test_the_host_s_own_agents_run_without_any_settings(
    manager: FakeManager, daemon: DaemonProcess, tmp_path: Path
) -> None:
    config = tmp_path / "daemon.yaml"
    config.write_text("agents: [{name: own, type: custom, start: [/bin/sleep, '1000']}]\n")
    process = daemon.start("--config", str(config))
    running(manager, "own")
    assert agents(manager)["own"].source == "host"
    config.write_text("agents: []\n")
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: agents(manager) == {}, "its end", 30)
    wait_for(lambda: processes_of(daemon.state_dir) == [], "the end of its process")


@pytest.mark.fault
def test_a_daemon_killed_at_random_moments_leaves_each_agent_once(manager: FakeManager, daemon: DaemonProcess) -> None:
    chance = random.Random(4)
    crashing = ["/bin/sh", "-c", "sleep 0.0$(od -An -N1 -tu1 /dev/urandom | tr -d ' '); exec sleep 0.3"]
    seq = 1
    wanted = {f"a{n}": "running" for n in range(4)}

    def declare_all() -> None:
        entries = [entry(name, SLEEP, desired, seq) for name, desired in wanted.items()]
        declare(manager, *entries, entry("crashing", crashing, "running", 1))

    declare_all()
    daemon.start()
    running(manager, "a0")
    for _ in range(REPEATS):
        seq += 1
        for name in wanted:
            wanted[name] = chance.choice(["running", "stopped"])
            manager.send(f"agent.{'start' if wanted[name] == 'running' else 'stop'}", {"name": name, "seq": seq})
        victims = [pid for pid in processes_of(daemon.state_dir) if Path(f"/proc/{pid}/comm").exists()]
        time.sleep(chance.random() * 0.4)
        if victims and chance.random() < 0.5:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(victims), signal.SIGKILL)
        time.sleep(chance.random() * 0.4)
        daemon.stop(signal.SIGKILL)
        declare_all()
        daemon.start()
        time.sleep(chance.random() * 0.8)
    seq += 1
    wanted.update(dict.fromkeys(wanted, "running"), a3="stopped")
    declare_all()

    def is_settled() -> bool:
        found = agents(manager)
        return all(name in found and found[name].status == state for name, state in wanted.items())

    wait_for(is_settled, "every agent as it should be", 60)
    sleeps = [pid for pid in processes_of(daemon.state_dir) if command(pid) == "sleep 1000"]
    assert len(sleeps) == 3
    assert sorted(sleeps) == sorted(agents(manager)[name].pid for name in ("a0", "a1", "a2"))


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip().removeprefix("/bin/")
    except OSError:
        return ""


def test_it_is_small_with_five_agents(
    manager: FakeManager, enrolled: DaemonProcess, tmp_path: Path, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # As installed: with compiled modules, and without a coverage run that would measure itself.
    installed = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": "", "PYTHONDONTWRITEBYTECODE": "",
                 "PYTHONPYCACHEPREFIX": str(tmp_path / "compiled")}  # fmt: skip
    health = [{"kind": "process"}, {"kind": "command", "command": ["/bin/true"], "interval_s": 5}]
    declare(manager, *(entry(f"a{n}", SLEEP, health=health) for n in range(5)))
    try:
        enrolled.start(**installed)
        running(manager, "a4")
        enrolled.stop()
        process = enrolled.start(**installed)
        count = len(manager.node.checkins)
        wait_for(lambda: len(manager.node.checkins) > count + 1 and manager.node.polls >= 3, "the link", 60)
        time.sleep(6)
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        rss_kib = next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
        assert rss_kib < 30 * 1024
        assert len(list(Path(f"/proc/{process.pid}/task").iterdir())) <= 4
        print(f"\nRSS {rss_kib / 1024:.1f} MiB with five agents")
    finally:
        enrolled.stop()
        kill_marked(enrolled.state_dir)
