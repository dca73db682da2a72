"""Limits of CPU and memory: the arithmetic, and real programs that run away or keep quiet."""

import os
from pathlib import Path

import pytest

from daemon.supervisor.limits import CURVE_POINTS, Watch
from daemon.supervisor.processes import Identity, Meter, Process, Usage, members, parse_stat
from protocol.manifests import Limits
from tests.daemon.processes import wait_for
from tests.daemon.supervisor.box import Box, script, shell

REPEATS = int(os.environ.get("OPS_TEST_REPEATS", "3"))
MIB = 1 << 20


def process(pid: int, ppid: int = 1, start: int = 5, ticks: int = 0, child_ticks: int = 0, **more: int) -> Process:
    return Process(pid, ppid, more.get("group", pid), more.get("session", pid), start, ticks, child_ticks, MIB, False)


def table(*processes: Process) -> dict[int, Process]:
    return {one.pid: one for one in processes}


# ---- who belongs to it


def test_members_are_the_session_the_group_and_all_descendants() -> None:
    found = members(
        table(
            process(10),
            process(11, 10, session=10),
            process(12, 1, session=10),
            process(13, 11),
            process(14, 13),
            process(15, 1, group=10),
            process(20),
            process(21, 20),
        ),
        [Identity(10, 5)],
    )
    assert sorted(one.pid for one in found) == [10, 11, 12, 13, 14, 15]


def test_a_later_owner_of_the_pid_is_not_meant() -> None:
    assert members(table(process(10, start=99), process(11, 10, session=10)), [Identity(10, 5)]) == []


def test_orphans_of_a_dead_leader_are_found() -> None:
    assert [one.pid for one in members(table(process(11, 1, session=10)), [Identity(10, 5)])] == [11]


@pytest.mark.parametrize("name", [b"sleep", b"a) b (c", b"1 2 3", b""])
def test_names_may_hold_anything(name: bytes) -> None:
    line = b"7 (" + name + b") S 1 2 3 0 -1 0 0 0 0 0 11 22 33 44 20 0 1 0 555 1000 5 0 0 0"
    found = parse_stat(line)
    assert found is not None
    assert (found.pid, found.ppid, found.group, found.session, found.start) == (7, 1, 2, 3, 555)
    assert (found.ticks, found.child_ticks) == (33, 77)


def test_half_a_line_is_no_process() -> None:
    assert parse_stat(b"") is None
    assert parse_stat(b"7 (x) S 1 2") is None


# ---- CPU of a group


def test_time_of_children_counts_once() -> None:
    meter = Meter()
    assert meter.look([process(1, ticks=0)], 0.0).cpu_percent is None
    # A child appears and burns a second in two.
    assert meter.look([process(1), process(2, 1, ticks=100)], 2.0).cpu_percent == 50.0
    # It burns another second, ends, and its parent takes over its time.
    assert meter.look([process(1, child_ticks=200)], 4.0).cpu_percent == 50.0
    # Nothing more happens.
    assert meter.look([process(1, child_ticks=200)], 6.0).cpu_percent == 0.0


def test_a_child_that_vanishes_without_heir_does_not_make_time_run_back() -> None:
    meter = Meter()
    meter.look([process(1), process(2, ticks=500)], 0.0)
    assert meter.look([process(1, ticks=100)], 1.0).cpu_percent == 100.0


def test_a_short_lived_child_is_seen_by_its_parent_s_account() -> None:
    meter = Meter()
    meter.look([process(1)], 0.0)
    assert meter.look([process(1, child_ticks=90)], 1.0).cpu_percent == 90.0


def test_a_reused_pid_starts_from_nothing() -> None:
    meter = Meter()
    meter.look([process(1), process(2, start=5, ticks=500)], 0.0)
    assert meter.look([process(1), process(2, start=9, ticks=10)], 1.0).cpu_percent == 10.0


# ---- limits


def looked(watch: Watch, cpu: float | None, memory: int, now: float, limits: Limits) -> str | None:
    excess = watch.look(Usage(cpu, memory), limits, now, memory)
    return None if excess is None else excess.what


def test_cpu_must_be_above_all_the_time() -> None:
    watch, limits = Watch(), Limits(50.0, 60.0, None, "restart")
    for now in range(0, 60, 5):
        assert looked(watch, 90.0, 0, float(now), limits) is None
    assert looked(watch, 49.0, 0, 60.0, limits) is None
    # The measurement at 65 speaks for the time since 60.
    found = {now: looked(watch, 90.0, 0, float(now), limits) for now in range(65, 125, 5)}
    assert [now for now, what in found.items() if what] == [120]


