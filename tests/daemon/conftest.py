"""Fixtures of the Daemon's tests: a Manager that listens, and Daemons that are ended whatever happens."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.manager import FakeManager
from tests.daemon.processes import DaemonProcess


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
    assert daemon.enroll(manager) == 0, daemon.output()
    return daemon
