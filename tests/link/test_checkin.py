"""The check-in: nothing lost, nothing twice, clones found, replays and nonsense harmless."""

import gzip
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, select

from app.events.models import Event
from app.kernel.db import db
from app.metrics.models import MetricPoint
from app.nodes.models import Node
from app.settings.actions import change_settings
from tests.link.conftest import ADMIN
from tests.link.hosts import Host, batch, point
from tests.link.planes import Plane
from tests.services import wait_for


def stored_points(app: Flask) -> int:
    with app.app_context():
        db.session.rollback()
        return db.session.scalar(select(func.count()).select_from(MetricPoint)) or 0


def kinds(app: Flask) -> list[str]:
    with app.app_context():
        return list(db.session.scalars(select(Event.kind).order_by(Event.id)))


def node(app: Flask) -> Node:
    return db.session.scalars(select(Node)).one()


def test_the_first_check_in_brings_a_node_online(app: Flask, host: Host) -> None:
    with app.app_context():
        found = node(app)
        assert (found.status, found.hostname, found.daemon_version) == ("online", "web-1", "1.2.3")
        assert found.last_heartbeat is not None
    assert kinds(app) == ["node.enrolled", "node.first_seen"]


def test_a_batch_is_acknowledged_and_kept_with_its_own_time(app: Flask, host: Host) -> None:
    moment = datetime.now(UTC) - timedelta(minutes=10)
    sent = batch(point(moment, cpu_usage=77.5))
    reply = host.checkin(sent)
    assert reply.body["ack"] == [sent["id"]]
    with app.app_context():
        row = db.session.scalars(select(MetricPoint)).one()
        assert (row.ts, row.cpu_usage) == (int(moment.timestamp() * 1000), 77.5)
        assert node(app).last_cpu_usage == 77.5


def test_the_same_batch_twice_is_one_set_of_rows(app: Flask, host: Host) -> None:
    sent = batch(point(), point(datetime.now(UTC) - timedelta(seconds=60)))
    for _ in range(3):
        assert host.checkin(sent).body["ack"] == [sent["id"]]
    assert stored_points(app) == 2


def test_an_event_told_twice_is_kept_once(app: Flask, host: Host) -> None:
    event = {
        "id": "e-1",
        "timestamp": point()["timestamp"],
        "kind": "daemon.started",
        "severity": "info",
        "message": "up",
    }
    for _ in range(2):
        assert host.checkin(events=[event]).body["ack"] == ["e-1"]
    assert kinds(app).count("daemon.started") == 1


def test_gzip_is_understood_and_bombs_are_not(host: Host) -> None:
    host.sequence += 1
    body = gzip.compress(json.dumps(host.checkin_message(batch())).encode())
    reply = host.send("checkin", body, headers={"Content-Encoding": "gzip"})
    assert reply.status == 200
    host.lease = reply.body["lease"]
    bomb = gzip.compress(b" " * 50_000_000)
    refused = host.send("checkin", bomb, headers={"Content-Encoding": "gzip"})
    assert (refused.status, refused.reason) == (413, "body_too_large")
    assert host.checkin().status == 200


def test_a_lost_answer_is_no_clone(app: Flask, host: Host) -> None:
    old_lease = host.lease
    host.checkin()
    host.lease = old_lease
    reply = host.checkin(batch())
    assert (reply.status, reply.body["reenrol"]) == (200, False)
    assert "node.cloned" not in kinds(app)


def test_a_replayed_check_in_changes_nothing(app: Flask, host: Host) -> None:
    host.sequence += 1
    recorded = host.checkin_message(batch())
    first = host.send("checkin", recorded)
    host.lease = first.body["lease"]
    for _ in range(3):
        replay = host.send("checkin", recorded)
        assert (replay.status, replay.reason) == (409, "challenge")
    assert stored_points(app) == 1
    assert host.checkin().status == 200


def test_reordered_check_ins_do_not_go_back(app: Flask, host: Host) -> None:
    host.sequence += 1
    earlier = host.checkin_message(batch(), daemon_version="0.0.1")
    assert host.checkin(daemon_version="9.9.9").status == 200
    assert host.send("checkin", earlier).status == 409
    with app.app_context():
        assert node(app).daemon_version == "9.9.9"


def test_a_live_host_answers_a_challenge_and_goes_on(host: Host) -> None:
    """As after a restore from a snapshot: its counters lie behind, but it is there and can answer."""
    host.generation = host.sequence = 0
    refused = host.checkin()
    assert refused.reason == "challenge"
    reply = host.checkin(challenge=refused.body["data"]["challenge"])
    assert (reply.status, reply.body["reenrol"]) == (200, False)


def test_a_restart_that_lost_its_lease_goes_on_but_not_for_ever(app: Flask, host: Host) -> None:
    for _ in range(3):
        host.restart()
        host.lease = None
        assert host.checkin().body["reenrol"] is False
    host.restart()
    host.lease = None
    assert host.checkin().body["reenrol"] is True


def clone_of(original: Host) -> Host:
    """A copy of the disk in another machine."""
    copy = Host(original.port, original._ca_path)
    copy.key, copy.certificate_pem, copy.lease = original.key, original.certificate_pem, original.lease
    copy.generation, copy.node_id, copy.node_uuid = original.generation + 1, original.node_id, original.node_uuid
    return copy


