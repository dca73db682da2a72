"""The agent killed at every step of an execution: it runs at most once, and nobody waits for its end for ever."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.disk import Record, pack_record, scan_records
from agent.journal import ACCEPTED, FINISHED, STARTED, Archive, Journal, Line
from tests.agent.processes import AgentProcess, said, wait_for

# Fourteen steps; every second one by default, since each costs two starts of an agent.
STRIDE = 1 if os.environ.get("OPS_TEST_REPEATS") else 2


@pytest.mark.fault
@pytest.mark.parametrize("die_at", range(1, 16, STRIDE))
def test_killed_at_any_step_it_runs_at_most_once(
    new_agent: Callable[..., AgentProcess], tmp_path: Path, die_at: int
) -> None:
    agent, marks = new_agent(), tmp_path / "marks"
    agent.start("-m", "tests.agent.faulty", OPS_TEST_DIE_AT=str(die_at))
    content = {"script": f"echo ran >> {marks}; echo out; sleep 0.1; echo end >> {marks}"}
    answered = None
    try:
        answered = agent.order("script", content, id="it").status
        process = agent.process
        assert process is not None
        deadline = time.monotonic() + 3
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    except OSError:
        pass
    agent.stop(signal.SIGKILL)
    ran_before = marks.read_text().count("ran") if marks.exists() else 0
    agent.start()
    known = agent.get("task/it/status")
    if known.status == 404:
        assert answered is None
        assert ran_before == 0
        return
    found = agent.wait_end("it")
    ran = marks.read_text().count("ran") if marks.exists() else 0
    assert ran <= 1
    assert found["status"] in ("success", "interrupted")
    assert (found["status"] == "success") <= (ran == 1)
    if answered == 202 and ran == 0:
        assert found["status"] == "interrupted"
    # The same order once more, and after one more restart: nothing new happens.
    assert agent.order("script", content, id="it").status == 202
    agent.stop()
    agent.start()
    assert agent.status("it")["status"] == found["status"]
    assert (marks.read_text().count("ran") if marks.exists() else 0) == ran


@pytest.mark.fault
def test_remains_of_an_interrupted_execution_are_ended(agent: AgentProcess, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    name = agent.script(f"echo $$ > {marks}; echo said; sleep 61")
    wait_for(lambda: agent.status(name)["stdout"], "the first line")
    pid = int(marks.read_text())
    agent.stop(signal.SIGKILL)
    os.kill(pid, 0)
    agent.start()
    found = agent.status(name)
    assert (found["status"], found["error_code"], found["stdout"]) == ("interrupted", "interrupted", "said\n")
    assert found["started_at"] is not None
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the end of its process")


def test_two_agents_do_not_share_a_directory(agent: AgentProcess) -> None:
    first = agent.process
    agent.start(wait=False)
    second = agent.process
    assert second is not None
    assert second.wait(20) == 4
    agent.process = first
    assert agent.get("health").status == 200


def test_a_journal_with_holes_keeps_what_is_left(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    for name in ("a", "b", "c"):
        journal.write(
            [Line(ACCEPTED, name, {"digest": name, "at": 1.0, "order": {"id": name}}), Line(STARTED, name, {})]
        )
    journal.close()
    path = tmp_path / "executions.log"
    raw = bytearray(path.read_bytes())
    raw[raw.find(b'"id":"b"') + 2] ^= 0xFF
    path.write_bytes(bytes(raw[:-3]))
    again = Journal(str(tmp_path))
    assert set(again.entries()) == {"a", "b", "c"}
    assert again.entries()["a"].stage == STARTED
    assert again.is_damaged
    again.close()
    assert scan_records(path.read_bytes()).damaged == 0


def test_forgotten_ids_are_found_again_and_take_sixteen_bytes(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.write([Line(FINISHED, f"task-{number}", {"digest": "", "at": 1.0}) for number in range(500)])
    journal.forget([f"task-{number}" for number in range(499)])
    journal.close()
    assert (tmp_path / "executions.ids").stat().st_size == 499 * 16
    again = Journal(str(tmp_path))
    assert all(again.knows(f"task-{number}") for number in range(500))
    assert not again.knows("task-500")
    assert list(again.entries()) == ["task-499"]
    again.close()


def test_a_torn_archive_loses_nothing_that_the_journal_has_not(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path / "ids"))
    archive.add(["a", "b"])
    archive.close()
    with (tmp_path / "ids").open("ab") as file:
        file.write(b"torn")
    again = Archive(str(tmp_path / "ids"))
    again.add(["c"])
    assert [again.holds(name) for name in "abcd"] == [True, True, True, False]
    again.close()


def test_the_journal_is_rewritten_when_it_has_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.journal.COMPACT_BYTES", 4096)
    journal = Journal(str(tmp_path))
    for number in range(50):
        name = f"task-{number}"
        journal.write([Line(ACCEPTED, name, {"digest": "d", "at": 1.0, "order": {"script": "x" * 500}})])
        journal.write([Line(FINISHED, name, {"result": {"status": "succeeded"}})])
        journal.forget([f"task-{number - 5}"])
    journal.close()
    assert (tmp_path / "executions.log").stat().st_size < 8192
    again = Journal(str(tmp_path))
    assert all(again.knows(f"task-{number}") for number in range(50))
    again.close()


def test_records_are_found_between_garbage() -> None:
    good = [Record(1, b"one"), Record(2, b"two" * 100)]
    found = scan_records(b"\x00" * 7 + pack_record(good[0]) + b"\xa5\x61garbage" + pack_record(good[1]) + b"\xa5")
    assert found.records == good
    assert found.damaged == 2


def test_an_order_that_comes_twice_in_one_round_is_answered_when_it_is_on_the_disk(agent: AgentProcess) -> None:
    body = b'{"id":"twin","type":"script","content":{"script":"echo once"}}'
    one = b"POST /api/v1/task/execute HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    process = agent.process
    assert process is not None
    channels = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for channel in channels:
        channel.settimeout(10)
        channel.connect(agent.socket)
    time.sleep(0.1)
    process.send_signal(signal.SIGSTOP)
    for channel in channels:
        channel.sendall(one)
    process.send_signal(signal.SIGCONT)
    assert [channel.recv(65536).startswith(b"HTTP/1.1 202 ") for channel in channels] == [True] * 3
    for channel in channels:
        channel.close()
    assert agent.wait_end("twin")["stdout"] == "once\n"


def test_what_cannot_be_told_of_is_not_started_and_costs_the_others_nothing(
    new_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    agent, flag = new_agent(), tmp_path / "no descriptors left"
    code = f"""
