"""`/api/v1/commands/{id}` and `/api/v1/batches`: what is shown, to whom, and how batches are controlled."""

from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from app.commands.actions import expire_overdue, issue
from app.commands.fanouts import NewTarget
from app.commands.models import Command
from app.kernel.db import db
from app.nodes.models import OFFLINE
from protocol import states
from protocol.commands import Accept, Start
from tests.commands.rig import KIND, SYSTEM, Clock, Rig, now_text
from tests.factories import Api


def uuid_of(rig: Rig, fanout: int) -> str:
    return rig.fanout(fanout).uuid


def shown(api: Api, path: str) -> Any:
    answer = api.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json["data"]


def test_a_command_is_shown_without_its_payload(rig: Rig, cast: dict[str, Api]) -> None:
    node = rig.hosts(1)[0]
    fanout = rig.start([node], payload={"password": "hidden"})
    rig.run(node)
    command = rig.commands()[0]
    found = shown(cast["vera"], f"/commands/{command.id}")
    assert (found["state"], found["node_id"], found["exit_code"]) == ("succeeded", node, 0)
    assert (found["result"], found["batch_id"]) == ({"seen": True}, uuid_of(rig, fanout))
    assert "hidden" not in str(found)
    assert cast["vera"].get("/commands/999999").json["code"] == 1004


def test_results_that_hold_files_of_the_host_are_not_for_everybody(rig: Rig, cast: dict[str, Api]) -> None:
    node = rig.hosts(1)[0]
    fanout = rig.start([node], kind="test.private")
    rig.run(node)
    assert shown(cast["alice"], f"/commands/{rig.commands()[0].id}")["result"] is None
    assert shown(cast["alice"], f"/batches/{uuid_of(rig, fanout)}/targets")["items"][0]["result"] is None


def test_a_batch_and_its_targets(rig: Rig, cast: dict[str, Api]) -> None:
    nodes = rig.hosts(5)
    rig.set_node(nodes[3], status=OFFLINE)
    fanout = rig.start(
        [NewTarget(node, "web") for node in nodes], max_parallel=3, max_errors="40%", title="restart web"
    )
    rig.run(nodes[0])
    path = f"/batches/{uuid_of(rig, fanout)}"
    found = shown(cast["vera"], path)
    counts = {name: found[name] for name in ("total", "pending", "running", "success", "failed", "cancelled")}
    assert counts == {"total": 5, "pending": 4, "running": 0, "success": 1, "failed": 0, "cancelled": 0}
    assert (found["status"], found["max_parallel"], found["max_errors"]) == ("running", 3, 2)
    assert (found["title"], found["stopped_by"]) == ("restart web", None)
    targets = shown(cast["vera"], f"{path}/targets")
    assert [item["status"] for item in targets["items"]] == ["success", *["pending"] * 4]
    assert [item["waiting_for"] for item in targets["items"]] == [
        None,
        "delivery",
        "delivery",
        "node_offline",
        "delivery",
    ]
    first = targets["items"][0]
    assert (first["user"], first["attempt"], first["subject"], first["duration_ms"]) == ("root", 1, "web", 5)
    assert shown(cast["vera"], f"{path}/targets?status=success")["total"] == 1
    assert shown(cast["vera"], f"{path}/targets?node_id={nodes[2]}")["total"] == 1
    assert shown(cast["vera"], f"{path}/targets?keyword=host-00004&status=pending")["total"] == 1
    assert cast["vera"].get(f"{path}/targets?status=waiting").json["code"] == 1001


def test_what_each_target_waits_for(rig: Rig, cast: dict[str, Api], clock: Clock) -> None:
    nodes = rig.hosts(4)
    fanout = rig.start(nodes, max_parallel=2, retries=1, deliver_within_s=1000)
    path = f"/batches/{uuid_of(rig, fanout)}"

    def words() -> list[str | None]:
        return [item["waiting_for"] for item in shown(cast["vera"], f"{path}/targets")["items"]]

    assert words() == ["delivery", "delivery", "parallel_limit", "parallel_limit"]
    order = rig.fetch(nodes[0])[0]
    rig.report(nodes[0], Accept(order.id, "accept", now_text()))
    assert words()[0] == "agent_queue"
    rig.end(nodes[0], order.id, states.FAILED)
    assert words() == ["retry_interval", "delivery", "delivery", "parallel_limit"]
    rig.set_node(nodes[1], status=OFFLINE)
    rig.set_node(nodes[3], maintenance_until=rig.fanout(fanout).created_at.replace(year=2999))
    assert words() == ["retry_interval", "node_offline", "delivery", "node_maintenance"]
    cast["oscar"].post(f"{path}/pause")
    rig.set_node(nodes[3], maintenance_until=None)
    assert words() == ["retry_interval", "node_offline", "delivery", None]


