"""Bad days of the link: lost answers, holes, resets, restarts, refusals. Nothing is lost and nothing counted twice."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.spool import METRICS
from protocol import errors
from protocol.checkin import AuditHead
from protocol.settings import SpoolLimits
from tests.daemon.host import Host
from tests.daemon.manager import Drop, FakeManager, Refusal
from tests.daemon.processes import wait_for
from tests.daemon.proxy import FaultProxy

pytestmark = pytest.mark.fault


def once(action: Callable[[], None]) -> Callable[[], None]:
    """Only the first time."""
    calls = iter([action])

    def act() -> None:
        for call in calls:
            call()
            return

    return act


def drop() -> None:
    raise Drop


def refuse(code: int, reason: str, retry_after: int | None = None) -> Callable[[], None]:
    def act() -> None:
        raise Refusal(code, reason, retry_after)

    return act


def arrived(manager: FakeManager, stamps: list[str]) -> bool:
    return set(stamps) <= set(manager.node.points)


def settle(host: Host, stamps: list[str]) -> None:
    wait_for(lambda: arrived(host.manager, stamps) and host.spool.pending() == 0, "everything to be acknowledged")


@pytest.fixture
def proxy(manager: FakeManager) -> Iterator[FaultProxy]:
    found = FaultProxy(("127.0.0.1", manager.port))
    yield found
    found.close()


def test_an_answer_lost_after_commit_is_neither_a_loss_nor_a_clone(host: Host, manager: FakeManager) -> None:
    stamps = host.add_points(7)
    manager.after["checkin"] = once(drop)
    host.start()
    settle(host, stamps)
    node = manager.node
    assert all(node.arrivals[stamp] == 2 for stamp in stamps)
    assert len(node.points) == 7
    assert not node.is_copy
    assert host.spool.losses().records == 0


def test_ten_lost_answers_in_a_row_are_no_clone(
    host: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.2)
    manager.after["checkin"] = drop
    stamps = host.add_points(3)
    host.start()
    wait_for(lambda: manager.paths().count("checkin") >= 10, "ten tries")
    manager.after.clear()
    settle(host, stamps)
    assert not manager.node.is_copy


def test_retry_after_is_honoured(host: Host, manager: FakeManager) -> None:
    manager.faults["checkin"] = once(refuse(errors.DATABASE_AWAY, errors.BUSY, 2))
    stamps = host.add_points(1)
    host.start()
    settle(host, stamps)
    times = [at for at, path, _ in manager.requests if path == "checkin"]
    assert 2.0 <= times[1] - times[0] < 4.0


def test_a_refused_poll_waits_too(host: Host, manager: FakeManager) -> None:
    manager.faults["poll"] = once(refuse(errors.TOO_MANY_REQUESTS, errors.BUSY, 1))
    host.start()
    wait_for(lambda: len([1 for path in manager.paths() if path == "poll"]) >= 1 and manager.node.polls >= 1, "a poll")
    times = [(at, status) for at, path, status in manager.requests if path == "poll"]
    assert times[0][1] == errors.TOO_MANY_REQUESTS
    wait_for(lambda: len(manager.requests) > 3 or manager.node.polls >= 1, "the next")


@pytest.mark.parametrize("code", [errors.INTERNAL, errors.NOT_FOUND])
def test_other_refusals_are_tried_again_with_jitter(host: Host, manager: FakeManager, code: int) -> None:
    manager.faults["checkin"] = once(refuse(code, ""))
    stamps = host.add_points(1)
    host.start()
    settle(host, stamps)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("mode", ["hole", "reset", "mute"])
def test_a_network_that_swallows_or_resets_is_survived(
    new_host: Callable[..., Host], manager: FakeManager, proxy: FaultProxy, mode: str
) -> None:
    host = new_host(server_url=proxy.url)
    host.enroll()
    stamps = host.add_points(2)
    proxy.mode = mode
    host.start()
    wait_for(lambda: len(proxy.accepted) >= 2, "a second try", 10)
    assert manager.node.points == {}
    proxy.cut()
    proxy.mode = "pass"
    settle(host, stamps)
    assert all(manager.node.arrivals[stamp] == 1 for stamp in stamps)


@pytest.mark.usefixtures("impatient")
def test_a_held_poll_on_a_half_open_connection_is_given_up(
    new_host: Callable[..., Host], manager: FakeManager, proxy: FaultProxy
) -> None:
    manager.settings = manager.settings._replace(poll_wait_s=1)
    host = new_host(server_url=proxy.url)
    host.enroll()
    host.start()
    wait_for(lambda: manager.node.polls >= 1, "a held poll")
    proxy.mode = "mute"
    before = len(proxy.accepted)
    wait_for(lambda: len(proxy.accepted) > before, "a new connection", 10)
    proxy.cut()
    proxy.mode = "pass"
    command = manager.send("ping", {})
    wait_for(lambda: manager.node.result(command), "a command after it")


@pytest.mark.usefixtures("impatient")
def test_an_answer_that_never_comes_is_given_up(
    new_host: Callable[..., Host], manager: FakeManager, proxy: FaultProxy
) -> None:
    """The check-in arrives and is committed; then the network dies without a word."""
    host = new_host(server_url=proxy.url)
    host.enroll()
    stamps = host.add_points(2)

    def mute() -> None:
        proxy.mode = "mute"

    manager.after["checkin"] = once(mute)
    host.start()
    wait_for(lambda: proxy.mode == "mute", "the commit")
    before = len(proxy.accepted)
    wait_for(lambda: len(proxy.accepted) > before, "a new connection", 10)
    proxy.cut()
    proxy.mode = "pass"
    settle(host, stamps)
    assert len(manager.node.points) == 2
    assert not manager.node.is_copy


def test_a_poll_cut_by_a_reset_is_held_again(
    new_host: Callable[..., Host], manager: FakeManager, proxy: FaultProxy
) -> None:
    host = new_host(server_url=proxy.url)
    host.enroll()
    host.start()
    wait_for(lambda: manager.node.polls >= 1, "a held poll")
    before = manager.node.polls
    proxy.cut(with_reset=True)
    wait_for(lambda: manager.node.polls > before, "the next poll", 5)
    command = manager.send("ping", {})
    wait_for(lambda: manager.node.result(command), "a command after it")


def test_a_manager_that_restarts_finds_its_hosts_again(
    host: Host, manager: FakeManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.5)
    host.start()
    wait_for(lambda: manager.node.polls >= 1, "a held poll")
    manager.close()
    stamps = host.add_points(5)
    wait_for(lambda: host.link._backoff._failures >= 2, "two failures")
    again = FakeManager(tmp_path / "again", manager.port, manager.authority)
    try:
        again.nodes = manager.nodes
        wait_for(lambda: arrived(again, stamps) and host.spool.pending() == 0, "everything to be acknowledged")
        assert not again.node.is_copy
        command = again.send("ping", {})
        wait_for(lambda: again.node.result(command), "a command")
    finally:
        host.link.stop(10)
        again.close()


def test_a_manager_that_drains_is_left_and_found_again(host: Host, manager: FakeManager) -> None:
    host.start()
    wait_for(lambda: manager.node.polls >= 1, "a held poll")
    before = manager.connections
    with manager.changed:
        manager.is_draining = True
        manager.changed.notify_all()
    wait_for(lambda: manager.connections > before, "another connection", 5)
    wait_for(lambda: manager.node.polls >= 2, "another poll", 5)


def test_a_long_backlog_is_sent_in_order_and_whole(
    host: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.link.BACKLOG_S", 0.01)
    stamps = host.add_points(900)
    host.start()
    settle(host, stamps)
    assert list(manager.node.points) == stamps
    assert max(len(checkin.metrics) for checkin in manager.node.checkins) == 200
    assert all(count == 1 for count in manager.node.arrivals.values())
    assert manager.node.checkins[0].pending_points == 700
    assert any(body[:2] == b"\x1f\x8b" for body in manager.bodies)


def test_a_receipt_for_what_was_never_sent_is_worth_nothing(host: Host, manager: FakeManager) -> None:
    host.add_points(300)
    run = host.spool._run
    manager.twist = lambda answer: {**answer, "ack": [f"{run}-{number}" for number in range(1, 301)]}
    host.start()
    wait_for(lambda: host.spool.pending() < 300, "the receipt")
    assert host.spool.pending() == 100


def test_refused_batches_are_dropped_and_counted(host: Host, manager: FakeManager) -> None:
    manager.refuse_batches = True
    host.add_points(4)
    host.start()
    wait_for(lambda: host.spool.pending() == 0, "an empty spool")
    assert host.spool.losses().records == 4
    manager.refuse_batches = False
    host.link.check_in_now()
    wait_for(lambda: manager.node.checkins[-1].dropped.points == 4, "the count")
    assert manager.node.checkins[-1].dropped.since is not None


def test_what_the_spool_had_to_drop_is_reported(host: Host, manager: FakeManager) -> None:
    for number in range(1500):
        host.spool.append(METRICS, b"x" * 1000 + b"%d" % number)
    host.spool.set_limits(SpoolLimits(1 << 20, 3600))
    lost = host.spool.losses().records
    assert lost > 300
    host.start()
    wait_for(lambda: manager.node.checkins, "a check-in")
    assert manager.node.checkins[0].dropped.points >= lost


def test_a_body_that_is_too_large_is_made_smaller(
    host: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.link.BACKLOG_S", 0.01)
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.05)
    monkeypatch.setattr("tests.daemon.manager.CHECKIN_BYTES", 30_000)
    stamps = host.add_points(300)
    host.start()
    settle(host, stamps)
    assert host.spool.losses().records == 0


def test_a_batch_that_the_manager_calls_invalid_is_given_up_alone(
    host: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.link.BACKLOG_S", 0.01)
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.05)
    stamps = host.add_points(4)

    def inspect() -> None:
        if stamps[1].encode() in manager.bodies[-1]:
            raise Refusal(errors.BAD_PARAMETER, errors.INVALID_FIELD)

    manager.faults["checkin"] = inspect
    host.start()
    wait_for(lambda: host.spool.pending() == 0, "an empty spool")
    assert set(manager.node.points) == {stamps[0], stamps[2], stamps[3]}
    assert host.spool.losses().records == 1


def test_settings_apply_without_a_restart(host: Host, manager: FakeManager) -> None:
    host.start()
    wait_for(lambda: manager.node.polls >= 1, "a held poll")
    manager.settings = manager.settings._replace(version=2, metrics_interval_s=33, spool=SpoolLimits(2 << 20, 7200))
    host.link.check_in_now()
    wait_for(lambda: host.applied, "the settings")
    assert host.applied[-1] == manager.settings
    host.link.check_in_now()
    wait_for(lambda: manager.node.checkins[-1].settings_version == 2, "the new version to be told")
    assert host.restarted().checkins.settings == manager.settings


def test_settings_that_make_no_sense_leave_the_old_ones_and_the_receipts(host: Host, manager: FakeManager) -> None:
    manager.twist = lambda answer: {**answer, "settings": {"version": 9, "heartbeat_interval_s": 1}}
    stamps = host.add_points(2)
    host.start()
    settle(host, stamps)
    host.link.check_in_now()
    wait_for(lambda: manager.node.checkins[-1].settings_error, "the complaint")
    assert "heartbeat_interval_s" in (manager.node.checkins[-1].settings_error or "")
    assert manager.node.checkins[-1].settings_version == 1


def test_an_answer_that_makes_no_sense_is_no_receipt(
    host: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.1)
    manager.twist = lambda answer: {"ack": "everything"}
    stamps = host.add_points(2)
    host.start()
    wait_for(lambda: manager.paths().count("checkin") >= 3, "tries")
    assert host.spool.pending() == 2
    manager.twist = lambda answer: answer
    settle(host, stamps)


def test_an_answer_in_another_wire_version_is_no_receipt(
    host: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.1)
    manager.wire_answer = "2.0"
    stamps = host.add_points(1)
    host.start()
    wait_for(lambda: manager.paths().count("checkin") >= 2, "tries")
    assert host.spool.pending() == 1
    manager.wire_answer = None
    settle(host, stamps)


def test_inventory_is_sent_when_wanted_and_when_it_changed(host: Host, manager: FakeManager) -> None:
    manager.node.inventory = None
    host.start()
    wait_for(lambda: manager.node.checkins, "a check-in")
    host.link.check_in_now()
    wait_for(lambda: manager.node.inventory, "the inventory")
    host.link.check_in_now()
    wait_for(lambda: len(manager.node.checkins) >= 3, "another")
    assert manager.node.checkins[2].inventory is None
    changed = host.inventory.read()._replace(hostname="renamed")
    host.inventory._kept = changed
    host.link.check_in_now()
    wait_for(lambda: manager.node.inventory.hostname == "renamed", "the new name")


def test_the_audit_head_is_kept_and_a_step_back_is_told(host: Host, manager: FakeManager) -> None:
    manager.audit_head = AuditHead(10, "a" * 64)
    host.start()
    wait_for(lambda: host.state.audit_head == manager.audit_head, "the head")
    manager.audit_head = AuditHead(9, "b" * 64)
    for _ in range(3):
        count = len(manager.node.checkins)
        host.link.check_in_now()
        wait_for(lambda before=count: len(manager.node.checkins) > before, "another")
    assert manager.node.checkins[-1].audit_head == AuditHead(10, "a" * 64)
    wait_for(lambda: [e for e in manager.node.events if e.kind == "audit.went_back"], "the event")
    assert len([e for e in manager.node.events if e.kind == "audit.went_back"]) == 1
    assert host.restarted().state.audit_head == AuditHead(10, "a" * 64)


def test_revocation_ends_a_held_poll_and_keeps_the_data(
    host: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.link.FIRST_POINT_S", 60.0)
    manager.next_checkin_s = 60.0
    host.start()
    wait_for(lambda: manager.node.polls >= 1, "a held poll")
    begun = time.monotonic()
    manager.revoke(manager.node)
    wait_for(lambda: not host.link.is_holding, "the end of the poll", 2)
    assert time.monotonic() - begun < 20
    host.add_points(1)
    wait_for(lambda: host.link._connection is None, "the end of the connection")
    assert host.spool.pending() == 1
    assert manager.paths().count("checkin") == 1
    assert [path for _, path, _ in manager.requests] == ["enroll", "checkin", "poll"]


def test_a_revoked_host_that_starts_is_refused_and_waits(host: Host, manager: FakeManager) -> None:
    manager.node.is_revoked = True
    host.start()
    wait_for(lambda: "checkin" in manager.paths(), "a try")
    wait_for(lambda: host.link._connection is None, "the end of the connection")
    assert manager.paths().count("checkin") == 1


def test_a_proxy_with_connect_is_used(new_host: Callable[..., Host], manager: FakeManager) -> None:
    tunnel = FaultProxy(("127.0.0.1", manager.port), is_tunnel=True)
    host = new_host(proxy=f"http://127.0.0.1:{tunnel.port}")
    host.enroll()
    try:
        host.start()
        wait_for(lambda: manager.node.polls >= 1, "a held poll")
        assert tunnel.tunnels[0].startswith(f"CONNECT 127.0.0.1:{manager.port} ")
    finally:
        host.link.stop(10)
        tunnel.close()


def test_stopping_does_not_wait_for_a_silent_manager(host: Host, manager: FakeManager) -> None:
    release = threading.Event()
    manager.faults["checkin"] = lambda: release.wait(30) and None
    host.start()
    wait_for(lambda: host.link._connection is not None and host.link._connection._http is not None, "a request")
    begun = time.monotonic()
    host.link.stop(10)
    release.set()
    assert time.monotonic() - begun < 20
    assert not host.link._thread.is_alive()


def test_a_port_where_nobody_listens_is_tried_again(
    host: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    host.link.use(f"https://127.0.0.1:{closed}", None)
    stamps = host.add_points(1)
    host.start()
    wait_for(lambda: host.link._backoff._failures >= 3, "tries")
    host.link.use(manager.url, None)
    settle(host, stamps)