import agent.runner, errno, os, sys
from agent.__main__ import run
class FrameFile(agent.runner.FrameFile):
    def __init__(self, path):
        if path.endswith("/unlucky") and os.path.exists({str(flag)!r}):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        super().__init__(path)
agent.runner.FrameFile = FrameFile
sys.exit(run(sys.argv[1:]))
"""
    process = agent.start("-c", code)
    flag.touch()
    connections = {name: agent.connect() for name in ("first", "unlucky", "last")}
    for connection in connections.values():
        connection.connect()
    time.sleep(0.1)
    process.send_signal(signal.SIGSTOP)
    for name, connection in connections.items():
        order = {"id": name, "type": "script", "content": {"script": f"touch '{tmp_path}/{name}'"}}
        connection.request("POST", "/api/v1/task/execute", json.dumps(order))
    process.send_signal(signal.SIGCONT)
    for name, connection in connections.items():
        answer = said(connection.getresponse())
        connection.close()
        assert (answer.status, answer.data["id"]) == (202, name)
    for name in ("first", "last"):
        assert agent.wait_end(name)["status"] == "success"
        assert (tmp_path / name).exists()
    flag.unlink()
    found = agent.wait_end("unlucky")
    assert (found["status"], found["error_code"]) == ("failed", "task_failed")
    assert "Too many open files" in found["error"]
    assert [event["type"] for event in agent.events("unlucky")["events"]] == ["result"]
    assert not (tmp_path / "unlucky").exists()
    assert agent.get("status").data["running"] == 0
