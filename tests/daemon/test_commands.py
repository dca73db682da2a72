"""Commands: genuine, in time, once; and their ends told until somebody heard them."""

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon import logs
from protocol import errors
from protocol.commands import Accept, Start, make_command
from protocol.states import QUEUED
from tests.daemon.host import Host
from tests.daemon.manager import Drop, FakeManager, Refusal
from tests.daemon.processes import wait_for
from tests.daemon.test_faults import once


def drop() -> None:
    raise Drop


def result_of(manager: FakeManager, command: str, timeout_s: float = 20.0) -> object:
    return wait_for(lambda: manager.node.result(command), f"the result of {command}", timeout_s)


@pytest.fixture
def running(host: Host, manager: FakeManager) -> Host:
    host.start()
    wait_for(lambda: manager.node.polls >= 1, "a held poll")
    return host


def test_a_command_is_accepted_started_and_ended_in_this_order(running: Host, manager: FakeManager) -> None:
    command = manager.send("ping", {"echo": "你好"})
    result_of(manager, command)
    reports = manager.node.reports
    assert [report.type for report in reports] == ["accept", "start", "result"]
    assert isinstance(reports[0], Accept)
    assert isinstance(reports[1], Start)
    result = manager.node.result(command)
    assert result is not None
    assert (result.status, result.error_code) == ("succeeded", None)
    assert result.data is not None
    assert result.data["echo"] == "你好"
    assert manager.node.states[command] == "succeeded"


def test_many_commands_at_once(running: Host, manager: FakeManager) -> None:
    commands = [manager.send("ping", {"echo": str(number)}) for number in range(40)]
    for command in commands:
        result_of(manager, command)
    assert sorted(command.id for command in running.ran) == sorted(commands)


def test_a_second_delivery_is_not_run_again(running: Host, manager: FakeManager) -> None:
    manager.after["commands/reports"] = once(drop)
    command = manager.send("ping", {})
    result_of(manager, command)
    wait_for(lambda: not running.outbox.has_work(), "the reports to be heard")
    manager.node.states[command] = QUEUED
    manager.node.reports.clear()
    with manager.changed:
        manager.changed.notify_all()
    wait_for(lambda: manager.node.states[command] != QUEUED, "the second delivery")
    second = manager.send("ping", {})
    result_of(manager, second)
    assert [ran.id for ran in running.ran] == [command, second]


def test_a_result_whose_answer_was_lost_is_told_again(running: Host, manager: FakeManager) -> None:
    manager.after["commands/reports"] = once(drop)
    command = manager.send("ping", {})
    wait_for(lambda: manager.paths().count("commands/reports") >= 2, "the second telling")
    wait_for(lambda: running.journal.unreported() == [], "the receipt")
    assert len(running.ran) == 1
    assert [report.type for report in manager.node.reports] == ["accept", "start", "result"]
    assert manager.node.result(command) is not None


def test_a_result_outlives_a_restart(running: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.2)
    manager.faults["commands/reports"] = drop
    command = manager.send("ping", {"echo": "kept"})
    wait_for(lambda: manager.paths().count("commands/reports") >= 2, "tries")
    again = running.restarted()
    manager.faults.clear()
    again.start()
    result = result_of(manager, command)
    assert result.data["echo"] == "kept"  # type: ignore[attr-defined]
    assert again.ran == []
    again.stop()


def test_what_was_cut_short_is_called_interrupted_and_not_run_again(running: Host, manager: FakeManager) -> None:
    # The process dies between the journal and the handler: of the command only the journal knows.
    running.intake._hand_over = running.ran.append  # type: ignore[assignment]
    command = manager.send("ping", {})
    wait_for(lambda: running.ran, "the start")
    again = running.restarted().start()
    result = result_of(manager, command)
    assert (result.status, result.error_code) == ("interrupted", "interrupted")  # type: ignore[attr-defined]
    assert again.ran == []
    again.stop()


def test_a_command_that_comes_too_late_is_not_run(running: Host, manager: FakeManager) -> None:
    command = manager.send("ping", {}, ttl_s=-5)
    result = result_of(manager, command)
    assert (result.status, result.error_code) == ("expired", "not_delivered")  # type: ignore[attr-defined]
    assert running.ran == []