def test_controlling_a_batch(rig: Rig, cast: dict[str, Api]) -> None:
    nodes = rig.hosts(2)
    path = f"/batches/{uuid_of(rig, rig.start(nodes))}"
    oscar = cast["oscar"]
    assert cast["vera"].post(f"{path}/pause").json["code"] == 1003
    assert oscar.post(f"{path}/pause").json["data"]["status"] == "paused"
    assert oscar.post(f"{path}/pause").json["code"] == 1006
    assert oscar.post(f"{path}/resume").json["data"]["status"] == "running"
    assert oscar.post(f"{path}/retry").json["code"] == 1006
    ended = oscar.post(f"{path}/cancel").json["data"]
    assert (ended["status"], ended["cancelled"], ended["stopped_by"]) == ("cancelled", 2, "cancel")
    audited = shown(cast["alice"], "/system/audit-logs")["items"]
    assert [row["action"] for row in audited if row["action"].startswith("batch.")] == [
        "batch.cancel",
        "batch.resume",
        "batch.pause",
    ]


def test_trying_the_failed_ones_again_is_a_batch_of_its_own(rig: Rig, cast: dict[str, Api]) -> None:
    nodes = rig.hosts(2)
    first = rig.start(nodes)
    rig.run(nodes[0], states.FAILED)
    rig.run(nodes[1])
    answers = [
        cast["oscar"].post(f"/batches/{uuid_of(rig, first)}/retry", None, Idempotency_Key="once") for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [202, 202]
    started = answers[0].json["data"]
    assert started == answers[1].json["data"]
    assert started["total_nodes"] == 1
    found = shown(cast["vera"], f"/batches/{started['batch_id']}")
    assert found["repeats"] == uuid_of(rig, first)


@pytest.mark.parametrize(
    ("query", "count"), [("", 2), ("?is_open=true", 1), ("?is_open=false", 1), ("?purpose=bare", 1)]
)
def test_the_list_of_batches(rig: Rig, cast: dict[str, Api], query: str, count: int) -> None:
    node = rig.hosts(1)[0]
    rig.start([node])
    rig.run(node)
    open_one = rig.start([node], purpose="bare")
    found = shown(cast["vera"], f"/batches{query}")
    assert found["total"] == count
    if not query:
        assert found["items"][0]["batch_id"] == uuid_of(rig, open_one), "newest first"


def test_unknown_batches(cast: dict[str, Api]) -> None:
    path = "/batches/00000000-0000-4000-8000-000000000000"
    assert cast["alice"].get(path).json["code"] == 1004
    assert cast["alice"].get(f"{path}/targets").json["code"] == 1004
    assert cast["alice"].post(f"{path}/cancel").json["code"] == 1004
    assert cast["alice"].get("/batches/nonsense").json["code"] == 1004


def test_what_a_host_took_and_never_ended_is_interrupted_in_the_end(rig: Rig, clock: Clock) -> None:
    node = rig.hosts(1)[0]
    for _ in range(2):
        rig.do(lambda: issue(db.session(), SYSTEM, node, KIND, {}, timedelta(minutes=1)).id)
    taken, started = rig.fetch(node)
    at = now_text()
    rig.report(node, Accept(taken.id, "accept", at), Start(started.id, "start", at, 1))
    in_fanout = rig.start([node])
    order = rig.fetch(node)[0]
    rig.report(node, Accept(order.id, "accept", at))
    clock.advance(hours=6)
    assert rig.do(lambda: expire_overdue(db.session())) == 0
    clock.advance(minutes=2)
    assert rig.do(lambda: expire_overdue(db.session())) == 2
    ended = rig.commands(Command.target_id.is_(None))
    assert [(one.state, one.error_code, one.finished_at is not None) for one in ended] == [
        ("interrupted", "interrupted", True)
    ] * 2
    assert rig.commands(Command.target_id.is_not(None))[0].state == "accepted"
    assert rig.is_open(in_fanout)


def test_an_order_that_cannot_be_made_fails_and_holds_up_nothing(rig: Rig) -> None:
    node = rig.hosts(1)[0]
    for payload in ({"bug": True}, {}):
        rig.do(partial(_issue_secret, node, payload))
    assert [order.payload for order in rig.fetch(node)] == ['{"secret":"opened"}']
    assert [one.state for one in rig.commands()] == ["failed", "delivered"]


def _issue_secret(node: int, payload: dict[str, Any]) -> int:
    return issue(db.session(), SYSTEM, node, "test.secret", payload, timedelta(minutes=1)).id
