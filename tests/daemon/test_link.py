"""The link as a real process sees it: enrol, check in, poll, run a command, stop."""

from tests.daemon.manager import FakeManager
from tests.daemon.processes import DaemonProcess, wait_for


def test_an_enrolled_daemon_checks_in_and_measures(manager: FakeManager, enrolled: DaemonProcess) -> None:
    enrolled.start()
    node = manager.node
    wait_for(lambda: node.points, "a first point")
    point = next(iter(node.points.values()))
    assert point.cpu_usage is not None
    assert point.detail is not None
    assert point.detail.missing == ()
    assert "daemon.started" in [event.kind for event in node.events]


def test_a_ping_is_answered_over_one_connection(manager: FakeManager, enrolled: DaemonProcess) -> None:
    enrolled.start()
    node = manager.node
    wait_for(lambda: len(node.points) >= 1, "a first point")
    before = manager.connections
    for number in range(5):
        command = manager.send("ping", {"echo": f"hello {number}"})
        result = wait_for(lambda name=command: node.result(name), "the result of a ping")
        assert result.status == "succeeded"
        assert result.data["echo"] == f"hello {number}"
    assert manager.connections == before
    kinds = [report.type for report in node.reports]
    assert kinds == ["accept", "start", "result"] * 5


def test_sigterm_ends_a_held_poll_at_once(manager: FakeManager, enrolled: DaemonProcess) -> None:
    enrolled.start()
    wait_for(lambda: manager.node.polls >= 2, "a held poll")
    assert enrolled.stop(timeout_s=5) == 0
    assert "stopped" in enrolled.output()
