"""How hosts come in: tokens, requests to enrol, certificates, renewal and recovery. A host is known by its key."""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flask_babel import gettext as _
from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from app.audit.actions import record
from app.events.actions import note
from app.kernel import pki
from app.kernel.access import Actor, authorize
from app.kernel.clock import now
from app.kernel.context import ops
from app.kernel.errors import BadParameter, FieldError, NotFound
from app.kernel.live_settings import live_settings
from app.kernel.wake import REVOKED as WAKE_REVOKED
from app.kernel.wake import wake_after_commit
from app.nodes.models import (
    ONLINE,
    PENDING,
    REJECTED,
    REVOKED,
    UNKNOWN,
    EnrollmentToken,
    Enrolment,
    Node,
    NodeCertificate,
    NodeGroup,
    NodeLabel,
    NodeTag,
    Revocation,
)
from app.nodes.queries import node_by_id
from app.nodes.schemas import NodeCreate, TokenIn
from app.nodes.versions import sortable_version
from protocol import errors as wire
from protocol.enrolment import Enroll, Recover
from protocol.errors import ProtocolError
from protocol.inventory import Inventory, Machine
from protocol.signing import KEY_BYTES, recovery_text
from protocol.times import to_datetime

TOKEN_PREFIX = "ops_join_"  # noqa: S105  how a token begins, not one
POLL_AFTER_S = 5
MOST_WAITING = 2000
ONE_NODE_TOKEN_LIFE = timedelta(days=7)
FACTS = (
    "os", "os_name", "os_version", "kernel_version", "arch", "cpu_model", "cpu_cores", "memory_total", "swap_total",
    "disk_total", "python_version", "virtualization", "cloud", "timezone",
)  # fmt: skip
INVENTORY = (*FACTS, "ips", "macs", "disks", "boot_time")
"""Columns that only `take_inventory` writes."""


def create_token(
    session: Session, actor: Actor, values: TokenIn, node_id: int | None = None
) -> tuple[EnrollmentToken, str]:
    """A token and its secret, which is told only here."""
    authorize(actor, "enrollment.manage" if node_id is None else "nodes.edit")
    if values.expires_at is not None and values.expires_at <= now():
        raise BadParameter(errors=[FieldError("expires_at", _("This lies in the past."))])
    if values.group_id is not None and session.get(NodeGroup, values.group_id) is None:
        raise BadParameter(errors=[FieldError("group_id", _("There is no such group."))])
    secret = TOKEN_PREFIX + secrets.token_urlsafe(24)
    given = values.model_dump()
    token = EnrollmentToken(
        **given, prefix=secret[:14], token_hash=_hash(secret), node_id=node_id, created_by=actor.username
    )
    session.add(token)
    session.flush()
    said = values.model_dump(mode="json") | {"node_id": node_id}
    record(session, actor, "enrollment_token.create", "enrollment_token", token.id, after=said)
    return token, secret


def revoke_token(session: Session, actor: Actor, token_id: int) -> None:
    authorize(actor, "enrollment.manage")
    token = session.get(EnrollmentToken, token_id)
    if token is None:
        raise NotFound
    if token.revoked_at is None:
        token.revoked_at = now()
        record(session, actor, "enrollment_token.revoke", "enrollment_token", token.id, before={"name": token.name})


def add_node(session: Session, actor: Actor, values: NodeCreate) -> tuple[Node, str]:
    """A node before its host: it is filled with facts when the host comes with the token of this answer."""
    authorize(actor, "nodes.edit")
    node = Node(uuid=str(uuid4()), hostname=values.hostname, status=UNKNOWN, description=values.description)
    node.command_key = _new_command_key(node.uuid)
    _give(session, node, values.group_id, values.tags, values.labels)
    session.add(node)
    session.flush()
    record(session, actor, "node.create", "node", node.id, after=values.model_dump())
    single = TokenIn(name=values.hostname[:64], max_uses=1, expires_at=now() + ONE_NODE_TOKEN_LIFE)
    _token, secret = create_token(session, actor, single, node.id)
    return node_by_id(session, node.id), secret


@dataclass(frozen=True)
class Admitted:
    """A host that is in, with what it needs to go on."""

    node: Node
    certificate: NodeCertificate


@dataclass(frozen=True)
class Queued:
    """A host that somebody has to approve. The ticket is what it asks again with."""

    ticket: str


