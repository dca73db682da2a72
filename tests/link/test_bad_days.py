"""Faults injected for real: killed processes, databases that stop, networks that lie. Nothing acknowledged is lost."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import select, text

from app.events.models import Event
from app.kernel.db import db, in_transaction
from app.link.presence import heard_since
from app.metrics.models import MetricPoint
from app.nodes import enrolment
from app.nodes.actions import mark_silent_nodes
from app.nodes.models import Node
from app.nodes.schemas import TokenIn
from tests.conftest import Applications
from tests.link.conftest import ADMIN, free_port
from tests.link.faults import FaultProxy
from tests.link.hosts import Host, Reply, batch, point
from tests.link.planes import Plane
from tests.link.test_poll import held, order, state_of
from tests.services import MariaDb, Redis, wait_for

pytestmark = pytest.mark.fault
BROKEN = (OSError, http.client.HTTPException)
NewHost = Callable[..., Host]


def stored(app: Flask) -> set[int]:
    with app.app_context():
        db.session.rollback()
        return set(db.session.scalars(select(MetricPoint.ts)))


class Sender:
    """A host that measures and sends without a pause, keeping what was not acknowledged, as a Daemon does."""

    def __init__(self, host: Host) -> None:
        self.host, self.acknowledged, self._spool = host, set[int](), []  # type: ignore[var-annotated]
        self._next = datetime.now(UTC) - timedelta(hours=2)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Sender":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._next += timedelta(seconds=1)
            self._spool.append((batch(point(self._next)), int(self._next.timestamp() * 1000)))
            self._send()
            self._stop.wait(0.15)

    def _send(self) -> None:
        try:
            reply = self.host.checkin(*(sent for sent, _ in self._spool[-100:]), timeout_s=5)
        except BROKEN:
            return
        if reply.status == 200:
            done = set(reply.body["ack"])
            self.acknowledged |= {ts for sent, ts in self._spool if sent["id"] in done}
            self._spool = [item for item in self._spool if item[0]["id"] not in done]

    def wait_for_more(self, count: int = 3) -> None:
        before = len(self.acknowledged)
        wait_for(lambda: len(self.acknowledged) >= before + count, 60, "more points to be acknowledged")


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_what_was_acknowledged_survives_a_gateway_that_ends_in_the_middle(
    app: Flask, own_gateway: Plane, new_host: NewHost, how: str
) -> None:
    host, waiting = new_host(plane=own_gateway), new_host("waiting", plane=own_gateway)
    with ThreadPoolExecutor(1) as pool, Sender(host) as sender:
        poll = held(waiting, pool, 30)
        sender.wait_for_more()
        for _ in range(2):
            getattr(own_gateway, how)()
            own_gateway.start()
            sender.wait_for_more()
        assert poll.exception(20) is not None or poll.result().status == 200
    assert sender.acknowledged
    assert sender.acknowledged <= stored(app)


def test_an_answer_lost_after_the_commit_counts_nothing_twice(app: Flask, gateway: Plane, new_host: NewHost) -> None:
    host = new_host()
    proxy = FaultProxy(gateway.port)
    direct, host.port = host.port, proxy.port
    sent = batch(*(point(datetime.now(UTC) - timedelta(seconds=second)) for second in range(5)))
    connection = host.connect(4)
    connection.connect()
    proxy.mode = "mute"
    with pytest.raises(BROKEN):
        host.checkin(sent, connection=connection)
    assert len(stored(app)) == 5
    host.port = direct
    reply = host.checkin(sent)
    assert (reply.status, reply.body["ack"], reply.body["reenrol"]) == (200, [sent["id"]], False)
    assert len(stored(app)) == 5
    proxy.close()


@pytest.fixture
def proxied(gateway: Plane, new_host: NewHost) -> Iterator[tuple[Host, FaultProxy]]:
    host = new_host()
    proxy = FaultProxy(gateway.port)
    host.port = proxy.port
    yield host, proxy
    proxy.close()


def test_a_reset_in_the_middle_of_a_poll_loses_no_command(app: Flask, proxied: tuple[Host, FaultProxy]) -> None:
    host, proxy = proxied
    with ThreadPoolExecutor(1) as pool:
        poll = held(host, pool)
        proxy.reset_all()
        assert isinstance(poll.exception(10), BROKEN)
    uuid = order(app, host)
    assert [command["id"] for command in host.poll(5).body["commands"]] == [uuid]


def test_a_command_whose_delivery_fell_into_a_black_hole_comes_again(
    app: Flask, proxied: tuple[Host, FaultProxy]
) -> None:
    host, proxy = proxied
    connection = host.connect(5)
    connection.connect()
    proxy.mode = "mute"
    uuid = order(app, host)
    with pytest.raises(BROKEN):
        host.poll(0, connection=connection)
    assert state_of(app, uuid).state == "delivered"
    proxy.mode = "pass"
    with app.app_context():
        db.session.execute(text("UPDATE commands SET lease_until = :past"), {"past": "2020-01-01 00:00:00.000000"})
        db.session.commit()
    assert [command["id"] for command in host.poll(0).body["commands"]] == [uuid]


def test_a_half_open_connection_takes_no_command_from_the_new_one(
    app: Flask, gateway: Plane, proxied: tuple[Host, FaultProxy]
) -> None:
    """The host is gone from its old connection, and neither end was told. What is held there must swallow nothing."""
    host, proxy = proxied
    with ThreadPoolExecutor(2) as pool:
        dead = held(host, pool, 20)
        proxy.mode, host.port = "hole", gateway.port
        new = held(host, pool, 20)
        uuid = order(app, host)
        assert [command["id"] for command in new.result(10).body["commands"]] == [uuid]
        proxy.reset_all()
        assert isinstance(dead.exception(30), BROKEN)


def test_a_dropped_poll_makes_a_node_suspect_until_it_is_back(app: Flask, proxied: tuple[Host, FaultProxy]) -> None:
    host, proxy = proxied

    def is_suspect() -> bool:
        with app.app_context():
            db.session.rollback()
            return db.session.scalars(select(Node)).one().is_suspect

    with ThreadPoolExecutor(1) as pool:
        poll = held(host, pool)
        assert not is_suspect()
        proxy.reset_all()
        assert isinstance(poll.exception(10), BROKEN)
    wait_for(is_suspect, 10, "the node to be suspect")
    assert host.poll(0).status == 200
    assert not is_suspect()


def test_a_killed_and_wiped_redis_costs_nothing_but_speed(app: Flask, host: Host, redis_server: Redis) -> None:
    with Sender(host) as sender, ThreadPoolExecutor(1):
        sender.wait_for_more()
        redis_server.kill()
        try:
            sender.wait_for_more()
            uuid = order(app, host)
        finally:
            redis_server.start()
        redis_server.wipe()
        sender.wait_for_more()
    assert sender.acknowledged <= stored(app)

    def delivered() -> bool:
        reply = host.poll(2)
        return uuid in [command["id"] for command in reply.body.get("commands", [])]

    wait_for(delivered, 30, "the command that was made without Redis")


@pytest.mark.mariadb
def test_a_database_that_stops_is_waited_for_and_nothing_is_lost(
    own_mariadb: tuple[Flask, MariaDb],
) -> None:
    app, server = own_mariadb
    plane = Plane(app, "gateway", free_port())
    plane.start()
    try:
        host = node_on(app, plane)
        with Sender(host) as sender:
            sender.wait_for_more()
            server.stop()
            reply = outcome_of(host)
            assert reply.status == 503
            assert int(reply.headers["Retry-After"]) >= 1
            server.start()
            sender.wait_for_more()
            server.pause()
            time.sleep(2)
            server.resume()
            sender.wait_for_more()
            server.kill()
            server.start()
            sender.wait_for_more()
        assert sender.acknowledged <= stored(app)
        assert "Traceback" not in plane.log()
    finally:
        plane.stop()


def outcome_of(host: Host) -> Reply:
    """What the gateway says while its database is away; the connection itself stays good."""
    for _ in range(20):
        try:
            reply = host.poll(0, timeout_s=30)
        except BROKEN:
            continue
        if reply.status != 200:
            return reply
    raise AssertionError("the gateway answered as if its database were there")


def node_on(app: Flask, plane: Plane) -> Host:
    with app.app_context():
        session = db.session()
        token = in_transaction(session, lambda: enrolment.create_token(session, ADMIN, TokenIn(name="t")))[1]
    host = Host(plane.port, plane.ca_path)
    assert host.enroll(token).status == 200
    assert host.checkin().status == 200
    return host


@pytest.fixture
def own_mariadb(applications: Applications) -> Iterator[tuple[Flask, MariaDb]]:
    """A database server that the test may stop, durable as in production, with an application over it."""
    if reason := MariaDb.why_unavailable():
        pytest.skip(reason)
    with MariaDb(durable=True) as server:
        yield applications.over(server), server


def test_nobody_is_called_offline_for_our_own_absence(app: Flask, own_gateway: Plane, planes: dict[str, Plane]) -> None:
    node_on(app, own_gateway)
    own_gateway.kill()
    if shared := planes.pop(app.extensions["ops"].settings.database_url, None):
        shared.stop()
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    with app.app_context():
        session = db.session()
        session.execute(text("UPDATE nodes SET last_heartbeat = :at"), {"at": an_hour_ago.replace(tzinfo=None)})
        session.execute(text("UPDATE gateway_presence SET seen_at = :at"), {"at": an_hour_ago.replace(tzinfo=None)})
        session.commit()
        assert in_transaction(session, lambda: mark_silent_nodes(session, 90, heard_since(session))) == 0
    own_gateway.start()
    with app.app_context():
        session = db.session()
        assert in_transaction(session, lambda: mark_silent_nodes(session, 90, heard_since(session))) == 0
        long_ago = datetime.now(UTC) - timedelta(hours=2)
        assert in_transaction(session, lambda: mark_silent_nodes(session, 90, long_ago)) == 1
        assert session.scalars(select(Node.status)).one() == "offline"
        assert session.scalars(select(Event.kind).order_by(Event.id.desc())).first() == "node.offline"


def test_a_check_in_that_comes_while_silence_is_judged_wins(app: Flask, host: Host) -> None:
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    with app.app_context():
        session = db.session()
        session.execute(text("UPDATE nodes SET last_heartbeat = :at"), {"at": an_hour_ago.replace(tzinfo=None)})
        session.commit()
    assert host.checkin().status == 200
    with app.app_context():
        session = db.session()
        assert in_transaction(session, lambda: mark_silent_nodes(session, 90, an_hour_ago)) == 0


def test_a_flood_from_one_host_leaves_the_others_alone(new_host: NewHost) -> None:
    loud, quiet = new_host("loud"), new_host("quiet")
    with ThreadPoolExecutor(8) as pool:
        flood = [pool.submit(loud.poll, 0) for _ in range(400)]
        assert quiet.checkin().status == 200
        statuses = {future.result(30).status for future in flood}
    assert 429 in statuses
    assert statuses <= {200, 409, 429}
