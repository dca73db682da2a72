"""Reports about commands on their way to the Manager, in order; one connection at a time takes from it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Callable

from daemon.clock import Clock
from daemon.connection import Connection, Refused
from daemon.journal import Journal
from protocol.codec import encode
from protocol.commands import Accept, Output, Report, Reports, Result, parse_reports_answer
from protocol.errors import BODY_TOO_LARGE, INVALID_FIELD, ProtocolError
from protocol.limits import REPORTS

CLAIM_BYTES = 192 * 1024

log = logging.getLogger("daemon.outbox")


class Outbox:
    """Who wants to send claims the oldest reports, then settles or releases them. Results live on in the journal.

    `on_settled` is called, in the thread that sent them, with what the Manager has taken or refused for good.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._changed = threading.Condition()
        self._waiting: deque[Report] = deque()
        self._claimed: list[Report] = []
        self._most = REPORTS
        self.on_settled: Callable[[list[Report]], None] = lambda _: None

    def add(self, *reports: Report) -> None:
        """Take reports, in order."""
        with self._changed:
            self._waiting.extend(reports)
            self._changed.notify_all()

    def has_work(self) -> bool:
        """Whether something waits and nobody is sending."""
        with self._changed:
            return bool(self._waiting) and not self._claimed

    def claim(self) -> list[Report]:
        """The oldest reports that fit one request; empty if there are none or somebody else is sending."""
        with self._changed:
            if self._claimed:
                return []
            size = 0
            while self._waiting and len(self._claimed) < self._most:
                size += _weight(self._waiting[0])
                if self._claimed and size > CLAIM_BYTES:
                    break
                self._claimed.append(self._waiting.popleft())
            return list(self._claimed)

    def make_sure(self) -> None:
        """Before what was claimed leaves: whoever is told that a command is here relies on it, also if the power fails.

        That is not so where the result goes along.
        """
        ended = {report.command for report in self._claimed if isinstance(report, Result)}
        if any(isinstance(report, Accept) and report.command not in ended for report in self._claimed):
            self._journal.sync()

    def settle(self) -> None:
        """The Manager has taken all that was claimed, or refused some of it for good."""
        with self._changed:
            claimed, self._claimed, self._most = self._claimed, [], REPORTS
            self._changed.notify_all()
        for report in claimed:
            if isinstance(report, Result):
                self._journal.reported(report.command)
        self.on_settled(claimed)

    def narrow(self) -> bool:
        """What was claimed is not understood: one at a time from now on. A single one is dropped: True."""
        with self._changed:
            is_single = len(self._claimed) == 1
            self._most = 1
        if is_single:
            self.settle()
        return is_single

    def release(self) -> None:
        """It could not be sent: the next one tries."""
        with self._changed:
            self._waiting.extendleft(reversed(self._claimed))
            self._claimed = []
            self._changed.notify_all()

    def wait_for_result(self, commands: set[str], timeout_s: float) -> None:
        """Linger until these commands' results wait here: then one connection carries all of it."""

        def are_here() -> bool:
            return commands <= {report.command for report in self._waiting if isinstance(report, Result)}

        with self._changed:
            self._changed.wait_for(are_here, timeout_s)


def send_reports(connection: Connection, outbox: Outbox, clock: Clock, reports: list[Report]) -> None:
    """Send what the caller has claimed; it is settled, or released for the next try."""
    try:
        outbox.make_sure()
        _, fields = connection.post("commands/reports", encode(Reports(tuple(reports))))
        answer = parse_reports_answer(fields)
        if len(answer.results) != len(reports):
            raise ProtocolError("results", f"must have {len(reports)} items")
    except Refused as error:
        if error.refusal.reason in (INVALID_FIELD, BODY_TOO_LARGE) and outbox.narrow():
            log.error(  # noqa: TRY400
                "the Manager does not understand a report, which is dropped: %s", error.refusal.message
            )
        outbox.release()
        raise
    except BaseException:
        outbox.release()
        raise
    clock.learn_text(answer.server_time)
    for outcome in answer.results:
        if not outcome.ok:
            log.warning("the Manager does not take a report (%s): %s", outcome.type, outcome.reason)
    outbox.settle()


def _weight(report: Report) -> int:
    if isinstance(report, Output):
        return 512 + len(report.data) * 4 // 3
    return 512 + (len(encode(report.data)) if isinstance(report, Result) and report.data else 0)
