"""Bad days of tasks: the agent or the Daemon dies, hangs, lies; the disk is full; nobody is where he should be."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.taskline import TaskLine
from protocol.commands import Accept, Output, Result
from protocol.states import QUEUED
from tests.agent.processes import AgentProcess
from tests.daemon.faults import FullDisk
from tests.daemon.manager import Drop, FakeManager
from tests.daemon.processes import wait_for
from tests.daemon.task_host import TaskHost, reports_of, result_of, script, stream_of
from tests.daemon.test_tasks import lines, noted

# Fault tests repeat once by default, 50 times in a night.
REPEATS = int(os.environ.get("OPS_FAULT_REPEATS", "1"))


def drop() -> None:
    raise Drop


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.3)


def one_result(manager: FakeManager, command: str) -> Result:
    result_of(manager, command)
    results = [report for report in reports_of(manager, command) if isinstance(report, Result)]
    assert len({(result.status, result.exit_code) for result in results}) == 1
    return results[0]


# ---- the agent


@pytest.mark.fault
def test_an_agent_killed_in_the_middle_says_interrupted_when_it_is_back(
    task_host: TaskHost, manager: FakeManager, task_agent: AgentProcess, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    command = manager.send("task.run", script(noted(note, more="echo some; sleep 30")))
    wait_for(lambda: stream_of(manager, command) == b"some\n", "the first output")
    task_agent.stop(signal.SIGKILL)
    time.sleep(0.3)
    assert manager.node.result(command) is None
    task_agent.start()
    result = one_result(manager, command)
    assert (result.status, result.error_code) == ("interrupted", "interrupted")
    assert stream_of(manager, command) == b"some\n"
    assert lines(note) == 1
    assert result_of(manager, manager.send("task.run", script("true"))).status == "succeeded"


@pytest.mark.fault
@pytest.mark.parametrize("step", sorted(range(1, 17), key=lambda n: (n % 4, n))[: 4 if REPEATS == 1 else 16])
def test_an_agent_that_dies_at_any_step_runs_nothing_twice_and_owes_no_answer(
    manager: FakeManager, tmp_path: Path, step: int
) -> None:
    agent = AgentProcess(tmp_path / "agent")
    agent.start("-m", "tests.agent.faulty", OPS_TEST_DIE_AT=str(step))
    host = TaskHost(tmp_path / "inner", manager, lambda: agent.socket)
    host.enroll()
    host.start()
    note, before = tmp_path / "note", agent.process
    try:
        command = manager.send("task.run", script(noted(note, more="echo out")))
        assert before is not None
        wait_for(lambda: before.poll() is not None or manager.node.result(command), "its death or the end")
        agent.stop(signal.SIGKILL)
        agent.start()
        result = one_result(manager, command)
        assert result.status in ("succeeded", "interrupted")
        assert lines(note) <= 1
        if result.status == "succeeded":
            assert lines(note) == 1
            assert stream_of(manager, command) == b"out\n"
    finally:
        host.stop()
        agent.stop(signal.SIGKILL)


@pytest.mark.fault
def test_an_agent_that_is_stopped_tells_what_it_ended_and_runs_what_waited_later(
    manager: FakeManager, new_task_host: Callable[..., TaskHost]
) -> None:
    host = new_task_host(max_running=1)
    first = manager.send("task.run", script("sleep 30"))
    second = manager.send("task.run", script("echo later"))
    wait_for(lambda: manager.node.states[first] == "started" and len(host.agent.get("status").data["executions"]) == 2,
             "one that runs and one that waits")  # fmt: skip
    host.agent.stop()
    assert one_result(manager, first).status == "interrupted"
    assert manager.node.result(second) is None
    host.agent.start()
    assert one_result(manager, second).status == "succeeded"
    assert stream_of(manager, second) == b"later\n"


def test_an_agent_that_is_starting_is_waited_for(
    task_host: TaskHost, manager: FakeManager, task_agent: AgentProcess
) -> None:
    task_agent.stop()
    command = manager.send("task.run", script("echo at last"))
    wait_for(lambda: manager.node.states[command] == "accepted", "the order")
    time.sleep(1.0)
    assert manager.node.result(command) is None
    task_agent.start()
    assert result_of(manager, command).status == "succeeded"


@pytest.mark.parametrize("is_there", [True, False], ids=["away", "none"])
def test_an_agent_that_does_not_come_is_not_waited_for_without_end(
    task_host: TaskHost,
    manager: FakeManager,
    task_agent: AgentProcess,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    is_there: bool,
) -> None:
    monkeypatch.setattr("daemon.taskorders.AWAY_S" if is_there else "daemon.taskorders.ABSENT_S", 0.7)
    task_agent.stop()
    if not is_there:
        task_host.find_socket = lambda: None
    note = tmp_path / "note"
    command = manager.send("task.run", script(noted(note)))
    result = result_of(manager, command)
    assert (result.status, result.error_code) == ("failed", "not_delivered")
    assert "task agent" in (result.error or "")
    task_host.find_socket = lambda: task_agent.socket
    task_agent.start()
    assert result_of(manager, manager.send("task.run", script("true"))).status == "succeeded"
    assert lines(note) == 0


def test_what_waits_for_the_agent_does_not_start_after_its_deadline(
    task_host: TaskHost, manager: FakeManager, task_agent: AgentProcess, tmp_path: Path
) -> None:
    task_agent.stop()
    note = tmp_path / "note"
    command = manager.send("task.run", script(noted(note)), ttl_s=1.5)
    result = result_of(manager, command)
    assert (result.status, result.error_code) == ("expired", "not_delivered")
    task_agent.start()
    assert result_of(manager, manager.send("task.run", script("true"))).status == "succeeded"
    assert lines(note) == 0


@pytest.mark.fault
def test_an_agent_that_hangs_is_given_up_and_asked_again(
    task_host: TaskHost, manager: FakeManager, task_agent: AgentProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("daemon.taskline.ANSWER_S", 0.5)
    note = tmp_path / "note"
    assert task_agent.process is not None
    task_agent.process.send_signal(signal.SIGSTOP)
    command = manager.send("task.run", script(noted(note)))
    wait_for(lambda: manager.node.states[command] == "accepted", "the order")
    time.sleep(1.5)
    task_agent.process.send_signal(signal.SIGCONT)
    assert one_result(manager, command).status == "succeeded"
    assert lines(note) == 1


@pytest.mark.fault
def test_an_agent_that_hangs_while_it_is_listened_to_is_noticed(
    task_host: TaskHost, manager: FakeManager, task_agent: AgentProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.taskfeed.WAIT_S", 1)
    monkeypatch.setattr("daemon.taskfeed.ANSWER_S", 0.5)
    command = manager.send("task.run", script("sleep 3; echo heard"))
    wait_for(lambda: manager.node.states[command] == "started", "the start")
    assert task_agent.process is not None
    task_agent.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: task_host.tasks._lost_since != float("inf"), "somebody to notice")
    task_agent.process.send_signal(signal.SIGCONT)
    assert one_result(manager, command).status == "succeeded"
    assert stream_of(manager, command) == b"heard\n"


@pytest.mark.fault
def test_an_agent_that_is_just_stopping_is_waited_for(
    task_host: TaskHost, manager: FakeManager, task_agent: AgentProcess
) -> None:
    """It refuses orders as if it were full, until what runs has been killed."""
    first = manager.send("task.run", script("trap '' TERM; echo up; while :; do sleep 1; done"))
    wait_for(lambda: stream_of(manager, first) == b"up\n", "a script that does not listen")
    assert task_agent.process is not None
    task_agent.process.send_signal(signal.SIGTERM)
    wait_for(lambda: task_agent.get("health").data["status"] == "stopping", "the agent to stop")
    second = manager.send("task.run", script("echo later"))
    task_agent.process.wait(30)
    assert manager.node.result(second) is None
    task_agent.start()
    assert one_result(manager, second).status == "succeeded"
    assert one_result(manager, first).status == "interrupted"


def test_an_agent_that_lost_its_memory_costs_an_interruption_and_no_second_run(
    task_host: TaskHost, manager: FakeManager, task_agent: AgentProcess, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    command = manager.send("task.run", script(noted(note, more="sleep 30")))
    wait_for(lambda: manager.node.states[command] == "started", "the start")
    task_agent.stop(signal.SIGKILL)
    task_agent.state_dir.rename(tmp_path / "gone")
    task_agent.start()
    result = one_result(manager, command)
    assert (result.status, result.error_code) == ("interrupted", "interrupted")
    assert lines(note) == 1


@pytest.mark.fault
def test_an_agent_whose_disk_is_full_fails_the_task_and_runs_nothing(
    manager: FakeManager, tmp_path: Path, task_agent: AgentProcess, task_host: TaskHost
) -> None:
    task_agent.stop()
    task_agent.start("-m", "tests.agent.faulty")
    note = tmp_path / "note"
    assert result_of(manager, manager.send("task.run", script("true"))).status == "succeeded"
    assert task_agent.process is not None
    task_agent.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: not task_host.tasks._executions.all, "the first one to be forgotten")
    result = result_of(manager, manager.send("task.run", script(noted(note))))
    assert (result.status, result.error_code) == ("failed", "task_failed")
    assert "cannot be written down" in (result.error or "")
    task_agent.process.send_signal(signal.SIGUSR2)
    assert lines(note) == 0
    wait_for(
        lambda: result_of(manager, manager.send("task.run", script("true"))).status == "succeeded", "room on the disk"
    )


class Liar:
    """Listens where the agent should and answers with whatever `answer` makes of the path."""

    def __init__(self, path: str, answer: Callable[[str], bytes]) -> None:
        self.path, self.answer, self.count = path, answer, 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(channel,), daemon=True).start()

    def _serve(self, channel: socket.socket) -> None:
        with channel, channel.makefile("rb") as stream:
            try:
                while path := stream.readline().partition(b" ")[2].partition(b" ")[0].decode():
                    length = 0
                    while (line := stream.readline().lower()) not in (b"\r\n", b""):
                        length = int(line[15:]) if line.startswith(b"content-length:") else length
                    stream.read(length)
                    self.count += 1
                    channel.sendall(self.answer(path))
            except OSError:
                return

    def close(self) -> None:
        self._listener.close()
        Path(self.path).unlink(missing_ok=True)


def told(data: Any, status: str = "200 OK") -> bytes:
    body = json.dumps({"code": 0, "message": "success", "data": data, "timestamp": "2026-01-01T00:00:00Z"}).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def events(path: str, *found: dict[str, Any], done: bool = False, name: str | None = None) -> bytes:
    asked = path.partition("after=")[2].partition(":")[0]
    task = {"id": name or asked, "status": "running", "events": list(found), "next": len(found), "done": done}
    return told({"tasks": [task], "unknown": []})


def piece(n: int, **changed: Any) -> dict[str, Any]:
    base = {
        "n": n,
        "type": "output",
        "seq": max(0, n - 1),
        "stream": "stdout",
        "offset": 0,
        "data": "eA==",
        "cut": False,
    }
    return {**base, **changed}


LIES: dict[str, Callable[[str], bytes]] = {
    "no-http": lambda path: b"hello there\r\n\r\n",
    "no-json": lambda path: b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{{{",
    "too-large": lambda path: b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * (3 << 20),
    "endless-head": lambda path: b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * (1 << 20) + b"\r\n\r\n",
    "no-envelope": lambda path: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    "no-object": lambda path: told([1, 2]),
    "wrong-types": lambda path: told({"tasks": "none", "unknown": 5}),
    "wrong-numbers": lambda path: events(path, piece(5)),
    "wrong-stream": lambda path: events(path, piece(0, stream="stdin")),
    "no-base64": lambda path: events(path, piece(0, data="%%%")),
    "a-dance": lambda path: events(path, {"n": 0, "type": "dance"}),
    "done-without-result": lambda path: events(path, done=True),
    "nothing-ever": lambda path: told({"tasks": [], "unknown": []}),
    "other-ids": lambda path: events(path, piece(0), name=str(uuid.uuid4())),
    "unknown-others": lambda path: told({"tasks": [], "unknown": [str(uuid.uuid4())]}),
    "500": lambda path: told(None, "500 Internal Server Error"),
}


@pytest.mark.fault
@pytest.mark.parametrize("lie", LIES)
def test_an_agent_that_makes_no_sense_costs_its_tasks_and_nothing_else(
    manager: FakeManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    for name, value in (("AWAY_S", 0.8), ("LOST_S", 0.8)):
        monkeypatch.setattr(f"daemon.taskorders.{name}", value)
    path = f"/tmp/ops-liar-{uuid.uuid4().hex[:8]}.sock"
    liar = Liar(
        path, lambda asked: told({}, "202 Accepted") if "execute" in asked and lie != "500" else LIES[lie](asked)
    )
    host = TaskHost(tmp_path / "inner", manager, lambda: path)
    host.enroll()
    host.start()
    try:
        command = manager.send("task.run", script("true"), ttl_s=1.5)
        wait_for(lambda: liar.count >= 2 or manager.node.result(command), "the agent to be asked")
        time.sleep(0.8)
        # Everything else goes on, nobody runs in circles, and nothing foreign was reported.
        ping = manager.send("ping", {})
        assert result_of(manager, ping).status == "succeeded"
        assert liar.count < 150
        assert {report.command for report in manager.node.reports} <= {command, ping}
        assert not [report for report in manager.node.reports if isinstance(report, Output)]
        if lie not in ("nothing-ever", "other-ids", "unknown-others"):
            assert result_of(manager, command).status in ("interrupted", "failed")
    finally:
        liar.close()
        host.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_a_socket_of_somebody_else_is_told_nothing(
    task_host: TaskHost, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.taskorders.AWAY_S", 0.5)
    path = f"/tmp/ops-nobody-{uuid.uuid4().hex[:8]}.sock"
    code = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
        "s.bind(sys.argv[1]); s.listen(8); print('up', flush=True);"
        "exec('while True: c, _ = s.accept(); print(c.recv(99999), flush=True)')"
    )
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code, path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"up\n"
        task_host.find_socket = lambda: path
        result = result_of(manager, manager.send("task.run", script("echo secret")))
        assert result.error_code == "not_delivered"
        assert "user 65534" in (result.error or "")
        assert process.stdout.readline() == b"b''\n"
    finally:
        process.kill()
        process.wait()
        Path(path).unlink(missing_ok=True)


# ---- the Daemon


class Killed(BaseException):
    """The thread goes no further, as if the process had been killed here."""


def _kill_at_request(monkeypatch: pytest.MonkeyPatch, word: str, is_before: bool, happened: threading.Event) -> None:
    """The thread that speaks with the agent dies at the first request whose path has this word."""
    begin, finish = TaskLine.begin, TaskLine.finish
    asked: dict[int, str] = {}

    def begin_or_die(self: TaskLine, method: str, path: str, body: bytes = b"") -> None:
        asked[id(self)] = path
        if word in path and is_before and not happened.is_set():
            happened.set()
            raise Killed
        begin(self, method, path, body)

    def finish_or_die(self: TaskLine) -> Any:
        answer = finish(self)
        if word in asked.get(id(self), "") and not is_before and not happened.is_set():
            happened.set()
            raise Killed
        return answer

    monkeypatch.setattr(TaskLine, "begin", begin_or_die)
    monkeypatch.setattr(TaskLine, "finish", finish_or_die)


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("word", ["execute", "events", "forget"])
def test_a_daemon_that_dies_while_it_speaks_with_the_agent_loses_and_doubles_nothing(
    task_host: TaskHost,
    manager: FakeManager,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    word: str,
    is_before: bool,
) -> None:
    happened, note = threading.Event(), tmp_path / "note"
    _kill_at_request(monkeypatch, word, is_before, happened)
    command = manager.send("task.run", script(noted(note, more="echo one; sleep 0.5; echo two")))
    assert happened.wait(20)
    again = task_host.killed().start()
    try:
        assert one_result(manager, command).status == "succeeded"
        assert lines(note) == 1
        assert unique_stream(manager, command) == b"one\ntwo\n"
        wait_for(lambda: again.journal.unreported() == [], "the receipt")
    finally:
        again.stop()


def unique_stream(manager: FakeManager, command: str) -> bytes:
    """As the Manager keeps it: each piece once by its number, whatever was told again."""
    found = {report.seq: report.data for report in reports_of(manager, command) if isinstance(report, Output)}
    assert sorted(found) == list(range(len(found)))
    return b"".join(found[seq] for seq in sorted(found))


@pytest.mark.fault
@pytest.mark.parametrize("moment", ["received", "started", "ended", "answer-lost"])
def test_a_daemon_that_dies_at_any_step_goes_on_where_the_agent_is(
    task_host: TaskHost, manager: FakeManager, task_agent: AgentProcess, tmp_path: Path, moment: str
) -> None:
    note = tmp_path / "note"
    if moment == "received":
        # Between the journal and the agent.
        task_host.intake._hand_over = lambda _: None
    if moment == "ended":
        manager.faults["commands/reports"] = drop
    if moment == "answer-lost":
        manager.after["commands/reports"] = drop
    command = manager.send("task.run", script(noted(note, more="seq 1 20000; sleep 1")))
    if moment == "received":
        wait_for(lambda: task_host.journal.knows(command), "the order")
    elif moment == "started":
        wait_for(lambda: manager.node.states[command] == "started", "the start")
    else:
        wait_for(lambda: (task_agent.get(f"task/{command}/status").data or {}).get("status") == "success", "the end")
        time.sleep(0.3)
    again = task_host.killed()
    manager.faults.clear()
    manager.after.clear()
    again.start()
    try:
        assert one_result(manager, command).status == "succeeded"
        assert lines(note) == 1
        assert unique_stream(manager, command) == b"".join(b"%d\n" % number for number in range(1, 20_001))
        wait_for(lambda: task_agent.get(f"task/{command}/status").status == 404, "the agent to forget")
    finally:
        again.stop()


@pytest.mark.fault
def test_what_the_agent_forgot_meanwhile_is_called_interrupted(
    task_host: TaskHost, manager: FakeManager, task_agent: AgentProcess, tmp_path: Path
) -> None:
    """The Daemon was away so long that the agent kept it no longer."""
    note = tmp_path / "note"
    manager.faults["commands/reports"] = drop
    command = manager.send("task.run", script(noted(note)))
    wait_for(lambda: (task_agent.get(f"task/{command}/status").data or {}).get("status") == "success", "the end")
    again = task_host.killed()
    assert task_agent.post(f"task/{command}/forget").status == 200
    manager.faults.clear()
    again.start()
    try:
        assert one_result(manager, command).status == "interrupted"
        assert lines(note) == 1
    finally:
        again.stop()


@pytest.mark.fault
def test_a_command_that_the_journal_has_no_room_for_is_left_to_the_manager(
    manager: FakeManager, task_agent: AgentProcess, tmp_path: Path
) -> None:
    disk = FullDisk()
    host = TaskHost(tmp_path / "inner", manager, lambda: task_agent.socket, system=disk)
    host.enroll()
    host.start()
    note = tmp_path / "note"
    manager.lease_s = 0.2
    try:
        wait_for(lambda: manager.node.polls >= 1, "a held poll")
        disk.is_full = True
        command = manager.send("task.run", script(noted(note)))
        wait_for(lambda: manager.node.states[command] != QUEUED, "the delivery")
        time.sleep(0.5)
        assert lines(note) == 0
        assert reports_of(manager, command) == []
        disk.is_full = False
        assert one_result(manager, command).status == "succeeded"
        assert lines(note) == 1
    finally:
        host.stop()


def test_nobody_hears_that_a_command_is_here_before_it_is_on_the_disk(
    task_host: TaskHost, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after `accept` must not lose it; one before it only brings it again."""
    done: list[str] = []
    sync = task_host.system.sync

    def note_sync(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().name == "commands.log":
            done.append("sync")
        sync(fd)

    monkeypatch.setattr(task_host.system, "sync", note_sync)
    manager.faults["commands/reports"] = lambda: done.append("reports")
    command = manager.send("task.run", script("sleep 0.5"))
    wait_for(lambda: any(isinstance(report, Accept) for report in reports_of(manager, command)), "the accept")
    assert done[0] == "sync"
    result_of(manager, command)
