"""Executions: written down before they start, ten at once and then in line, ended in time, and never run twice."""

# ruff: noqa: PTH208

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections import deque
from functools import partial
from typing import Any, Callable, NamedTuple, Union

from agent import disk, processes
from agent.capabilities import CapabilityFile
from agent.contents import Task, order_of, parse_task
from agent.executors import plan
from agent.executors.forbidden import FORBIDDEN_EXIT, Forbidden, Surroundings
from agent.journal import ACCEPTED, FINISHED, STARTED, Journal, Line
from agent.loop import READ, Loop, Timer
from agent.output import RESULT, START, STDERR, STDOUT, STREAM_NAMES, Frame, FrameFile, Output
from agent.processes import CannotStart, Child, Family
from agent.settings import Settings
from protocol import states
from protocol.errors import FORBIDDEN_BY_HOST, INTERRUPTED, TASK_FAILED, TASK_TIMEOUT, ProtocolError
from protocol.times import to_epoch, to_text

QUEUED = "queued"
RUNNING = "running"

READ_BYTES = 256 * 1024
READS_PER_ROUND = 4
DRAIN_S = 1.0
LOOK_S = 0.1
KILL_ROUNDS = 50
QUEUE_MAX_S = 3600.0
REWRITE_S = 2.0
MOST_OPEN = 32
MOST_SINKS = 64
TIDY_S = 300.0
MOST_KEPT = 1000
TEXT_BYTES = 4 * 1024 * 1024
ERROR_CHARS = 2000

INNER_KINDS = ("file", "config")

log = logging.getLogger("agent.runner")


class Busy(Exception):
    """Neither a place to run nor one in the queue is left."""


class Known(Exception):
    """The id was run before: another order then, or one that is forgotten."""


class NotFound(Exception):
    """No such execution is known (any more)."""


class Over(Exception):
    """It has ended already."""


class Result(NamedTuple):
    """The end, in the words of the wire's `result` report."""

    status: str
    exit_code: int | None
    signal: int | None
    user: str | None
    started_at: str | None
    finished_at: str
    duration_ms: int | None
    error_code: str | None
    error: str | None
    stdout_bytes: int
    stderr_bytes: int
    truncated: bool


class Execution:
    """One execution from its order to its result. `status` is `queued`, `running` or a terminal state."""

    __slots__ = (
        "child",
        "digest",
        "drain",
        "error_code",
        "exit_status",
        "family",
        "frames",
        "id",
        "is_asked_to_end",
        "kind",
        "open_pipes",
        "order",
        "output",
        "queued_at",
        "result",
        "started",
        "started_at",
        "status",
        "timer",
        "user",
        "waiters",
        "why",
    )  # fmt: skip

    def __init__(self, execution_id: str, kind: str, digest: str, queued_at: float) -> None:
        self.id = execution_id
        self.kind = kind
        self.digest = digest
        self.queued_at = queued_at
        self.status = QUEUED
        self.order: Task | None = None
        self.result: Result | None = None
        self.frames: FrameFile | None = None
        self.output: Output | None = None
        self.child: Child | None = None
        self.family: Family | None = None
        self.open_pipes: set[int] = set()
        self.exit_status: int | None = None
        self.started = 0.0
        self.started_at: str | None = None
        self.user: str | None = None
        self.timer: Timer | None = None
        self.drain: Timer | None = None
        self.why: str | None = None
        self.error_code: str | None = None
        self.is_asked_to_end = False
        self.waiters: list[Callable[[], Any]] = []

    @property
    def is_over(self) -> bool:
        """Whether it has its result."""
        return self.result is not None


# Gets the execution once it is written down and started or queued, or the reason why it cannot be written down.
Answer = Callable[[Union[Execution, OSError]], Any]


