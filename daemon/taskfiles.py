"""Files of tasks on their way: from the Manager to the agent before an upload is ordered, and back after a download."""

from __future__ import annotations

import logging
from typing import Callable

from daemon.backoff import Backoff
from daemon.connection import Connection, LinkDown, Refused
from daemon.errands import Errands
from daemon.identity import IdentityError
from daemon.system import System
from daemon.taskline import AgentAway, AgentRefused, TaskLine
from daemon.taskorders import BRINGING, FETCHING, TOLD, WAITING, Execution, Executions, TaskFile
from protocol.commands import Report, Result
from protocol.errors import (
    AGENT_BUSY,
    BODY_TOO_LARGE,
    CONFLICT,
    NOT_DELIVERED,
    OUTCOME_CODES,
    TASK_FAILED,
    TOO_MANY_REQUESTS,
    ProtocolError,
)
from protocol.fields import Fields
from protocol.limits import FILE_PIECE_BYTES
from protocol.states import FAILED

AT_ONCE = 2
MOST_WAITING = 64
FETCH_S = 3600.0

log = logging.getLogger("daemon.tasks")


class _Failure(Exception):
    """It will not come. `code` as in a result."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code = code


class Transfers:
    """A few at once, each in a short-lived thread with connections of its own; what is cancelled stops."""

    def __init__(
        self,
        system: System,
        executions: Executions,
        new_connection: Callable[[], Connection],
        find_socket: Callable[[], str | None],
        post: Callable[[Callable[[], None]], None],
        tell: Callable[[list[Report]], None],
    ) -> None:
        self._system = system
        self._executions = executions
        self._new_connection = new_connection
        self._find_socket = find_socket
        self._post = post
        self._tell = tell
        self._errands = Errands("task-files", AT_ONCE, MOST_WAITING)

    def stop(self, timeout_s: float) -> None:
        """End the threads; the next Daemon goes on where they were."""
        self._errands.stop(timeout_s)

    def bring(self, execution: Execution, file: TaskFile) -> None:
        """From the Manager to the agent; then the execution waits to be ordered."""
        execution.stage = FETCHING

        def end(failure: _Failure | None) -> None:
            if execution.stage != FETCHING or not self._is_wanted(execution):
                return
            if failure is None:
                execution.stage = WAITING
            else:
                self._executions.drop(execution).fail(failure.code, str(failure))

        self._start(execution, lambda line: self._bring(line, execution.call.id, file), execution.deadline, end)

    def fetch(self, execution: Execution, result: Result) -> None:
        """From the agent to the Manager; then the result is told."""
        execution.stage = BRINGING

        def end(failure: _Failure | None) -> None:
            if execution.stage != BRINGING or not self._is_wanted(execution):
                return
            execution.stage = TOLD
            told = result
            if failure is not None:
                told = result._replace(status=FAILED, error_code=failure.code, error=str(failure)[:2000])
            self._tell([told])

        deadline = self._system.boottime() + FETCH_S
        self._start(execution, lambda line: self._fetch(line, execution.call.id), deadline, end)

    def _is_wanted(self, execution: Execution) -> bool:
        return self._executions.all.get(execution.call.id) is execution

    def _start(
        self,
        execution: Execution,
        step: Callable[[TaskLine], None],
        deadline: float,
        end: Callable[[_Failure | None], None],
    ) -> None:
        def work() -> None:
            failure: _Failure | None = None
            try:
                is_done = self._patiently(step, execution, deadline)
            except _Failure as error:
                is_done, failure = True, error
            except Exception as error:
                # Whatever it was, it ends this transfer and not the thread.
                log.exception("a file could not be brought", extra={"command": execution.call.id})
                is_done, failure = True, _Failure(TASK_FAILED, f"{type(error).__name__}: {error}")
            if is_done:
                self._post(lambda: end(failure))

        if not self._errands.start(work) and not self._errands.stopping.is_set():
            self._post(lambda: end(_Failure(AGENT_BUSY, "too many files are on their way to or from this host")))

    def _patiently(self, step: Callable[[TaskLine], None], execution: Execution, deadline: float) -> bool:
        """Again and again until it is done, or will not be. False: nobody wants it any more."""
        backoff = Backoff()
        while not self._errands.stopping.is_set() and self._is_wanted(execution):
            line, retry_after_s = TaskLine(), None
            try:
                line.open(self._find_socket())
                step(line)
            except Refused as error:
                if error.refusal.reason == BODY_TOO_LARGE:
                    raise _Failure(TASK_FAILED, "the Manager keeps no files of this size") from None
                if error.refusal.status in (400, 404):
                    raise _Failure(TASK_FAILED, f"the Manager says: {error.refusal.message}") from None
                words, retry_after_s = str(error), error.refusal.retry_after_s
            except AgentRefused as error:
                if error.code not in (CONFLICT, TOO_MANY_REQUESTS):
                    code = error.data.get("error_code") if isinstance(error.data, dict) else None
                    raise _Failure(code if code in OUTCOME_CODES else TASK_FAILED, str(error)) from None
                words = str(error)
            except (LinkDown, AgentAway, ProtocolError, IdentityError, ValueError) as error:
                words = str(error)
            else:
                return True
            finally:
                line.close()
            delay = backoff.delay(retry_after_s)
            if self._system.boottime() + delay >= deadline:
                raise _Failure(NOT_DELIVERED, f"the file did not come in time: {words}")
            log.info("a file has to wait: %s", words, extra={"command": execution.call.id})
            self._errands.stopping.wait(delay)
        return False

    def _bring(self, line: TaskLine, command: str, file: TaskFile) -> None:
        told = Fields(line.ask("GET", f"file/upload?sha256={file.sha256}"))
        if told.flag("complete"):
            return
        offset = told.integer("next", 0, file.size)

        def stage(data: bytes) -> None:
            nonlocal offset
            where = f"offset={offset}&total={file.size}&sha256={file.sha256}"
            answer = Fields(line.ask("POST", f"file/stage?{where}", data))
            offset += len(data)
            if not answer.flag("complete") and answer.integer("next") != offset:
                raise ProtocolError("next", "is not what follows")

        if not file.size:
            stage(b"")
            return
        connection = self._new_connection()
        try:
            connection.fetch(f"files/{file.id}?command={command}", offset, FILE_PIECE_BYTES, stage)
        finally:
            connection.close()
        if offset != file.size:
            raise ProtocolError("file", "ended early")

    def _fetch(self, line: TaskLine, command: str) -> None:
        connection, offset = self._new_connection(), 0
        try:
            while True:
                data, total = line.fetch(f"task/{command}/file", offset, FILE_PIECE_BYTES)
                answer = connection.post_bytes(f"commands/{command}/file?offset={offset}&total={total}", data)
                if answer.flag("complete"):
                    return
                offset = answer.integer("next", 0, total)
        finally:
            connection.close()
