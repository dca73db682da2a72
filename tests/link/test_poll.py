"""The held poll and commands: woken at once, exactly its host's, once, signed; nothing owned while it waits."""

import base64
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from sqlalchemy import select, text

from app.commands.actions import expire_overdue, issue
from app.commands.models import Command
from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from app.link import live
from app.nodes import actions as nodes
from protocol.commands import Command as Order
from protocol.commands import is_genuine
from protocol.times import to_epoch, to_text
from tests.link.conftest import ADMIN
from tests.link.hosts import Host, Reply
from tests.link.planes import Plane
from tests.services import Redis, wait_for


def order(app: Flask, host: Host, kind: str = "ping", valid_s: float = 60) -> str:
    with app.app_context():
        make = issue(db.session(), ADMIN, host.node_id, kind, {"echo": "hi"}, timedelta(seconds=valid_s))
        db.session.commit()
        return make.uuid


def state_of(app: Flask, uuid: str) -> Command:
    with app.app_context():
        db.session.rollback()
        row = db.session.scalars(select(Command).where(Command.uuid == uuid)).one()
        db.session.expunge(row)
        return row


def held(host: Host, pool: ThreadPoolExecutor, wait_s: int = 20) -> Future[Reply]:
    """A poll that the gateway is holding by now."""
    future = pool.submit(host.poll, wait_s, timeout_s=60)
    time.sleep(0.5)
    assert not future.done()
    return future


def result(**fields: Any) -> dict[str, Any]:
    at = to_text(time.time())
    return {"status": "succeeded", "finished_at": at, "started_at": at, "exit_code": 0} | fields


def test_a_command_wakes_its_hosts_poll_and_no_other(app: Flask, new_host: Callable[..., Host]) -> None:
    one, other = new_host("one"), new_host("other")
    with ThreadPoolExecutor(2) as pool:
        first, second = held(one, pool), held(other, pool, 3)
        uuid = order(app, one)
        found = first.result(10).body["commands"]
        assert [command["id"] for command in found] == [uuid]
        assert second.result(10).body["commands"] == []


def test_a_command_is_signed_for_its_host(app: Flask, host: Host) -> None:
    order(app, host)
    command = Order(**host.poll().body["commands"][0])
    key = base64.b64decode(host.command_key)
    assert is_genuine(command, key, host.node_uuid)
    assert not is_genuine(command._replace(payload='{"echo":"ho"}'), key, host.node_uuid)
    assert not is_genuine(command, b"x" * 32, host.node_uuid)


def test_a_command_made_before_the_poll_comes_at_once(app: Flask, host: Host) -> None:
    uuid = order(app, host)
    assert [command["id"] for command in host.poll(0).body["commands"]] == [uuid]


def test_a_command_is_handed_out_once_under_its_lease_and_again_after_it(app: Flask, host: Host) -> None:
    uuid = order(app, host)
    assert len(host.poll(0).body["commands"]) == 1
    assert host.poll(0).body["commands"] == []
    with app.app_context():
        db.session.execute(text("UPDATE commands SET lease_until = :at"), {"at": "2020-01-01 00:00:00.000000"})
        db.session.commit()
    assert [command["id"] for command in host.poll(0).body["commands"]] == [uuid]


def test_what_a_host_has_is_not_handed_out_again(app: Flask, host: Host) -> None:
    uuid = order(app, host)
    host.poll(0)
    with app.app_context():
        db.session.execute(text("UPDATE commands SET lease_until = :at"), {"at": "2020-01-01 00:00:00.000000"})
        db.session.commit()
    assert host.poll(0, have=[uuid]).body["commands"] == []
    assert host.poll(0).body["commands"] == []


def test_reports_move_a_command_forward_only_and_may_be_repeated(app: Flask, host: Host) -> None:
    uuid = order(app, host)
    host.poll(0)
    at = to_text(time.time())
    steps = [("accept", {"at": at}), ("start", {"at": at, "pid": 7}), ("result", result(data={"echo": "hi"}))]
    for kind, body in steps:
        for _ in range(2):
            assert host.send(f"commands/{uuid}/{kind}", body).status == 200
    for kind, body in steps[:2]:
        assert host.send(f"commands/{uuid}/{kind}", body).status == 200
    other_end = host.send(f"commands/{uuid}/result", result(status="failed", exit_code=1))
    assert (other_end.status, other_end.reason) == (409, "illegal_step")
    row = state_of(app, uuid)
    assert (row.state, row.exit_code, row.result) == ("succeeded", 0, {"echo": "hi"})


def test_a_result_lost_after_commit_is_told_again(app: Flask, host: Host) -> None:
    uuid = order(app, host)
    host.poll(0)
    report = {"command": uuid, "type": "result", **result()}
    answers = [host.send("commands/reports", {"reports": [report]}).body["results"][0]["ok"] for _ in range(3)]
    assert answers == [True, True, True]


def test_nobody_reports_about_another_hosts_command(app: Flask, new_host: Callable[..., Host]) -> None:
    one, other = new_host("one"), new_host("other")
    uuid = order(app, one)
    one.poll(0)
    for target in (uuid, str(uuid4())):
        reply = other.send(f"commands/{target}/result", result())
        assert (reply.status, reply.reason) == (404, "unknown_command")
    assert state_of(app, uuid).state == "delivered"


