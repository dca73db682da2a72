"""Who a host is: its certificate and nothing else. Every wrong one is turned away, with a reason and a log line."""

import base64
import http.client
import json
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from flask import Flask
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import delete, select, update

from app.events.models import Event
from app.kernel import pki
from app.kernel.db import db, in_transaction
from app.link.identity import KnownPeers, Peer
from app.link.waiting import Waiters, Watch
from app.nodes import actions as nodes
from app.nodes.models import Node, NodeCertificate, Revocation
from protocol.signing import recovery_text
from tests.factories import PASSWORD, make_user
from tests.link.conftest import ADMIN, free_port
from tests.link.hosts import Host, Reply
from tests.link.planes import Plane


def authority(app: Flask) -> pki.Authority:
    found: pki.Authority = app.extensions["ops"].keys.authority
    return found


def outcome(send: Callable[[], Reply]) -> str:
    """The reason of a refusal; `tls` where TLS itself ended the talk."""
    try:
        return send().reason
    except (ssl.SSLError, http.client.HTTPException, ConnectionError):
        return "tls"


def test_without_a_certificate_only_enrolment_answers(host: Host) -> None:
    for path in ("checkin", "poll", "renew", "commands/reports", "live"):
        reply = host.send(path, {}, with_certificate=False)
        assert (reply.status, reply.reason) == (401, "certificate_required")


def test_headers_that_name_a_node_are_ignored(host: Host) -> None:
    forged = {"X-Ops-Client-Certificate": host.certificate_pem.replace("\n", "%0A"), "X-SSL-Client-Verify": "SUCCESS"}
    reply = host.send("poll", {"wait_s": 0, "have": []}, headers=forged, with_certificate=False)
    assert reply.reason == "certificate_required"


def test_foreign_expired_and_wrong_purpose_certificates_are_turned_away(app: Flask, host: Host) -> None:
    ours, uuid, csr = authority(app), UUID(host.node_uuid), host.csr_pem().encode()
    foreign = pki.create_authority().sign_node(csr, uuid, timedelta(days=9))
    expired = ours.sign_node(csr, uuid, timedelta(days=1), at=datetime.now(UTC) - timedelta(days=5))
    server = ours.sign_server(host.key.public_key(), ["127.0.0.1"])
    unknown = ours.sign_node(csr, uuid4(), timedelta(days=9))
    good, found = host.certificate_pem, {}
    for name, certificate in (("foreign", foreign), ("expired", expired), ("server", server), ("unknown", unknown)):
        host.certificate_pem = pki.to_pem(certificate).decode()
        found[name] = outcome(lambda: host.poll(0))
    assert found["foreign"] == "tls"
    assert found["expired"] == "tls"
    assert found["server"] in ("tls", "certificate_unknown")
    assert found["unknown"] == "certificate_unknown"
    host.certificate_pem = good
    assert host.checkin().status == 200


def test_a_self_made_certificate_of_the_same_name_is_worth_nothing(host: Host) -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host.node_uuid)])
    own = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(host.key.public_key())
        .serial_number(7)
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .sign(host.key, hashes.SHA256())
    )
    host.certificate_pem = pki.to_pem(own).decode()
    assert outcome(lambda: host.poll(0)) == "tls"


def test_older_tls_is_not_spoken(host: Host) -> None:
    context = host.tls()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    connection = http.client.HTTPSConnection("127.0.0.1", host.port, context=context, timeout=10)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connection.request("GET", "/daemon/v1/ca.pem")


def renewed(host: Host) -> str:
    """Ask for a new certificate with a new key; the host goes on with both in hand."""
    key = ec.generate_private_key(ec.SECP256R1())
    reply = host.send("renew", {"csr_pem": host.csr_pem(key)})
    assert reply.status == 200, reply
    host.key = key
    return str(reply.body["certificate_pem"])


def test_a_candidate_takes_over_with_its_first_request(app: Flask, host: Host) -> None:
    old_key, old_certificate = host.key, host.certificate_pem
    candidate = renewed(host)
    new_key, host.key = host.key, old_key
    assert host.checkin().status == 200
    host.key, host.certificate_pem = new_key, candidate
    assert host.checkin().status == 200
    host.key, host.certificate_pem = old_key, old_certificate
    assert outcome(lambda: host.poll(0)) == "certificate_superseded"
    with app.app_context():
        states = db.session.scalars(select(NodeCertificate.state).order_by(NodeCertificate.id)).all()
    assert states == ["superseded", "current"]


def test_a_lost_renewal_is_asked_for_again_and_another_replaces_it(app: Flask, host: Host) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    first, second = (host.send("renew", {"csr_pem": host.csr_pem(key)}).body["certificate_pem"] for _ in range(2))
    assert first == second
    host.send("renew", {"csr_pem": host.csr_pem(ec.generate_private_key(ec.SECP256R1()))})
    with app.app_context():
        states = db.session.scalars(select(NodeCertificate.state).order_by(NodeCertificate.id)).all()
    assert states == ["current", "superseded", "candidate"]


def expire(app: Flask, host: Host) -> None:
    """Make the host's certificate one that ended yesterday, on both sides."""
    at = datetime.now(UTC) - timedelta(days=5)
    with app.app_context():
        made = authority(app).sign_node(host.csr_pem().encode(), UUID(host.node_uuid), timedelta(days=1), at=at)
        row = {
            "fingerprint": pki.fingerprint(made),
            "pem": pki.to_pem(made).decode(),
            "not_after": made.not_valid_after_utc,
        }
        db.session.execute(update(NodeCertificate).values(**row))
        db.session.commit()
    host.certificate_pem = row["pem"]