@pytest.mark.parametrize("shift", [-365 * 86400.0, 365 * 86400.0])
def test_deadlines_are_told_in_the_manager_s_time(running: Host, manager: FakeManager, shift: float) -> None:
    running.system.shift_s = shift  # type: ignore[attr-defined]
    command = manager.send("ping", {}, ttl_s=30)
    assert result_of(manager, command).status == "succeeded"  # type: ignore[attr-defined]


FORGERIES: list[Callable[[dict[str, str]], dict[str, str]]] = [
    lambda c: {**c, "payload": '{"echo":"other"}'},
    lambda c: {**c, "kind": "log.tail"},
    lambda c: {**c, "id": str(uuid.uuid4())},
    lambda c: {**c, "not_after": "2099-01-01T00:00:00Z"},
    lambda c: {**c, "sig": "0" * 64},
]


@pytest.mark.parametrize("forge", FORGERIES, ids=["payload", "kind", "id", "not_after", "sig"])
def test_a_forged_command_is_neither_run_nor_reported_but_told(
    running: Host, manager: FakeManager, forge: Callable[[dict[str, str]], dict[str, str]]
) -> None:
    node = manager.node
    genuine = make_command(node.key, str(uuid.uuid4()), node.uuid, "ping", {}, manager.text(), manager.text(60))
    forged = type(genuine)(**forge(genuine._asdict()))
    manager.queue(forged)
    wait_for(lambda: node.states[forged.id] != QUEUED, "the delivery")
    after = manager.send("ping", {})
    result_of(manager, after)
    assert [ran.id for ran in running.ran] == [after]
    assert node.result(forged.id) is None
    assert not running.journal.knows(forged.id)
    running.link.check_in_now()
    wait_for(lambda: [e for e in node.events if e.kind == "command.bad_signature"], "the event")
    # It is handed out again when its lease is over; one event is enough.
    wait_for(lambda: time.monotonic() - node.handed_out[forged.id] > manager.lease_s, "the lease to end")
    again = node.handed_out[forged.id]
    wait_for(lambda: node.handed_out[forged.id] > again, "the second delivery")
    running.link.check_in_now()
    count = len(node.checkins)
    wait_for(lambda: len(node.checkins) > count, "a check-in")
    (event,) = [e for e in node.events if e.kind == "command.bad_signature"]
    assert event.data["command"] == forged.id
    assert event.severity == "critical"


def test_a_command_for_another_host_is_not_run(running: Host, manager: FakeManager) -> None:
    node = manager.node
    other = str(uuid.uuid4())
    command = make_command(node.key, str(uuid.uuid4()), other, "ping", {}, manager.text(), manager.text(60))
    manager.queue(command)
    wait_for(lambda: node.states[command.id] != QUEUED, "the delivery")
    result_of(manager, manager.send("ping", {}))
    assert command.id not in [ran.id for ran in running.ran]


@pytest.mark.parametrize(
    ("kind", "payload", "code"),
    [
        ("dance", {}, "unsupported_kind"),
        ("ping", {"echo": 5}, "bad_payload"),
        ("ping", {"echo": "x" * 1001}, "bad_payload"),
        ("log.tail", {"lines": 0}, "bad_payload"),
    ],
)
def test_what_cannot_be_done_fails_by_name(
    running: Host, manager: FakeManager, kind: str, payload: dict[str, object], code: str
) -> None:
    result = result_of(manager, manager.send(kind, payload))
    assert (result.status, result.error_code) == ("failed", code)  # type: ignore[attr-defined]
    assert result.error  # type: ignore[attr-defined]


def test_a_handler_that_breaks_fails_its_command_alone(running: Host, manager: FakeManager) -> None:
    def explode(_: object) -> dict[str, object]:
        raise RuntimeError("boom")

    running.runner._table = {**running.runner._table, "explode": explode}  # type: ignore[dict-item]
    result = result_of(manager, manager.send("explode", {}))
    assert (result.status, result.error) == ("failed", "RuntimeError: boom")  # type: ignore[attr-defined]
    assert result_of(manager, manager.send("ping", {})).status == "succeeded"  # type: ignore[attr-defined]


def test_settings_refresh_checks_in_at_once(running: Host, manager: FakeManager) -> None:
    manager.settings = manager.settings._replace(version=5)
    before = time.monotonic()
    manager.send("settings.refresh", {})
    wait_for(lambda: running.checkins.settings.version == 5, "the new settings")
    assert time.monotonic() - before < 20


