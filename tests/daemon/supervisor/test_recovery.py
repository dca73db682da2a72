"""Agents outlive the Daemon: found again after a kill, a restart, a reboot; started exactly once."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from daemon.supervisor.processes import Identity
from daemon.supervisor.runs import RunFiles
from daemon.system import System
from tests.daemon.processes import wait_for
from tests.daemon.supervisor.box import Box, is_alive, processes_of, shell

SLEEP = ["/bin/sleep", "1000"]


def test_a_restart_of_the_daemon_finds_it_again(boxes: list[Box]) -> None:
    boxes[-1].add("one", SLEEP)
    pid = boxes[-1].running("one")
    started = boxes[-1].status("one").start_time
    boxes.append(boxes[-1].restarted())
    boxes[-1].send()
    assert boxes[-1].running("one") == pid
    assert boxes[-1].status("one").start_time == started
    assert boxes[-1].book.kinds() == []
    # It is under control as before.
    os.kill(pid, signal.SIGKILL)
    boxes[-1].running("one", pid)
    assert boxes[-1].told("agent.crashed").data["signal"] == 9


def test_what_happened_meanwhile_is_told_with_its_true_time(boxes: list[Box]) -> None:
    boxes[-1].add("one", shell("echo last words; sleep 1000; exit 3"))
    pid = boxes[-1].running("one")
    wait_for(lambda: len(processes_of(boxes[-1].directory)) == 3, "its child")
    boxes[-1].leave()
    (child,) = {*processes_of(boxes[-1].directory)} - {pid} - set(shims(boxes[-1]))
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid), "its end")
    time.sleep(1.5)
    boxes.append(boxes[-1].restarted())
    boxes[-1].send()
    crash = boxes[-1].told("agent.crashed")
    assert crash.data["exit_code"] == 3
    assert 1.3 < crash.ago_s < 10
    assert any("last words" in line for lines in crash.data["log"].values() for line in lines)
    assert boxes[-1].running("one") != pid
    # And only once.
    boxes.append(boxes[-1].restarted())
    boxes[-1].send()
    boxes[-1].running("one")
    assert boxes[-1].book.kinds() == []


def shims(box: Box) -> list[int]:
    return [int(path.read_text().split()[1]) for path in box.directory.glob("agents/*/shim")]


def test_what_was_stopped_stays_stopped(boxes: list[Box]) -> None:
    boxes[-1].add("one", SLEEP)
    boxes[-1].running("one")
    boxes[-1].order("stop", "one", 2)
    boxes.append(boxes[-1].restarted())
    boxes[-1].send()
    boxes[-1].reaches("one", "stopped")
    time.sleep(0.3)
    assert processes_of(boxes[-1].directory) == []


def test_after_a_reboot_runs_what_should_run(boxes: list[Box]) -> None:
    box = boxes[-1]
    box.add("one", SLEEP)
    box.add("two", SLEEP, desired="stopped")
    box.add("three", SLEEP)
    box.running("one"), box.running("three")
    box.order("stop", "three", 2)
    box.leave()
    for pid in processes_of(box.directory):
        os.kill(pid, signal.SIGKILL)
    boxes.append(box.restarted(boot_id="another-boot"))
    boxes[-1].send()
    boxes[-1].running("one")
    assert boxes[-1].status("two").status == "stopped"
    assert boxes[-1].status("three").status == "stopped"
    assert boxes[-1].book.kinds() == ["agent.started"]
    assert boxes[-1].status("one").restart_count == 0


def test_a_reused_pid_is_never_mistaken(boxes: list[Box]) -> None:
    boxes[-1].add("one", SLEEP)
    pid = boxes[-1].running("one")
    boxes[-1].leave()
    directory = boxes[-1].directory / "agents" / "one"
    run, _, start = (directory / "pid").read_text().split()
    for found in processes_of(boxes[-1].directory):
        os.kill(found, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid), "its end")
    # Somebody else has the pid now: ourselves.
    (directory / "pid").write_text(f"{run} {os.getpid()} {start}\n")
    boxes.append(boxes[-1].restarted())
    boxes[-1].send()
    assert boxes[-1].running("one") not in (pid, os.getpid())
    assert is_alive(os.getpid())


def test_a_killed_shim_does_not_hide_its_agent(boxes: list[Box]) -> None:
    boxes[-1].add("one", SLEEP)
    pid = boxes[-1].running("one")
    os.kill(shims(boxes[-1])[0], signal.SIGKILL)
    time.sleep(0.2)
    assert boxes[-1].status("one").pid == pid
    boxes.append(boxes[-1].restarted())
    boxes[-1].send()
    assert boxes[-1].running("one") == pid
    os.kill(pid, signal.SIGKILL)
    boxes[-1].running("one", pid)
    assert "not known" in boxes[-1].told("agent.crashed").message
    wait_for(lambda: len(processes_of(boxes[-1].directory)) == 2, "one agent and one shim")


def test_lost_settings_stop_nothing(boxes: list[Box]) -> None:
    boxes[-1].add("one", SLEEP)
    pid = boxes[-1].running("one")
    boxes.append(boxes[-1].restarted())
    boxes[-1].supervisor.use_settings(0, ())
    assert boxes[-1].running("one") == pid
    os.kill(pid, signal.SIGKILL)
    boxes[-1].running("one", pid)


def test_an_agent_removed_while_the_daemon_was_away_is_stopped(boxes: list[Box]) -> None:
    boxes[-1].add("one", SLEEP)
    pid = boxes[-1].running("one")
    boxes.append(boxes[-1].restarted())
    boxes[-1].entries.clear()
    boxes[-1].send()
    wait_for(lambda: not is_alive(pid), "its end")
    wait_for(lambda: not (boxes[-1].directory / "agents" / "one").exists(), "its files to go")


def test_damaged_records_do_not_stop_the_start(boxes: list[Box]) -> None:
    boxes[-1].add("one", SLEEP)
    pid = boxes[-1].running("one")
    boxes[-1].leave()
    (boxes[-1].directory / "agents" / "_desired.json").write_text('{"one": [')
    boxes.append(boxes[-1].restarted())
    boxes[-1].send()
    assert boxes[-1].running("one") == pid


def test_a_start_that_is_under_way_is_not_begun_twice(boxes: list[Box]) -> None:
    """The Daemon died between the fork and the first word of the shim: only the lock tells."""
    box = boxes[-1]
    box.add("one", SLEEP)
    pid = box.running("one")
    box.leave()
    directory = box.directory / "agents" / "one"
    record = (directory / "pid").read_text()
    (directory / "pid").unlink()
    boxes.append(box.restarted())
    boxes[-1].send()
    time.sleep(0.5)
    assert boxes[-1].status("one").status == "starting"
    assert len(processes_of(box.directory)) == 2
    (directory / "pid").write_text(record)
    assert boxes[-1].running("one") == pid


def test_the_restart_count_survives_the_daemon(boxes: list[Box]) -> None:
    boxes[-1].add("one", shell("sleep 0.1; exit 1"))
    boxes[-1].reaches("one", "backoff")
    count = boxes[-1].status("one").restart_count
    assert count == 2
    boxes.append(boxes[-1].restarted())
    boxes[-1].send()
    wait_for(lambda: boxes[-1].is_there("one") and boxes[-1].status("one").restart_count > count, "the next one")


def test_notes_of_another_version_of_the_daemon_are_understood(boxes: list[Box]) -> None:
    boxes[-1].add("one", SLEEP)
    pid = boxes[-1].running("one")
    boxes[-1].leave()
    path = boxes[-1].directory / "agents" / "one" / "run.json"
    note = json.loads(path.read_text())
    del note["config_version"], note["restarts"]
    path.write_text(json.dumps({**note, "colour": "red"}))
    boxes.append(boxes[-1].restarted())
    boxes[-1].send()
    assert boxes[-1].running("one") == pid


def test_a_lost_note_does_not_hide_the_agent(boxes: list[Box]) -> None:
    boxes[-1].add("one", SLEEP)
    pid = boxes[-1].running("one")
    boxes[-1].leave()
    (boxes[-1].directory / "agents" / "one" / "run.json").unlink()
    boxes.append(boxes[-1].restarted())
    boxes[-1].send()
    assert boxes[-1].running("one") == pid
    assert len(processes_of(boxes[-1].directory)) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"run": 5}', '{"run": "a", "boot_id": "b", "restarts": "x"}'])
def test_notes_that_make_no_sense_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert RunFiles(System(), str(tmp_path)).read_note() is None


def test_words_of_an_earlier_run_are_not_taken(tmp_path: Path) -> None:
    files = RunFiles(System(), str(tmp_path))
    (tmp_path / "pid").write_text("abc 12 345\n")
    (tmp_path / "exit").write_text("abc 137 345.25\n")
    assert files.agent("abc") == Identity(12, 345)
    assert files.ended("abc") == (None, 9, 345.25)
    assert files.agent("other") is None
    assert files.ended("other") is None
    for text in ("abc 12 345", "abc x 345\n", "abc 12\n", "\n", ""):
        (tmp_path / "pid").write_text(text)
        assert files.agent("abc") is None


def test_stopping_the_daemon_with_its_agents(boxes: list[Box]) -> None:
    box = boxes[-1]
    for number in range(5):
        box.add(f"a{number}", shell("trap 'sleep 0.3; exit' TERM; while :; do sleep 0.05; done"))
    for number in range(5):
        box.running(f"a{number}")
    begun = time.monotonic()
    box.supervisor.stop(6, with_agents=True)
    assert time.monotonic() - begun < 3
    assert processes_of(box.directory) == []
    # They should run: the next start brings them back.
    boxes.append(box.restarted())
    boxes[-1].send()
    boxes[-1].running("a4")


def test_stopping_with_a_stubborn_agent_ends_in_time(boxes: list[Box]) -> None:
    box = boxes[-1]
    box.add("one", shell("trap '' TERM; while :; do sleep 0.05; done"), stop={"timeout_s": 60})
    box.running("one")
    begun = time.monotonic()
    box.supervisor.stop(1, with_agents=True)
    assert time.monotonic() - begun < 4
    assert processes_of(box.directory) == []
