"""What Daemons call: enrol, renew, recover, check in, poll, report, live. docs/protocol.md tells every message."""

import logging
import random
from collections.abc import Collection
from functools import partial
from threading import BoundedSemaphore
from typing import Any

from flask import Blueprint, Response, current_app, request, send_file
from gevent import get_hub
from gevent.event import Event
from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session, load_only

from app.commands import actions as commands
from app.commands.actions import IS_AWAITED
from app.kernel import streams
from app.kernel.clock import now
from app.kernel.context import ops
from app.kernel.db import db, in_transaction, reading
from app.kernel.draining import ENVIRON_KEY
from app.kernel.logs import log_context
from app.kernel.pki import to_pem
from app.kernel.telemetry import HELD_POLLS
from app.kernel.wake import CHECK_IN, COMMAND, LIVE, REVOKED
from app.link import live
from app.link.checkin import ChallengeError, standing, take_checkin
from app.link.edges import Rates, answer, body, raw_body, refused
from app.link.identity import Peer, certificate_der, peer, refusal
from app.link.settings import first_settings
from app.link.waiting import DRAINING, GONE, REPLACED, Waiter, Waiters
from app.nodes import enrolment, install
from app.nodes.models import MEMBERS, Node, NodeCertificate
from protocol import errors as wire
from protocol import limits
from protocol.checkin import CheckInAnswer, parse_checkin
from protocol.commands import Command, LiveWish, PollAnswer, ReportsAnswer, parse_poll, parse_report, parse_reports
from protocol.enrolment import (
    APPROVED,
    PENDING,
    Certificate,
    EnrollApproved,
    EnrollPending,
    parse_enroll,
    parse_recover,
    parse_renew,
)
from protocol.errors import ProtocolError
from protocol.metrics import LiveAnswer, parse_live
from protocol.streams import StreamAnswer
from protocol.times import to_text
from protocol.version import INSTANCE_HEADER

log = logging.getLogger(__name__)
gateway = Blueprint("link", __name__, url_prefix="/daemon/v1")
PENDING_POLL_S = 5
READABLE = 1
GIVE_WAY_S = 3.0
"""At most so long do reports wait while many hosts are still to be handed their commands: work begins first."""
REPORTS_AT_ONCE = 20
"""More would only wait for the database, for a connection or its lock, until they are refused."""
_reporting = BoundedSemaphore(REPORTS_AT_ONCE)


def waiters() -> Waiters:
    found: Waiters = current_app.extensions["waiters"]
    return found


# Made once: every poll and every report begins with it.
_STANDING = select(
    Node.status,
    Node.instance_id,
    Node.connection_lost_at.is_not(None).label("was_lost"),
    IS_AWAITED.label("is_awaited"),
).where(Node.id == bindparam("node_id"))
_FOR_ORDERS = (
    select(Node)
    .options(
        load_only(Node.uuid, Node.hostname, Node.status, Node.instance_id, Node.connection_lost_at, Node.command_key)
    )
    .where(Node.id == bindparam("node_id"))
)


def rates() -> Rates:
    found: Rates = current_app.extensions["rates"]
    return found


def caller() -> Peer:
    """Who is calling. Looked up in a transaction of its own, so that nothing is held while the body comes in."""
    with reading():
        found = peer(db.session(), waiters().known)
        db.session.rollback()
    log_context.set({"ip": request.remote_addr or "proxy", "node_uuid": str(found.node_id)})
    return found


def server_time() -> str:
    return to_text(now().timestamp())


@gateway.get("/ca.pem")
def ca_pem() -> Response:
    return Response(to_pem(ops().keys.authority.certificate), mimetype="application/x-pem-file")


@gateway.get("/install.sh")
def install_script() -> Response:
    return Response(install.script(), mimetype="text/x-shellscript")


@gateway.get("/kits/<any(amd64, arm64):arch>")
def kit(arch: str) -> Response:
    """No secret is in it; what a host does with it, it decides by the digest in its script."""
    rates().take(request.remote_addr, "kit", 0.5, 10)
    path = install.kit_file(arch)
    if path is None or not path.is_file():
        raise refusal(wire.NOT_FOUND, "", "there is no kit for this architecture: run make kit")
    return send_file(path, mimetype="application/gzip", conditional=True)


@gateway.post("/enroll")
def enroll() -> Response:
    rates().take(request.remote_addr, "enroll", 100, 1000)
    message = parse_enroll(body(limits.ENROLL_BYTES))
    session = db.session()
    origin = _origin(session)
    result = in_transaction(session, lambda: enrolment.enroll(session, message, request.remote_addr or "", origin))
    if isinstance(result, enrolment.Queued):
        return answer(EnrollPending(PENDING, result.ticket, PENDING_POLL_S, server_time()), 202)
    node, certificate = result.node, result.certificate
    return answer(
        EnrollApproved(
            APPROVED,
            node.id,
            node.uuid,
            certificate.pem,
            to_text(certificate.not_after.timestamp()),
            to_pem(ops().keys.authority.certificate).decode(),
            enrolment.command_key(node),
            first_settings(session, node.id),
            server_time(),
        )
    )


