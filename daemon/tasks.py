"""Hands `task.run` and `task.cancel` to the task agent and makes reports of what it tells, once and whatever dies.

The agent keeps orders, output and results on its disk until it is told to forget them, which happens when the Manager
has taken the result. So nothing of it is written down here a second time: the journal knows that a command came, and
whatever is not heard yet is asked for again. What the agent knows is never run again, so an order may be repeated.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from typing import Callable

from daemon.clock import Clock
from daemon.commands import Call, Handler, Later
from daemon.connection import Connection
from daemon.intake import Intake
from daemon.outbox import Outbox
from daemon.system import System
from daemon.taskfeed import MOST_FOLLOWED, Feed, Told
from daemon.taskfiles import Transfers
from daemon.taskline import AgentAway
from daemon.taskorders import (
    AWAY_S,
    FOLLOWED,
    HEARD,
    NEVER,
    TOLD,
    WAITING,
    Cancel,
    Execution,
    Executions,
    Task,
    parse_task,
)
from protocol import errors, states
from protocol.commands import Output, Report, Result
from protocol.fields import Fields
from protocol.limits import KIB

RUN, CANCEL = "task.run", "task.cancel"
IDLE_S = 30.0
FIRST_RETRY_S = 0.05
MOST_RETRY_S = 1.0
ROOM_BYTES = 256 * KIB
"""So much output may wait for the Manager; the agent keeps the rest on its disk."""
AT_ONCE = 4
MOST_NONSENSE = 3

log = logging.getLogger("daemon.tasks")


class Tasks:
    """A thread that exists only while there is work for it; everything but the first part happens in it."""

    def __init__(
        self,
        system: System,
        clock: Clock,
        intake: Intake,
        outbox: Outbox,
        find_socket: Callable[[], str | None],
        nudge: Callable[[], None],
        new_connection: Callable[[], Connection],
    ) -> None:
        self._system = system
        self._outbox = outbox
        self._find_socket = find_socket
        self._nudge = nudge
        self._inbox: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._executions = Executions(system, clock, intake)
        self._transfers = Transfers(system, self._executions, new_connection, find_socket, self._post, self._tell)
        self._cancels: list[Cancel] = []
        self._feed = Feed(system, clock)
        self._handed = 0
        self._lost_since = NEVER
        self._lost_words = ""
        self._retry_s = 0.0
        self._retry_at = 0.0
        outbox.on_settled = self._settled

    # ---- from other threads

    def handlers(self) -> dict[str, Handler]:
        """For the table of commands."""
        return {RUN: self._read_run, CANCEL: self._read_cancel}

    def stop(self, timeout_s: float) -> None:
        """End the thread. What runs, runs on; the next Daemon asks for it."""
        with self._lock:
            self._is_stopping = True
            thread = self._thread
        self._wake()
        self._transfers.stop(timeout_s)
        if thread is not None:
            thread.join(timeout_s)

    def _read_run(self, payload: Fields) -> Later:
        task = parse_task(payload)
        return Later(lambda call: self._post(lambda: self._begin(call, task)), tells_start=True)

    def _read_cancel(self, payload: Fields) -> Later:
        name, until = payload.uuid("command"), self._system.boottime() + AWAY_S
        return Later(lambda call: self._post(lambda: self._cancels.append(Cancel(call, name, until))))

    def _settled(self, reports: list[Report]) -> None:
        size = sum(len(report.data) for report in reports if isinstance(report, Output))
        known = self._executions.all
        ended = [report.command for report in reports if isinstance(report, Result) and report.command in known]
        if size or ended:
            self._post(lambda: self._note_settled(size, ended))

    def _post(self, call: Callable[[], None]) -> None:
        with self._lock:
            self._inbox.append(call)
            if self._thread is None and not self._is_stopping:
                self._thread = threading.Thread(target=self._run, name="tasks", daemon=True)
                self._thread.start()
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            # The pipe is full of reasons to wake up already.
            return

    # ---- the thread

    def _run(self) -> None:
        while True:
            is_idle = self._guarded_turn()
            with self._lock:
                if self._is_stopping or (is_idle and not self._inbox):
                    # Before anybody can begin the next thread, which has these lines as well.
                    self._hang_up()
                    self._thread = None
                    return

    def _guarded_turn(self) -> bool:
        try:
            return self._turn()
        except Exception:
            # A loop's iteration: the other tasks must not be left alone.
            log.exception("the hand-over of tasks stumbled")
            self._lose("the hand-over of tasks stumbled")
            return False

    def _turn(self) -> bool:
        """One round. True: there was nothing to do for a while."""
        while self._inbox:
            self._inbox.popleft()()
        now = self._system.boottime()
        here = self._executions.cancel_here
        self._cancels = [cancel for cancel in self._cancels if not here(cancel, now, self._lost_words)]
        if now >= self._retry_at:
            self._with_agent(lambda: self._talk(now))
        if self._lost_since != NEVER:
            self._executions.give_up(self._lost_since, self._lost_words, self._find_socket() is None)
        feed = self._feed.fileno()
        ready = select.select([self._wake_read] if feed < 0 else [self._wake_read, feed], [], [], self._patience())[0]
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        if feed in ready:
            self._with_agent(self._hear)
        return not ready and not self._is_work()

    def _is_work(self) -> bool:
        return bool(self._executions.all or self._cancels)

    def _patience(self) -> float | None:
        """Until something is due; None: until somebody says something."""
        if not self._is_work():
            return IDLE_S
        now = self._system.boottime()
        due = self._feed.overdue_at
        if now < self._retry_at:
            due = min(due, self._retry_at)
        elif self._executions.at(WAITING) or self._cancels or self._executions.at(HEARD):
            due = now
        elif self._handed < ROOM_BYTES and self._feed.fileno() < 0 and self._executions.at(FOLLOWED):
            due = min(due, max(now, self._feed.not_before))
        return None if due == NEVER else max(0.0, due - now)

    def _talk(self, now: float) -> None:
        """What there is to say to the agent just now, but not so much that it is not heard meanwhile."""
        executions = self._executions
        if now >= self._feed.overdue_at:
            raise AgentAway("the task agent does not answer")
        orders, over = executions.at(WAITING)[:AT_ONCE], executions.at(HEARD)[:AT_ONCE]
        if orders or over or self._cancels:
            executions.line.open(self._find_socket())
        for execution in orders:
            executions.order(execution)
            self._find()
        while self._cancels:
            executions.cancel(self._cancels[0])
            self._cancels.pop(0)
        if self._handed < ROOM_BYTES and (orders or now >= self._feed.not_before):
            places = {execution.call.id: execution.place for execution in executions.at(FOLLOWED)[:MOST_FOLLOWED]}
            if places:
                self._feed.ask(self._find_socket(), places)
        if not executions.at(WAITING):
            for execution in over:
                executions.forget(execution)

    # ---- the agent comes and goes

    def _with_agent(self, work: Callable[[], None]) -> None:
        try:
            work()
        except AgentAway as error:
            self._lose(str(error))

    def _find(self) -> None:
        """It has said something sensible."""
        self._lost_since, self._retry_s, self._retry_at = NEVER, 0.0, 0.0

    def _lose(self, words: str) -> None:
        """Again in a moment. Who only was to forget something does so by itself one day."""
        now = self._system.boottime()
        if self._lost_since == NEVER:
            self._lost_since = now
            log.warning("%s", words)
        self._lost_words = words
        self._hang_up()
        self._retry_s = min(MOST_RETRY_S, max(FIRST_RETRY_S, 2 * self._retry_s))
        self._retry_at = now + self._retry_s
        for execution in self._executions.at(HEARD):
            self._executions.drop(execution)

    def _hang_up(self) -> None:
        self._executions.line.close()
        self._feed.close()

    # ---- from order to receipt

    def _begin(self, call: Call, task: Task) -> None:
        execution = self._executions.add(call, task)
        if execution is not None and execution.stage == WAITING:
            self._prepare(execution)

    def _prepare(self, execution: Execution) -> None:
        """It is surely not with the agent: order it, once the file that it needs is there."""
        file = execution.task.file
        if file is None:
            execution.stage = WAITING
        else:
            self._transfers.bring(execution, file)

    def _tell(self, reports: list[Report]) -> None:
        self._outbox.add(*reports)
        self._nudge()

    def _hear(self) -> None:
        heard = self._feed.hear()
        self._find()
        for told in heard.told:
            self._take(told)
        for name in heard.unknown:
            execution = self._executions.miss(name)
            if execution is not None:
                self._prepare(execution)

    def _take(self, told: Told) -> None:
        execution = self._executions.all.get(told.id)
        if execution is None or execution.stage != FOLLOWED:
            return
        if told.problem is not None:
            log.warning("the task agent makes no sense: %s", told.problem, extra={"command": told.id})
            execution.nonsense += 1
            if execution.nonsense >= MOST_NONSENSE:
                words = f"what the task agent tells of it makes no sense: {told.problem}"
                self._executions.drop(execution).fail(errors.INTERRUPTED, words, status=states.INTERRUPTED)
            return
        execution.order = None
        execution.place += len(told.reports)
        self._handed += sum(len(report.data) for report in told.reports if isinstance(report, Output))
        result = told.reports[-1] if told.reports else None
        if isinstance(result, Result):
            execution.stage = TOLD
            if execution.task.is_download and result.status == states.SUCCEEDED:
                self._tell(told.reports[:-1])
                self._transfers.fetch(execution, result)
                return
        self._tell(told.reports)

    def _note_settled(self, size: int, ended: list[str]) -> None:
        self._handed = max(0, self._handed - size)
        for name in ended:
            execution = self._executions.all.get(name)
            if execution is not None:
                execution.stage = HEARD
