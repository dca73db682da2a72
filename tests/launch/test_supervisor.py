"""How the launcher keeps processes: their lines, restarts, order and end. The parts are shell scripts here."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.launch.started import MARK, Started, module, processes_with
from tests.services import ROOT, wait_for

IDLE = "while :; do sleep 0.05; done"


def tells(name: str, directory: Path, then: str = "exit 0") -> str:
    """A part that writes down when it is asked to stop."""
    return f"trap 'echo {name} >> {directory}/order; {then}' TERM; echo {name} is up; {IDLE}"


Start = Callable[..., Started]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Started] = []

    def start_one(*processes: tuple[str, str, str], **environment: str) -> Started:
        command = module("tests.launch.fake_manager", json.dumps(processes))
        made = Started(command, os.environ | environment, uuid4().hex)
        started.append(made)
        return made

    yield start_one
    for made in started:
        made.close()


def order(directory: Path) -> list[str]:
    path = directory / "order"
    return path.read_text().split() if path.exists() else []


def test_lines_carry_the_name_of_who_wrote_them(start):
    it = start(
        ("web", "WEB", f"echo one; echo two >&2; printf 'no end'; {IDLE}"),
        ("gateway", "GATEWAY", f"echo three; {IDLE}"),
    )
    for text in ("web       | one\n", "web       | two\n", "gateway   | three\n", "manager   | ready\n"):
        it.wait_for_line(text)
    it.stop()
    assert "web       | no end\n" in it.output


def test_small_talk_is_not_shown(start):
    it = start(("redis", "REDIS", f"echo small talk of the weather; echo news; {IDLE}"))
    it.wait_for_line("redis     | news")
    assert "weather" not in it.output


def test_bytes_that_are_no_text_are_passed_on(start):
    it = start(("web", "WEB", f"printf 'a\\377b\\n'; {IDLE}"))
    it.wait_for_line("web       | a")
    it.stop()
    assert b"web       | a\xffb\n" in it._output


def test_a_line_without_end_does_not_fill_the_memory(start):
    it = start(("web", "WEB", "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo done; " + IDLE))
    it.wait_for_line("web       | done")
    assert it.output.count("x") == 3_000_000


def test_what_ends_is_started_again_with_longer_and_longer_pauses(start):
    it = start(("web", "WEB", "sleep 0.2; echo up; exit 3"))
    it.wait_for_line("up", count=4)
    said = [line for line in it.lines if "starting it again" in line]
    assert said[:3] == [
        f"manager   | web ended with exit code 3; starting it again in {pause} s" for pause in ("0.5", "1", "2")
    ]
    moments = it.moments("| up")
    assert 0.5 < moments[1] - moments[0] < 1.0 < moments[2] - moments[1] < 2.0 < moments[3] - moments[2] < 4.0


def test_pauses_are_short_again_after_a_quiet_time(start):
    it = start(("web", "WEB", "sleep 0.3; echo up; exit 3"), QUIET_S="0.1")
    it.wait_for_line("up", count=4)
    assert {line.split()[-2] for line in it.lines if "starting it again" in line} == {"0.5"}


def test_who_was_killed_is_said_so(start):
    it = start(("web", "WEB", "kill -9 $$"))
    it.wait_for_line("web was killed by SIGKILL; starting it again in 0.5 s")


def test_stopping_goes_backwards_stage_by_stage(start, tmp_path):
    names = [("redis", "REDIS"), ("gateway", "GATEWAY"), ("web", "WEB"), ("worker", "JOBS"), ("host", "HOST")]
    it = start(*[(name, stage, tells(name, tmp_path, "sleep 0.2; exit 0")) for name, stage in names])
    for name, _ in names:
        it.wait_for_line(f"{name} is up")
    assert it.stop() == 0
    assert order(tmp_path) == ["host", "worker", "web", "gateway", "redis"]
    assert it.lines[-1] == "manager   | stopped"
    assert it.processes() == {}


def test_parts_of_one_stage_stop_together(start, tmp_path):
    it = start(*[(f"worker-{n}", "JOBS", tells(f"worker-{n}", tmp_path, "sleep 1; exit 0")) for n in range(4)])
    for n in range(4):
        it.wait_for_line(f"worker-{n} is up")
    began = time.monotonic()
    it.stop()
    assert time.monotonic() - began < 20


@pytest.fixture
def hears_hangups():
    """What is started hears them, also if somebody runs the tests under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_of_the_usual_signals_stops(start, tmp_path, number):
    it = start(("web", "WEB", tells("web", tmp_path)))
    it.wait_for_line("web is up")
    assert it.stop(number) == 0
    assert order(tmp_path) == ["web"]


