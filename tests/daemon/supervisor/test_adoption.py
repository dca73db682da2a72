"""Processes that somebody else started: found, watched, and touched only where that is allowed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.processes import wait_for
from tests.daemon.supervisor.box import Box, is_alive


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.supervisor.program.SEARCH_S", 0.2)


@pytest.fixture
def foreign() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", "foreign-mark-4711"]) as process:
        # For a moment it still bears our own name.
        wait_for(lambda: b"foreign-mark" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), "its name")
        yield process
        process.kill()


def test_by_pid_file(box: Box, foreign: subprocess.Popen[bytes], tmp_path: Path) -> None:
    file = tmp_path / "x.pid"
    box.add("one", [], adopt={"pid_file": str(file)})
    box.reaches("one", "stopped")
    file.write_text(f"{foreign.pid}\n")
    assert box.running("one") == foreign.pid
    status = box.status("one")
    assert (status.source, status.desired) == ("adopted", "running")
    assert box.book.kinds() == ["agent.adopted"]


OURS = pytest.param(str(os.getpid()), id="our own process")


@pytest.mark.parametrize("text", ["", "x", "1", "0", "-1", "99999999999999999999", OURS])
def test_a_pid_file_that_means_nobody(box: Box, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.pid").write_text(text)
    box.add("one", [], adopt={"pid_file": str(tmp_path / "x.pid"), "control": True})
    time.sleep(0.6)
    assert box.status("one").pid is None


def test_by_command_line(box: Box, foreign: subprocess.Popen[bytes]) -> None:
    box.add("one", [], adopt={"command_line": r"time\.sleep.* foreign-mark-\d{4}$"})
    assert box.running("one") == foreign.pid


def test_by_name_and_command_line_together(box: Box, foreign: subprocess.Popen[bytes]) -> None:
    name = Path(f"/proc/{foreign.pid}/comm").read_text().strip()
    box.add("wrong", [], adopt={"process": "nginx", "command_line": "foreign-mark"})
    box.add("one", [], adopt={"process": name, "command_line": "foreign-mark"})
    assert box.running("one") == foreign.pid
    assert box.status("wrong").pid is None


def test_one_that_is_only_watched_is_never_touched(box: Box, foreign: subprocess.Popen[bytes]) -> None:
    box.add("one", [], adopt={"command_line": "foreign-mark-4711"}, limits={"memory_bytes": 1 << 20})
    box.running("one")
    assert "only watched" in str(box.order("stop", "one", 2).problem)
    assert "only watched" in str(box.order("restart", "one", 3).problem)
    assert "only watched" in str(box.order("reload", "one", 4).problem)
    box.add("one", [], desired="stopped", seq=9, adopt={"command_line": "foreign-mark-4711"})
    time.sleep(0.5)
    box.remove("one")
    wait_for(lambda: not box.is_there("one"), "its end")
    assert is_alive(foreign.pid)


def test_one_that_may_be_controlled_is_stopped(box: Box, foreign: subprocess.Popen[bytes]) -> None:
    box.add("one", [], adopt={"command_line": "foreign-mark-4711", "control": True})
    box.running("one")
    stopping = box.order("stop", "one", 2)
    assert stopping.problem is None
    assert foreign.wait(5) == -signal.SIGTERM
    assert "no command to start it" in str(box.order("start", "one", 3).problem)


def test_its_end_is_told_and_its_successor_found(box: Box, foreign: subprocess.Popen[bytes]) -> None:
    box.add("one", [], adopt={"command_line": "foreign-mark-4711"})
    first = box.running("one")
    foreign.kill()
    foreign.wait()
    assert box.told("agent.exited").severity == "warning"
    box.reaches("one", "stopped")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", "foreign-mark-4711"]) as again:
        assert box.running("one", first) == again.pid
        again.kill()


def test_one_with_a_start_command_is_adopted_first_and_then_started(box: Box, foreign: subprocess.Popen[bytes]) -> None:
    box.add("one", ["/bin/sleep", "1000"], adopt={"command_line": "foreign-mark-4711", "control": True})
    assert box.running("one") == foreign.pid
    foreign.kill()
    foreign.wait()
    own = box.running("one", foreign.pid)
    assert Path(f"/proc/{own}/cmdline").read_bytes().startswith(b"/bin/sleep")


def test_a_restart_of_the_daemon_finds_it_again(boxes: list[Box], foreign: subprocess.Popen[bytes]) -> None:
    boxes[-1].add("one", [], adopt={"command_line": "foreign-mark-4711"})
    boxes[-1].running("one")
    boxes.append(boxes[-1].restarted())
    boxes[-1].send()
    assert boxes[-1].running("one") == foreign.pid


def test_patterns_that_would_run_for_ever_end_soon(box: Box) -> None:
    long = "ab" * 3000
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", long]) as busy:
        begun = time.monotonic()
        box.add("one", [], adopt={"command_line": "ba.*ba.*nobody-has-this"})
        time.sleep(0.3)
        box.supervisor.check_health("one")
        assert time.monotonic() - begun < 5
        assert box.status("one").pid is None
        busy.kill()


def test_a_pid_file_that_is_a_pipe_keeps_nobody_waiting(box: Box, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pid")
    box.add("one", [], adopt={"pid_file": str(tmp_path / "x.pid")})
    box.add("two", ["/bin/sleep", "1000"])
    box.running("two")
    assert box.status("one").pid is None


@pytest.fixture
def nobody_s() -> Iterator[subprocess.Popen[bytes]]:
    """A process of another user."""
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    with subprocess.Popen(["/bin/sleep", "4711.25"], user="nobody", cwd="/") as process:
        yield process
        process.kill()


def test_whose_process_it_may_be(box: Box, nobody_s: subprocess.Popen[bytes]) -> None:
    line = {"command_line": r"sleep 4711\.25"}
    box.add("controlled", [], adopt={**line, "control": True})
    box.add("root-s", [], user="root", adopt=line)
    box.add("unknown-s", [], user="nobody-at-all", adopt=line)
    box.add("watched", [], adopt=line)
    box.add("nobody-s", [], user="nobody", adopt={**line, "control": True})
    assert box.running("watched") == box.running("nobody-s") == nobody_s.pid
    time.sleep(0.4)
    assert [box.status(name).pid for name in ("controlled", "root-s", "unknown-s")] == [None] * 3


def test_a_pid_file_speaks_for_processes_of_its_owner_alone(
    box: Box, foreign: subprocess.Popen[bytes], nobody_s: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    theirs, path = tmp_path / "theirs.pid", tmp_path / "ours.pid"
    theirs.write_text(f"{foreign.pid}\n")
    os.chown(theirs, 65534, 65534)
    box.add("tricked", [], adopt={"pid_file": str(theirs), "control": True})
    box.add("watching", [], adopt={"pid_file": str(theirs)})
    path.write_text(f"{nobody_s.pid}\n")
    box.add("ours", [], adopt={"pid_file": str(path)})
    assert box.running("ours") == nobody_s.pid
    time.sleep(0.4)
    assert box.status("tricked").pid is box.status("watching").pid is None
    theirs.write_text(f"{nobody_s.pid}\n")
    assert box.running("watching") == nobody_s.pid
