"""A real Daemon with the task agent that it supervises itself: from the order to the result, also over kill -9."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.commands import Output, Result
from tests.daemon.manager import FakeManager
from tests.daemon.processes import DaemonProcess, wait_for
from tests.daemon.supervisor.box import kill_marked
from tests.daemon.task_host import reports_of, result_of, script
from tests.daemon.test_tasks import lines, noted
from tests.daemon.test_tasks_faults import unique_stream

# Fault tests repeat once by default, 50 times in a night.
REPEATS = int(os.environ.get("OPS_FAULT_REPEATS", "1"))


class Box:
    """One state directory with its Daemons, and the agent that outlives them."""

    def __init__(self, manager: FakeManager, daemon: DaemonProcess, base: Path) -> None:
        self.manager, self.daemon = manager, daemon
        self.config = base / "agent.yaml"
        self.config.write_text(f"state_dir: {base}/agent\nplugins_dir: {base}/plugins\n")

    def start(self, *extra: str) -> None:
        polls = self.manager.node.polls if self.manager.nodes else 0
        self.daemon.start("--task-agent-config", str(self.config), *extra, COVERAGE_PROCESS_START="")
        wait_for(lambda: self.manager.node.polls > polls, "a held poll", 30)

    def memory_kib(self, word: str) -> int:
        assert self.daemon.process is not None
        status = Path(f"/proc/{self.daemon.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith(word))


@pytest.fixture
def box(manager: FakeManager, enrolled: DaemonProcess, tmp_path: Path) -> Iterator[Box]:
    found = Box(manager, enrolled, tmp_path)
    found.start()
    yield found
    found.daemon.stop(signal.SIGKILL)
    kill_marked(found.daemon.state_dir)


def test_it_finds_its_agent_and_stays_small(box: Box, manager: FakeManager) -> None:
    command = manager.send("task.run", script("echo hello"))
    assert result_of(manager, command, 60).status == "succeeded"
    assert unique_stream(manager, command) == b"hello\n"
    assert box.daemon.process is not None
    commands = [manager.send("task.run", script("yes | head -c 100000000")) for _ in range(5)]
    commands += [manager.send("task.run", script("sleep 1"))]
    for command in commands:
        assert result_of(manager, command, 120).status == "succeeded"
    # main, link, sampler and supervisor are always there; courier and tasks while there is work
    assert len(list(Path(f"/proc/{box.daemon.process.pid}/task").iterdir())) <= 6
    assert box.memory_kib("VmHWM") < 30 * 1024


@pytest.mark.fault
def test_killed_at_any_moment_it_loses_no_task_and_doubles_none(box: Box, manager: FakeManager, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    manager.lease_s = 0.5
    assert result_of(manager, manager.send("task.run", script("true")), 60).status == "succeeded"
    commands: list[str] = []
    for _ in range(2 + REPEATS):
        for _ in range(6):
            body = noted(notes / str(len(commands)), more="echo one; sleep 0.$(($$ % 5)); echo two")
            commands.append(manager.send("task.run", script(body)))
        time.sleep(random.uniform(0.0, 0.6))
        box.daemon.stop(signal.SIGKILL)
        box.start()
    for number, command in enumerate(commands):
        assert result_of(manager, command, 60).status == "succeeded"
        results = [report for report in reports_of(manager, command) if isinstance(report, Result)]
        assert len({(result.status, result.finished_at) for result in results}) == 1
        assert lines(notes / str(number)) == 1
        assert unique_stream(manager, command) == b"one\ntwo\n"


@pytest.mark.fault
def test_stopped_with_its_agent_it_tells_afterwards_what_was_interrupted(
    manager: FakeManager, new_daemon: Callable[..., DaemonProcess], tmp_path: Path
) -> None:
    daemon = new_daemon()
    daemon.enroll(manager)
    box = Box(manager, daemon, tmp_path)
    box.start()
    try:
        command = manager.send("task.run", script("echo begun; sleep 60"))
        wait_for(lambda: [one for one in reports_of(manager, command) if isinstance(one, Output)], "the output", 60)
        daemon.stop()
        box.start("--agents-at-exit", "stop")
        assert daemon.stop(timeout_s=30) == 0
        box.start()
        assert result_of(manager, command, 60).status == "interrupted"
    finally:
        daemon.stop(signal.SIGKILL)
        kill_marked(daemon.state_dir)