def _origin(session: Session) -> Node | None:
    """The node whose certificate a host shows that was told to enrol as itself."""
    if certificate_der(request) is None:
        return None
    node = session.get(Node, caller().node_id)
    return node if node is not None and node.status in MEMBERS and node.is_cloned else None


@gateway.post("/renew")
def renew() -> Response:
    found = caller()
    rates().take(found.node_id, "renew", 0.1, 5)
    message = parse_renew(body(limits.ENROLL_BYTES))
    session = db.session()
    made = in_transaction(session, lambda: enrolment.renew(session, _node(session, found), message.csr_pem))
    return answer(_certificate(made))


@gateway.post("/recover")
def recover() -> Response:
    rates().take(request.remote_addr, "recover", 10, 100)
    message = parse_recover(body(limits.ENROLL_BYTES))
    session = db.session()
    admitted = in_transaction(session, lambda: enrolment.recover(session, message, request.remote_addr or ""))
    return answer(_certificate(admitted.certificate))


def _certificate(made: NodeCertificate) -> Certificate:
    authority = to_pem(ops().keys.authority.certificate).decode()
    return Certificate(APPROVED, made.pem, to_text(made.not_after.timestamp()), authority, server_time())


@gateway.post("/checkin")
def checkin() -> Response:
    found = caller()
    rates().take(found.node_id, "checkin", 1, 10)
    message = parse_checkin(body(limits.CHECKIN_BYTES, may_be_gzip=True))
    session = db.session()

    def take() -> CheckInAnswer:
        before = standing(session, found.node_id)
        _prove(session, before.node, found)
        return take_checkin(session, before, message, request.remote_addr or "")

    try:
        taken = in_transaction(session, take)
    except ChallengeError as error:
        challenge = update(Node).where(Node.id == error.node_id).values(challenge=error.challenge)
        in_transaction(session, lambda: session.execute(challenge))
        return refused(error, {"challenge": error.challenge})
    if not taken.reenrol:
        waiters().wake_others(found.node_id, message.instance_id)
    return answer(taken)


def _node(session: Session, found: Peer) -> Node:
    node = session.get(Node, found.node_id)
    if node is None:
        raise refusal(wire.NOT_AUTHENTICATED, wire.CERTIFICATE_UNKNOWN, "the node was deleted")
    if node.status not in MEMBERS:
        raise refusal(wire.FORBIDDEN, wire.REVOKED, f"this node is {node.status}")
    return node


def _prove(session: Session, node: Node, found: Peer) -> None:
    """Whatever a host says under a candidate proves it."""
    if found.state == "candidate":
        certificate = session.query(NodeCertificate).filter_by(fingerprint=found.fingerprint).one()
        if certificate.state == "candidate":
            enrolment.prove(session, node, certificate)
            waiters().known.drop({node.id})


def _check_instance(session: Session, found: Peer) -> bool:
    """Only the Daemon that checked in last speaks for its node. Answers whether a poll of it has work to do."""
    row = _speaking(session.execute(_STANDING, {"node_id": found.node_id, "at": now()}).first())
    return bool(row.was_lost or row.is_awaited)


def _speaking(node: Any) -> Any:
    """This node, or a row with as much of it, if the caller may speak for it."""
    if node is None:
        raise refusal(wire.NOT_AUTHENTICATED, wire.CERTIFICATE_UNKNOWN, "the node was deleted")
    if node.status not in MEMBERS:
        raise refusal(wire.FORBIDDEN, wire.REVOKED, f"this node is {node.status}")
    instance = request.headers.get(INSTANCE_HEADER, "")
    if not instance or instance != node.instance_id:
        raise refusal(wire.CONFLICT, wire.CHECKIN_FIRST, "check in first")
    return node


@gateway.post("/poll")
def poll() -> Response:
    """Held until there is something to say. Registers first, looks then, waits last; while it waits it owns nothing."""
    found = caller()
    rates().take(found.node_id, "poll", 20, 60)
    message = parse_poll(body(limits.POLL_BYTES))
    instance = request.headers.get(INSTANCE_HEADER, "")
    waiter = waiters().enter(found.node_id, instance)
    HELD_POLLS.inc()
    try:
        ready = _ready(found, message.have)
        if ready is None and message.wait_s:
            db.session.remove()
            _wait(waiter, message.wait_s)
            if waiter.reasons:
                ready = _ready(found, message.have, waiter.reasons)
    finally:
        HELD_POLLS.dec()
        waiters().leave(waiter)
    return answer(ready or _nothing(waiter))