def enroll(session: Session, message: Enroll, ip: str, origin: Node | None = None) -> Admitted | Queued:
    """Take a request to enrol, or repeat the answer to one. The key in the request is what makes two requests the same.

    `origin` is the node whose certificate the host showed: a clone that was told to get an identity of its own.
    """
    key_hash = _key_hash(message.csr_pem)
    known = session.scalar(select(Enrolment).where(Enrolment.key_hash == key_hash))
    if known is not None:
        _check_ticket(known, message)
        return _answer(session, known)
    if message.ticket is not None:
        raise _refusal(wire.CONFLICT, wire.KEY_MISMATCH, "this ticket belongs to another key")
    token = None if message.token is None else _usable_token(session, message.token)
    if token is None and origin is None and not live_settings().node.discovery:
        raise _refusal(wire.FORBIDDEN, wire.DISCOVERY_OFF, "a join token is needed")
    node = _admitted_node(session, message, token, origin)
    is_in = node.status != PENDING
    certificate = _certificate_for(session, node, message.csr_pem, "current") if is_in else None
    if token is not None:
        _spend(session, token)
    _note_enrolment(session, node, message, key_hash, ip, token, origin)
    return Admitted(node, certificate) if certificate else Queued(_ticket(key_hash))


def _check_ticket(known: Enrolment, message: Enroll) -> None:
    if message.ticket is not None and not secrets.compare_digest(known.ticket_hash, _hash(message.ticket)):
        raise _refusal(wire.CONFLICT, wire.KEY_MISMATCH, "this ticket belongs to another key")


def _admitted_node(session: Session, message: Enroll, token: EnrollmentToken | None, origin: Node | None) -> Node:
    """The node a token was made for, else a new one; without a token, or where it asks for it, one that waits."""
    if token is not None and token.node_id is not None:
        node = node_by_id(session, token.node_id)
        if node.status in (REVOKED, REJECTED):
            raise _refusal(wire.FORBIDDEN, wire.TOKEN_REFUSED, "the token is not valid")
        session.execute(update(NodeCertificate).where(NodeCertificate.node_id == node.id).values(state="superseded"))
        wake_after_commit(session, node.id, WAKE_REVOKED)
        _forget_lease(node)
    else:
        waits = token is None or token.needs_approval
        if waits and session.query(Node).filter_by(status=PENDING).count() >= MOST_WAITING:
            raise _refusal(wire.TOO_MANY_REQUESTS, wire.BUSY, "too many hosts wait for approval")
        node = Node(uuid=str(uuid4()), hostname=message.facts.hostname, status=PENDING if waits else UNKNOWN)
        node.command_key = _new_command_key(node.uuid)
        if token is not None:
            _give(session, node, token.group_id, token.tags, token.labels)
        elif origin is not None:
            node.description = f"copy of {origin.hostname}"[:255]
        session.add(node)
    take_inventory(node, message.facts)
    take_machine(node, message.machine)
    session.flush()
    return node


def _note_enrolment(
    session: Session,
    node: Node,
    message: Enroll,
    key_hash: str,
    ip: str,
    token: EnrollmentToken | None,
    origin: Node | None,
) -> None:
    kind = "token" if token is not None else "clone" if origin is not None else "discovery"
    row = Enrolment(
        key_hash=key_hash,
        ticket_hash=_hash(_ticket(key_hash)),
        kind=kind,
        node_id=node.id,
        token_id=token.id if token else None,
        origin_node_id=origin.id if origin else None,
        csr_pem=message.csr_pem,
        ip=ip[:45],
    )
    session.add(row)
    session.flush()
    what = "node.waits_for_approval" if node.status == PENDING else "node.enrolled"
    data = {"ip": ip, "by": kind, "token": token.name if token else None}
    note(session, what, f"{kind} from {ip}", node_id=node.id, hostname=node.hostname, data=data)


def _answer(session: Session, row: Enrolment) -> Admitted | Queued:
    node = node_by_id(session, row.node_id)
    if node.status == PENDING:
        return Queued(_ticket(row.key_hash))
    if node.status == REJECTED:
        raise _refusal(wire.FORBIDDEN, wire.REJECTED, "an administrator turned this host away")
    if node.status == REVOKED:
        raise _refusal(wire.FORBIDDEN, wire.REVOKED, "this node was revoked")
    return Admitted(node, _certificate_for(session, node, row.csr_pem, "current"))