def test_the_log_can_be_read_from_afar(running: Host, manager: FakeManager) -> None:
    logs._tail.lines.extend(f"line {number} " + "x" * 300 for number in range(400))
    result = result_of(manager, manager.send("log.tail", {"lines": 300}))
    lines = result.data["lines"]  # type: ignore[attr-defined]
    assert 100 < len(lines) < 300
    assert sum(len(line) + 1 for line in lines) <= 48 * 1024
    assert any(line.startswith("line 399") for line in lines)


def test_a_report_that_is_refused_for_good_is_dropped(running: Host, manager: FakeManager) -> None:
    def forget() -> None:
        manager.node.states.clear()

    manager.faults["commands/reports"] = once(forget)
    manager.send("ping", {})
    wait_for(lambda: running.ran and running.journal.unreported() == [], "the end of it")


def test_an_accepted_command_that_had_not_begun_runs_after_a_restart(host: Host, manager: FakeManager) -> None:
    node = manager.node
    soon = make_command(node.key, str(uuid.uuid4()), node.uuid, "ping", {}, manager.text(), manager.text(60))
    late = make_command(node.key, str(uuid.uuid4()), node.uuid, "ping", {}, manager.text(-60), manager.text(-30))
    for command in (soon, late):
        manager.queue(command)
        manager.node.states[command.id] = "delivered"
        host.journal.receive(command, manager.now(), starts_now=False)
    host.clock.learn(manager.now())
    host.start()
    assert result_of(manager, soon.id).status == "succeeded"  # type: ignore[attr-defined]
    assert result_of(manager, late.id).status == "expired"  # type: ignore[attr-defined]


def test_on_a_full_disk_a_command_is_left_to_the_manager(
    running: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(running.journal, "_append", full)
    command = manager.send("ping", {})
    wait_for(lambda: manager.node.states[command] != QUEUED, "the delivery")
    first = manager.node.handed_out[command]
    wait_for(lambda: manager.node.handed_out[command] > first, "the second delivery")
    assert running.ran == []
    assert manager.node.reports == []
    assert "stumbled" not in caplog.text
    monkeypatch.undo()
    assert result_of(manager, command).status == "succeeded"  # type: ignore[attr-defined]


def test_a_late_delivery_of_what_was_done_and_told_is_not_told_otherwise(host: Host, manager: FakeManager) -> None:
    node = manager.node
    late = make_command(node.key, str(uuid.uuid4()), node.uuid, "ping", {}, manager.text(-60), manager.text(-30))
    host.journal.receive(late, manager.now(), starts_now=True)
    host.journal.finish(late.id, {})
    host.journal.reported(late.id)
    host.clock.learn(manager.now())
    assert not host.intake.take(late)
    assert not host.outbox.has_work()


def test_two_connections_never_send_the_same_report(host: Host) -> None:
    reports = [Accept(str(uuid.uuid4()), "accept", "2026-01-01T00:00:00Z") for _ in range(150)]
    host.outbox.add(*reports)
    first = host.outbox.claim()
    assert first == reports[:100]
    assert host.outbox.claim() == []
    assert not host.outbox.has_work()
    host.outbox.release()
    assert host.outbox.claim() == first
    host.outbox.settle()
    assert host.outbox.claim() == reports[100:]


def test_a_report_that_is_not_understood_is_dropped_alone(
    running: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.1)
    poison = manager.send("ping", {"echo": "poison"})

    def inspect() -> None:
        if b"poison" in manager.bodies[-1] or (
            poison.encode() in manager.bodies[-1] and b"result" in manager.bodies[-1]
        ):
            raise Refusal(errors.BAD_PARAMETER, errors.INVALID_FIELD)

    manager.faults["commands/reports"] = inspect
    other = manager.send("ping", {"echo": "fine"})
    result_of(manager, other)
    wait_for(lambda: running.journal.unreported() == [], "the end of it")
    assert manager.node.result(poison) is None


def test_a_payload_of_the_greatest_size(running: Host, manager: FakeManager, tmp_path: Path) -> None:
    room = 262144 - len(json.dumps({"pad": ""}, separators=(",", ":")))
    result = result_of(manager, manager.send("ping", {"pad": "é" * room}))
    assert result.status == "succeeded"  # type: ignore[attr-defined]