def test_a_lost_terminal_is_no_reason_to_stop_under_nohup(tmp_path):
    table = json.dumps([("web", "WEB", tells("web", tmp_path))])
    command = ["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", *module("tests.launch.fake_manager", table)]
    it = Started(command, os.environ, uuid4().hex)
    try:
        it.wait_for_line("web is up")
        it.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert it.process.poll() is None
        assert it.stop() == 0
    finally:
        it.close()


def test_who_does_not_stop_is_killed_after_its_grace(start, tmp_path):
    it = start(("web", "WEB", f"trap '' TERM; echo web is up; {IDLE}"), ("redis", "REDIS", tells("redis", tmp_path)))
    it.wait_for_line("web is up")
    it.wait_for_line("redis is up")
    began = time.monotonic()
    assert it.stop() == 0
    assert 2 <= time.monotonic() - began < 20
    assert order(tmp_path) == ["redis"]


def test_a_second_signal_makes_it_short(start):
    it = start(("web", "WEB", f"trap 'echo asked' TERM; echo web is up; {IDLE}"))
    it.wait_for_line("web is up")
    it.process.send_signal(signal.SIGINT)
    it.wait_for_line("asked")
    began = time.monotonic()
    assert it.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 20


def test_who_was_paused_stops_too(start, tmp_path):
    it = start(("web", "WEB", tells("web", tmp_path)))
    it.wait_for_line("web is up")
    os.kill(
        next(pid for pid, command in it.processes().items() if "echo web" in command and "fake" not in command),
        signal.SIGSTOP,
    )
    assert it.stop() == 0
    assert order(tmp_path) == ["web"]


def test_what_a_part_left_behind_goes_with_it(start):
    it = start(("web", "WEB", "(trap '' TERM HUP; exec sleep 1000) & echo web is up; sleep 0.3; exit 1"))
    it.wait_for_line("web is up", count=2)
    wait_for(lambda: sum("sleep 1000" in command for command in it.processes().values()) <= 1, 10, "the first to go")
    it.stop()
    assert it.processes() == {}


@pytest.mark.fault
def test_a_killed_launcher_leaves_no_orphan(start, tmp_path):
    names = [("redis", "REDIS"), ("web", "WEB"), ("worker", "JOBS")]
    it = start(*[(name, stage, tells(name, tmp_path)) for name, stage in names])
    for name, _ in names:
        it.wait_for_line(f"{name} is up")
    assert len([command for command in it.processes().values() if "is up" in command]) >= 3
    it.process.kill()
    it.process.wait()
    wait_for(lambda: not it.processes(), 30, "all to be gone")


def test_nobody_reads_any_more(tmp_path):
    """`make run | head -3` must not leave a Manager behind that nobody sees."""
    mark = uuid4().hex
    table = json.dumps(
        [("web", "WEB", tells("web", tmp_path)), ("worker", "JOBS", "while :; do echo x; sleep 0.1; done")]
    )
    process = subprocess.Popen(
        module("tests.launch.fake_manager", table), cwd=ROOT, env=os.environ | {MARK: mark}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) == 0
    assert order(tmp_path) == ["web"]
    assert processes_with(f"{MARK}={mark}").keys() <= {os.getpid()}


