"""Which node is calling. A certificate is the only identity; what a body or a header says is none.

Native: gunicorn did TLS and we read the peer's certificate from the socket. Behind nginx: TLS ended there, and the
verified certificate comes in a header over a Unix socket that only nginx can reach.
"""

import time
from dataclasses import dataclass
from threading import Lock
from typing import Any
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from flask import Request, request
from sqlalchemy import bindparam, exists, select
from sqlalchemy.orm import Session

from app.kernel import pki
from app.kernel.context import ops
from app.nodes.models import MEMBERS, Node, NodeCertificate, Revocation
from protocol import errors as wire
from protocol.errors import ProtocolError

CERTIFICATE_HEADER = "X-Ops-Client-Certificate"
_FOUND = (
    select(
        NodeCertificate.node_id,
        NodeCertificate.state,
        Node.status,
        exists().where(Revocation.fingerprint == NodeCertificate.fingerprint).label("is_revoked"),
    )
    .join(Node, Node.id == NodeCertificate.node_id)
    .where(NodeCertificate.fingerprint == bindparam("fingerprint"))
)
CACHE_S = 60.0
GUARDED_S = 5.0
MOST_CACHED = 20_000
LONGEST_HEADER = 16_384


@dataclass(frozen=True)
class Peer:
    """The node behind a request, and what state the certificate is in that it showed."""

    node_id: int
    fingerprint: str
    state: str


class KnownPeers:
    """Fingerprints that were looked up lately. They count only while the sweep works, which drops what was revoked."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._peers: dict[str, tuple[Peer, float]] = {}
        self._guarded_until = 0.0
        self.drops = 0
        """How often something was dropped: what was looked up before that may not be true any more."""

    def guard(self) -> None:
        """The sweep has just seen everything that was revoked."""
        self._guarded_until = time.monotonic() + GUARDED_S

    def get(self, fingerprint: str) -> Peer | None:
        found, at = self._peers.get(fingerprint), time.monotonic()
        return found[0] if found is not None and at < min(found[1], self._guarded_until) else None

    def put(self, peer: Peer, drops: int) -> None:
        """Unless something was dropped since there were so many `drops`, just before the peer was looked up."""
        with self._lock:
            if drops != self.drops:
                return
            if len(self._peers) >= MOST_CACHED:
                self._peers.clear()
            self._peers[peer.fingerprint] = (peer, time.monotonic() + CACHE_S)

    def drop(self, node_ids: set[int]) -> None:
        with self._lock:
            self.drops += 1
            self._peers = {key: value for key, value in self._peers.items() if value[0].node_id not in node_ids}

    def drop_all(self) -> None:
        """Nobody tells of what changes: nothing counts until the sweep guards again."""
        with self._lock:
            self.drops += 1
            self._peers, self._guarded_until = {}, 0.0


def certificate_der(source: Request) -> bytes | None:
    """The peer's verified certificate; None if it showed none."""
    if ops().settings.server.gateway.behind_proxy:
        return _from_header(source.headers.get(CERTIFICATE_HEADER, ""))
    connection: Any = source.environ.get("gunicorn.socket")
    return connection.getpeercert(True) if hasattr(connection, "getpeercert") else None


def _from_header(text: str) -> bytes | None:
    if not text or len(text) > LONGEST_HEADER:
        return None
    try:
        return x509.load_pem_x509_certificate(unquote(text).encode()).public_bytes(Encoding.DER)
    except ValueError:
        raise refusal(wire.NOT_AUTHENTICATED, wire.CERTIFICATE_UNKNOWN, "the certificate cannot be read") from None


def peer(session: Session, known: KnownPeers) -> Peer:
    """The node that calls. Raises ProtocolError for everybody else."""
    der = certificate_der(request)
    if der is None:
        raise refusal(wire.NOT_AUTHENTICATED, wire.CERTIFICATE_REQUIRED, "a client certificate is needed")
    fingerprint = pki.fingerprint(der)
    if found := known.get(fingerprint):
        return found
    _check(der)
    drops = known.drops
    found = _look_up(session, fingerprint)
    if found.state == "current":
        known.put(found, drops)
    return found


def _check(der: bytes) -> None:
    """TLS has verified it already; a proxy might not have. Issuer, purpose, dates and name are looked at again."""
    try:
        pki.identify_node(der, ops().keys.authority.certificate)
    except pki.CertificateError as error:
        reason = wire.CERTIFICATE_EXPIRED if "expired" in str(error) else wire.CERTIFICATE_UNKNOWN
        raise refusal(wire.NOT_AUTHENTICATED, reason, str(error)) from None


def _look_up(session: Session, fingerprint: str) -> Peer:
    row = session.execute(_FOUND, {"fingerprint": fingerprint}).first()
    if row is None:
        if session.scalar(select(Revocation.id).where(Revocation.fingerprint == fingerprint)) is not None:
            raise refusal(wire.FORBIDDEN, wire.REVOKED, "this node was revoked")
        raise refusal(wire.NOT_AUTHENTICATED, wire.CERTIFICATE_UNKNOWN, "the certificate is not known here")
    # Its status as well: a certificate that was being made while the node was revoked is in no list.
    if row.is_revoked or row.state == "revoked" or row.status not in MEMBERS:
        raise refusal(wire.FORBIDDEN, wire.REVOKED, "this node was revoked")
    if row.state == "superseded":
        raise refusal(wire.NOT_AUTHENTICATED, wire.CERTIFICATE_SUPERSEDED, "a newer certificate is in use")
    return Peer(row.node_id, fingerprint, row.state)


def refusal(code: int, reason: str, message: str) -> ProtocolError:
    return ProtocolError("", message, code, reason)
