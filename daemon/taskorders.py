"""What the task agent is told: to execute, to cancel, to forget; and what its answers mean for an execution."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from daemon.clock import AGREE_S, Clock
from daemon.commands import Call
from daemon.intake import Intake
from daemon.system import System
from daemon.taskline import AgentAway, AgentRefused, TaskLine
from protocol import states
from protocol.codec import encode
from protocol.errors import (
    AGENT_BUSY,
    BAD_PAYLOAD,
    CONFLICT,
    INTERRUPTED,
    NOT_DELIVERED,
    TASK_FAILED,
    TOO_MANY_REQUESTS,
)
from protocol.fields import HEX_64, Fields
from protocol.times import to_text

ORDER = ("type", "content", "parameters", "timeout")
MOST_WAITING = 256
AWAY_S = 60.0
ABSENT_S = 10.0
LOST_S = 900.0
NEVER = float("inf")
TASK_NOT_FOUND = 4001
TASK_STATE = 4002

# Where one execution stands: its file is being brought, it is not (surely) with the agent yet, it is with it, what it
# made is being brought to the Manager, its result is on the way, and is taken by the Manager.
FETCHING, WAITING, FOLLOWED, BRINGING, TOLD, HEARD = range(6)

log = logging.getLogger("daemon.tasks")


class TaskFile(NamedTuple):
    """What an upload's order names: the Manager's number of the file, its size, its hash."""

    id: int
    size: int
    sha256: str


class Task(NamedTuple):
    """The payload: what the agent gets, and which file goes to it before or comes from it afterwards."""

    order: dict[str, Any]
    file: TaskFile | None
    is_download: bool


def parse_task(payload: Fields) -> Task:
    """What concerns only the agent is left to it."""
    plain, content = payload.plain(), payload.inner("content").plain()
    kind = payload.text("type", 32)
    file = payload.inner_or_none("file", _parse_file)
    return Task({name: plain.get(name) for name in ORDER}, file, kind == "file" and content.get("op") == "download")


def _parse_file(fields: Fields) -> TaskFile:
    return TaskFile(fields.integer("id", 1), fields.integer("size"), fields.text("sha256", 64, 64, HEX_64))


class Execution:
    """One `task.run`. `place`: the number of the next event. `order`: what the agent gets, until it surely has it.

    `deadline`: what has not started by then must not start. `is_known`: the agent knew the id before it was ordered.
    """

    __slots__ = ("call", "deadline", "is_known", "is_sent", "nonsense", "order", "place", "since", "stage", "task")

    def __init__(self, call: Call, task: Task, order: bytes, since: float, deadline: float) -> None:
        self.call = call
        self.task = task._replace(order={})
        self.order: bytes | None = order
        self.since = since
        self.deadline = deadline
        self.place = 0
        self.nonsense = 0
        self.is_sent = False
        self.is_known = False
        # What an earlier Daemon began may be with the agent: ask before ordering it.
        self.stage = FOLLOWED if call.is_resumed else WAITING


class Cancel:
    """One `task.cancel` that is not answered yet. `until`: when waiting for the agent ends."""

    __slots__ = ("call", "name", "until")

    def __init__(self, call: Call, name: str, until: float) -> None:
        self.call = call
        self.name = name
        self.until = until


class Executions:
    """All that are not over yet, and the line over which the agent is told of them. AgentAway comes through."""

    def __init__(self, system: System, clock: Clock, intake: Intake) -> None:
        self._system = system
        self._clock = clock
        self._intake = intake
        self.line = TaskLine()
        self.all: dict[str, Execution] = {}

    def add(self, call: Call, task: Task) -> Execution | None:
        """A new one, or one that an earlier Daemon left. None: there are too many."""
        if sum(execution.stage < TOLD for execution in self.all.values()) >= MOST_WAITING:
            call.fail(AGENT_BUSY, "too many tasks wait for the task agent of this host")
            return None
        offset_ms, manager_now, now = self._clock.offset_ms() or 0, self._clock.manager_now(), self._system.boottime()
        # The agent goes by the clock of the host.
        not_after = call.not_after - (offset_ms / 1000 if abs(offset_ms) > 1000 * AGREE_S else 0.0)
        body = encode({"id": call.id, **task.order, "not_after": to_text(not_after)})
        deadline = NEVER if manager_now is None else now + call.not_after - manager_now
        self.all[call.id] = execution = Execution(call, task, body, now, deadline)
        return execution

    def at(self, stage: int) -> list[Execution]:
        """Those that stand there, oldest first."""
        return [execution for execution in self.all.values() if execution.stage == stage]

    def drop(self, execution: Execution) -> Call:
        """It is over here; the caller says how."""
        del self.all[execution.call.id]
        return execution.call

    def order(self, execution: Execution) -> None:
        """Have it executed; again does no harm."""
        execution.is_sent = True
        try:
            self.line.ask("POST", "task/execute", execution.order or b"")
        except AgentRefused as error:
            if error.code == CONFLICT:
                execution.is_known = True
                execution.stage = FOLLOWED
                return
            if error.code == TOO_MANY_REQUESTS and self._is_agent_leaving():
                execution.is_sent = False
                raise AgentAway("the task agent is stopping") from None
            # None of these was written down by the agent, so none of them is run.
            is_busy = error.code == TOO_MANY_REQUESTS
            code = AGENT_BUSY if is_busy else BAD_PAYLOAD if error.status in (400, 413) else TASK_FAILED
            self.drop(execution).fail(code, str(error))
            return
        execution.order = None
        execution.stage = FOLLOWED

    def miss(self, name: str) -> Execution | None:
        """The agent does not know it. The one to order, if an earlier Daemon died before it could do so."""
        execution = self.all.get(name)
        if execution is None or execution.stage != FOLLOWED:
            return None
        if execution.order is None or execution.is_known:
            words = "the task agent knows nothing of it any more"
            self.drop(execution).fail(INTERRUPTED, words, status=states.INTERRUPTED)
        elif self._system.boottime() >= execution.deadline:
            words = "its deadline passed before it could start"
            self.drop(execution).fail(NOT_DELIVERED, words, status=states.EXPIRED)
        else:
            return execution
        return None

    def give_up(self, lost_since: float, words: str, is_absent: bool) -> None:
        """Nobody waits for ever for an agent that is away, and nothing starts too late."""
        now, patience = self._system.boottime(), ABSENT_S if is_absent else AWAY_S
        for execution in [*self.at(WAITING), *self.at(FOLLOWED)]:
            if execution.stage == WAITING and not execution.is_sent:
                if now >= execution.deadline:
                    late = f"its deadline passed before it could start: {words}"
                    self.drop(execution).fail(NOT_DELIVERED, late, status=states.EXPIRED)
                elif now >= execution.since + patience:
                    self.drop(execution).fail(NOT_DELIVERED, words)
            elif now >= max(lost_since + LOST_S, execution.deadline):
                gone = f"{words}; nobody knows what came of it"
                self.drop(execution).fail(INTERRUPTED, gone, status=states.INTERRUPTED)

    def cancel_here(self, cancel: Cancel, now: float, lost: str) -> bool:
        """End it without the agent, if it need not hear of it or does not come. `lost`: why it is away, if it is."""
        call, execution = cancel.call, self.all.get(cancel.name)
        if execution is None:
            self._cancel_unknown(call, cancel.name)
        elif execution.stage >= BRINGING:
            call.fail(TASK_FAILED, "it has ended already")
        elif execution.stage <= WAITING and not execution.is_sent:
            self.drop(execution).cancel()
            call.succeed({"was": "waiting"})
        elif now >= cancel.until:
            call.fail(NOT_DELIVERED, f"{lost}; the task may go on")
        else:
            return False
        return True

    def cancel(self, cancel: Cancel) -> None:
        """Have the agent end it; again does no harm."""
        call, execution = cancel.call, self.all[cancel.name]
        try:
            answer: Any = self.line.ask("POST", f"task/{cancel.name}/cancel")
        except AgentRefused as error:
            if error.code == TASK_STATE:
                call.fail(TASK_FAILED, "it has ended already")
            elif error.code == TASK_NOT_FOUND and execution.order is not None and not execution.is_known:
                # It never got there.
                self.drop(execution).cancel()
                call.succeed({"was": "waiting"})
            else:
                call.fail(TASK_FAILED, str(error))
            return
        is_over = isinstance(answer, dict) and answer.get("status") == "cancelled"
        call.succeed({"was": "waiting" if is_over else "running"})

    def forget(self, execution: Execution) -> None:
        """The Manager has its result: the agent need not keep it."""
        name = self.drop(execution).id
        try:
            self.line.ask("POST", f"task/{name}/forget")
        except AgentRefused as error:
            if error.code != TASK_NOT_FOUND:
                # It does so by itself in some days.
                log.info("the task agent does not forget: %s", error, extra={"command": name})

    def _is_agent_leaving(self) -> bool:
        health = self.line.ask("GET", "health")
        return isinstance(health, dict) and health.get("status") == "stopping"

    def _cancel_unknown(self, call: Call, name: str) -> None:
        try:
            is_new = self._intake.forestall(name, call.not_after)
        except OSError as error:
            call.fail(TASK_FAILED, f"it is not here yet, and that it must not run cannot be written down: {error}")
            return
        if is_new:
            call.succeed({"was": "unknown"})
        else:
            call.fail(TASK_FAILED, "it has ended already, or is no task")