def test_a_command_that_was_never_handed_out_cannot_be_reported_done(app: Flask, host: Host) -> None:
    uuid = order(app, host)
    assert host.send(f"commands/{uuid}/result", result()).reason == "illegal_step"
    assert state_of(app, uuid).state == "queued"


def test_what_comes_too_late_expires_and_is_never_delivered(app: Flask, host: Host) -> None:
    uuid = order(app, host, valid_s=-1)
    assert host.poll(0).body["commands"] == []
    with app.app_context():
        assert in_transaction(db.session(), lambda: expire_overdue(db.session())) == 1
    assert state_of(app, uuid).state == "expired"


def test_a_second_poll_ends_the_first(host: Host) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = held(host, pool)
        second = pool.submit(host.poll, 2)
        assert first.result(5).body["commands"] == []
        assert second.result(10).status == 200


def test_a_new_instance_ends_the_old_ones_poll_and_the_old_one_has_to_check_in(host: Host) -> None:
    old = host.instance
    with ThreadPoolExecutor(1) as pool:
        poll = held(host, pool)
        host.restart()
        assert host.checkin().status == 200
        assert poll.result(5).body["commands"] == []
    host.instance = old
    assert (host.poll(0).status, host.poll(0).reason) == (409, "checkin_first")


def test_revocation_ends_a_held_poll_within_a_second_also_without_redis(
    app: Flask, host: Host, redis_server: Redis
) -> None:
    """Twice the promised second, since this machine is busy; without the look into the database it would be 20."""
    with ThreadPoolExecutor(1) as pool:
        poll = held(host, pool)
        started = time.monotonic()
        redis_server.pause()
        try:
            with app.app_context():
                ops = app.extensions["ops"]
                ops.redis.connection_pool.disconnect()
                revoke_without_redis(app, host)
            reply = poll.result(15)
        finally:
            redis_server.resume()
        assert time.monotonic() - started < 20
    assert (reply.status, reply.reason) == (403, "revoked")
    assert host.checkin().reason == "revoked"


def revoke_without_redis(app: Flask, host: Host) -> None:
    """Redis does not answer, so the wake-up is lost; the revocation itself must not wait for it long."""
    session = db.session()
    waker = threading.Thread(target=_revoke, args=(app, host.node_id))
    waker.start()
    session.rollback()
    waker.join(0.1)


def _revoke(app: Flask, node_id: int) -> None:
    with app.app_context():
        in_transaction(db.session(), lambda: nodes.revoke_node(db.session(), ADMIN, node_id))


def test_a_lost_wake_up_costs_a_second_not_a_poll(app: Flask, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.kernel.wake._send", lambda *_given: None)
    with ThreadPoolExecutor(1) as pool:
        poll = held(host, pool)
        started = time.monotonic()
        uuid = order(app, host)
        assert [command["id"] for command in poll.result(15).body["commands"]] == [uuid]
        assert time.monotonic() - started < 20


def test_deleting_a_node_shuts_its_host_out(app: Flask, host: Host) -> None:
    with app.app_context():
        in_transaction(db.session(), lambda: nodes.delete_node(db.session(), ADMIN, host.node_id))
    wait_for(lambda: host.checkin().reason == "revoked", 5, "the deleted node to be refused")


def test_a_draining_gateway_answers_its_polls_and_ends_quickly(app: Flask, own_gateway: Plane, new_host: Any) -> None:
    host = new_host(plane=own_gateway)
    with ThreadPoolExecutor(1) as pool:
        poll = held(host, pool, 50)
        started = time.monotonic()
        assert own_gateway.terminate() == 0
        reply = poll.result(5)
    assert (reply.status, reply.body["drain"]) == (200, True)
    assert time.monotonic() - started < 20
    own_gateway.start()
    assert host.checkin().status == 200


@pytest.mark.mariadb
@pytest.mark.parametrize("app", ["mariadb"], indirect=True)
def test_held_polls_hold_no_database_connection(app: Flask, new_host: Callable[..., Host]) -> None:
    """More polls than the pool has connections; a check-in beside them still gets one."""
    hosts = [new_host(f"web-{number}") for number in range(15)]
    with ThreadPoolExecutor(15) as pool:
        polls = [pool.submit(host.poll, 4, timeout_s=60) for host in hosts]
        time.sleep(1.5)
        with app.app_context():
            busy = db.session.execute(
                text("SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_started < NOW() - INTERVAL 1 SECOND")
            ).scalar()
        assert busy == 0
        assert all(poll.result(30).status == 200 for poll in polls)


def test_time_of_the_manager_is_told(host: Host) -> None:
    told = host.poll(0).body["server_time"]
    assert abs(now().timestamp() - to_epoch(told)) < 30


def test_a_host_that_somebody_looks_at_is_told_at_once_and_at_every_poll(app: Flask, host: Host) -> None:
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(host.poll, 30)
        with app.app_context():
            live.watch(host.node_id)
    assert held.result().body["live"]["until"]
    assert host.poll(30).body["live"]["until"]


@pytest.mark.fault
def test_that_somebody_looks_is_noticed_without_the_message(
    app: Flask, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "wake_now", lambda *_: None)
    with app.app_context():
        live.watch(host.node_id)
    began = time.monotonic()
    assert host.poll(30).body["live"]["until"]
    assert time.monotonic() - began < 20