def _wait(waiter: Waiter, wait_s: int) -> None:
    """Jittered, so that ten thousand hosts that came at once do not come back at once."""
    draining: Event = request.environ[ENVIRON_KEY]
    on_drain = partial(_on_drain, waiter)
    # A host that waits for our answer says nothing: what can be read is the end of its connection.
    gone = get_hub().loop.io(request.environ["gunicorn.socket"].fileno(), READABLE)
    draining.rawlink(on_drain)
    gone.start(waiter.wake, GONE)
    try:
        waiter.signal.wait(wait_s * random.uniform(0.9, 1.0))  # noqa: S311  spreads load, guards nothing
    finally:
        gone.close()
        draining.unlink(on_drain)


def _on_drain(waiter: Waiter, _event: Event) -> None:
    waiter.wake(DRAINING)


def _ready(found: Peer, have: tuple[str, ...], reasons: Collection[str] = ()) -> PollAnswer | None:
    """What there is to say to this host now; None if nothing. Looks first: most polls change nothing."""
    if REVOKED in reasons:
        waiters().known.drop({found.node_id})
        caller()
    if {REPLACED, DRAINING, GONE} & set(reasons):
        return None
    session = db.session()
    with reading():
        has_work = COMMAND in reasons or _check_instance(session, found) or bool(have) or found.state == "candidate"
        session.rollback()
    orders = in_transaction(session, lambda: _hand_out(session, found, have)) if has_work else []
    is_watched = LIVE in reasons or found.node_id in waiters().watched
    wish, wants_checkin = live.wanted_until(found.node_id) if is_watched else None, CHECK_IN in reasons
    if not orders and wish is None and not wants_checkin:
        return None
    return PollAnswer(tuple(orders), False, False, wants_checkin, LiveWish(wish) if wish else None, server_time())


def _hand_out(session: Session, found: Peer, have: tuple[str, ...]) -> list[Command]:
    """Commands leave only here, signed."""
    node: Node = _speaking(session.scalar(_FOR_ORDERS, {"node_id": found.node_id}))
    _prove(session, node, found)
    node.connection_lost_at = None
    return commands.deliver(session, node, have)


def _nothing(waiter: Waiter) -> PollAnswer:
    return PollAnswer((), False, DRAINING in waiter.reasons, False, None, server_time())


@gateway.post("/commands/reports")
def reports() -> Response:
    found = caller()
    rates().take(found.node_id, "reports", 50, 100)
    message = parse_reports(body(limits.REPORTS_BYTES, may_be_gzip=True))
    results = _take_reports(found, message.reports)
    return answer(ReportsAnswer(tuple(results), server_time()))


@gateway.post("/commands/<uuid:command>/<any(accept, start, output, result):kind>")
def report(command: Any, kind: str) -> Response:
    found = caller()
    rates().take(found.node_id, "reports", 50, 100)
    message = parse_report(body(limits.REPORT_BYTES), str(command), kind)
    outcome = _take_reports(found, (message,))[0]
    if not outcome.ok:
        code = wire.NOT_FOUND if outcome.reason == wire.UNKNOWN_COMMAND else wire.CONFLICT
        raise refusal(code, outcome.reason or "", "this report is not about an open command of this node")
    return answer({"ok": True, "server_time": server_time()})


def _take_reports(found: Peer, messages: tuple[Any, ...]) -> list[Any]:
    session = db.session()

    def take() -> list[Any]:
        _check_instance(session, found)
        return commands.take_reports(session, found.node_id, messages)

    waiters().has_none.wait(GIVE_WAY_S)
    with _reporting:
        return in_transaction(session, take)


@gateway.post("/live")
def live_samples() -> Response:
    found = caller()
    rates().take(found.node_id, "live", 2, 10)
    message = parse_live(body(limits.LIVE_BYTES))
    live.keep(found.node_id, message.samples)
    return answer(LiveAnswer(live.wanted_until(found.node_id)))


@gateway.post("/streams/<stream_id>")
def take_stream(stream_id: str) -> Response:
    """A piece of what somebody looks at just now. The node is the one that the stream was opened for, or nobody."""
    found = caller()
    rates().take(found.node_id, "streams", 100, 200)
    offset, is_end = _stream_place()
    if "Content-Encoding" in request.headers:
        raise ProtocolError("Content-Encoding", "is not allowed here")
    taken = streams.write(stream_id, found.node_id, offset, raw_body(limits.STREAM_BYTES), is_end=is_end)
    if taken is None:
        raise refusal(wire.NOT_FOUND, wire.UNKNOWN_STREAM, "there is no such stream")
    return answer(StreamAnswer(taken.next, taken.is_closed, server_time()))


def _stream_place() -> tuple[int, bool]:
    """Where the piece begins, and whether it is the last one."""
    offset, end = request.args.get("offset", ""), request.args.get("end", "0")
    if not (offset.isascii() and offset.isdigit() and len(offset) <= 15):
        raise ProtocolError("offset", "must be a number of bytes")
    if end not in ("0", "1"):
        raise ProtocolError("end", "must be 0 or 1")
    return int(offset), end == "1"
