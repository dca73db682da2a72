"""Coming in: tokens, approval, discovery, lost answers, hostile requests."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from flask import Flask
from sqlalchemy import func, select

from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from app.nodes import actions, enrolment
from app.nodes.models import EnrollmentToken, Node, NodeCertificate
from app.nodes.queries import node_by_id
from app.nodes.schemas import NodeCreate
from tests.link.conftest import ADMIN
from tests.link.hosts import Host
from tests.link.planes import Plane

Join = Callable[..., str]


def make_host(gateway: Plane, hostname: str = "web-1") -> Host:
    return Host(gateway.port, gateway.ca_path, hostname)


def test_it_lets_a_host_in_and_gives_it_what_its_token_says(app: Flask, gateway: Plane, join: Join) -> None:
    host = make_host(gateway)
    reply = host.enroll(join(tags=["canary"], labels={"env": "prod"}))
    assert reply.status == 200
    assert reply.headers["X-Ops-Wire"] == "1.0"
    with app.app_context():
        node = node_by_id(db.session(), host.node_id)
        assert (node.uuid, node.status, node.hostname) == (host.node_uuid, "unknown", "web-1")
        assert (node.tags, node.labels) == (["canary"], {"env": "prod"})
    assert host.checkin().status == 200


def test_a_lost_answer_is_asked_for_again_and_is_the_same(app: Flask, gateway: Plane, join: Join) -> None:
    host, token = make_host(gateway), join(max_uses=1)
    first, second = host.enroll(token), host.enroll(token)
    assert (first.status, second.status) == (200, 200)
    for name in ("node_uuid", "certificate_pem", "command_key"):
        assert first.body[name] == second.body[name]
    with app.app_context():
        assert db.session.scalar(select(func.count()).select_from(Node)) == 1
        assert db.session.scalar(select(EnrollmentToken.uses)) == 1


def test_a_token_of_one_use_lets_one_host_in_however_many_come_at_once(app: Flask, gateway: Plane, join: Join) -> None:
    token = join(max_uses=1)
    hosts = [make_host(gateway, f"web-{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda host: host.enroll(token), hosts))
    assert sorted(reply.status for reply in replies) == [200] + [403] * 7
    assert {reply.reason for reply in replies if reply.status == 403} == {"token_refused"}


def test_expired_revoked_and_made_up_tokens_are_refused_alike(app: Flask, gateway: Plane, join: Join) -> None:
    expired, revoked = join(expires_at=now() + timedelta(hours=1)), join()
    with app.app_context():
        session = db.session()
        rows = session.scalars(select(EnrollmentToken).order_by(EnrollmentToken.id)).all()
        rows[0].expires_at = now() - timedelta(seconds=1)
        session.commit()
        in_transaction(session, lambda: enrolment.revoke_token(session, ADMIN, rows[1].id))
    replies = [make_host(gateway).enroll(token) for token in (expired, revoked, "ops_join_nonsense")]
    assert {(reply.status, reply.reason, reply.body["message"]) for reply in replies} == {
        (403, "token_refused", "the token is not valid")
    }


def test_a_host_waits_for_approval_and_then_gets_in_with_its_ticket(app: Flask, gateway: Plane, join: Join) -> None:
    host = make_host(gateway)
    waiting = host.enroll(join(needs_approval=True))
    assert (waiting.status, waiting.body["status"]) == (202, "pending")
    ticket = waiting.body["ticket"]
    assert host.enroll(None, ticket=ticket).status == 202
    with app.app_context():
        node_id = db.session.scalars(select(Node.id)).one()
        in_transaction(db.session(), lambda: actions.approve_nodes(db.session(), ADMIN, [node_id]))
    assert host.enroll(None, ticket=ticket).status == 200
    assert host.checkin().status == 200


def test_a_rejected_host_is_told_to_stop_asking(app: Flask, gateway: Plane, join: Join) -> None:
    host = make_host(gateway)
    ticket = host.enroll(join(needs_approval=True)).body["ticket"]
    with app.app_context():
        node_id = db.session.scalars(select(Node.id)).one()
        in_transaction(db.session(), lambda: actions.reject_nodes(db.session(), ADMIN, [node_id]))
    reply = host.enroll(None, ticket=ticket)
    assert (reply.status, reply.reason) == (403, "rejected")


def test_a_ticket_is_worth_nothing_with_another_key(gateway: Plane, join: Join) -> None:
    host, thief = make_host(gateway), make_host(gateway)
    ticket = host.enroll(join(needs_approval=True)).body["ticket"]
    reply = thief.enroll(None, ticket=ticket)
    assert (reply.status, reply.reason) == (409, "key_mismatch")


def test_without_a_token_nobody_comes_in_unless_discovery_is_on(app: Flask, gateway: Plane) -> None:
    reply = make_host(gateway).enroll(None)
    assert (reply.status, reply.reason) == (403, "discovery_off")


def test_a_node_added_by_hand_is_filled_by_the_host_with_its_token(app: Flask, gateway: Plane) -> None:
    with app.app_context():
        values = NodeCreate(hostname="planned-1", labels={"env": "prod"})
        node, token = in_transaction(db.session(), lambda: enrolment.add_node(db.session(), ADMIN, values))
        planned_uuid = node.uuid
    host = make_host(gateway, "real-name")
    assert host.enroll(token).status == 200
    assert host.node_uuid == planned_uuid
    assert make_host(gateway).enroll(token).reason == "token_refused"


def test_it_signs_only_the_key_and_never_what_else_a_request_claims(app: Flask, gateway: Plane, join: Join) -> None:
    host = make_host(gateway)
    host.inventory["hostname"] = "../../etc/passwd"
    assert host.enroll(join()).status == 200
    with app.app_context():
        certificate = db.session.scalars(select(NodeCertificate)).one()
        assert certificate.pem == host.certificate_pem


def test_nonsense_is_refused_by_field(gateway: Plane) -> None:
    host = make_host(gateway)
    for message, field in (
        ({}, "request_id"),
        ({"request_id": host.request_id, "token": "x", "csr_pem": "no", "machine": host.machine, "facts": {}}, "facts"),
        (b"[1,2", "body"),
        (b"[" * 20_000, "body"),
        (b'{"request_id": NaN}', "body"),
    ):
        reply = host.send("enroll", message, with_certificate=False)
        assert reply.status == 400
        assert reply.body["data"]["errors"][0]["field"].startswith(field)
    too_large = host.send("enroll", b" " * 70_000, with_certificate=False)
    assert (too_large.status, too_large.reason) == (413, "body_too_large")
    old = host.send("enroll", {}, headers={"X-Ops-Wire": "7.0"}, with_certificate=False)
    assert (old.status, old.reason) == (400, "wire_unsupported")
