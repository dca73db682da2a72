"""Real processes: start, stop, restart, groups, crash steps, users, environments, orders."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest

from daemon.supervisor import policy
from tests.daemon.processes import wait_for
from tests.daemon.supervisor.box import Box, is_alive, processes_of, script, shell, timed, zombies_of

SLEEP = ["/bin/sleep", "1000"]


def test_it_starts_what_should_run(box: Box) -> None:
    box.add("one", SLEEP)
    pid = box.running("one")
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"/bin/sleep\x001000\x00"
    status = box.status("one")
    assert (status.desired, status.restart_count, status.source) == ("running", 0, "manager")
    assert status.start_time is not None
    assert box.book.kinds() == ["agent.started"]


def test_what_should_not_run_is_not_started(box: Box) -> None:
    box.add("one", SLEEP, desired="stopped")
    box.reaches("one", "stopped")
    assert box.status("one").pid is None
    assert processes_of(box.directory) == []


def test_stopping_and_starting_by_order(box: Box) -> None:
    box.add("one", SLEEP)
    first = box.running("one")
    answer = box.order("stop", "one", 2)
    assert (answer.problem, answer.status, answer.pid) == (None, "stopped", None)
    assert not is_alive(first)
    answer = box.order("start", "one", 3)
    assert (answer.problem, answer.status) == (None, "running")
    assert answer.pid == box.status("one").pid != first


def test_a_restart_gives_another_process(box: Box) -> None:
    box.add("one", SLEEP)
    first = box.running("one")
    answer = box.order("restart", "one", 2)
    assert answer.problem is None
    assert answer.pid not in (None, first)
    assert not is_alive(first)
    assert box.status("one").restart_count == 0


def test_a_killed_agent_runs_again_at_once(box: Box) -> None:
    box.add("one", SLEEP)
    first = box.running("one")
    os.kill(first, signal.SIGKILL)
    assert timed(lambda: box.running("one", first)) < 2.0
    crash = box.told("agent.crashed")
    assert (crash.data["signal"], crash.data["exit_code"]) == (9, None)
    assert box.status("one").restart_count == 1


def test_the_steps_of_restarts(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "RESTART_STEPS_S", (0.0, 0.2, 0.2, 0.4, 0.4))
    monkeypatch.setattr(policy, "LAST_STEP_S", 0.8)
    box.add("one", shell("echo tried; exit 7"))
    error = box.told("agent.error")
    assert error.severity == "critical"
    assert "code 7" in error.data["last_error"]
    waits = [event.message.rpartition(" in ")[2] for event in box.book.of("agent.restarting")]
    assert waits[0].endswith("at once")
    box.reaches("one", "error")
    crashes = box.book.of("agent.crashed")
    assert len(crashes) >= 6
    assert crashes[0].data["exit_code"] == 7
    assert crashes[0].data["log"][f"{box.directory}/agents/one/output.log"] == ["tried"]
    assert len(box.book.of("agent.error")) == 1
    assert box.order("start", "one", 2).problem == "it does not stay up: exited with code 7: tried"


def test_an_order_to_start_tells_why_it_fails(box: Box) -> None:
    box.add("one", ["/nonexistent/program"], desired="stopped")
    answer = box.order("start", "one", 2)
    assert answer.problem is not None
    assert "not found" in answer.problem
    assert "/nonexistent/program" in str(box.told("agent.crashed").data["log"])


def test_the_whole_group_ends_with_it(box: Box) -> None:
    box.add("one", shell("sleep 1000 & sleep 1001 & wait"))
    pid = box.running("one")
    wait_for(lambda: len(processes_of(box.directory)) == 4, "children")
    box.order("stop", "one", 2)
    assert not is_alive(pid)
    assert processes_of(box.directory) == []


def test_a_child_that_left_the_session_ends_too(box: Box) -> None:
    box.add("one", shell("(setsid sleep 1000 &) ; exec sleep 1001"))
    box.running("one")
    wait_for(lambda: len(processes_of(box.directory)) == 3, "the child")
    box.order("stop", "one", 2)
    assert processes_of(box.directory) == []


def test_leftovers_of_a_crash_are_gone_before_the_next_start(box: Box) -> None:
    box.add("one", shell("sleep 1000 & wait"))
    first = box.running("one")
    wait_for(lambda: len(processes_of(box.directory)) == 3, "the child")
    os.kill(first, signal.SIGKILL)
    box.running("one", first)
    wait_for(lambda: len(processes_of(box.directory)) == 3, "one child again")


def test_one_that_ignores_the_signal_is_killed_after_its_time(box: Box) -> None:
    box.add("one", shell("trap '' TERM; echo ready; while :; do sleep 0.1; done"), stop={"timeout_s": 0.5})
    box.running("one")
    wait_for(lambda: "ready" in box.output("one"), "the trap")
    assert 0.4 < timed(lambda: box.order("stop", "one", 2)) < 5
    assert processes_of(box.directory) == []


def test_a_paused_one_can_be_stopped(box: Box) -> None:
    box.add("one", SLEEP)
    pid = box.running("one")
    os.kill(pid, signal.SIGSTOP)
    assert timed(lambda: box.order("stop", "one", 2)) < 5


def test_a_stop_command_is_used(box: Box) -> None:
    box.add(
        "one", shell("echo $$ >/tmp/sup-$OPS_AGENT.pid; exec sleep 1000"),
        stop={"command": shell("echo asked; kill -USR1 $(cat /tmp/sup-one.pid)")},
    )  # fmt: skip
    box.running("one")
    wait_for(Path("/tmp/sup-one.pid").exists, "its pid")
    assert box.order("stop", "one", 2).problem is None
    assert "signal 10" in box.told("agent.stopped").message
    Path("/tmp/sup-one.pid").unlink()


@pytest.mark.parametrize("user", [None, "nobody"])
def test_signals_have_their_usual_meaning_in_the_agent(box: Box, user: str | None) -> None:
    if user and os.geteuid():
        pytest.skip("only root can become somebody else")
    box.add("one", SLEEP, user=user)
    pid = box.running("one")
    wait_for(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "the program")
    status = Path(f"/proc/{pid}/status").read_text()
    # Signals 32 and 33 are the C library's own, and nobody can give them back.
    assert [int(mask, 16) & ~0x180000000 for mask in re.findall(r"SigIgn:\t(\w+)\n", status)] == [0]
    assert re.search(r"SigBlk:\t0+\n", status)


def test_its_environment_is_clean(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.add("one", shell("env; exec sleep 1000"), env={"COLOUR": "red; echo $HOME 'x'", "LANG": "xx"})
    box.running("one")
    wait_for(lambda: "OPS_RUN" in box.output("one"), "its environment")
    names = dict(line.partition("=")[::2] for line in box.output("one").splitlines())
    assert names["COLOUR"] == "red; echo $HOME 'x'"
    assert names["LANG"] == "xx"
    assert names["OPS_AGENT"] == "one"
    known = {"PATH", "LANG", "LC_ALL", "TZ", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "COLOUR", "_"}
    assert {name for name in names if not name.startswith("OPS_")} <= known
    assert "OPS_SHIM" not in names


MARKED = {
    "LD_PRELOAD": "/nonexistent/marker.so",
    "LD_LIBRARY_PATH": "/nonexistent",
    "COLOUR": "it's\n$HOME 红",
    "HOME": "/own",
}


def environ_of(pid: int) -> dict[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(pair.partition("=")[::2] for pair in raw.split("\0") if pair)


@pytest.mark.parametrize("user", [None, "nobody"])
def test_what_still_runs_as_root_knows_nothing_of_the_manifests_environment(box: Box, user: str | None) -> None:
    if user and os.geteuid():
        pytest.skip("only root can become somebody else")
    box.add("one", SLEEP, user=user, env={**MARKED, "OPS_RUN": "another"})
    pid = box.running("one")
    wait_for(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "the program")
    shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    given = environ_of(shim)
    assert not [name for name in given if name.startswith("LD_")]
    assert "COLOUR" not in given
    found = environ_of(pid)
    assert MARKED.items() <= found.items()
    assert found["OPS_RUN"] == given["OPS_RUN"]
    # The loader says of every program started with it that the library is not there: this was the only one.
    wait_for(lambda: "marker.so" in box.output("one"), "the loader")
    assert box.output("one").count("marker.so") == 1
    os.kill(pid, signal.SIGKILL)
    again = box.running("one", pid)
    wait_for(lambda: Path(f"/proc/{again}/comm").read_text() == "sleep\n", "the program again")
    assert environ_of(again)["COLOUR"] == MARKED["COLOUR"]


@pytest.mark.parametrize("user", [None, "nobody"])
@pytest.mark.parametrize("cwd", [None, "/usr"])
def test_commands_get_the_manifests_environment_with_the_user(box: Box, user: str | None, cwd: str | None) -> None:
    if user and os.geteuid():
        pytest.skip("only root can become somebody else")
    env = {"LD_PRELOAD": "/nonexistent/marker.so", "COLOUR": "red"}
    # More than a pipe takes at once.
    env.update({f"LONG{number}": "x" * 4096 for number in range(30)})
    check = {"kind": "command", "command": shell("echo here; exit 3")}
    box.add("one", SLEEP, user=user, cwd=cwd, env=env, health=[check])
    box.running("one")
    finished = box.supervisor.run("one", shell("echo $COLOUR ${#LONG29}; read -r x || exec id -u"), 10)
    said = finished.out.decode().splitlines()
    assert finished.code == 0
    assert [line for line in said if "marker.so" not in line] == ["red 4096", str(65534 if user else os.geteuid())]
    # The loader says of every program started with it that the library is not there: of `sh` and `id` alone.
    assert len(said) == 4
    assert "marker.so" in box.supervisor.check_health("one")[0].detail


def test_arguments_arrive_as_they_are(box: Box) -> None:
    words = ["", "it's", 'a "b"', "$HOME `id` \\", "two\nlines", "中文", "*"]
    box.add("one", [*script("import sys, time; print(sys.argv[1:]); time.sleep(1000)"), *words], cwd="/usr")
    pid = box.running("one")
    wait_for(lambda: box.output("one"), "its arguments")
    assert box.output("one").strip() == repr(words)
    assert str(Path(f"/proc/{pid}/cwd").readlink()) == "/usr"


def test_the_shim_does_not_look_like_the_agent(box: Box) -> None:
    box.add("one", [*SLEEP], cwd="/usr")
    pid = box.running("one")
    shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    line = Path(f"/proc/{shim}/cmdline").read_bytes()
    assert line.startswith(b"/bin/sh\0")
    assert b"sleep" not in line
    assert b"one" not in line
    assert os.getsid(pid) == os.getpgid(pid) == shim
    assert os.getsid(os.getpid()) != shim


def test_no_descriptor_of_ours_reaches_the_agent(box: Box) -> None:
    box.add("one", SLEEP)
    pid = box.running("one")
    wait_for(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "the program")
    found = {int(fd.name): str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert sorted(found) == [0, 1, 2], found
    assert found[0] == "/dev/null"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_it_runs_as_its_user(box: Box) -> None:
    box.add("one", shell("id -un; id -Gn; echo $HOME; echo again >>/dev/stderr; exec sleep 1000"), user="nobody")
    pid = box.running("one")
    wait_for(lambda: "again" in box.output("one"), "its output")
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"Uid:\t65534\t65534\t65534\t65534", status)
    assert box.output("one").splitlines()[:3] == ["nobody", "nogroup", "/nonexistent"]
    answer = box.order("stop", "one", 2)
    assert answer.problem is None


def test_an_unknown_user_is_said(box: Box) -> None:
    box.add("one", SLEEP, user="nobody-at-all", desired="stopped")
    answer = box.order("start", "one", 2)
    assert "125" in str(answer.problem)
    assert "there is no user nobody-at-all" in str(box.told("agent.crashed").data["log"])


def test_old_orders_do_not_undo_newer_ones(box: Box) -> None:
    box.add("one", SLEEP, seq=5)
    box.running("one")
    assert box.order("stop", "one", 7).problem is None
    assert "newer" in str(box.order("start", "one", 6).problem)
    # Settings that were on their way meanwhile say the old thing.
    box.add("one", SLEEP, desired="running", seq=6)
    time.sleep(0.3)
    assert box.status("one").status == "stopped"
    box.add("one", SLEEP, desired="running", seq=8)
    box.running("one")


def test_an_order_for_an_agent_that_is_still_on_its_way(box: Box) -> None:
    box.add("other", SLEEP, desired="stopped")
    answers: list[object] = []
    box.supervisor.order("start", "late", 1, answers.append)
    time.sleep(0.2)
    assert answers == []
    box.add("late", SLEEP, desired="stopped", seq=0)
    wait_for(lambda: answers, "the answer")
    assert answers[0].problem is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("detached", ["end", "leave"])
@pytest.mark.parametrize("end", ["crash", "stop", "kill"])
def test_what_went_its_own_way_ends_with_the_agent_or_is_left_alone(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detached: str, end: str
) -> None:
    monkeypatch.setattr("daemon.supervisor.supervisor.SAMPLE_S", 0.1)
    file, deaf = tmp_path / "pid", "trap '' TERM; " if end == "kill" else ""
    own = f"(setsid sh -c 'echo $$ > {file}.new; mv {file}.new {file}; exec sleep 1000' &)"
    loop = "while :; do sleep 0.05; done"
    child = f"(setsid sh -c 'echo $$ > {file}.child; {deaf}{loop}' & wait) &"
    box.add("one", shell(f"{deaf}{own}; {child} {loop}"), stop={"timeout_s": 1, "detached": detached})
    pid = box.running("one")
    wait_for(file.exists, "the one that goes its own way")
    left = int(file.read_text())
    other = Path(f"{file}.child")
    still_its = int(wait_for(lambda: other.exists() and other.read_text(), "a child"))
    # Seen by the supervisor, perhaps as one of its own.
    meter = box.supervisor._programs["one"]._lifetime.meter
    wait_for(lambda: still_its in {one.pid for one in meter.known()}, "a look")
    assert (left in {one.pid for one in meter.known()}) == (detached == "end")
    try:
        if end == "crash":
            os.kill(pid, signal.SIGKILL)
            box.running("one", pid)
        else:
            assert box.order("stop", "one", 2).problem is None
        assert is_alive(left) == (detached == "leave")
        if end == "kill":
            assert not is_alive(still_its)
    finally:
        for process in (left, still_its):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def test_an_order_for_nobody_fails(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.supervisor.supervisor.UNKNOWN_S", 0.2)
    assert "no agent nobody" in str(box.order("start", "nobody", 1).problem)


def test_a_removed_agent_is_stopped_and_its_files_go(box: Box) -> None:
    box.add("one", SLEEP)
    pid = box.running("one")
    box.remove("one")
    wait_for(lambda: not box.is_there("one"), "its end")
    assert not is_alive(pid)
    wait_for(lambda: not (box.directory / "agents" / "one").exists(), "its files to go")


def test_the_host_s_own_agents_win(box: Box) -> None:
    box.host({"name": "one", "type": "custom", "start": ["/bin/sleep", "7"]})
    box.add("one", SLEEP, desired="stopped")
    pid = box.running("one")
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"/bin/sleep\x007\x00"
    assert box.status("one").source == "host"
    assert box.supervisor.is_local("one")
    # It may be stopped all the same, and that is kept.
    assert box.order("stop", "one", 3).problem is None


def test_a_manifest_that_makes_no_sense_costs_only_itself(box: Box) -> None:
    bad = {"name": "bad", "desired": "running", "seq": 1, "source": "manager", "manifest": {"name": "bad"}}
    box.entries["bad"] = bad
    box.add("good", SLEEP)
    box.running("good")
    assert "bad" in box.told("agent.error").message
    box.send()
    box.send()
    assert len(box.book.of("agent.error")) == 1


def test_a_hundred_cycles_leave_nothing_behind(box: Box) -> None:
    repeats = int(os.environ.get("OPS_TEST_REPEATS", "5"))
    before = set(zombies_of(os.getpid()))
    box.add("one", shell("sleep 1000 & exec sleep 1001"), desired="stopped")
    for _ in range(repeats):
        assert box.order("start", "one").problem is None
        assert box.order("stop", "one").problem is None
    assert processes_of(box.directory) == []
    # Supervisors of earlier tests, which left like a killed Daemon, could not reap theirs.
    assert set(zombies_of(os.getpid())) <= before


def test_reload_by_signal_and_by_command(box: Box) -> None:
    code = "trap 'echo again' HUP; echo ready; while :; do sleep 0.05; done"
    box.add("one", shell(code), reload={"signal": "HUP"})
    box.add("two", SLEEP, reload={"command": shell("echo no; exit 3")})
    box.add("three", SLEEP)
    box.running("one"), box.running("two"), box.running("three")
    wait_for(lambda: "ready" in box.output("one"), "the trap")
    assert box.order("reload", "one").problem is None
    wait_for(lambda: "again" in box.output("one"), "the reload")
    assert "no" in str(box.order("reload", "two").problem)
    assert "no way to reload" in str(box.order("reload", "three").problem)


def test_the_version_is_asked_for(box: Box) -> None:
    box.add("one", SLEEP, version=["/bin/sleep", "--version"])
    box.running("one")
    wait_for(lambda: box.status("one").version, "the version")
    assert re.fullmatch(r"\d+\.\d+", box.status("one").version or "")


def test_usage_is_measured(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.supervisor.supervisor.SAMPLE_S", 0.3)
    box.add("one", shell("sleep 1000 & while :; do :; done"), limits={"cpu_percent": None})
    box.running("one")
    wait_for(lambda: (box.status("one").cpu_usage or 0) > 20, "CPU")
    assert (box.status("one").memory_usage or 0) > 500_000


def test_without_pidfds_an_exit_is_noticed_within_a_second(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.system._pidfd_open", None)
    box.add("one", SLEEP)
    first = box.running("one")
    os.kill(first, signal.SIGKILL)
    assert timed(lambda: box.running("one", first)) < 1.5


def test_a_full_disk_stops_no_agent(box: Box) -> None:
    box.add("one", SLEEP)
    pid = box.running("one")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    box.system.write = full  # type: ignore[method-assign, assignment]
    os.kill(pid, signal.SIGKILL)
    crash = box.told("agent.crashed", 2)
    assert "No space left" in crash.message
    box.reaches("one", "backoff")
    del box.system.write
    assert box.order("start", "one", 2).problem is None


def test_a_stopped_shim_does_not_hold_up_its_agent(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.supervisor.lifetime.ENDING_S", 0.3)
    box.add("one", SLEEP)
    pid = box.running("one")
    shim = int((box.directory / "agents/one/shim").read_text().split()[1])
    os.kill(shim, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    box.running("one", pid)
    wait_for(lambda: not is_alive(shim), "the end of the shim")


def test_the_host_decides_whether_the_manager_may_run_commands(tmp_path: Path) -> None:
    box = Box(tmp_path / "state", forbids=lambda user: "not as root" if user is None else None)
    try:
        health = [{"kind": "command", "command": ["/bin/true"]}]
        box.host({"name": "own", "type": "custom", "start": SLEEP, "health": health})
        box.add("theirs", SLEEP, desired="stopped")
        box.add("watched", [], adopt={"pid_file": str(tmp_path / "pid")}, health=health, version=["/bin/true"])
        box.running("own")
        assert "not as root" in str(box.order("start", "theirs", 2).problem)
        assert [check.ok for check in box.supervisor.check_health("own")] == [True]
        (tmp_path / "pid").write_text(str(box.status("own").pid))
        box.running("watched")
        assert [check.detail for check in box.supervisor.check_health("watched")] == ["not as root"]
        assert processes_of(box.directory) != []
    finally:
        box.close()
