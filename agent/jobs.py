"""Short work for the API that would hold up the loop: done by a child of `agent.executors.file`, a few at a time."""

from __future__ import annotations

import os
import signal
from collections import deque
from functools import partial
from typing import Any, Callable, NamedTuple

from agent import processes
from agent.loop import READ, Loop, Timer
from agent.processes import CannotStart, Child, Family, Launch

AT_ONCE = 4
WAITING = 32
TIMEOUT_S = 600.0
OUTPUT_BYTES = 65536


class Done(NamedTuple):
    """How a job ended."""

    code: int
    out: bytes
    err: bytes


class _Job:
    """One child and what it has said so far."""

    def __init__(self, launch: Launch, mark: str, on_done: Callable[[Done], Any]) -> None:
        self.launch = launch
        self.mark = mark
        self.on_done = on_done
        self.said = {"out": b"", "err": b""}
        self.open = {"out", "err"}
        self.child: Child | None = None
        self.timer: Timer | None = None
        self.code: int | None = None


class Jobs:
    """Not journaled and not kept: whoever asked hears of it, or asks again."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._count = 0

    def run(self, launch: Launch, on_done: Callable[[Done], Any]) -> bool:
        """False: too many wait already."""
        if len(self._waiting) >= WAITING:
            return False
        self._count += 1
        self._waiting.append(_Job(launch, f"job-{os.getpid()}-{self._count}", on_done))
        self._start_some()
        return True

    def poll_children(self) -> None:
        """Some child may have ended."""
        for job in list(self._running):
            if job.child is not None and job.code is None:
                job.code = job.child.process.poll()
                self._finish_if_done(job)

    def stop(self) -> None:
        """End what runs."""
        self._waiting.clear()
        for job in self._running:
            self._kill(job)

    def _start_some(self) -> None:
        while self._waiting and len(self._running) < AT_ONCE:
            job = self._waiting.popleft()
            launch = job.launch._replace(env={**job.launch.env, processes.MARK: job.mark})
            try:
                job.child = child = processes.start(launch)
            except CannotStart as error:
                job.on_done(Done(1, b"", str(error).encode("utf-8")))
                continue
            self._running.append(job)
            job.timer = self._loop.later(TIMEOUT_S, partial(self._kill, job))
            self._loop.watch(child.out, READ, partial(self._read, job, "out", child.out))
            self._loop.watch(child.err, READ, partial(self._read, job, "err", child.err))

    def _read(self, job: _Job, name: str, fd: int, _: int) -> None:
        if name not in job.open:
            return
        try:
            data = os.read(fd, OUTPUT_BYTES)
        except BlockingIOError:
            return
        if data:
            job.said[name] = (job.said[name] + data)[-OUTPUT_BYTES:]
            return
        job.open.discard(name)
        self._loop.forget(fd)
        os.close(fd)
        self._finish_if_done(job)

    def _kill(self, job: _Job) -> None:
        if job.child is not None:
            Family(job.mark, job.child.process.pid).signal(signal.SIGKILL)

    def _finish_if_done(self, job: _Job) -> None:
        if job.code is None or job.open or job not in self._running:
            return
        self._running.remove(job)
        if job.timer is not None:
            job.timer.cancel()
        job.on_done(Done(job.code, job.said["out"], job.said["err"]))
        self._start_some()
