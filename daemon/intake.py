"""The door that commands come in by: genuine, in time, and on disk before anybody acts on them."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, Callable

from daemon.clock import Clock
from daemon.identity import Identity
from daemon.journal import RECEIVED, STARTED, Journal
from daemon.measure import Logbook
from daemon.outbox import Outbox
from protocol.codec import decode, encode
from protocol.commands import Accept, Command, Report, Result, is_genuine, parse_command, parse_report
from protocol.errors import INTERRUPTED as INTERRUPTED_CODE
from protocol.errors import NOT_DELIVERED, ProtocolError
from protocol.fields import Fields
from protocol.limits import MIB
from protocol.states import CANCELLED, EXPIRED, INTERRUPTED
from protocol.times import to_epoch

FORGERIES_KEPT = 100

log = logging.getLogger("daemon.intake")


class Intake:
    """Called by the link for each command it receives; hands over what is to be run now."""

    def __init__(
        self,
        identity: Identity,
        clock: Clock,
        journal: Journal,
        outbox: Outbox,
        logbook: Logbook,
        hand_over: Callable[[Command], None],
        kept_elsewhere: Collection[str] = (),
    ) -> None:
        self._identity = identity
        self._clock = clock
        self._journal = journal
        self._outbox = outbox
        self._logbook = logbook
        self._hand_over = hand_over
        # Kinds that somebody else writes down durably before he acts: the disk need not be waited for twice.
        self._kept_elsewhere = kept_elsewhere
        self._forgeries: set[str] = set()
        self._resumed: set[str] = set()

    def in_flight(self) -> list[str]:
        """Commands whose end the Manager does not know yet."""
        return [entry.id for entry in self._journal.unreported()]

    def take(self, command: Command) -> bool:
        """Check and write down a command; True if it is new and will be run."""
        node = self._identity.node
        if node is None or not is_genuine(command, node.command_key, node.node_uuid):
            self._forged(command)
            return False
        now = self._clock.manager_now()
        not_after = to_epoch(command.not_after)
        try:
            is_durable = command.kind not in self._kept_elsewhere
            is_new = (
                now is not None and now <= not_after and self._journal.receive(command, not_after, True, is_durable)
            )
        except OSError as error:
            log.error("a command cannot be written down and is left to the Manager: %s", error)  # noqa: TRY400
            return False
        if is_new:
            self._outbox.add(Accept(command.id, "accept", self._clock.text()))
            self._hand_over(command)
        elif now is not None and now > not_after and not self._journal.knows(command.id):
            self._outbox.add(ended(command.id, EXPIRED, NOT_DELIVERED, "came after its deadline", self._clock.text()))
        return is_new

    def catch_up(self, resumable: Collection[str] = ()) -> None:
        """After a start: report again what was not heard, call what was cut short interrupted, run the rest.

        Commands of the `resumable` kinds are handed over again: what does them keeps a journal of its own.
        """
        for entry in self._journal.unreported():
            if entry.result is not None:
                self._outbox.add(_report(entry.result))
                continue
            if entry.stage == RECEIVED:
                self._resume(entry.command)
            elif entry.stage == STARTED and entry.command.get("kind") in resumable:
                self._resumed.add(entry.id)
                self._resume(entry.command, is_started=True)
            elif entry.stage == STARTED:
                words = "the Daemon or the machine died in the middle of it"
                self.finish(ended(entry.id, INTERRUPTED, INTERRUPTED_CODE, words, self._clock.text()))

    def is_resumed(self, command_id: str) -> bool:
        """Whether this command was started by an earlier Daemon already."""
        return command_id in self._resumed

    def forestall(self, command_id: str, until: float) -> bool:
        """Call a command cancelled that may still come, so that it never runs. False if it has come. OSError."""
        result = ended(command_id, CANCELLED, None, "cancelled before it reached this host", self._clock.text())
        is_new = self._journal.forestall(command_id, until, decode(encode(result), MIB))
        if is_new:
            self._outbox.add(result)
        return is_new

    def finish(self, result: Result) -> None:
        """Write down how a command ended, then report it."""
        self._journal.finish(result.command, decode(encode(result), MIB))
        self._outbox.add(result)

    def _resume(self, stored: dict[str, Any], is_started: bool = False) -> None:
        try:
            command = parse_command(Fields(stored))
            if not is_started:
                self._journal.start(command.id)
        except (ProtocolError, OSError) as error:
            log.error("a command in the journal cannot be run: %s", error)  # noqa: TRY400
            return
        self._hand_over(command)

    def _forged(self, command: Command) -> None:
        if command.id in self._forgeries:
            return
        if len(self._forgeries) >= FORGERIES_KEPT:
            self._forgeries.clear()
        self._forgeries.add(command.id)
        words = f"command {command.id} ({command.kind}) has a wrong signature or another host's name; not run"
        log.error(words)
        self._logbook.add_event(
            "command.bad_signature", "critical", words, {"command": command.id, "kind": command.kind}
        )


def ended(command_id: str, status: str, error_code: str | None, error: str | None, at: str) -> Result:
    """A result of something that never ran, or of which nothing is known but its end."""
    return Result(
        command=command_id,
        type="result",
        status=status,
        exit_code=None,
        signal=None,
        user=None,
        started_at=None,
        finished_at=at,
        duration_ms=None,
        error_code=error_code,
        error=error,
        stdout_bytes=0,
        stderr_bytes=0,
        truncated=False,
        data=None,
    )


def _report(stored: dict[str, Any]) -> Report:
    fields = Fields(stored)
    return parse_report(fields, fields.uuid("command"), "result")