class Terminal:
    """A program whose terminal is ours to type on."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.mark = uuid4().hex
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execve(command[0], command, os.environ | environment | {MARK: self.mark, "TERM": "xterm"})
        os.set_blocking(self._descriptor, False)
        self.output = ""

    def read(self) -> str:
        with contextlib.suppress(OSError):  # nothing there, or everybody gone
            self.output += os.read(self._descriptor, 65536).decode(errors="replace")
        return self.output

    def wait_for(self, text: str) -> None:
        wait_for(lambda: text in self.read(), 60, f"{text!r} in {self.output!r}")

    def type(self, data: bytes) -> None:
        os.write(self._descriptor, data)

    def exit_code(self) -> int | None:
        self.read()
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def close(self) -> None:
        for pid in processes_with(f"{MARK}={self.mark}").keys() - {os.getpid()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.close(self._descriptor)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_ctrl_c_on_a_terminal_reaches_the_launcher_only(tmp_path):
    """The terminal sends SIGINT to everybody in the foreground; the order of stopping must be kept all the same."""
    parts = [("redis", "REDIS"), ("web", "WEB"), ("worker", "JOBS")]
    scripts = [f"trap 'echo {name}-int >> {tmp_path}/order; exit 1' INT; " + tells(name, tmp_path) for name, _ in parts]
    table = json.dumps([(name, stage, script) for (name, stage), script in zip(parts, scripts, strict=True)])
    terminal = Terminal(module("tests.launch.fake_manager", table))
    try:
        for name, _ in parts:
            terminal.wait_for(f"{name} is up")
        terminal.type(b"\x03")
        codes = []
        wait_for(lambda: codes.append(terminal.exit_code()) or codes[-1] is not None, 20, "the end")
        assert codes[-1] == 0
        assert order(tmp_path) == ["worker", "web", "redis"]
        assert "\x1b[32mweb       | \x1b[0m" in terminal.output
    finally:
        terminal.close()


def test_colours_can_be_declined():
    terminal = Terminal(
        module("tests.launch.fake_manager", json.dumps([("web", "WEB", f"echo up; {IDLE}")])), NO_COLOR="1"
    )
    try:
        terminal.wait_for("web       | up")
        assert "\x1b" not in terminal.output
    finally:
        terminal.close()


def test_without_a_terminal_there_are_no_colours(start):
    it = start(("web", "WEB", f"echo up; {IDLE}"))
    it.wait_for_line("ready")
    assert "\x1b" not in it.output


def test_what_the_manager_writes_is_private_and_what_runs_on_the_host_is_not_its_business(start):
    it = start(("web", "WEB", f"umask; {IDLE}"), ("host", "HOST", f"umask; {IDLE}"))
    it.wait_for_line("web       | 0077")
    it.wait_for_line("host      | 0022")


def test_a_step_gives_back_what_it_wrote(start):
    it = start(("web", "WEB", IDLE), STEP="echo result; echo complaint >&2; exit 7")
    it.wait_for_line("step gave 7 'result\\n'")
    assert "step      | complaint" in it.output
    assert "step      | result" not in it.output


def test_whoever_ends_during_a_step_ends_the_start(start):
    it = start(("web", "WEB", "sleep 0.3; echo port lost; exit 4"), ("redis", "REDIS", IDLE), STEP="sleep 1000")
    assert it.wait() == 1
    assert it.lines[-1] == "web ended with exit code 4 while the Manager was starting"
    assert "web       | port lost" in it.output
    assert it.processes() == {}


def test_a_stop_during_a_step_ends_the_step_too(start):
    it = start(("web", "WEB", f"echo web is up; {IDLE}"), STEP="sleep 1000")
    it.wait_for_line("web is up")
    assert it.stop(signal.SIGINT) == 0
    assert it.processes() == {}
