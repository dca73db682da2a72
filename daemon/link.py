"""The thread that keeps the Manager on the line: check in when due, poll in between, be patient with trouble."""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable

from daemon.backoff import Backoff
from daemon.checkin import CheckIns, Sent
from daemon.clock import Clock
from daemon.connection import Connection, LinkDown, Refused
from daemon.credentials import Credentials, EnrolmentEnded
from daemon.identity import IdentityError, Pending
from daemon.intake import Intake
from daemon.outbox import Outbox, send_reports
from daemon.system import System
from protocol.checkin import CheckInAnswer, parse_checkin_answer
from protocol.codec import encode
from protocol.commands import Poll, PollAnswer, parse_poll_answer
from protocol.enrolment import EnrollPending
from protocol.errors import (
    BODY_TOO_LARGE,
    CERTIFICATE_UNKNOWN,
    CHALLENGE,
    CHECKIN_FIRST,
    INVALID_FIELD,
    REJECTED,
    REVOKED,
    WIRE_UNSUPPORTED,
    ProtocolError,
    Refusal,
)
from protocol.fields import Fields
from protocol.inventory import Inventory
from protocol.limits import IN_FLIGHT
from protocol.settings import Settings

BACKLOG_S = 1.0
FIRST_POINT_S = 3.0
LINGER_S = 0.03
POLL_GRACE_S = 15.0
SLOW_S = 900.0
WIRE_RETRY_S = 300.0
DRAIN_S = 2.0
STEP_S = 180.0

log = logging.getLogger("daemon.link")


