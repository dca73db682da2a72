"""Fixtures of the Daemon's tests: a Manager that listens, and Daemons that are ended whatever happens."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.processes import AgentProcess
from tests.daemon.host import Host
from tests.daemon.manager import FakeManager
from tests.daemon.processes import DaemonProcess, wait_for
from tests.daemon.task_host import TaskHost


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[FakeManager]:
    found = FakeManager(tmp_path / "manager")
    yield found
    found.close()


@pytest.fixture
def new_daemon(tmp_path: Path) -> Iterator[Callable[..., DaemonProcess]]:
    made: list[DaemonProcess] = []

    def make(name: str = "host", **how: str) -> DaemonProcess:
        made.append(DaemonProcess(tmp_path / name, **how))
        return made[-1]

    yield make
    for daemon in made:
        daemon.stop(signal.SIGKILL)


@pytest.fixture
def enrolled(manager: FakeManager, new_daemon: Callable[..., DaemonProcess]) -> DaemonProcess:
    daemon = new_daemon()
    inner = Host(daemon.state_dir, manager)
    inner.enroll()
    inner.close()
    return daemon


@pytest.fixture
def new_host(tmp_path: Path, manager: FakeManager) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(name: str = "inner", **how: object) -> Host:
        made.append(Host(tmp_path / name, how.pop("manager", manager), **how))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for host in made:
        host.link.stop(10)
        host.courier.stop(10)


@pytest.fixture
def host(new_host: Callable[..., Host]) -> Host:
    found = new_host()
    found.enroll()
    return found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that are bounded by a minute in the field take a second here."""
    monkeypatch.setattr("daemon.connection.CONNECT_S", 1.0)
    monkeypatch.setattr("daemon.connection.ANSWER_S", 1.0)
    monkeypatch.setattr("daemon.link.POLL_GRACE_S", 0.5)


@pytest.fixture
def task_agent(tmp_path: Path) -> Iterator[AgentProcess]:
    """A real task agent, whose process the test may kill and start again."""
    found = AgentProcess(tmp_path / "agent")
    found.start()
    yield found
    found.stop(signal.SIGKILL)
    Path(found.socket).unlink(missing_ok=True)


@pytest.fixture
def task_host(tmp_path: Path, manager: FakeManager, task_agent: AgentProcess) -> Iterator[TaskHost]:
    """A host that polls and hands tasks to `task_agent`."""
    found = TaskHost(tmp_path / "inner", manager, lambda: task_agent.socket)
    found.enroll()
    found.start()
    wait_for(lambda: manager.node.polls >= 1, "a held poll")
    yield found
    found.stop()


@pytest.fixture
def new_task_host(tmp_path: Path, manager: FakeManager) -> Iterator[Callable[..., TaskHost]]:
    """As `task_host`, with an agent of its own that is bounded otherwise."""
    agents: list[AgentProcess] = []
    hosts: list[TaskHost] = []

    def make(**bounds: int) -> TaskHost:
        agent = AgentProcess(tmp_path / "agent", **{f"tasks_{name}": value for name, value in bounds.items()})
        agents.append(agent)
        agent.start()
        hosts.append(TaskHost(tmp_path / "inner", manager, lambda: agent.socket))
        hosts[-1].agent = agent
        hosts[-1].enroll()
        hosts[-1].start()
        wait_for(lambda: manager.node.polls >= 1, "a held poll")
        return hosts[-1]

    yield make
    for host in hosts:
        host.stop()
    for agent in agents:
        agent.stop(signal.SIGKILL)
        Path(agent.socket).unlink(missing_ok=True)
