"""The gateway behind a real nginx, with the configuration that we ship: the same identity, no more ways in."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from flask import Flask

from app.kernel import pki, secrets
from app.kernel.db import db, in_transaction
from app.nodes import actions as nodes
from tests.link.conftest import ADMIN, free_port
from tests.link.hosts import Host, batch
from tests.link.planes import Plane
from tests.link.test_identity import renewed
from tests.link.test_poll import held, order
from tests.services import Nginx

SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "nginx" / "gateway.conf"


@pytest.fixture
def proxied(sqlite_app: Flask, tmp_path: Path) -> Iterator[Plane]:
    """A gateway on a Unix socket with nginx before it; `port` is nginx's."""
    if reason := Nginx.why_unavailable():
        pytest.skip(reason)
    settings, port = sqlite_app.extensions["ops"].settings, free_port()
    secrets.renew_gateway_certificate(settings, sqlite_app.extensions["ops"].keys.authority)
    path = tmp_path / "gateway.sock"
    given = {
        "OPS_SERVER__GATEWAY__ADDR": str(path),
        "OPS_SERVER__GATEWAY__BEHIND_PROXY": "true",
        "OPS_GATEWAY_URL": f"https://127.0.0.1:{port}",
    }
    plane = Plane(sqlite_app, "gateway", port, **given)
    site = SHIPPED.read_text().replace("listen 9443", f"listen 127.0.0.1:{port}")
    site = site.replace("/run/ops-scaffold/gateway.sock", str(path))
    site = site.replace("/etc/ops-scaffold/gateway.pem", str(secrets.gateway_certificate_path(settings)))
    site = site.replace("/etc/ops-scaffold/ca.pem", str(settings.keys_path / "ca.pem"))
    # Only Daemons' paths are passed on, so the test asks for one of them to see that all is up.
    with Nginx(site):
        plane.live_path = "/daemon/v1/ca.pem"
        plane.start()
        yield plane
        plane.stop()


@pytest.fixture
def host(proxied: Plane, join: Callable[..., str], sqlite_app: Flask) -> Host:
    found = Host(proxied.port, proxied.ca_path)
    assert found.enroll(join()).status == 200
    assert found.checkin().status == 200
    return found


@pytest.fixture
def app(sqlite_app: Flask) -> Flask:
    return sqlite_app


def test_a_host_lives_behind_nginx_as_before_it(app: Flask, host: Host) -> None:
    sent = batch()
    assert host.checkin(sent).body["ack"] == [sent["id"]]
    with ThreadPoolExecutor(1) as pool:
        poll = held(host, pool)
        uuid = order(app, host)
        assert [command["id"] for command in poll.result(10).body["commands"]] == [uuid]
    host.certificate_pem = renewed(host)
    assert host.checkin().status == 200


def test_nobody_gets_in_by_saying_who_he_is(host: Host) -> None:
    forged = {"X-Ops-Client-Certificate": re.sub(r"\n", "%0A", host.certificate_pem)}
    reply = host.send("poll", {"wait_s": 0, "have": []}, headers=forged, with_certificate=False)
    assert (reply.status, reply.reason) == (401, "certificate_required")


def test_wrong_certificates_are_told_what_is_wrong_with_them(app: Flask, host: Host) -> None:
    authority = app.extensions["ops"].keys.authority
    csr, uuid, good = host.csr_pem().encode(), UUID(host.node_uuid), host.certificate_pem
    past = datetime.now(UTC) - timedelta(days=5)
    cases = {
        "certificate_expired": authority.sign_node(csr, uuid, timedelta(days=1), at=past),
        "certificate_unknown": pki.create_authority().sign_node(csr, uuid, timedelta(days=9)),
    }
    for reason, certificate in cases.items():
        host.certificate_pem = pki.to_pem(certificate).decode()
        assert (reason, host.poll(0).reason) == (reason, reason)
    host.certificate_pem = pki.to_pem(authority.sign_server(host.key.public_key(), ["127.0.0.1"])).decode()
    assert host.poll(0).reason == "certificate_unknown"
    host.certificate_pem = good
    assert host.checkin().status == 200


def test_a_revoked_host_is_out_on_the_same_connection(app: Flask, host: Host) -> None:
    connection = host.connect()
    assert host.checkin(connection=connection).status == 200
    with app.app_context():
        in_transaction(db.session(), lambda: nodes.revoke_node(db.session(), ADMIN, host.node_id))
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(host.poll, 5, connection=connection).result(20)
    assert (reply.status, reply.reason) == (403, "revoked")
