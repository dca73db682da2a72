"""What scripts do to those who run them: floods, silence, deaf processes, runaways. Each in bounded time."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from agent.processes import Family
from tests.agent.processes import AgentProcess, wait_for


def alive(marker: str) -> list[int]:
    """Processes whose command line holds this."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_a_gigabyte_of_output_takes_bounded_time_and_room(agent: AgentProcess) -> None:
    started = time.monotonic()
    flood = "echo first; head -c 1000000000 /dev/zero | tr '\\0' 'x'; echo; echo last"
    found = agent.wait_end(agent.script(flood, timeout=100), 100)
    assert found["status"] == "success"
    assert time.monotonic() - started < 90
    assert found["truncated"] is True
    assert found["stdout_bytes"] == 1000000012
    assert found["stdout"].startswith("first\nxxx")
    assert found["stdout"].endswith("xxx\nlast\n")
    assert "bytes were left out" in found["stdout"]
    assert len(found["stdout"]) < 1100000
    assert sum(path.stat().st_size for path in (agent.state_dir / "executions").iterdir()) < 1200000
    assert int(agent.get("status").data["memory_usage"]) < 50_000_000


def test_the_cut_is_marked_once_and_offsets_stay_true(new_agent: Callable[..., AgentProcess]) -> None:
    agent = new_agent(tasks_output_max_bytes=8192)
    agent.start()
    name = agent.script("i=0; while [ $i -lt 4000 ]; do printf '%06d\\n' $i; i=$((i+1)); done; echo err >&2")
    agent.wait_end(name)
    pieces = [event for event in agent.events(name)["events"] if event["type"] == "output"]
    out = [piece for piece in pieces if piece["stream"] == "stdout"]
    assert [piece["cut"] for piece in pieces].count(True) == 1
    assert agent.status(name)["stdout_bytes"] == 28000
    cut = next(index for index, piece in enumerate(out) if piece["cut"])
    assert out[cut]["data"] == ""
    assert out[-1]["offset"] > out[cut]["offset"]
    assert agent.status(name)["stderr"] == "err\n"
    assert agent.status(name)["stdout"].endswith("003999\n")


def test_output_without_an_end_of_line_and_invalid_utf8(shared_agent: AgentProcess) -> None:
    name = shared_agent.script("printf 'abc\\377\\376\\200'; printf '\\344\\275' >&2; sleep 0.1; printf '\\240' >&2")
    found = shared_agent.wait_end(name)
    assert shared_agent.stream(name) == b"abc\xff\xfe\x80"
    assert found["stdout"] == "abc\ufffd\ufffd\ufffd"
    assert found["stderr"] == "你"


def test_a_script_that_closes_its_streams_is_waited_for(shared_agent: AgentProcess) -> None:
    found = shared_agent.run("echo out; exec 1>&- 2>&-; sleep 0.7; exit 5")
    assert (found["exit_code"], found["stdout"]) == (5, "out\n")
    assert found["duration_ms"] >= 700


def test_both_streams_keep_their_order(shared_agent: AgentProcess) -> None:
    name = shared_agent.script("for i in 1 2 3 4 5; do echo o$i; sleep 0.05; echo e$i >&2; sleep 0.05; done")
    shared_agent.wait_end(name)
    kinds = [event["stream"] for event in shared_agent.events(name)["events"] if event["type"] == "output"]
    assert kinds == ["stdout", "stderr"] * 5


def test_a_full_pipe_stops_nobody(shared_agent: AgentProcess) -> None:
    found = shared_agent.run("head -c 3000000 /dev/zero >&2; head -c 3000000 /dev/zero; echo done")
    assert found["status"] == "success"
    assert (found["stdout_bytes"], found["stderr_bytes"]) == (3000005, 3000000)


def test_a_script_that_ignores_term_is_killed(new_agent: Callable[..., AgentProcess]) -> None:
    agent = new_agent(tasks_kill_grace_s=1)
    agent.start()
    found = agent.run("trap '' TERM; echo deaf; while :; do sleep 1; done", timeout=1)
    assert (found["status"], found["signal"], found["stdout"]) == ("timeout", 9, "deaf\n")
    assert 1900 <= found["duration_ms"] < 6000


def test_a_script_may_clean_up_after_term(shared_agent: AgentProcess) -> None:
    found = shared_agent.run("trap 'echo cleaned; exit 0' TERM; echo on; while :; do sleep 0.1; done", timeout=1)
    assert (found["status"], found["stdout"]) == ("timeout", "on\ncleaned\n")