class Link:
    """One thread runs all of this, but for what stands under *from other threads*."""

    def __init__(
        self,
        system: System,
        credentials: Credentials,
        checkins: CheckIns,
        clock: Clock,
        intake: Intake,
        outbox: Outbox,
        read_inventory: Callable[[], Inventory],
        on_live: Callable[[str], None],
        on_over: Callable[[], None],
        server_url: str | None,
        proxy: str | None,
    ) -> None:
        self._system = system
        self._credentials = credentials
        self._checkins = checkins
        self._clock = clock
        self._intake = intake
        self._outbox = outbox
        self._read_inventory = read_inventory
        self._on_live = on_live
        self._on_over = on_over
        self._server_url = server_url
        self._proxy = proxy
        self._backoff = Backoff()
        self._wake = threading.Condition()
        self._is_stopping = False
        self._is_hurried = False
        self._connection: Connection | None = None
        self._is_first = True
        self.next_checkin = 0.0
        self.is_holding = False
        self.is_over = False
        self.alive_until = system.boottime() + STEP_S
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    # ---- from other threads

    def start(self) -> None:
        """Go."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End whatever is waited for, and the thread."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify_all()
        self._abort()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def check_in_now(self) -> None:
        """Something happened that should not wait for the poll to end."""
        with self._wake:
            self._is_hurried = True
            self._wake.notify_all()
        if self.is_holding:
            self._abort()

    def use(self, server_url: str | None, proxy: str | None) -> None:
        """New address after a reload; holds from the next connection on."""
        with self._wake:
            self._server_url, self._proxy = server_url, proxy
            self._is_hurried = True
            self._wake.notify_all()
        self._abort()

    def new_connection(self) -> Connection:
        """A second connection, of the same kind as the one in use."""
        return self._credentials.connect(self._server_url, self._proxy)

    # ---- the thread

    def _run(self) -> None:
        while not self._is_stopping:
            delay = 0.0
            try:
                delay = self._step()
            except EnrolmentEnded as error:
                log.error("the enrolment was refused: %s", error)  # noqa: TRY400
                self.is_over = True
                self._on_over()
                return
            except Refused as error:
                delay = self._refused(error)
            except (LinkDown, ProtocolError, IdentityError, ValueError) as error:
                delay = self._down(error)
            except Exception:
                # A loop's iteration: whatever it was, the link must live on.
                log.exception("the link stumbled")
                delay = self._backoff.delay()
            self._pause(delay)
        self._hang_up()

    def _step(self) -> float:
        """One exchange. Seconds to wait before the next."""
        credentials = self._credentials
        self._promise(STEP_S)
        if self._take_hurry():
            self.next_checkin = 0.0
        pending = credentials.identity.pending
        if pending is not None:
            return self._enroll(pending)
        if credentials.is_recovery_due():
            self._hang_up()
            return credentials.recover(self._server_url, self._proxy)
        connection = self._connection or credentials.connect(self._server_url, self._proxy)
        self._connection = connection
        if credentials.is_renewal_due(self._settings.renew_before_s):
            credentials.renew(connection)
            self._hang_up()
            self.next_checkin = 0.0
            return 0.0
        if self.next_checkin <= self._system.boottime():
            self._check_in(connection)
        elif not self._flush(connection):
            return self._poll(connection)
        return 0.0

    def _check_in(self, connection: Connection) -> None:
        sent = self._checkins.build()
        started = self._system.boottime()
        try:
            _, fields = connection.post("checkin", encode(sent.message))
        except Refused as error:
            self._clock.learn_text(error.refusal.timestamp)
            if self._is_checkin_changed(sent, error.refusal):
                return
            raise
        answer = self._read_answer(fields)
        self._clock.learn_text(answer.server_time)
        self._backoff.success()
        self._credentials.heard()
        if answer.reenrol:
            log.error("the Manager takes this machine for a copy of another; asking for an identity of its own")
            self._credentials.begin_again()
            self._hang_up()
            return
        self._checkins.take(sent, answer, self._system.boottime() - started)
        self.next_checkin = self._system.boottime() + self._until_next(answer)
        self._is_first = False

    def _read_answer(self, fields: Fields) -> CheckInAnswer:
        """Settings that make no sense must not cost the acknowledgements beside them."""
        try:
            return parse_checkin_answer(fields)
        except ProtocolError as error:
            if not error.field.startswith("settings"):
                raise
            self._checkins.settings_refused(str(error))
            return parse_checkin_answer(fields.without("settings"))

    def _until_next(self, answer: CheckInAnswer) -> float:
        if self._checkins.has_backlog(answer):
            return self._backoff.spread(BACKLOG_S, 0.2)
        wait = self._backoff.spread(answer.next_checkin_s or self._settings.heartbeat_interval_s, 0.02)
        return min(wait, FIRST_POINT_S) if self._is_first else wait

    def _is_checkin_changed(self, sent: Sent, refusal: Refusal) -> bool:
        """Refusals that the next check-in answers at once."""
        challenge = refusal.data.get("challenge")
        if refusal.reason == CHALLENGE and isinstance(challenge, str) and 8 <= len(challenge) <= 128:
            is_new = sent.message.challenge is None
            self._checkins.challenged(challenge)
            return is_new
        if refusal.reason == BODY_TOO_LARGE:
            self._checkins.too_large()
        if refusal.reason == INVALID_FIELD:
            self._checkins.invalid(sent, refusal.message)
        return False

    def _flush(self, connection: Connection) -> bool:
        """Send what waits over the first connection, which is free just now; False if nothing waits."""
        reports = self._outbox.claim()
        if not reports:
            return False
        send_reports(connection, self._outbox, self._clock, reports)
        return True

    def _poll(self, connection: Connection) -> float:
        left = self.next_checkin - self._system.boottime()
        wait_s = int(min(self._settings.poll_wait_s, left))
        if wait_s < 1:
            return max(0.0, left)
        self._promise(wait_s + POLL_GRACE_S + STEP_S)
        body = encode(Poll(wait_s, tuple(self._intake.in_flight()[:IN_FLIGHT])))
        self.is_holding = True
        try:
            # From here on the second connection serves the outbox; what came before this line is still ours.
            if self._outbox.has_work() or self._is_hurried or self._is_stopping:
                return 0.0
            _, fields = connection.post("poll", body, wait_s + POLL_GRACE_S)
        finally:
            self.is_holding = False
        answer = parse_poll_answer(fields)
        self._clock.learn_text(answer.server_time)
        self._backoff.success()
        self._credentials.heard()
        return self._take_poll(answer)

    def _take_poll(self, answer: PollAnswer) -> float:
        if answer.revoked:
            return self._revoked()
        if answer.live is not None:
            self._on_live(answer.live.until)
        taken = {command.id for command in answer.commands if self._intake.take(command)}
        if taken:
            self._outbox.wait_for_result(taken, LINGER_S)
        elif answer.commands:
            # Nothing new, or nothing genuine; whoever hands it out again and again must not make us run in circles.
            return self._backoff.delay()
        if answer.checkin:
            self.next_checkin = 0.0
        if answer.drain:
            self._hang_up()
            return self._backoff.spread(DRAIN_S / 2, 1.0)
        return 0.0

    def _enroll(self, pending: Pending) -> float:
        self._hang_up()
        answer = self._credentials.enroll(pending, self._proxy, self._read_inventory())
        self._backoff.success()
        if isinstance(answer, EnrollPending):
            log.info("the Manager's administrators have not approved this host yet")
            return self._backoff.spread(answer.poll_after_s, 0.1)
        self._checkins.enrolled(answer.settings)
        self.next_checkin = 0.0
        return 0.0

    # ---- trouble

    def _refused(self, error: Refused) -> float:
        refusal = error.refusal
        self._clock.learn_text(refusal.timestamp)
        if self._credentials.trouble(error):
            self._hang_up()
            return 0.0
        if refusal.reason == CHECKIN_FIRST:
            self.next_checkin = 0.0
            return self._backoff.delay()
        if refusal.reason == REVOKED:
            return self._revoked()
        if refusal.reason in (CERTIFICATE_UNKNOWN, REJECTED, WIRE_UNSUPPORTED):
            self._hang_up()
            log.error("the Manager refuses this host: %s (%s)", refusal.message, refusal.reason)
            return self._backoff.spread(WIRE_RETRY_S, 0.2)
        delay = self._backoff.delay(refusal.retry_after_s)
        words = f"{refusal.status} {refusal.reason}".strip()
        log.warning("the Manager answered %s: %s; next try in %.1f s", words, refusal.message, delay)
        return delay

    def _down(self, error: Exception) -> float:
        if self._is_stopping or self._is_hurried:
            # We cut the line ourselves.
            self._hang_up()
            return 0.0
        self._hang_up()
        if self._credentials.trouble(error):
            log.warning("the link broke (%s); trying the other certificate", error)
            return 0.0
        if isinstance(error, LinkDown) and error.was_reused:
            # A kept connection was closed meanwhile, as servers and proxies do; that is no failure yet.
            log.info("the connection was closed; connecting anew")
            return self._backoff.spread(0.25, 1.0)
        delay = self._backoff.delay()
        log.warning("no link to the Manager (%s); next try in %.1f s", error, delay)
        return delay

    def _revoked(self) -> float:
        self._hang_up()
        log.error("this node was revoked; asking again in %.0f minutes", SLOW_S / 60)
        self.next_checkin = 0.0
        return self._backoff.spread(SLOW_S, 0.1)

    # ---- waiting

    @property
    def _settings(self) -> Settings:
        return self._checkins.settings

    def _take_hurry(self) -> bool:
        with self._wake:
            is_hurried, self._is_hurried = self._is_hurried, False
            return is_hurried

    def _pause(self, seconds: float) -> None:
        self._promise(seconds + STEP_S)
        deadline = time.monotonic() + seconds
        with self._wake:
            while not self._is_stopping and not self._is_hurried:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._wake.wait(left)

    def _promise(self, seconds: float) -> None:
        """The watchdog may worry when this time has passed without another promise."""
        self.alive_until = self._system.boottime() + seconds

    def _abort(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.abort()

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
