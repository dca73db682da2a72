"""Tasks handed to a real agent: once, in order, whatever comes in between."""

import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.taskline import TaskLine
from protocol.commands import Accept, Output, Result, Start, make_command
from protocol.states import DELIVERED, QUEUED
from protocol.times import to_epoch
from tests.agent.processes import AgentProcess
from tests.daemon.manager import Drop, FakeManager, Refusal
from tests.daemon.processes import wait_for
from tests.daemon.task_host import TaskHost, reports_of, result_of, script, stream_of


def drop() -> None:
    raise Drop


def noted(path: Path, word: str = "ran", more: str = "") -> str:
    """A script that leaves a line for each time it runs."""
    return f"echo {word} >>{path}; {more}"


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_task_starts_speaks_and_ends(task_host: TaskHost, manager: FakeManager) -> None:
    command = manager.send("task.run", script("echo out; echo err >&2; exit 3"))
    result = result_of(manager, command)
    assert (result.status, result.exit_code, result.error_code) == ("failed", 3, "task_failed")
    kinds = [type(report) for report in reports_of(manager, command)]
    assert kinds[:2] == [Accept, Start]
    assert kinds[-1] is Result
    assert set(kinds[2:-1]) == {Output}
    assert stream_of(manager, command) == b"out\n"
    assert stream_of(manager, command, "stderr") == b"err\n"


def test_the_start_is_told_while_it_runs_and_output_as_it_comes(task_host: TaskHost, manager: FakeManager) -> None:
    command = manager.send("task.run", script("for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done"))
    wait_for(lambda: any(isinstance(report, Start) for report in reports_of(manager, command)), "the start")
    assert manager.node.states[command] == "started"
    wait_for(lambda: stream_of(manager, command).startswith(b"1\n2\n"), "the second line")
    assert manager.node.result(command) is None
    assert result_of(manager, command).status == "succeeded"
    assert stream_of(manager, command) == b"1\n2\n3\n4\n5\n6\n"


def test_parameters_and_the_order_reach_the_script(task_host: TaskHost, manager: FakeManager) -> None:
    payload = script("echo $OPS_PARAM_WHO $1; echo $OPS_EXECUTION_ID", args=["arg"])
    command = manager.send("task.run", {**payload, "parameters": {"WHO": "you & me"}})
    assert result_of(manager, command).status == "succeeded"
    assert stream_of(manager, command) == f"you & me arg\n{command}\n".encode()


@pytest.mark.parametrize(
    ("payload", "outcome"),
    [
        (script("sleep 60", timeout=1), ("timed_out", "task_timeout")),
        (script("kill -9 $$"), ("failed", "task_failed")),
        ({"type": "dance", "content": {}}, ("failed", "bad_payload")),
        ({"type": "script", "content": {"interpreter": "shell"}}, ("failed", "bad_payload")),
        ({"type": "script"}, ("failed", "bad_payload")),
        ({"content": {}}, ("failed", "bad_payload")),
    ],
)
def test_every_outcome_passes_through(
    task_host: TaskHost, manager: FakeManager, payload: dict[str, object], outcome: tuple[str, str]
) -> None:
    result = result_of(manager, manager.send("task.run", payload))
    assert (result.status, result.error_code) == outcome


def test_what_the_host_forbids_is_forbidden(
    task_host: TaskHost, manager: FakeManager, task_agent: AgentProcess
) -> None:
    task_agent.capabilities.write_text("allow: {scripts: false}")
    task_agent.capabilities.chmod(0o600)
    result = result_of(manager, manager.send("task.run", script("echo no")))
    assert (result.status, result.error_code) == ("failed", "forbidden_by_host")


def test_delivered_a_hundred_times_it_runs_once(task_host: TaskHost, manager: FakeManager, tmp_path: Path) -> None:
    note = tmp_path / "note"
    command = manager.send("task.run", script(noted(note, more="sleep 1")))
    wait_for(lambda: lines(note), "the start")
    order = manager.node.commands[command]
    assert [task_host.intake.take(order) for _ in range(100)] == [False] * 100
    with manager.changed:
        manager.node.states[command] = QUEUED
        manager.changed.notify_all()
    wait_for(lambda: manager.node.states[command] != QUEUED, "a delivery over the wire")
    assert result_of(manager, command).status == "succeeded"
    assert [task_host.intake.take(order) for _ in range(100)] == [False] * 100
    assert result_of(manager, manager.send("task.run", script("true"))).status == "succeeded"
    assert lines(note) == 1


def test_the_agent_forgets_only_what_the_manager_has_taken(
    task_host: TaskHost, manager: FakeManager, task_agent: AgentProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.2)
    manager.faults["commands/reports"] = drop
    command = manager.send("task.run", script("echo kept"))
    wait_for(lambda: (task_agent.get(f"task/{command}/status").data or {}).get("status") == "success", "the end")
    tries = manager.paths().count("commands/reports")
    wait_for(lambda: manager.paths().count("commands/reports") > tries + 3, "tries")
    assert task_agent.get(f"task/{command}/status").status == 200
    manager.faults.clear()
    result_of(manager, command)
    wait_for(lambda: task_agent.get(f"task/{command}/status").status == 404, "the agent to forget")
    assert stream_of(manager, command) == b"kept\n"
    assert task_host.journal.unreported() == []