def test_memory_is_judged_at_once_and_its_limit_may_be_missing() -> None:
    watch = Watch()
    assert looked(watch, 0.0, 10 * MIB, 0.0, Limits(None, 60.0, 10 * MIB, "restart")) is None
    assert looked(watch, 0.0, 10 * MIB + 1, 5.0, Limits(None, 60.0, 10 * MIB, "restart")) == "memory"
    assert looked(watch, 1e5, 1 << 40, 500.0, Limits(None, 1.0, None, "restart")) is None


def test_one_that_only_alerts_tells_once_until_it_is_over() -> None:
    watch, limits = Watch(), Limits(50.0, 5.0, 10 * MIB, "alert")
    values = [(90.0, 1), (90.0, 1), (90.0, 1), (10.0, 1), (90.0, 1), (90.0, 1), (10.0, 99 * MIB), (10.0, 99 * MIB)]
    found = [looked(watch, cpu, memory, 5.0 * n, limits) for n, (cpu, memory) in enumerate(values)]
    assert found == [None, "cpu", None, None, "cpu", None, "memory", None]


def test_the_curve_is_bounded() -> None:
    watch = Watch()
    for now in range(3 * CURVE_POINTS):
        looked(watch, None if now % 2 else 5.0, now, float(now), Limits(None, 1.0, None, "alert"))
    curve = watch.curve(3.0 * CURVE_POINTS)
    assert len(curve) == CURVE_POINTS
    assert curve[-1] == [-1.0, None, float(3 * CURVE_POINTS - 1)]
    assert curve[-2] == [-2.0, 5.0, float(3 * CURVE_POINTS - 2)]


# ---- real ones


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.supervisor.supervisor.SAMPLE_S", 0.25)
    monkeypatch.setattr("daemon.supervisor.supervisor.SAMPLE_SHARE", 5.0)


@pytest.mark.usefixtures("often")
def test_runaways_are_restarted_and_quiet_ones_left_alone(box: Box) -> None:
    cpu = {"cpu_percent": 20, "cpu_for_s": 1.5}
    box.add("burns", shell("while :; do :; done"), limits=cpu)
    child = "n=0; while [ $n -lt 9999 ]; do n=$((n+1)); done"
    box.add("burns-in-children", shell(f"while :; do sh -c '{child}'; done"), limits=cpu)
    leak = "x=[]\nimport time\nwhile 1:\n x.append(bytearray(1<<20)); time.sleep(0.02)"
    box.add("grows", script(leak), limits={"memory_bytes": 60 * MIB, "cpu_percent": None})
    for number in range(REPEATS):
        box.add(f"quiet-{number}", ["/bin/sleep", "1000"], limits={**cpu, "memory_bytes": 20 * MIB})
    quiet = {name: box.running(name) for name in box.entries if name.startswith("quiet")}
    for name, what in (("burns", "cpu"), ("burns-in-children", "cpu"), ("grows", "memory")):
        limit = wait_for(
            lambda wanted=name: [event for event in box.book.of("agent.limit") if event.data["agent"] == wanted],
            f"the limit of {name}",
        )[0]
        assert (limit.data["what"], limit.data["action"]) == (what, "restart")
        assert limit.data["curve"]
        wait_for(lambda wanted=name: box.status(wanted).restart_count >= 1, f"the restart of {name}")
    assert {event.data["agent"] for event in box.book.of("agent.limit")} == {"burns", "burns-in-children", "grows"}
    assert {name: box.status(name).pid for name in quiet} == quiet


@pytest.mark.usefixtures("often")
def test_one_that_may_only_alert_runs_on(box: Box) -> None:
    code = "x=bytearray(60<<20)\nimport time; time.sleep(1000)"
    box.add("one", script(code), limits={"memory_bytes": 30 * MIB, "action": "alert"})
    pid = box.running("one")
    box.told("agent.limit")
    assert "more than 30 MiB" in (box.status("one").last_error or "")
    assert box.running("one") == pid
    assert len(box.book.of("agent.limit")) == 1


@pytest.mark.usefixtures("often")
def test_pages_that_are_shared_count_once(box: Box) -> None:
    """Four processes over the same 40 MiB: 160 MiB of resident pages, 40 MiB of memory."""
    code = "import os, time\nx=bytearray(40<<20)\nfor _ in range(3):\n os.fork() or time.sleep(1e3)\ntime.sleep(1e3)"
    box.add("one", script(code), limits={"memory_bytes": 90 * MIB, "cpu_percent": None})
    pid = box.running("one")
    wait_for(lambda: (box.status("one").memory_usage or 0) > 120 * MIB, "four processes")
    wait_for(lambda: Path(f"/proc/{pid}/smaps_rollup").exists(), "shares")
    for _ in range(3):
        box.supervisor.check_health("one")
    assert box.status("one").pid == pid
    assert box.book.of("agent.limit") == []