def recovery(host: Host, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    csr, at = host.csr_pem(key), "2026-01-01T00:00:00Z"
    der = x509.load_pem_x509_csr(csr.encode()).public_bytes(Encoding.DER)
    signature = signer.sign(recovery_text(host.node_uuid, at, der), ec.ECDSA(hashes.SHA256()))
    signed = base64.b64encode(signature).decode()
    return {"certificate_pem": host.certificate_pem, "csr_pem": csr, "timestamp": at, "signature": signed}


def test_a_host_that_was_off_too_long_comes_back_with_its_old_key(app: Flask, host: Host) -> None:
    expire(app, host)
    assert outcome(lambda: host.poll(0)) == "tls"
    key = ec.generate_private_key(ec.SECP256R1())
    reply = host.send("recover", recovery(host, key, host.key), with_certificate=False)
    assert reply.status == 200, reply
    host.key, host.certificate_pem = key, reply.body["certificate_pem"]
    assert host.checkin().status == 200
    with app.app_context():
        assert "node.recovered" in db.session.scalars(select(Event.kind)).all()


def test_recovery_needs_the_old_key_an_expired_certificate_and_a_node_that_is_welcome(app: Flask, host: Host) -> None:
    key, thief = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    valid = host.send("recover", recovery(host, key, host.key), with_certificate=False)
    assert (valid.status, valid.reason) == (409, "certificate_valid")
    expire(app, host)
    stolen = host.send("recover", recovery(host, key, thief), with_certificate=False)
    assert (stolen.status, stolen.reason) == (403, "signature_invalid")
    with app.app_context():
        in_transaction(db.session(), lambda: nodes.revoke_node(db.session(), ADMIN, host.node_id))
    revoked = host.send("recover", recovery(host, key, host.key), with_certificate=False)
    assert (revoked.status, revoked.reason) == (403, "revoked")


def test_neither_planes_credentials_open_anything_on_the_other(app: Flask, host: Host) -> None:
    web = Plane(app, "web", free_port())
    web.start()
    try:
        with app.app_context():
            make_user("alice", "admin")
        connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)
        body = f'{{"username":"alice","password":"{PASSWORD}"}}'
        connection.request("POST", "/api/v1/auth/login", body, {"Content-Type": "application/json"})
        token = json.load(connection.getresponse())["data"]["access_token"]
        for path in ("checkin", "poll", "live", "commands/reports"):
            reply = host.send(path, {}, headers={"Authorization": f"Bearer {token}"}, with_certificate=False)
            assert reply.reason == "certificate_required"
            connection.request("POST", f"/daemon/v1/{path}", "{}", {"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            assert answer.status in (400, 404)
            answer.read()
        daemons = host.connect()
        for path in ("/", "/login", "/api/v1/system/users", "/api/v1/nodes", "/metrics", "/users"):
            daemons.request("GET", path)
            answer = daemons.getresponse()
            assert answer.status == 404, path
            answer.read()
    finally:
        web.stop()


def test_the_log_says_who_was_refused_and_why(app: Flask, gateway: Plane, host: Host) -> None:
    host.send("poll", {}, with_certificate=False)
    assert "certificate_required" in gateway.log()
    assert host.command_key not in gateway.log()


def test_a_nodes_row_shows_when_its_certificate_ends(app: Flask, host: Host) -> None:
    with app.app_context():
        ends = db.session.scalars(select(Node.certificate_expires_at)).one()
    assert ends is not None
    assert ends > datetime.now(UTC) + timedelta(days=80)


# What was looked up lately


def test_what_was_dropped_while_it_was_looked_up_does_not_count() -> None:
    known, one = KnownPeers(), Peer(7, "f" * 64, "current")
    known.guard()
    drops = known.drops
    known.drop({7})
    known.put(one, drops)
    assert known.get(one.fingerprint) is None
    known.put(one, known.drops)
    assert known.get(one.fingerprint) == one


class Silent:
    """A Redis that goes away as soon as somebody listens."""

    def pubsub(self, **_options: Any) -> "Silent":
        return self

    def subscribe(self, _channel: str) -> None:
        """Nothing."""

    def get_message(self, timeout: float) -> None:
        raise RedisConnectionError(timeout)

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing."""


def test_nothing_counts_while_nobody_tells_of_changes(app: Flask) -> None:
    """The sweep sees what was revoked, but not that a newer certificate took over."""
    waiters, one = Waiters(), Peer(7, "f" * 64, "current")
    watch = Watch(app, waiters, cast(Redis, Silent()))
    waiters.known.guard()
    waiters.known.put(one, waiters.known.drops)
    assert waiters.known.get(one.fingerprint) == one
    with pytest.raises(RedisConnectionError):
        watch._listen_once()
    assert waiters.known.get(one.fingerprint) is None
    waiters.known.put(one, waiters.known.drops)
    watch._sweep_once()
    assert waiters.known.get(one.fingerprint) is None


def test_a_certificate_made_while_its_node_was_revoked_opens_nothing(app: Flask, host: Host) -> None:
    candidate, key = renewed(host), host.key
    with app.app_context():
        session = db.session()
        in_transaction(session, lambda: nodes.revoke_node(session, ADMIN, host.node_id))
        # What the other order of the two would have left behind.
        fingerprint = session.scalars(select(NodeCertificate.fingerprint).order_by(NodeCertificate.id.desc())).first()
        session.execute(
            update(NodeCertificate).where(NodeCertificate.fingerprint == fingerprint).values(state="candidate")
        )
        session.execute(delete(Revocation).where(Revocation.fingerprint == fingerprint))
        session.commit()
    host.certificate_pem, host.key = candidate, key
    for path, message in (("live", {"samples": []}), ("renew", {"csr_pem": host.csr_pem()}), ("streams/x", b"x")):
        assert outcome(lambda path=path, message=message: host.send(path, message)) == "revoked", path