class Runner:
    """Everything happens in the loop's thread. Orders that arrive in one round share one trip to the disk."""

    def __init__(self, loop: Loop, settings: Settings, journal: Journal, capabilities: CapabilityFile) -> None:
        self._loop = loop
        self._settings = settings
        self._journal = journal
        self._capabilities = capabilities
        self._directory = f"{settings.state_dir}/executions"
        disk.make_dir(self._directory)
        self._all: dict[str, Execution] = {}
        self._queue: deque[Execution] = deque()
        self._running: set[Execution] = set()
        self._fresh: dict[str, tuple[Execution, list[Answer]]] = {}
        self._ended: list[Execution] = []
        self._is_settling = False
        self._opened: deque[Execution] = deque()
        self._sinks: deque[int] = deque()
        self._syncer = disk.Syncer()
        self._unwritten: list[Execution] = []
        self._watchers: list[Callable[[], Any]] = []
        self.is_stopping = False
        loop.later(TIDY_S, self._tidy)

    # ---- asked by the API

    def submit(self, task: Task, on_done: Answer) -> None:
        """Take an order; `on_done` gets the execution, started or queued, or the reason why it cannot be written down.

        The same order again gets the same execution. Raises Busy, Known.
        """
        known = self._all.get(task.id)
        if known is not None:
            if known.digest != task.digest:
                raise Known("another order had this id")
            if task.id in self._fresh:
                # Not on the disk yet: both hear of it when it is.
                self._fresh[task.id][1].append(on_done)
            else:
                on_done(known)
            return
        if self._journal.knows(task.id):
            raise Known("this id was run before; what came of it is forgotten")
        starting = sum(1 for execution, _ in self._fresh.values() if execution.status == RUNNING)
        waiting = len(self._queue) + len(self._fresh) - starting
        is_free = not waiting and len(self._running) + starting < self._settings.tasks_max_running
        if self.is_stopping or (not is_free and waiting >= self._settings.tasks_max_queued):
            raise Busy
        execution = Execution(task.id, task.kind, task.digest, time.time())
        execution.order = task
        execution.status = RUNNING if is_free and not _is_late(execution) else QUEUED
        self._all[task.id] = execution
        self._fresh[task.id] = (execution, [on_done])
        self._settle_soon()

    def find(self, execution_id: str) -> Execution:
        """Raises NotFound."""
        found = self._all.get(execution_id)
        if found is None:
            raise NotFound
        return found

    def get(self, execution_id: str) -> Execution | None:
        """As `find`, or None."""
        return self._all.get(execution_id)

    def is_forgotten(self, execution_id: str) -> bool:
        """Whether nothing is left of it but its id."""
        return execution_id not in self._all and self._journal.knows(execution_id)

    def cancel(self, execution_id: str) -> Execution:
        """Raises NotFound, Over."""
        self._settle()
        execution = self.find(execution_id)
        if execution.is_over:
            raise Over
        if execution.status == QUEUED:
            self._queue.remove(execution)
            self._finish(execution, states.CANCELLED, None, "cancelled before it started")
        else:
            self._end_early(execution, states.CANCELLED, None, "cancelled")
        return execution

    def forget(self, execution_id: str) -> None:
        """Whoever asked for it has its result. Raises NotFound, Over if it has none yet; OSError."""
        execution = self.find(execution_id)
        if not execution.is_over or execution in self._unwritten or execution in self._ended:
            raise Over
        self._drop([execution])

    def on_any_news(self, callback: Callable[[], Any]) -> None:
        """Call once, when an execution is added."""
        self._watchers.append(callback)

    def ignore_news(self, callback: Callable[[], Any]) -> None:
        """Do not call any more."""
        if callback in self._watchers:
            self._watchers.remove(callback)

    def all(self) -> list[Execution]:
        """Every execution that is not forgotten, oldest first."""
        return list(self._all.values())

    def counts(self) -> tuple[int, int]:
        """How many run, how many wait."""
        return len(self._running), len(self._queue)

    def frames_of(self, execution: Execution) -> FrameFile:
        """Its start, its output, its result; opened when somebody asks."""
        if execution.frames is None:
            execution.frames = FrameFile(f"{self._directory}/{execution.id}")
            if execution.result is not None and _result_in(execution.frames) is None:
                execution.frames.append(_frame(RESULT, execution.result._asdict()))
            if execution.is_over:
                self._close_later(execution)
        return execution.frames

    def count_of(self, execution: Execution) -> int:
        """How many frames it has; none are told of while its file cannot be opened."""
        frames = self._frames_if_any(execution)
        return len(frames) if frames is not None else 0

    def _frames_if_any(self, execution: Execution) -> FrameFile | None:
        """As `frames_of`, for those who can do without."""
        try:
            return self.frames_of(execution)
        except OSError as error:
            log.warning("cannot open its file: %s", error, extra={"execution": execution.id})
            return None

    # ---- life of the agent

    def recover(self) -> None:
        """After a start: what was under way is interrupted, what waited waits on, what is written is known."""
        interrupted: list[Execution] = []
        for name, entry in self._journal.entries().items():
            order = entry.order or {}
            execution = Execution(name, str(order.get("type", "")), entry.digest, entry.at)
            self._all[name] = execution
            if entry.stage == FINISHED and entry.result is not None:
                execution.kind = str(entry.result.get("kind", ""))
                execution.result = Result(*(entry.result.get(field) for field in Result._fields))  # type: ignore[arg-type]
                execution.status = execution.result.status
            elif entry.stage == ACCEPTED and entry.order is not None:
                self._recover_queued(execution, entry.order)
            else:
                interrupted.append(execution)
        for execution in interrupted:
            told = _result_in(self.frames_of(execution))
            if told is not None:
                # It had ended, and only the journal did not hear of it any more.
                execution.result, execution.status = told, told.status
                self._ended.append(execution)
                self._settle_soon()
                continue
            log.warning("an execution was interrupted", extra={"execution": execution.id})
            left = Family(execution.id, None).signal(signal.SIGKILL)
            words = "the agent or the host died while it ran"
            if left:
                words += f"; {left} processes of it were still there and were ended"
            self._finish(execution, states.INTERRUPTED, INTERRUPTED, words)
        self._remove_strays()

    def stop(self) -> None:
        """Take nothing more, end what runs. What waits will start when the agent is back, if it is not too late."""
        self.is_stopping = True
        for execution in list(self._running):
            self._end_early(execution, states.INTERRUPTED, INTERRUPTED, "the agent was stopped while it ran")

    def is_idle(self) -> bool:
        """Whether nothing runs."""
        return not self._running

    def poll_children(self) -> None:
        """Some child may have ended."""
        for execution in list(self._running):
            child = execution.child
            if child is not None and execution.exit_status is None:
                status = child.process.poll()
                if status is not None:
                    execution.exit_status = status
                    if execution.is_asked_to_end:
                        continue
                    if execution.open_pipes:
                        # Background processes may hold the pipes for ever; what is in them by now is still taken.
                        execution.drain = self._loop.later(DRAIN_S, partial(self._close_pipes, execution))
                    self._finish_if_done(execution)

    # ---- starting

    def _settle_soon(self) -> None:
        if not self._is_settling:
            self._is_settling = True
            self._loop.soon(self._settle)

    def _settle(self) -> None:
        """Write down what was ordered, is to start and has ended in this round, all at once; then act on it."""
        self._is_settling = False
        fresh, self._fresh = list(self._fresh.values()), {}
        starting = [execution for execution, _ in fresh if execution.status == RUNNING]
        turned = self._whose_turn(self._settings.tasks_max_running - len(self._running) - len(starting))
        ended, self._ended = self._ended, []
        if not fresh and not turned and not ended:
            return
        lines = [Line(ACCEPTED, execution.id, _order_line(execution)) for execution, _ in fresh]
        lines += [Line(STARTED, execution.id, {}) for execution in (*starting, *turned)]
        lines += [Line(FINISHED, execution.id, {"result": _kept(execution)}) for execution in ended]
        try:
            for execution in ended:
                if execution.frames is not None:
                    execution.frames.sync(self._syncer)
            self._journal.write(lines, None if fresh or turned else self._syncer)
        except OSError as error:
            self._refuse(error, fresh, turned, ended)
            return
        self._queue.extend(execution for execution, _ in fresh if execution.status == QUEUED)
        for execution in (*starting, *turned):
            self._start(execution)
        for execution in ended:
            self._tell(execution)
        for execution, answers in fresh:
            for on_done in answers:
                # Each by itself: one that fails must not cost the others theirs.
                self._loop.soon(partial(on_done, execution))
        if fresh:
            self._tell_watchers()
        if self._queue and not self.is_stopping and len(self._running) < self._settings.tasks_max_running:
            self._settle_soon()

    def _tell_watchers(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher()

    def _whose_turn(self, places: int) -> list[Execution]:
        turned: list[Execution] = []
        while self._queue and not self.is_stopping and len(turned) < places:
            execution = self._queue.popleft()
            if _is_late(execution):
                self._finish(execution, states.EXPIRED, None, "its turn came too late")
            else:
                execution.status = RUNNING
                turned.append(execution)
        return turned

    def _refuse(
        self,
        error: OSError,
        fresh: list[tuple[Execution, list[Answer]]],
        turned: list[Execution],
        ended: list[Execution],
    ) -> None:
        """The disk does not take it: what is not written down is not done, and what was done is told nevertheless."""
        log.error("cannot write down what is executed: %s", error)
        if ended and not self._unwritten:
            self._loop.later(REWRITE_S, self._write_results)
        self._unwritten += ended
        for execution in ended:
            self._tell(execution)
        for execution in turned:
            self._finish(execution, states.FAILED, TASK_FAILED, f"cannot be written down: {error.strerror}")
        for execution, answers in fresh:
            del self._all[execution.id]
            for on_done in answers:
                self._loop.soon(partial(on_done, error))

    def _start(self, execution: Execution) -> None:
        """From here on it counts as run, whatever happens."""
        task = execution.order
        if task is None:
            raise ValueError("an execution without its order")
        execution.started_at, execution.started = to_text(time.time()), time.monotonic()
        around = Surroundings(self._settings.state_dir, self._settings.plugins_dir, self._capabilities.now())
        try:
            launch = plan(task, around)
            execution.user = launch.account.name
            # First of all: what runs and cannot be told of would be nobody's.
            frames = self.frames_of(execution)
            child = processes.start(launch)
        except Forbidden as error:
            self._finish(execution, states.FAILED, FORBIDDEN_BY_HOST, str(error))
            return
        except CannotStart as error:
            self._finish(execution, states.FAILED, TASK_FAILED, str(error))
            return
        except OSError as error:
            self._finish(execution, states.FAILED, TASK_FAILED, f"its output cannot be kept: {error.strerror}")
            return
        execution.child, execution.family = child, Family(execution.id, child.process.pid)
        self._running.add(execution)
        execution.open_pipes = {child.out, child.err}
        frames.append(_frame(START, {"at": execution.started_at, "pid": child.process.pid}))
        execution.output = Output(
            self._loop, frames, self._settings.tasks_output_max_bytes, lambda: self._tell(execution)
        )
        self._loop.watch(child.out, READ, lambda _: self._read(execution, child.out, STDOUT))
        self._loop.watch(child.err, READ, lambda _: self._read(execution, child.err, STDERR))
        execution.timer = self._loop.later(task.timeout_s, lambda: self._time_out(execution))
        self._tell(execution)

    # ---- while it runs

    def _read(self, execution: Execution, fd: int, kind: int) -> None:
        if fd not in execution.open_pipes or execution.output is None:
            return
        for _ in range(READS_PER_ROUND):
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._close_pipe(execution, fd)
                if not execution.is_asked_to_end:
                    self._finish_if_done(execution)
                return
            execution.output.take(kind, data)

    def _close_pipe(self, execution: Execution, fd: int) -> None:
        execution.open_pipes.discard(fd)
        self._loop.forget(fd)
        os.close(fd)

    def _close_pipes(self, execution: Execution) -> None:
        """Take what is in them, and be done. Whoever still writes there goes on writing, to nobody."""
        child = execution.child
        if child is None:
            return
        for fd, kind in ((child.out, STDOUT), (child.err, STDERR)):
            self._read(execution, fd, kind)
            if fd in execution.open_pipes:
                execution.open_pipes.discard(fd)
                self._sink(fd)
        self._finish_if_done(execution)

    def _sink(self, fd: int) -> None:
        """Keep a pipe empty for a background process, which would die of SIGPIPE or wait for ever without it."""
        if len(self._sinks) >= MOST_SINKS:
            self._close_sink(self._sinks[0])
        self._sinks.append(fd)
        self._loop.watch(fd, READ, lambda _: self._empty(fd))

    def _empty(self, fd: int) -> None:
        try:
            is_open = fd not in self._sinks or bool(os.read(fd, READ_BYTES))
        except BlockingIOError:
            return
        if not is_open:
            self._close_sink(fd)

    def _close_sink(self, fd: int) -> None:
        self._sinks.remove(fd)
        self._loop.forget(fd)
        os.close(fd)

    def _time_out(self, execution: Execution) -> None:
        limit = execution.order.timeout_s if execution.order is not None else 0
        self._end_early(execution, states.TIMED_OUT, TASK_TIMEOUT, f"ended after {limit} s")

    def _end_early(self, execution: Execution, status: str, error_code: str | None, why: str) -> None:
        """TERM now and KILL later, to everything that came of it. The first reason counts."""
        if execution.is_asked_to_end or execution.is_over or execution.family is None:
            return
        execution.is_asked_to_end = True
        execution.status, execution.error_code, execution.why = RUNNING, error_code, f"{status}:{why}"
        if execution.timer is not None:
            execution.timer.cancel()
        execution.family.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.tasks_kill_grace_s
        execution.timer = self._loop.later(LOOK_S, lambda: self._press(execution, deadline, 0))

    def _press(self, execution: Execution, deadline: float, rounds: int) -> None:
        """Until nothing of it is left: patience first, then KILL. Who is stuck in the kernel is left to the kernel."""
        if execution.is_over or execution.family is None:
            return
        is_time_up = time.monotonic() >= deadline
        if is_time_up or execution.exit_status is not None:
            left = execution.family.signal(signal.SIGKILL if is_time_up else 0)
            if is_time_up and not rounds and left:
                log.info("%d processes had to be killed", left, extra={"execution": execution.id})
            if (not left and execution.exit_status is not None) or rounds > KILL_ROUNDS:
                if execution.exit_status is None:
                    execution.exit_status = -signal.SIGKILL
                self._close_pipes(execution)
                return
        execution.timer = self._loop.later(LOOK_S, lambda: self._press(execution, deadline, rounds + is_time_up))

    # ---- the end

    def _finish_if_done(self, execution: Execution) -> None:
        """It is over once the child has ended and both pipes are empty."""
        if execution.is_over or execution.open_pipes or execution.exit_status is None:
            return
        if execution.is_asked_to_end:
            status, _, words = (execution.why or "").partition(":")
            self._finish(execution, status, execution.error_code, words)
            return
        self._judge(execution, execution.exit_status)

    def _judge(self, execution: Execution, code: int) -> None:
        if code == 0:
            self._finish(execution, states.SUCCEEDED, None, None)
        elif code == FORBIDDEN_EXIT and execution.kind in INNER_KINDS:
            self._finish(execution, states.FAILED, FORBIDDEN_BY_HOST, self._last_words(execution))
        elif code < 0:
            self._finish(execution, states.FAILED, TASK_FAILED, f"ended by signal {_signal_name(-code)}")
        else:
            words = self._last_words(execution) if execution.kind in INNER_KINDS else f"exit code {code}"
            self._finish(execution, states.FAILED, TASK_FAILED, words)

    def _finish(self, execution: Execution, status: str, error_code: str | None, error: str | None) -> None:
        if execution.timer is not None:
            execution.timer.cancel()
        if execution.drain is not None:
            execution.drain.cancel()
        output, code = execution.output, execution.exit_status
        if output is not None:
            output.end()
        # Without it the journal keeps the result, and whoever opens the file later finds it there.
        frames = self._frames_if_any(execution)
        started_at = execution.started_at or (_start_of(frames) if frames is not None else None)
        execution.result = result = Result(
            status=status,
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            user=execution.user,
            started_at=started_at,
            finished_at=to_text(time.time()),
            duration_ms=int((time.monotonic() - execution.started) * 1000) if execution.started else None,
            error_code=error_code,
            error=error[:ERROR_CHARS] if error else None,
            stdout_bytes=output.sizes[STDOUT] if output is not None else _size_of(frames, STDOUT),
            stderr_bytes=output.sizes[STDERR] if output is not None else _size_of(frames, STDERR),
            truncated=output.is_truncated if output is not None else False,
        )
        execution.status = status
        if frames is not None:
            frames.append(_frame(RESULT, result._asdict()))
        self._running.discard(execution)
        self._close_later(execution)
        execution.child = execution.family = execution.output = execution.order = execution.timer = execution.drain = (
            None
        )
        log.info("%s %s", execution.kind, status, extra={"execution": execution.id})
        self._ended.append(execution)
        self._settle_soon()

    def _write_results(self) -> None:
        """Try again what a full disk refused; until then an agent that dies reports `interrupted`."""
        lines = [Line(FINISHED, execution.id, {"result": _kept(execution)}) for execution in self._unwritten]
        try:
            self._journal.write(lines)
        except OSError:
            self._loop.later(REWRITE_S, self._write_results)
        else:
            self._unwritten = []

    def _close_later(self, execution: Execution) -> None:
        """Files of ended executions stay open only as long as there are few of them."""
        self._opened.append(execution)
        while len(self._opened) > MOST_OPEN:
            oldest = self._opened.popleft()
            if oldest.frames is not None and oldest not in self._opened and not oldest.frames.is_kept_in_memory:
                oldest.frames.close()
                oldest.frames = None

    def _last_words(self, execution: Execution) -> str:
        """The end of stderr, for work whose child explains itself there."""
        if execution.output is not None:
            execution.output.flush()
        frames = self.frames_of(execution)
        words = b"".join(
            frame.data
            for frame in map(frames.read, range(max(0, len(frames) - 8), len(frames)))
            if frame.kind == STDERR
        )
        return words.decode("utf-8", "replace").strip()[-ERROR_CHARS:] or "it failed"

    def _tell(self, execution: Execution) -> None:
        waiters, execution.waiters = execution.waiters, []
        for waiter in waiters:
            self._loop.soon(waiter)

    # ---- keeping

    def _recover_queued(self, execution: Execution, order: dict[str, Any]) -> None:
        try:
            execution.order = parse_task(order)
        except ProtocolError as error:
            self._finish(execution, states.FAILED, TASK_FAILED, f"cannot be read any more: {error}")
            return
        self._queue.append(execution)
        self._settle_soon()

    def _tidy(self) -> None:
        """Forget what is too old or too much, oldest first."""
        self._loop.later(TIDY_S, self._tidy)
        kept = {*self._unwritten, *self._ended}
        done = [execution for execution in self._all.values() if execution.is_over and execution not in kept]
        limit = time.time() - self._settings.tasks_keep_days * 86400
        sizes = {execution.id: self._size(execution) for execution in done}
        total = sum(sizes.values())
        drop: list[Execution] = []
        for execution in done:
            is_much = total > self._settings.tasks_keep_max_bytes or len(done) - len(drop) > MOST_KEPT
            if is_much or execution.queued_at < limit:
                drop.append(execution)
                total -= sizes[execution.id]
        try:
            self._drop(drop)
        except OSError as error:
            log.warning("cannot forget old executions: %s", error)

    def _drop(self, gone: list[Execution]) -> None:
        self._journal.forget([execution.id for execution in gone])
        for execution in gone:
            del self._all[execution.id]
            if execution.frames is not None:
                execution.frames.close()
                execution.frames = None
            disk.remove(f"{self._directory}/{execution.id}")
            disk.remove(f"{self._settings.state_dir}/outbox/{execution.id}")
            self._tell(execution)

    def _size(self, execution: Execution) -> int:
        if execution.frames is not None:
            return execution.frames.size()
        try:
            return os.stat(f"{self._directory}/{execution.id}").st_size  # noqa: PTH116
        except OSError:
            return 0

    def _remove_strays(self) -> None:
        for name in os.listdir(self._directory):
            if name not in self._all:
                disk.remove(f"{self._directory}/{name}")


def text_of(frames: FrameFile, kind: int, most: int = TEXT_BYTES) -> str:
    """A stream as one text, with a mark where something was left out."""
    parts: list[str] = []
    at = 0
    is_open = False
    pending = b""
    for number in range(len(frames)):
        frame = frames.read(number)
        if frame.kind != kind:
            continue
        most -= len(frame.data)
        if most < 0:
            is_open = True
            break
        if frame.offset > at or (is_open and frame.data):
            parts += [pending.decode("utf-8", "replace"), f"\n[… {frame.offset - at} bytes were left out …]\n"]
            pending, is_open = b"", False
        pending += frame.data
        at = frame.offset + len(frame.data)
        is_open = is_open or frame.is_cut
    parts.append(pending.decode("utf-8", "replace"))
    if is_open:
        parts.append("\n[… the rest was left out …]\n")
    return "".join(parts)


def event_of(number: int, frame: Frame) -> dict[str, Any]:
    """A frame for the wire; bytes are for `protocol.codec` to encode. Fields as in the report of the same type."""
    if frame.kind == START:
        return {"n": number, "type": "start", **json.loads(frame.data)}
    if frame.kind == RESULT:
        return {"n": number, "type": "result", **json.loads(frame.data)}
    return {
        "n": number,
        "type": "output",
        "seq": number - 1,
        "stream": STREAM_NAMES[frame.kind],
        "offset": frame.offset,
        "data": frame.data,
        "cut": frame.is_cut,
    }


def _kept(execution: Execution) -> dict[str, Any]:
    return {**(execution.result._asdict() if execution.result is not None else {}), "kind": execution.kind}


def _frame(kind: int, content: dict[str, Any]) -> Frame:
    return Frame(kind, False, 0, json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8"))


def _order_line(execution: Execution) -> dict[str, Any]:
    order = order_of(execution.order) if execution.order is not None else None
    return {"digest": execution.digest, "at": execution.queued_at, "order": order}


def _result_in(frames: FrameFile) -> Result | None:
    """The result that ends a file, if it does."""
    last = frames.read(len(frames) - 1) if len(frames) else None
    if last is None or last.kind != RESULT:
        return None
    return Result(**json.loads(last.data))


def _start_of(frames: FrameFile) -> str | None:
    if not len(frames):
        return None
    first = frames.read(0)
    return str(json.loads(first.data)["at"]) if first.kind == START else None


def _size_of(frames: FrameFile | None, kind: int) -> int:
    if frames is None:
        return 0
    found = [frames.read(number) for number in range(len(frames))]
    return max((frame.offset + len(frame.data) for frame in found if frame.kind == kind), default=0)


def _is_late(execution: Execution) -> bool:
    now = time.time()
    not_after = execution.order.not_after if execution.order is not None else None
    return now > to_epoch(not_after) if not_after is not None else now > execution.queued_at + QUEUE_MAX_S


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
