"""The second connection: opened while a poll is held and something has to be said, closed after a while of silence."""

from __future__ import annotations

import logging
import threading

from daemon.backoff import Backoff
from daemon.clock import Clock
from daemon.connection import Connection, LinkDown, Refused
from daemon.identity import IdentityError
from daemon.link import Link
from daemon.outbox import Outbox, send_reports
from daemon.sampling import Sampler
from protocol.codec import encode
from protocol.errors import CHECKIN_FIRST, ProtocolError
from protocol.metrics import Live, parse_live_answer

IDLE_S = 30.0
LIVE_S = 5.0

log = logging.getLogger("daemon.courier")


class Courier:
    """A thread that exists only while there is work for it."""

    def __init__(self, link: Link, outbox: Outbox, sampler: Sampler, clock: Clock) -> None:
        self._link = link
        self._outbox = outbox
        self._sampler = sampler
        self._clock = clock
        self._changed = threading.Condition()
        self._is_stopping = False
        self._is_nudged = False
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None

    def nudge(self) -> None:
        """There may be work. Cheap; called after everything that adds some."""
        if not self._is_needed():
            return
        with self._changed:
            if self._is_stopping:
                return
            self._is_nudged = True
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
                self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End, whatever is waited for."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
            thread, connection = self._thread, self._connection
        if connection is not None:
            connection.abort()
        if thread is not None:
            thread.join(timeout_s)

    def _is_needed(self) -> bool:
        return self._sampler.is_watched() or (self._link.is_holding and self._outbox.has_work())

    def _run(self) -> None:
        backoff = Backoff()
        while True:
            with self._changed:
                if not self._is_nudged and not self._is_stopping:
                    self._changed.wait(IDLE_S)
                if self._is_stopping or not self._is_nudged:
                    self._thread = None
                    self._hang_up()
                    return
                self._is_nudged = False
            try:
                self._work()
                backoff.success()
                continue
            except Refused as error:
                delay = backoff.delay(error.refusal.retry_after_s)
                if error.refusal.reason == CHECKIN_FIRST:
                    self._link.check_in_now()
                log.warning("the Manager answered %s", error)
            except (LinkDown, ProtocolError, IdentityError, ValueError) as error:
                self._hang_up()
                delay = backoff.delay()
                log.warning("the second connection broke: %s", error)
            except Exception:
                # A loop's iteration.
                self._hang_up()
                delay = backoff.delay()
                log.exception("the second connection stumbled")
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopping, delay)
                self._is_nudged = True

    def _work(self) -> None:
        connection = self._connection or self._link.new_connection()
        self._connection = connection
        while not self._is_stopping:
            samples = self._sampler.take_samples()
            if samples:
                _, fields = connection.post("live", encode(Live(tuple(samples))), LIVE_S)
                self._sampler.watch_until(parse_live_answer(fields).until)
            reports = self._outbox.claim() if self._link.is_holding else []
            if reports:
                send_reports(connection, self._outbox, self._clock, reports)
            if not samples and not reports:
                return

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
