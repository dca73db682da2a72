"""Which certificate to show, and the requests that bring one: enrolment, renewal, recovery. For the link's thread."""

from __future__ import annotations

import logging
import ssl
from typing import NamedTuple

from daemon.clock import Clock
from daemon.connection import Connection, LinkDown, Peer, Refused, make_context, means_expired
from daemon.identity import CANDIDATE, CURRENT, Identity, IdentityError, Pending
from daemon.measure import Logbook
from daemon.state import InstanceState
from daemon.system import System
from protocol.codec import encode
from protocol.enrolment import (
    Certificate,
    Enroll,
    EnrollApproved,
    EnrollPending,
    Recover,
    Renew,
    parse_certificate_answer,
    parse_enroll_answer,
)
from protocol.errors import (
    CERTIFICATE_SUPERSEDED,
    CERTIFICATE_VALID,
    DISCOVERY_OFF,
    KEY_MISMATCH,
    NOT_AUTHENTICATED,
    REJECTED,
    TOKEN_REFUSED,
)
from protocol.inventory import Inventory, Machine
from protocol.times import to_text

SILENT_ENDS = 2
MOST_TURNS = 5
RENEW_RETRY_S = 3600.0
RECOVER_RETRY_S = 600.0
FINAL_REFUSALS = frozenset({REJECTED, TOKEN_REFUSED, DISCOVERY_OFF})

log = logging.getLogger("daemon.credentials")


class EnrolmentEnded(Exception):
    """The enrolment was refused for good."""


class _Way(NamedTuple):
    """A certificate and the TLS context that shows it."""

    name: str | None
    peer: Peer
    context: ssl.SSLContext


