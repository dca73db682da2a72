"""What this Daemon can be told to do: one table from kind to handler, and the runner that makes results of outcomes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Union

from daemon import logs
from daemon.clock import Clock
from daemon.intake import Intake, ended
from daemon.outbox import Outbox
from daemon.system import System
from daemon.version import VERSION
from protocol.commands import Command, Start, payload_fields
from protocol.errors import BAD_PAYLOAD, NOT_DELIVERED, TASK_FAILED, UNSUPPORTED_KIND, ProtocolError
from protocol.fields import Fields
from protocol.states import CANCELLED, EXPIRED, FAILED, SUCCEEDED
from protocol.times import to_epoch, to_text

TAIL_BYTES = 48 * 1024

log = logging.getLogger("daemon.commands")


class Failed(Exception):
    """A handler's refusal or failure with a code of its own; `data` tells the rest."""

    def __init__(self, error_code: str, words: str, data: dict[str, Any] | None = None) -> None:
        super().__init__(words)
        self.error_code = error_code
        self.data = data


class Call:
    """One command under way. Whoever works on it, in whatever thread, ends it once: `succeed` or `fail`."""

    __slots__ = ("_is_over", "_runner", "begun", "id", "is_resumed", "kind", "not_after", "started")

    def __init__(self, runner: Runner, command: Command, is_resumed: bool, started: float, begun: float) -> None:
        self.id = command.id
        self.kind = command.kind
        self.not_after = to_epoch(command.not_after)
        self.is_resumed = is_resumed
        self.started = started
        self.begun = begun
        self._runner = runner
        self._is_over = False

    def succeed(self, data: dict[str, Any]) -> None:
        """It is done."""
        self._end(SUCCEEDED, None, None, data)

    def fail(self, error_code: str, words: str, data: dict[str, Any] | None = None, status: str = FAILED) -> None:
        """It could not be done."""
        self._end(status, error_code, words, data)

    def cancel(self) -> None:
        """Somebody no longer wants it, and it was not begun."""
        self._end(CANCELLED, None, None, None)

    def _end(self, status: str, error_code: str | None, words: str | None, data: dict[str, Any] | None) -> None:
        is_over, self._is_over = self._is_over, True
        if not is_over:
            self._runner.end(self, status, error_code, words, data)


class Later:
    """What a handler returns whose work must not hold up the main thread: `begin` sets it going and returns at once.

    `tells_start`: whoever works on it reports by himself that it has started, since that may be later.
    """

    __slots__ = ("begin", "tells_start")

    def __init__(self, begin: Callable[[Call], None], tells_start: bool = False) -> None:
        self.begin = begin
        self.tells_start = tells_start


Handler = Callable[[Fields], Union[dict[str, Any], Later]]


class Surroundings(NamedTuple):
    """What handlers may ask and set going."""

    system: System
    settings_version: Callable[[], int]
    check_in_now: Callable[[], None]


def handlers(around: Surroundings) -> Mapping[str, Handler]:
    """The table. A kind that is not here is refused by name, so that the Manager knows what this version can do."""

    def ping(payload: Fields) -> dict[str, Any]:
        echo = payload.text_or_none("echo", 1000, 0)
        return {"echo": echo, "daemon_version": VERSION, "uptime_s": round(around.system.boottime(), 3)}

    def refresh_settings(_: Fields) -> dict[str, Any]:
        around.check_in_now()
        return {"settings_version": around.settings_version()}

    def tail_log(payload: Fields) -> dict[str, Any]:
        lines = payload.integer_or_none("lines", 1, 500)
        return {"lines": logs.tail(100 if lines is None else lines, TAIL_BYTES)}

    return {"ping": ping, "settings.refresh": refresh_settings, "log.tail": tail_log}


class Runner:
    """Starts commands in the main thread, one after the other; what takes longer than a moment ends elsewhere."""

    def __init__(
        self,
        system: System,
        clock: Clock,
        table: Mapping[str, Handler],
        intake: Intake,
        outbox: Outbox,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._system = system
        self._clock = clock
        self._table = table
        self._intake = intake
        self._outbox = outbox
        self._on_end = on_end

    def run(self, command: Command) -> None:
        """Run one command to its result, or set it going, whatever happens."""
        handler = self._table.get(command.kind)
        now = self._clock.manager_now()
        if handler is None:
            self._refuse(command, FAILED, UNSUPPORTED_KIND, f"this Daemon does not know {command.kind}")
            return
        is_resumed = self._intake.is_resumed(command.id)
        if now is not None and now > to_epoch(command.not_after) and not is_resumed:
            self._refuse(command, EXPIRED, NOT_DELIVERED, "its deadline passed before it could start")
            return
        call = Call(self, command, is_resumed, self._clock.best_now(), self._system.boottime())
        try:
            payload = payload_fields(command)
            start = Start(command.id, "start", self._clock.text(), None)
            outcome = handler(payload)
            if not is_resumed and not (isinstance(outcome, Later) and outcome.tells_start):
                self._outbox.add(start)
            if isinstance(outcome, Later):
                outcome.begin(call)
            else:
                call.succeed(outcome)
        except ProtocolError as error:
            call.fail(BAD_PAYLOAD, str(error))
        except Failed as error:
            call.fail(error.error_code, str(error), error.data)
        except Exception as error:
            # A handler's mistake must end its command, not the Daemon.
            log.exception("a command failed", extra={"command": command.id, "kind": command.kind})
            call.fail(TASK_FAILED, f"{type(error).__name__}: {error}")

    def end(
        self, call: Call, status: str, error_code: str | None, error: str | None, data: dict[str, Any] | None
    ) -> None:
        """How a call ended, from any thread."""
        duration_s = self._system.boottime() - call.begun
        duration_ms = int(duration_s * 1000)
        extra = {"command": call.id, "kind": call.kind, "duration_ms": duration_ms}
        if error_code is None:
            log.info("done", extra=extra)
        else:
            log.warning("%s: %s", error_code, error, extra=extra)
        words = None if error_code is None else (error or error_code)[:2000]
        result = ended(call.id, status, error_code, words, to_text(call.started + duration_s))
        result = result._replace(started_at=to_text(call.started), duration_ms=duration_ms, data=data)
        self._intake.finish(result)
        self._on_end()

    def _refuse(self, command: Command, status: str, error_code: str, error: str) -> None:
        log.warning("%s", error, extra={"command": command.id, "kind": command.kind})
        self._intake.finish(ended(command.id, status, error_code, error[:2000] or error_code, self._clock.text()))
        self._on_end()
