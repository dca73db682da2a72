"""The second connection: only while a poll is held and something has to be said."""

import time
from collections.abc import Callable

import pytest

from tests.daemon.host import Host
from tests.daemon.manager import Drop, FakeManager
from tests.daemon.processes import wait_for
from tests.daemon.test_faults import once


def drop() -> None:
    raise Drop


@pytest.fixture
def slow(host: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host whose commands take longer than the link lingers."""
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.2)
    monkeypatch.setattr("daemon.link.FIRST_POINT_S", 60.0)
    manager.next_checkin_s = 60.0
    host.takes_s = 0.2
    host.start()
    wait_for(lambda: manager.node.polls >= 1, "a held poll")
    return host


def test_a_late_result_does_not_wait_for_the_poll_to_end(slow: Host, manager: FakeManager) -> None:
    before = manager.connections
    command = manager.send("ping", {})
    wait_for(lambda: manager.node.result(command), "the result", 5)
    assert manager.connections == before + 1
    assert slow.link.is_holding
    second = manager.send("ping", {})
    wait_for(lambda: manager.node.result(second), "the next result", 5)
    assert manager.connections == before + 1


def test_it_is_closed_after_a_while_of_silence(
    slow: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.courier.IDLE_S", 0.3)
    command = manager.send("ping", {})
    wait_for(lambda: manager.node.result(command), "the result", 5)
    wait_for(lambda: slow.courier._thread is None, "the end of the thread", 5)
    assert slow.courier._connection is None
    again = manager.send("ping", {})
    wait_for(lambda: manager.node.result(again), "another result", 5)


@pytest.mark.parametrize("where", ["faults", "after"])
def test_a_lost_report_is_sent_again_and_counted_once(slow: Host, manager: FakeManager, where: str) -> None:
    command = manager.send("ping", {})
    getattr(manager, where)["commands/reports"] = once(drop)
    wait_for(lambda: slow.journal.unreported() == [] and manager.node.result(command), "the result", 10)
    assert sorted(report.type for report in manager.node.reports) == ["accept", "result", "start"]


def test_it_does_not_run_wild_while_the_manager_is_away(
    slow: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.backoff.LEAST_S", 0.2)
    slow.takes_s = 1.5
    manager.send("ping", {})
    wait_for(lambda: manager.node.reports and slow.link.is_holding, "the acceptance")
    manager.faults["commands/reports"] = drop
    wait_for(lambda: slow.ran and slow.link.is_holding and slow.outbox.has_work(), "a result that waits")
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        slow.courier.nudge()
        time.sleep(0.005)
    assert 3 <= manager.paths().count("commands/reports") <= 25


def test_stopping_ends_it(slow: Host, manager: FakeManager, new_host: Callable[..., Host]) -> None:
    command = manager.send("ping", {})
    wait_for(lambda: manager.node.result(command), "the result", 5)
    begun = time.monotonic()
    slow.courier.stop(10)
    assert time.monotonic() - begun < 20
    slow.courier.nudge()
    assert slow.courier._thread is None or not slow.courier._thread.is_alive()