class Credentials:
    """Chooses between current and candidate, and never throws one away before the other has been proven."""

    def __init__(
        self, system: System, identity: Identity, clock: Clock, state: InstanceState, logbook: Logbook, machine: Machine
    ) -> None:
        self._system = system
        self.identity = identity
        self._clock = clock
        self._state = state
        self._logbook = logbook
        self._machine = machine
        self._way: _Way | None = None
        self._is_candidate_doubtful = False
        self._silent_ends = 0
        self._turns = 0
        self._next_renewal = 0.0
        self._next_recovery = 0.0

    def connect(self, server_url: str | None, proxy: str | None) -> Connection:
        """A connection (not yet opened) with the certificate of the day. IdentityError if there is no identity."""
        node = self.identity.node
        if node is None:
            raise IdentityError("this host is not enrolled")
        name = CANDIDATE if self.identity.has(CANDIDATE) and not self._is_candidate_doubtful else CURRENT
        peer = Peer(server_url or node.server_url, proxy, node.ca_pem, self.identity.path(name))
        if self._way is None or (self._way.name, self._way.peer) != (name, peer):
            try:
                self._way = _Way(name, peer, make_context(peer))
            except OSError as error:
                if name == CANDIDATE:
                    self.identity.drop_candidate()
                raise IdentityError(f"{peer.certificate} cannot be used: {error}") from error
        return Connection(peer, self._way.context, self._state.instance_id)

    # ---- what the link hears

    def heard(self) -> None:
        """A 2xx answer under the certificate in use."""
        self._silent_ends = self._turns = 0
        if self._way is None:
            return
        if self._way.name == CANDIDATE:
            self.identity.promote()
            # Same certificate, same TLS context; only its file has another name now.
            self._way = self._way._replace(
                name=CURRENT, peer=self._way.peer._replace(certificate=self.identity.path(CURRENT))
            )
            self._logbook.add_event("certificate.renewed", "info", "the new certificate is in use")
            log.info("the new certificate is proven; the old one is gone")
        elif self._is_candidate_doubtful:
            log.warning("the Manager takes the old certificate and not the new one; a new one will be asked for")
            self.identity.drop_candidate()
            self._is_candidate_doubtful = False

    def trouble(self, error: Exception) -> bool:
        """Learn from a failure; True if there is another certificate to try at once."""
        name = self._way.name if self._way is not None else None
        is_refused = isinstance(error, Refused) and error.refusal.code == NOT_AUTHENTICATED
        is_silent_end = isinstance(error, LinkDown) and error.is_silent_end
        if name == CANDIDATE and (is_refused or is_silent_end):
            self._is_candidate_doubtful = True
            return True
        if (
            isinstance(error, Refused)
            and error.refusal.reason == CERTIFICATE_SUPERSEDED
            and self._is_candidate_doubtful
        ):
            self._is_candidate_doubtful = False
            return True
        if is_silent_end:
            self._silent_ends += 1
        if self._is_candidate_doubtful and (is_refused or is_silent_end):
            # Neither is taken: perhaps the Manager is restarting. Turn about, but not for ever.
            self._is_candidate_doubtful = False
            self._turns += 1
            if self._turns >= MOST_TURNS:
                self._turns = 0
                self.identity.drop_candidate()
        if means_expired(error):
            self._silent_ends = SILENT_ENDS
        return False

    # ---- renewal and recovery

    def is_recovery_due(self) -> bool:
        """Whether the current certificate has run out, as far as this host can tell."""
        if self.identity.node is None or self.identity.has(CANDIDATE) or self._system.boottime() < self._next_recovery:
            return False
        now = self._clock.manager_now()
        expires = self.identity.expires_at(CURRENT)
        is_expired = 0 < expires < (self._system.wall() if now is None else now)
        return is_expired or self._silent_ends >= SILENT_ENDS

    def is_renewal_due(self, renew_before_s: int) -> bool:
        """Whether it is time to ask for the next certificate."""
        now = self._clock.manager_now()
        if now is None or self.identity.has(CANDIDATE) or self._system.boottime() < self._next_renewal:
            return False
        expires = self.identity.expires_at(CURRENT)
        return 0 < expires < now + renew_before_s

    def renew(self, connection: Connection) -> None:
        """Ask for the next certificate under the current one; the candidate is tried at the next connection."""
        self._next_renewal = self._system.boottime() + RENEW_RETRY_S
        csr_pem = self.identity.renewal_request()
        _, fields = connection.post("renew", encode(Renew(csr_pem)))
        answer = parse_certificate_answer(fields)
        self._clock.learn_text(answer.server_time)
        if isinstance(answer, Certificate):
            self.identity.keep_candidate(answer)

    def recover(self, server_url: str | None, proxy: str | None) -> float:
        """Ask without a certificate, proving the old key. Seconds until the next try; 0: there is a candidate now."""
        node = self.identity.node
        if node is None:
            raise IdentityError("this host is not enrolled")
        self._next_recovery = self._system.boottime() + RECOVER_RETRY_S
        csr_pem = self.identity.renewal_request()
        timestamp = to_text(self._system.wall())
        certificate_pem, signature = self.identity.recovery_signature(csr_pem, timestamp)
        peer = Peer(server_url or node.server_url, proxy, node.ca_pem, None)
        connection = Connection(peer, make_context(peer), None)
        try:
            log.warning("the certificate has expired; asking for a new one with the old key")
            _, fields = connection.post("recover", encode(Recover(certificate_pem, csr_pem, timestamp, signature)))
        except Refused as error:
            self._clock.learn_text(error.refusal.timestamp)
            if error.refusal.reason == CERTIFICATE_VALID:
                log.warning("the Manager says that the certificate is good; this host's clock is wrong")
                self._silent_ends = 0
                return 0.0
            raise
        finally:
            connection.close()
        answer = parse_certificate_answer(fields)
        self._clock.learn_text(answer.server_time)
        if isinstance(answer, EnrollPending):
            self._next_recovery = self._system.boottime() + answer.poll_after_s
            return float(answer.poll_after_s)
        self.identity.keep_candidate(answer)
        self._silent_ends = 0
        return 0.0

    # ---- enrolment

    def begin_again(self) -> None:
        """The Manager takes this machine for a copy: ask for an identity of its own."""
        node = self.identity.node
        if node is not None:
            self.identity.begin(node.server_url, node.ca_pem, None, is_reenrolment=True)

    def enroll(self, pending: Pending, proxy: str | None, facts: Inventory) -> EnrollApproved | EnrollPending:
        """One request to enrol; what it brings is on disk when this returns. EnrolmentEnded: refused for good."""
        certificate = self.identity.path(CURRENT) if pending.is_reenrolment else None
        peer = Peer(pending.server_url, proxy, pending.ca_pem, certificate)
        connection = Connection(peer, make_context(peer), None)
        token = None if pending.ticket is not None else pending.token
        body = Enroll(pending.request_id, token, pending.ticket, pending.csr_pem, self._machine, facts)
        try:
            _, fields = connection.post("enroll", encode(body))
        except Refused as error:
            if error.refusal.reason in FINAL_REFUSALS and not pending.is_reenrolment:
                self.identity.drop_pending()
                raise EnrolmentEnded(error.refusal.message) from error
            if error.refusal.reason == REJECTED:
                # Perhaps it was the original after all: the next check-in under the old identity will tell.
                self.identity.drop_pending()
            if error.refusal.reason == KEY_MISMATCH:
                self.identity.drop_pending()
                self.identity.begin(pending.server_url, pending.ca_pem, pending.token, pending.is_reenrolment)
            raise
        finally:
            connection.close()
        answer = parse_enroll_answer(fields)
        self._clock.learn_text(answer.server_time)
        if isinstance(answer, EnrollPending):
            self.identity.keep_ticket(answer.ticket)
        else:
            self.identity.complete(answer)
            self._state.forget_identity()
            self._way = None
            log.info("enrolled as node %d (%s)", answer.node_id, answer.node_uuid)
        return answer
