"""Files of tasks: from the Manager to the host before an upload, and back after a download."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from tests.agent.processes import AgentProcess
from tests.daemon.manager import Drop, FakeManager, Refusal
from tests.daemon.processes import wait_for
from tests.daemon.task_host import TaskHost, result_of

MIB = 1 << 20


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.3)


def upload(manager: FakeManager, content: bytes, path: Path, **changed: Any) -> dict[str, Any]:
    manager.files[7] = content
    digest = hashlib.sha256(content).hexdigest()
    order = {"op": "upload", "path": str(path), "file_id": 7, "sha256": digest, "mode": "0640"}
    file = {"id": 7, "size": len(content), "sha256": digest, **changed}
    return {"type": "file", "content": order, "parameters": {}, "timeout": 60, "file": file}


@pytest.mark.parametrize("size", [0, 5, 3 * MIB + 5])
def test_a_file_comes_before_its_task_begins(
    task_host: TaskHost, manager: FakeManager, tmp_path: Path, size: int
) -> None:
    content, target = os.urandom(size), tmp_path / "target"
    result = result_of(manager, manager.send("task.run", upload(manager, content, target)))
    assert result.status == "succeeded", result
    assert target.read_bytes() == content
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.fault
def test_a_broken_transfer_goes_on_where_it_was(task_host: TaskHost, manager: FakeManager, tmp_path: Path) -> None:
    content, target = os.urandom(4 * MIB), tmp_path / "target"
    manager.file_break = 2 * MIB + 100
    left = [2]

    def busy() -> None:
        if left[0]:
            left[0] -= 1
            raise Refusal(1005, "busy", 0)

    manager.faults["files"] = busy
    result = result_of(manager, manager.send("task.run", upload(manager, content, target)), 60)
    assert result.status == "succeeded", result
    assert target.read_bytes() == content
    assert [path for path in manager.paths() if path.startswith("files/")][-1] == f"files/7@{2 * MIB + 100}"


@pytest.mark.fault
def test_a_daemon_that_dies_in_a_transfer_goes_on(task_host: TaskHost, manager: FakeManager, tmp_path: Path) -> None:
    content, target = os.urandom(3 * MIB), tmp_path / "target"

    def refuse() -> None:
        raise Refusal(1005, "busy", 0)

    manager.faults["files"] = refuse
    command = manager.send("task.run", upload(manager, content, target))
    wait_for(lambda: any(path.startswith("files/") for path in manager.paths()), "the transfer")
    again = task_host.killed()
    manager.faults.clear()
    again.start()
    try:
        assert result_of(manager, command, 60).status == "succeeded"
        assert target.read_bytes() == content
    finally:
        again.stop()


def test_a_file_that_does_not_come_fails_its_task(task_host: TaskHost, manager: FakeManager, tmp_path: Path) -> None:
    payload = upload(manager, b"some", tmp_path / "one")
    del manager.files[7]
    result = result_of(manager, manager.send("task.run", payload))
    assert (result.status, result.error_code) == ("failed", "task_failed")
    payload = upload(manager, b"some", tmp_path / "two", sha256="0" * 64)
    result = result_of(manager, manager.send("task.run", payload))
    assert (result.status, result.error_code) == ("failed", "task_failed")

    def drop() -> None:
        raise Refusal(5001, "busy", 0)

    manager.faults["files"] = drop
    result = result_of(manager, manager.send("task.run", upload(manager, b"more", tmp_path / "three"), ttl_s=2))
    assert (result.status, result.error_code) == ("failed", "not_delivered")
    assert not list(tmp_path.glob("t*"))
    result = result_of(manager, manager.send("task.run", upload(manager, b"some", tmp_path / "four", id=0)))
    assert result.error_code == "bad_payload"


def test_a_transfer_is_cancelled(task_host: TaskHost, manager: FakeManager, tmp_path: Path) -> None:
    def busy() -> None:
        raise Refusal(1005, "busy", 0)

    manager.faults["files"] = busy
    command = manager.send("task.run", upload(manager, b"some", tmp_path / "target"))
    wait_for(lambda: any(path.startswith("files/") for path in manager.paths()), "the transfer")
    cancel = manager.send("task.cancel", {"command": command})
    assert result_of(manager, command).status == "cancelled"
    assert result_of(manager, cancel).data == {"was": "waiting"}
    asked = len(manager.paths())
    manager.faults.clear()
    assert result_of(manager, manager.send("ping", {})).status == "succeeded"
    assert not [path for path in manager.paths()[asked + 2 :] if path.startswith("files/")]
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("size", [0, 5, 2 * MIB + 5])
def test_a_file_is_brought_to_the_manager_before_the_result(
    task_host: TaskHost, manager: FakeManager, task_agent: AgentProcess, tmp_path: Path, size: int
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    content = {"op": "download", "path": str(source)}
    command = manager.send("task.run", {"type": "file", "content": content, "parameters": {}, "timeout": 60})
    result = result_of(manager, command)
    assert result.status == "succeeded", result
    assert bytes(manager.fetched[command]) == source.read_bytes()
    wait_for(lambda: task_agent.get(f"task/{command}/status").status == 404, "the agent to forget")


@pytest.mark.fault
def test_a_download_survives_lost_answers_and_a_manager_that_keeps_nothing_so_large(
    task_host: TaskHost, manager: FakeManager, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(2 * MIB))
    content = {"op": "download", "path": str(source)}
    payload = {"type": "file", "content": content, "parameters": {}, "timeout": 60}
    take, left = manager.take_file, [3]

    def lossy(command: str, query: str, raw: bytes) -> tuple[int, Any]:
        answer = take(command, query, raw)
        if left[0]:
            left[0] -= 1
            raise Drop
        return answer

    manager.take_file = lossy  # type: ignore[method-assign]
    command = manager.send("task.run", payload)
    assert result_of(manager, command).status == "succeeded"
    assert bytes(manager.fetched[command]) == source.read_bytes()

    def small(*_: object) -> tuple[int, Any]:
        raise Refusal(1008, "body_too_large")

    manager.take_file = small  # type: ignore[method-assign]
    result = result_of(manager, manager.send("task.run", payload))
    assert (result.status, result.error_code) == ("failed", "task_failed")
    assert "no files of this size" in (result.error or "")