def test_nothing_that_forked_away_survives_the_deadline(new_agent: Callable[..., AgentProcess], tmp_path: Path) -> None:
    agent = new_agent(tasks_kill_grace_s=1)
    agent.start()
    mark = f"7{os.getpid()}.25"
    script = (
        f"setsid sleep {mark} & "
        f"(setsid sh -c 'trap \"\" TERM; sleep {mark}; sleep {mark}' &) ; "
        f"nohup sleep {mark} >/dev/null 2>&1 & "
        "wait; sleep 60"
    )
    name = agent.script(script, timeout=1)
    wait_for(lambda: len(alive(mark)) >= 3, "runaways")
    assert agent.wait_end(name)["status"] == "timeout"
    assert alive(mark) == []


def test_a_daemon_that_a_script_started_lives_on_and_does_not_hold_it_up(
    shared_agent: AgentProcess, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    script = f"(trap '' HUP; sleep 1.5; echo still; echo alive > {log}) & echo started"
    found = shared_agent.run(script)
    assert (found["status"], found["stdout"]) == ("success", "started\n")
    assert found["duration_ms"] < 1450
    wait_for(log.exists, "the background process", 5)


def test_a_stopped_agent_ends_what_runs_and_says_so(agent: AgentProcess) -> None:
    mark = f"6{os.getpid()}.5"
    name = agent.script(f"echo begun; sleep {mark}; echo never")
    wait_for(lambda: agent.status(name)["stdout"], "the first line")
    assert agent.stop() == 0
    assert alive(mark) == []
    agent.start()
    found = agent.status(name)
    assert (found["status"], found["error_code"], found["stdout"]) == ("interrupted", "interrupted", "begun\n")


def test_what_waits_survives_a_stop_and_then_starts(new_agent: Callable[..., AgentProcess]) -> None:
    agent = new_agent(tasks_max_running=1)
    agent.start()
    first = agent.script("sleep 60")
    waiting = agent.script("echo later")
    agent.stop()
    agent.start()
    assert agent.wait_end(waiting)["stdout"] == "later\n"
    assert agent.status(first)["status"] == "interrupted"


def test_fifty_at_once_are_all_done(shared_agent: AgentProcess) -> None:
    started = time.monotonic()
    ids = [shared_agent.script(f"echo {number}") for number in range(50)]
    assert [shared_agent.wait_end(name)["stdout"] for name in ids] == [f"{number}\n" for number in range(50)]
    assert time.monotonic() - started < 20


def test_a_full_disk_refuses_orders_and_loses_no_result(new_agent: Callable[..., AgentProcess]) -> None:
    agent = new_agent()
    agent.start("-m", "tests.agent.faulty")
    name = agent.script("while [ ! -e /tmp/ops-full-$PPID ]; do sleep 0.02; done; head -c 100000 /dev/zero; exit 4")
    process = agent.process
    assert process is not None
    process.send_signal(signal.SIGUSR1)
    wait_for(lambda: "the disk is full" in agent.output(), "a full disk")
    answer = agent.order("script", {"script": "echo never"})
    assert (answer.status, answer.code) == (500, 5000)
    assert "No space left" in answer.message
    gate = Path(f"/tmp/ops-full-{process.pid}")
    gate.touch()
    try:
        found = agent.wait_end(name)
    finally:
        gate.unlink()
    assert (found["exit_code"], found["truncated"], found["stdout_bytes"]) == (4, True, 100000)
    process.send_signal(signal.SIGUSR2)
    wait_for(lambda: "room again" in agent.output(), "room")
    wait_for(lambda: agent.order("script", {"script": "true"}).status == 202, "another order")
    wait_for(lambda: not agent.get("status").data["executions"], "its end")
    time.sleep(2.5)
    agent.stop(signal.SIGKILL)
    agent.start()
    assert agent.status(name)["exit_code"] == 4


def test_a_reused_pid_is_not_taken_for_the_script() -> None:
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    assert Family("nobody-bears-this-mark", stranger.pid).signal(0) == 1
    family = Family("nobody-bears-this-mark", stranger.pid)
    family._start = 1
    assert family.signal(signal.SIGKILL) == 0
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
    assert family.signal(signal.SIGKILL) == 0
