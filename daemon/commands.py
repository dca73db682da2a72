"""What this Daemon can be told to do: one table from kind to handler, and the runner that makes results of outcomes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple

from daemon import logs
from daemon.clock import Clock
from daemon.intake import Intake, ended
from daemon.outbox import Outbox
from daemon.system import System
from daemon.version import VERSION
from protocol.commands import Command, Start, payload_fields
from protocol.errors import BAD_PAYLOAD, NOT_DELIVERED, TASK_FAILED, UNSUPPORTED_KIND, ProtocolError
from protocol.fields import Fields
from protocol.states import EXPIRED, FAILED, SUCCEEDED
from protocol.times import to_epoch, to_text

TAIL_BYTES = 48 * 1024

log = logging.getLogger("daemon.commands")

Handler = Callable[[Fields], dict[str, Any]]


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
    """Runs commands in the main thread, one after the other; they are short, or only set something going."""

    def __init__(
        self, system: System, clock: Clock, table: Mapping[str, Handler], intake: Intake, outbox: Outbox
    ) -> None:
        self._system = system
        self._clock = clock
        self._table = table
        self._intake = intake
        self._outbox = outbox

    def run(self, command: Command) -> None:
        """Run one command to its result, whatever happens."""
        handler = self._table.get(command.kind)
        now = self._clock.manager_now()
        extra = {"command": command.id, "kind": command.kind}
        if handler is None:
            self._refuse(command, FAILED, UNSUPPORTED_KIND, f"this Daemon does not know {command.kind}")
            return
        if now is not None and now > to_epoch(command.not_after):
            self._refuse(command, EXPIRED, NOT_DELIVERED, "its deadline passed before it could start")
            return
        started = self._clock.best_now()
        begun = self._system.boottime()
        try:
            payload = payload_fields(command)
            self._outbox.add(Start(command.id, "start", to_text(started), None))
            data = handler(payload)
        except ProtocolError as error:
            self._refuse(command, FAILED, BAD_PAYLOAD, str(error))
            return
        except Exception as error:
            # A handler's mistake must end its command, not the Daemon.
            log.exception("a command failed", extra=extra)
            self._refuse(command, FAILED, TASK_FAILED, f"{type(error).__name__}: {error}")
            return
        duration_s = self._system.boottime() - begun
        log.info("done", extra={**extra, "duration_ms": int(duration_s * 1000)})
        result = ended(command.id, SUCCEEDED, None, None, to_text(started + duration_s))
        self._intake.finish(result._replace(started_at=to_text(started), duration_ms=int(duration_s * 1000), data=data))

    def _refuse(self, command: Command, status: str, error_code: str, error: str) -> None:
        log.warning("%s", error, extra={"command": command.id, "kind": command.kind})
        self._intake.finish(ended(command.id, status, error_code, error[:2000] or error_code, self._clock.text()))