def test_nothing_is_lost_while_the_manager_is_away(
    task_host: TaskHost, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five times what is held in memory; the agent keeps the rest."""
    monkeypatch.setattr("daemon.tasks.ROOM_BYTES", 200_000)
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.3)
    away = threading.Event()

    def be_away() -> None:
        if away.is_set():
            raise Drop

    manager.faults["commands/reports"] = manager.faults["poll"] = be_away
    command = manager.send("task.run", script("sleep 0.3; seq 1 150000; sleep 0.3"))
    wait_for(lambda: any(isinstance(report, Start) for report in reports_of(manager, command)), "the start")
    away.set()
    wait_for(lambda: task_host.tasks._handed >= 200_000, "as much as there is room for")
    time.sleep(1.5)
    held = sum(len(report.data) for report in task_host.outbox._waiting if isinstance(report, Output))
    assert held <= 200_000 + 128 * 1024 + 65536
    away.clear()
    result = result_of(manager, command)
    found = stream_of(manager, command)
    assert (result.status, result.truncated) == ("succeeded", False)
    assert found == b"".join(b"%d\n" % number for number in range(1, 150_001))[: len(found)]
    assert len(found) == result.stdout_bytes


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("yes 0123456789abcdef | head -c 1000000000", b"0123456789abcdef\n"),
        ("head -c 5000000 /dev/zero | tr '\\0' x", b"xxxx"),
        ("head -c 3000000 /dev/zero | tr '\\0' '\\377'", b"\xff\xff\xff"),
    ],
    ids=["gigabyte", "no-newline", "no-utf-8"],
)
def test_too_much_and_strange_output_is_cut_and_marked(
    task_host: TaskHost, manager: FakeManager, text: str, begins: bytes
) -> None:
    command = manager.send("task.run", script(text))
    result = result_of(manager, command, 120)
    assert (result.status, result.truncated) == ("succeeded", True)
    assert result.stdout_bytes == int(text.partition("-c ")[2].split()[0])
    pieces = [report for report in reports_of(manager, command) if isinstance(report, Output)]
    assert any(piece.cut for piece in pieces)
    assert pieces[0].data.startswith(begins)
    assert pieces[-1].offset + len(pieces[-1].data) == result.stdout_bytes
    assert sum(len(piece.data) for piece in pieces) <= 1024 * 1024


@pytest.mark.parametrize("shift", [-365 * 86400.0, 365 * 86400.0])
def test_a_host_with_a_wrong_clock_does_it_in_time_and_tells_true_times(
    manager: FakeManager, new_task_host: Callable[..., TaskHost], shift: float
) -> None:
    """Seen from the Manager, whose clock is right, the host's is off; a task that waits in line must not expire."""
    manager.clock_shift_s = shift
    new_task_host(max_running=1)
    first = manager.send("task.run", script("sleep 1"))
    second = manager.send("task.run", script("echo in time"))
    assert result_of(manager, first).status == "succeeded"
    result = result_of(manager, second)
    assert result.status == "succeeded"
    assert abs(to_epoch(result.finished_at) - manager.now()) < 60
    starts = [report for report in reports_of(manager, second) if isinstance(report, Start)]
    assert abs(to_epoch(starts[0].at) - manager.now()) < 60


def test_ten_run_at_once_more_wait_and_too_many_are_refused(
    manager: FakeManager, new_task_host: Callable[..., TaskHost]
) -> None:
    new_task_host(max_running=2, max_queued=3)
    commands = [manager.send("task.run", script("sleep 3")) for _ in range(7)]
    results = [result_of(manager, command) for command in commands]
    assert [result.error_code for result in results].count("agent_busy") == 2
    assert [result.status for result in results].count("succeeded") == 5


def test_fifty_at_once(task_host: TaskHost, manager: FakeManager, tmp_path: Path) -> None:
    note = tmp_path / "note"
    commands = [manager.send("task.run", script(noted(note, str(number), "echo $$"))) for number in range(50)]
    assert {result_of(manager, command).status for command in commands} == {"succeeded"}
    assert sorted(note.read_text().split(), key=int) == [str(number) for number in range(50)]
    for command in commands:
        assert stream_of(manager, command).strip().isdigit()
    wait_for(lambda: not task_host.tasks._executions.all, "everything to be forgotten")


def test_at_rest_there_is_no_thread_and_a_long_task_needs_no_polling(
    task_host: TaskHost, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    begin = TaskLine.begin

    def note(self: TaskLine, method: str, path: str, body: bytes = b"") -> None:
        asked.append(path)
        begin(self, method, path, body)

    monkeypatch.setattr("daemon.taskline.TaskLine.begin", note)
    monkeypatch.setattr("daemon.tasks.IDLE_S", 0.5)
    command = manager.send("task.run", script("sleep 3"))
    assert result_of(manager, command).status == "succeeded"
    assert len([path for path in asked if path.startswith("events")]) <= 4
    wait_for(lambda: not any(thread.name == "tasks" for thread in threading.enumerate()), "the thread to end")
    assert result_of(manager, manager.send("task.run", script("true"))).status == "succeeded"


# ---- cancel


def test_a_running_task_is_cancelled_with_all_that_came_of_it(task_host: TaskHost, manager: FakeManager) -> None:
    command = manager.send("task.run", script("sleep 1234 & sleep 1235"))
    wait_for(lambda: manager.node.states[command] == "started", "the start")
    cancel = manager.send("task.cancel", {"command": command})
    assert result_of(manager, command).status == "cancelled"
    result = result_of(manager, cancel)
    assert (result.status, result.data) == ("succeeded", {"was": "running"})
    result = result_of(manager, manager.send("task.cancel", {"command": command}))
    assert (result.status, result.error_code) == ("failed", "task_failed")
    assert "ended already" in (result.error or "")


def test_one_that_waits_in_line_is_cancelled(manager: FakeManager, new_task_host: Callable[..., TaskHost]) -> None:
    new_task_host(max_running=1)
    first = manager.send("task.run", script("sleep 2"))
    second = manager.send("task.run", script("echo never"))
    wait_for(lambda: manager.node.states[second] == "accepted", "the second one")
    cancel = manager.send("task.cancel", {"command": second})
    assert result_of(manager, second).status == "cancelled"
    assert result_of(manager, cancel).status == "succeeded"
    assert result_of(manager, first).status == "succeeded"
    assert not [report for report in reports_of(manager, second) if isinstance(report, Start)]


def test_one_that_waits_for_the_agent_is_cancelled(
    task_host: TaskHost, manager: FakeManager, task_agent: AgentProcess, tmp_path: Path
) -> None:
    task_agent.stop()
    note = tmp_path / "note"
    command = manager.send("task.run", script(noted(note)))
    wait_for(lambda: task_host.tasks._executions.all, "the order")
    cancel = manager.send("task.cancel", {"command": command})
    assert result_of(manager, command).status == "cancelled"
    assert result_of(manager, cancel).data == {"was": "waiting"}
    task_agent.start()
    assert result_of(manager, manager.send("task.run", script("true"))).status == "succeeded"
    assert lines(note) == 0


def test_one_that_has_not_come_yet_is_cancelled_and_never_runs(
    task_host: TaskHost, manager: FakeManager, tmp_path: Path
) -> None:
    note, node = tmp_path / "note", manager.node
    late = make_command(
        node.key, str(uuid.uuid4()), node.uuid, "task.run", script(noted(note)), manager.text(), manager.text(60)
    )
    # The Manager has sent it, the answer got lost on the way, and the cancel overtakes the second delivery.
    node.states[late.id] = DELIVERED
    cancel = manager.send("task.cancel", {"command": late.id})
    result = result_of(manager, cancel)
    assert (result.status, result.data) == ("succeeded", {"was": "unknown"})
    assert result_of(manager, late.id).status == "cancelled"
    manager.queue(late)
    wait_for(lambda: node.states[late.id] != QUEUED, "the late delivery")
    assert result_of(manager, manager.send("task.run", script("true"))).status == "succeeded"
    assert lines(note) == 0


def test_what_is_no_task_cannot_be_cancelled(task_host: TaskHost, manager: FakeManager) -> None:
    ping = manager.send("ping", {})
    result_of(manager, ping)
    result = result_of(manager, manager.send("task.cancel", {"command": ping}))
    assert (result.status, result.error_code) == ("failed", "task_failed")
    result = result_of(manager, manager.send("task.cancel", {"command": "x"}))
    assert result.error_code == "bad_payload"


# ---- the Manager's refusals


def test_reports_that_the_manager_refuses_are_dropped_and_the_agent_forgets(
    task_host: TaskHost, manager: FakeManager, task_agent: AgentProcess
) -> None:
    command = manager.send("task.run", script("echo a; sleep 1; echo b"))
    wait_for(lambda: manager.node.states[command] == "started", "the start")
    with manager.changed:
        manager.node.states[command] = "expired"
    wait_for(lambda: task_agent.get(f"task/{command}/status").status == 404, "the agent to forget")
    assert manager.node.result(command) is None
    assert task_host.journal.unreported() == []


def test_a_manager_that_is_busy_gets_it_all_later(task_host: TaskHost, manager: FakeManager) -> None:
    left = [3]

    def busy() -> None:
        if left[0]:
            left[0] -= 1
            raise Refusal(1005, "busy", 1)

    manager.faults["commands/reports"] = busy
    command = manager.send("task.run", script("echo a"))
    assert result_of(manager, command).status == "succeeded"
    assert stream_of(manager, command) == b"a\n"
