"""Keeps processes running: starts them in order, restarts what dies, stops them the other way round.

Signals only set a mark; the loop acts on it. Nothing here blocks for longer than it takes to start a process.
"""

import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

from app.launch.children import Child, describe_end
from app.launch.output import Output
from app.launch.processes import Process, Stage

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
QUIET_S = 60.0
KILL_GRACE_S = 5.0
STEP_GRACE_S = 2.0
IDLE_S = 30.0


class StopRequestedError(Exception):
    """Somebody wants the Manager to stop."""


class StartFailedError(Exception):
    """The start was given up; the text says why."""


class Kept:
    """A process that is to run, whether or not it does right now."""

    def __init__(self, spec: Process) -> None:
        self.spec = spec
        self.child: Child | None = None
        self.began = 0.0
        self.start_at = 0.0
        self.pause_s = FIRST_PAUSE_S


class Supervisor:
    """Runs `Process`es. Use it as a context manager: however the block ends, no process is left."""

    def __init__(self, output: Output, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._output = output
        self._kept: list[Kept] = []
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._waker = socket.socketpair()
        self._signals = 0
        self._step: Child | None = None

    def __enter__(self) -> "Supervisor":
        for end in (self._wakeup, self._waker):
            end.setblocking(False)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._on_wakeup)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            # Under nohup a lost terminal is no reason to stop.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda *_signal: None)
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._wakeup.close()
        self._waker.close()

    def run_step(self, name: str, command: tuple[str, ...]) -> tuple[int, bytes]:
        """Run a process to its end and return its exit code and what it wrote. Whatever else runs is watched."""
        spec = Process(name, command, Stage.JOBS, STEP_GRACE_S)
        self._step = step = Child(spec, self.environment, self._selector, self._show, captures=True)
        code = None
        while code is None:
            self._turn()
            self._fail_if_one_ended()
            code = step.ended()
        self._step = None
        return code, step.captured

    def start(self, processes: Iterable[Process]) -> None:
        """Start these in the order of their stages."""
        for spec in sorted(processes, key=lambda spec: spec.stage):
            kept = Kept(spec)
            self._kept.append(kept)
            self._launch(kept)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """For something that a started process does soon."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise StartFailedError(f"{what} within {timeout_s:g} s")
            self._turn(0.02)
            self._fail_if_one_ended()

    def keep_running(self) -> NoReturn:
        """Restart whatever ends, until somebody asks to stop."""
        while True:
            self._turn(IDLE_S)
            for kept in self._kept:
                if kept.child is not None and (code := kept.child.ended()) is not None:
                    self._plan_restart(kept, code)
                elif kept.child is None and time.monotonic() >= kept.start_at:
                    self._launch(kept)

    def _turn(self, most_s: float = 1.0) -> None:
        """Wait for something to happen, and let it."""
        starts = [kept.start_at - time.monotonic() for kept in self._kept if kept.child is None]
        for key, _ in self._selector.select(max(0.0, min([most_s, *starts]))):
            key.data()
        if self._signals or self._output.is_lost:
            raise StopRequestedError

    def _on_wakeup(self) -> None:
        try:
            received = self._wakeup.recv(4096)
        except BlockingIOError:
            return
        self._signals += sum(number != signal.SIGCHLD for number in received)

    def _launch(self, kept: Kept) -> None:
        kept.began = time.monotonic()
        kept.child = Child(kept.spec, self.environment, self._selector, self._show)

    def _fail_if_one_ended(self) -> None:
        for kept in self._kept:
            if kept.child is not None and (code := kept.child.ended()) is not None:
                kept.child = None
                raise StartFailedError(f"{kept.spec.name} {describe_end(code)} while the Manager was starting")

    def _plan_restart(self, kept: Kept, code: int) -> None:
        present = time.monotonic()
        if present - kept.began > QUIET_S:
            kept.pause_s = FIRST_PAUSE_S
        kept.child, kept.start_at = None, present + kept.pause_s
        end = describe_end(code)
        self._output.say(f"{kept.spec.name} {end}; starting it again in {kept.pause_s:g} s", is_bad=True)
        kept.pause_s = min(kept.pause_s * 2, LONGEST_PAUSE_S)

    def _show(self, name: str, line: bytes) -> None:
        spec = next((kept.spec for kept in self._kept if kept.spec.name == name), None)
        if spec is None or not any(text.encode() in line for text in spec.hidden):
            self._output.line(name, line)

    def stop(self) -> None:
        """Stage by stage, the last first; within a stage all at once. A further signal makes it short."""
        heard = self._signals
        if any(kept.child for kept in self._kept):
            self._output.say("stopping")
        if self._step is not None:
            self._end([self._step], heard)
        for stage in sorted(Stage, reverse=True):
            running = [kept.child for kept in self._kept if kept.child is not None and kept.spec.stage == stage]
            self._end(running, heard)
        self._step, self._kept = None, []

    def _end(self, children: list[Child], heard: int) -> None:
        for child in children:
            child.terminate()
        began, is_killed = time.monotonic(), False
        while children := [child for child in children if child.ended() is None]:
            grace_s = max(child.spec.grace_s for child in children)
            if not is_killed and (self._signals > heard or time.monotonic() - began > grace_s):
                is_killed = True
                for child in children:
                    child.kill()
            if time.monotonic() - began > grace_s + KILL_GRACE_S:
                return  # the kernel does not let go of it; its parent's death signal remains
            for key, _ in self._selector.select(0.1):
                key.data()