def _ticket(key_hash: str) -> str:
    """Made from the key and a secret of ours, so that a lost answer can be repeated though only its hash is kept."""
    return hashlib.blake2b(key_hash.encode(), key=ops().keys.audit_seal, person=b"ops-ticket").hexdigest()[:48]


def _is_usable(at: datetime) -> ColumnElement[bool]:
    return and_(
        EnrollmentToken.revoked_at.is_(None),
        or_(EnrollmentToken.expires_at.is_(None), EnrollmentToken.expires_at > at),
        or_(EnrollmentToken.max_uses.is_(None), EnrollmentToken.uses < EnrollmentToken.max_uses),
    )


def _usable_token(session: Session, secret: str) -> EnrollmentToken:
    token = session.scalar(
        select(EnrollmentToken).where(EnrollmentToken.token_hash == _hash(secret), _is_usable(now()))
    )
    if token is None:
        raise _refusal(wire.FORBIDDEN, wire.TOKEN_REFUSED, "the token is not valid")
    return token


def _spend(session: Session, token: EnrollmentToken) -> None:
    """Use a token once. Guarded in one statement, so that a limit of one is one however many come at once.

    All who come with the same token wait here for each other: so it is done late, but before anything is written that
    refers to the token, since two who have both done that could only wait for each other in vain.
    """
    guarded = update(EnrollmentToken).where(EnrollmentToken.id == token.id, _is_usable(now()))
    spent = session.execute(
        guarded.values(uses=EnrollmentToken.uses + 1), execution_options={"synchronize_session": False}
    )
    if spent.rowcount != 1:  # type: ignore[attr-defined]
        raise _refusal(wire.FORBIDDEN, wire.TOKEN_REFUSED, "the token is not valid")


def renew(session: Session, node: Node, csr_pem: str) -> NodeCertificate:
    """A candidate beside the current certificate; it takes over with the first request made under it."""
    if not session.scalar(select(NodeCertificate.id).where(NodeCertificate.key_hash == _key_hash(csr_pem))):
        earlier = update(NodeCertificate).where(
            NodeCertificate.node_id == node.id, NodeCertificate.state == "candidate"
        )
        session.execute(earlier.values(state="superseded"))
    return _certificate_for(session, node, csr_pem, "candidate")


def prove(session: Session, node: Node, certificate: NodeCertificate) -> None:
    """The first request under a candidate: from now on only it is good."""
    others = update(NodeCertificate).where(NodeCertificate.node_id == node.id, NodeCertificate.state == "current")
    session.execute(others.values(state="superseded"))
    wake_after_commit(session, node.id, WAKE_REVOKED)
    certificate.state = "current"
    node.certificate_expires_at = certificate.not_after
    note(session, "node.certificate_renewed", "", node_id=node.id, hostname=node.hostname)