def test_a_cloned_disk_is_found_shown_and_made_to_enrol_as_itself(app: Flask, host: Host) -> None:
    copy = clone_of(host)
    host.checkin()
    host.checkin()
    found = copy.checkin(batch())
    assert (found.status, found.body["reenrol"], found.body["ack"]) == (200, True, [])
    assert stored_points(app) == 0
    assert kinds(app)[-1] == "node.cloned"
    assert host.checkin().body["reenrol"] is False

    again = Host(copy.port, copy._ca_path, "web-1-copy")
    again.certificate_pem, old_key = copy.certificate_pem, copy.key
    new_key, again.key = again.key, old_key
    message = {
        "request_id": again.request_id, "token": None, "ticket": None, "csr_pem": again.csr_pem(new_key),
        "machine": again.machine, "facts": again.inventory,
    }  # fmt: skip
    waiting = again.send("enroll", message)
    assert (waiting.status, waiting.body["status"]) == (202, "pending")


def test_settings_reach_a_host_once_and_again_when_they_change(app: Flask, host: Host) -> None:
    settings = host.checkin().body["settings"]
    assert settings["heartbeat_interval_s"] == 60
    assert host.checkin(settings_version=settings["version"]).body["settings"] is None
    with app.app_context():
        change_settings(db.session(), ADMIN, {"node.heartbeat_interval": 20.0})
        db.session.commit()

    def changed() -> dict[str, Any] | None:
        return host.checkin(settings_version=settings["version"]).body.get("settings")

    assert wait_for(changed, 15, "the new settings", interval=0.5)["heartbeat_interval_s"] == 20


def test_lost_points_are_counted_once(app: Flask, host: Host) -> None:
    for total in (0, 5, 5, 12):
        assert host.checkin(dropped={"epoch": "e1", "points": total, "since": None}).status == 200
    with app.app_context():
        messages = db.session.scalars(select(Event.message).where(Event.kind == "node.points_lost")).all()
    assert [message.split()[0] for message in messages] == ["5", "7"]


def test_two_check_ins_at_once_are_one_after_the_other(app: Flask, host: Host) -> None:
    """A host must not do that. If it does, both answers are legal ones and nothing is counted twice."""
    sent = batch(*(point(datetime.now(UTC) - timedelta(seconds=number)) for number in range(20)))
    messages = []
    for _ in range(4):
        host.sequence += 1
        messages.append(host.checkin_message(sent))
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda message: host.send("checkin", message), messages))
    assert {reply.status for reply in replies} <= {200, 409}
    assert any(reply.status == 200 for reply in replies)
    assert stored_points(app) == 20


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metrics", [{"id": "b", "points": []}]),
        ("metrics", [{"id": "b", "points": [{"timestamp": "yesterday"}]}]),
        ("metrics", [{"id": "b", "points": [point(cpu_usage=101)]}]),
        ("sequence", 2**70),
        ("uptime_s", "long"),
        ("daemon_version", "x" * 65),
        ("events", [{}] * 201),
        ("machine", None),
        ("capabilities", []),
    ],
)
def test_nonsense_is_refused_and_leaves_no_trace(app: Flask, host: Host, field: str, value: object) -> None:
    before = kinds(app)
    reply = host.checkin(batch(), **{field: value}) if field != "metrics" else host.checkin(metrics=value)
    assert (reply.status, reply.reason) == (400, "invalid_field")
    assert reply.body["data"]["errors"][0]["field"].startswith(field)
    assert kinds(app) == before
    assert stored_points(app) == 0
    assert host.checkin().status == 200


def test_too_many_check_ins_are_slowed_down(host: Host) -> None:
    replies = [host.checkin() for _ in range(14)]
    slowed = [reply for reply in replies if reply.status == 429]
    assert slowed
    assert int(slowed[0].headers["Retry-After"]) >= 1


def test_hosts_do_not_meet(app: Flask, new_host: Callable[..., Host]) -> None:
    one, other = new_host("one"), new_host("other")
    one.checkin(batch(point(cpu_usage=1.0)))
    other.checkin(batch(point(cpu_usage=99.0)))
    with app.app_context():
        rows = dict(db.session.execute(select(Node.hostname, Node.last_cpu_usage)).all())
    assert rows == {"one": 1.0, "other": 99.0}


def test_a_host_that_dawdles_over_its_body_holds_nobody_up(
    app: Flask, gateway: Plane, join: Callable[..., str], new_host: Callable[..., Host]
) -> None:
    """On SQLite a transaction that waited for the rest of it would keep every other host from writing."""
    other = new_host("web-2")
    # It was never here before, so that its identity has to be looked up in the database.
    host = Host(gateway.port, gateway.ca_path)
    host.enroll(join())
    slow = host.connect()
    slow.putrequest("POST", "/daemon/v1/checkin")
    for name, value in {"X-Ops-Wire": "1.0", "X-Ops-Instance": host.instance, "Content-Length": "5000"}.items():
        slow.putheader(name, value)
    slow.endheaders(b'{"instance_id": ')
    before = stored_points(app)
    assert other.checkin(batch()).status == 200
    assert stored_points(app) == before + 1
    slow.close()