def recover(session: Session, message: Recover, ip: str) -> Admitted:
    """A new certificate for a host whose old one expired while it was off. Its old key vouches for the new one."""
    old = _old_certificate(session, message)
    node = node_by_id(session, old.node_id)
    key = x509.load_pem_x509_certificate(message.certificate_pem.encode()).public_key()
    new_key_hash = _key_hash(message.csr_pem)
    der = x509.load_pem_x509_csr(message.csr_pem.encode()).public_bytes(serialization.Encoding.DER)
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        key.verify(message.signature, recovery_text(node.uuid, message.timestamp, der), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise _refusal(wire.FORBIDDEN, wire.SIGNATURE_INVALID, "the old key did not sign this request") from None
    if old.not_after > now():
        raise _refusal(wire.CONFLICT, wire.CERTIFICATE_VALID, "the certificate has not expired")
    if session.scalar(select(NodeCertificate.id).where(NodeCertificate.key_hash == new_key_hash)) is None:
        data = {"ip": ip, "expired_at": old.not_after.isoformat()}
        text = f"from {ip}; the old certificate had expired"
        note(session, "node.recovered", text, node_id=node.id, hostname=node.hostname, severity="warning", data=data)
    return Admitted(node, _certificate_for(session, node, message.csr_pem, "candidate"))


def _old_certificate(session: Session, message: Recover) -> NodeCertificate:
    try:
        parsed = x509.load_pem_x509_certificate(message.certificate_pem.encode())
        pki.identify_node(parsed, ops().keys.authority.certificate, check_dates=False)
    except ValueError:
        raise _refusal(wire.NOT_AUTHENTICATED, wire.CERTIFICATE_UNKNOWN, "the certificate is not ours") from None
    fingerprint = pki.fingerprint(parsed)
    if session.scalar(select(Revocation.id).where(Revocation.fingerprint == fingerprint)) is not None:
        raise _refusal(wire.FORBIDDEN, wire.REVOKED, "this node was revoked")
    row = session.scalar(select(NodeCertificate).where(NodeCertificate.fingerprint == fingerprint))
    if row is None:
        raise _refusal(wire.NOT_AUTHENTICATED, wire.CERTIFICATE_UNKNOWN, "the certificate is not known")
    if row.state == "superseded":
        raise _refusal(wire.NOT_AUTHENTICATED, wire.CERTIFICATE_SUPERSEDED, "a newer certificate is in use")
    return row


def _certificate_for(session: Session, node: Node, csr_pem: str, state: str) -> NodeCertificate:
    """The certificate for this key: the one that was made before, so that a lost answer can be asked for again."""
    key_hash = _key_hash(csr_pem)
    known = session.scalar(
        select(NodeCertificate).where(NodeCertificate.key_hash == key_hash, NodeCertificate.node_id == node.id)
    )
    if known is not None and known.not_after > now():
        return known
    life = timedelta(seconds=live_settings().node.certificate_life)
    signed = ops().keys.authority.sign_node(csr_pem.encode(), UUID(node.uuid), life)
    row = NodeCertificate(
        node_id=node.id,
        fingerprint=pki.fingerprint(signed),
        key_hash=key_hash,
        state=state,
        pem=pki.to_pem(signed).decode(),
        not_after=signed.not_valid_after_utc,
    )
    session.add(row)
    if state == "current":
        node.certificate_expires_at = row.not_after
    session.flush()
    return row


def command_key(node: Node) -> bytes:
    return ops().keys.box.decrypt(node.command_key, f"command-key:{node.uuid}")


def _new_command_key(node_uuid: str) -> str:
    return ops().keys.box.encrypt(secrets.token_bytes(KEY_BYTES), f"command-key:{node_uuid}")


def take_inventory(node: Node, facts: Inventory) -> None:
    """Copy what the host says of itself; names never become paths or patterns anywhere."""
    node.hostname = facts.hostname
    node.ips, node.macs = list(facts.ips), list(facts.macs)
    node.ip = facts.ips[0] if facts.ips else ""
    for name in FACTS:
        setattr(node, name, getattr(facts, name))
    node.disks = [disk._asdict() for disk in facts.disks]
    node.boot_time = _moment(facts.boot_time)
    take_version(node, facts.daemon_version)
    node.updated_at = now()


def take_version(node: Node, version: str) -> None:
    if node.daemon_version != version:
        node.daemon_version, node.daemon_version_key = version, sortable_version(version) or ""


def take_machine(node: Node, machine: Machine) -> None:
    node.machine_id, node.hardware_id = machine.machine_id, machine.hardware_id


def _moment(text: str | None) -> datetime | None:
    return None if text is None else to_datetime(text)


def _forget_lease(node: Node) -> None:
    """A host that enrols anew begins from nothing: no lease, no sequence, and no old poll may go on."""
    node.lease = node.previous_lease = node.challenge = node.instance_id = node.boot_id = None
    node.generation = node.sequence = node.lost_leases = 0
    if node.status == ONLINE:
        node.status, node.status_changed_at = UNKNOWN, now()


def _give(session: Session, node: Node, group_id: int | None, tags: list[str], labels: Mapping[str, str]) -> None:
    if group_id is not None and session.get(NodeGroup, group_id) is None:
        raise BadParameter(errors=[FieldError("group_id", _("There is no such group."))])
    node.group_id = group_id
    node.tag_rows = [NodeTag(tag=tag) for tag in dict.fromkeys(tags)]
    node.label_rows = [NodeLabel(key=key, value=value) for key, value in labels.items()]


def _key_hash(csr_pem: str) -> str:
    """What a key is known by. Raises ProtocolError for a request that its own key did not sign."""
    try:
        key = pki.requested_key(csr_pem.encode())
    except ValueError as error:
        raise ProtocolError("csr_pem", str(error)) from None
    encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _refusal(code: int, reason: str, message: str) -> ProtocolError:
    return ProtocolError("", message, code, reason)
