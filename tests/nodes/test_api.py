"""Nodes for programs: list, one, change, delete, maintenance, by hand, revocation, events."""

from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Flask
from sqlalchemy import event as sql_event

from app.audit.models import AuditRow
from app.events.actions import note
from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from app.nodes.models import Revocation
from tests.factories import Api
from tests.nodes.fleet import labels_of, make_certificate, make_group, make_node, node, tags_of

FIELDS = (
    "id uuid hostname ip ips os arch kernel_version daemon_version agent_version agent_status cpu_cores memory_total"
    " disk_total status maintenance group group_id tags labels last_heartbeat certificate_expires_at created_at"
    " updated_at"
).split()
SOON = (datetime.now(UTC) + timedelta(hours=2)).replace(microsecond=0)


def names(api: Api, query: str = "") -> list[str]:
    answer = api.get(f"/nodes{query}")
    assert answer.status_code == 200, answer.text
    return [item["hostname"] for item in answer.json["data"]["items"]]


def audited(app: Flask, action: str) -> list[AuditRow]:
    with app.app_context():
        return db.session.query(AuditRow).filter_by(action=action).all()


def test_a_node_has_every_field_of_the_contract(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        group_id = make_group("prod/eu")
        node_id = make_node("web-1", group="prod/eu", tags=["b", "a"], labels={"env": "prod"}, last_cpu_usage=12.5)
    data = cast["vera"].get(f"/nodes/{node_id}").json["data"]
    assert set(FIELDS) <= set(data)
    assert data["group"] == {"id": group_id, "name": "eu"}
    assert (data["group_id"], data["tags"], data["labels"]) == (group_id, ["a", "b"], {"env": "prod"})
    assert (data["maintenance"], data["cpu_usage"], data["status"]) == (False, 12.5, "online")
    listed = cast["vera"].get("/nodes").json["data"]["items"][0]
    assert set(FIELDS) <= set(listed)


def test_a_node_that_is_not_there_is_2001(app: Flask, cast: dict[str, Api]) -> None:
    for method, path, body in (
        ("GET", "/nodes/99", None),
        ("PUT", "/nodes/99", {"tags": []}),
        ("DELETE", "/nodes/99", None),
        ("GET", "/nodes/99/events", None),
        ("POST", "/nodes/99/revoke", None),
        ("POST", "/nodes/99/maintenance", {"until": SOON.isoformat()}),
        ("DELETE", "/nodes/99/maintenance", None),
        ("POST", "/nodes/bulk", {"action": "tag", "tags": ["x"], "node_ids": [99]}),
        ("POST", "/nodes/approve", {"node_ids": [99]}),
    ):
        answer = cast["alice"].call(method, path, body)
        assert (answer.status_code, answer.json["code"]) == (404, 2001), path


LISTS = [
    ("", ["db-1", "web-1", "web-2"]),
    ("?sort=-hostname", ["web-2", "web-1", "db-1"]),
    ("?sort=-cpu_usage", ["web-2", "web-1", "db-1"]),
    ("?page_size=2", ["db-1", "web-1"]),
    ("?page_size=2&page=2", ["web-2"]),
    ("?keyword=WEB", ["web-1", "web-2"]),
    ("?keyword=10.0.0.2", ["db-1"]),
    ("?keyword=fd00", ["web-1"]),
    ("?keyword=canar", ["web-2"]),
    ("?keyword=env=pro", ["web-1", "web-2"]),
    ("?keyword=%25", []),
    ("?keyword=web_1", []),
    ("?status=offline", ["web-2"]),
    ("?status=pending", ["new-1"]),
    ("?tags=canary", ["web-2"]),
    ("?tags=canary,legacy", ["web-2"]),
    ("?tags=canary&tags=gpu", []),
    ("?selector=env%3Dprod+!tag:canary", ["web-1"]),
    ("?version=1.4.2", ["db-1"]),
    ("?maintenance=true", ["db-1"]),
    ("?maintenance=false", ["web-1", "web-2"]),
]


def test_it_lists_filters_and_sorts(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        make_node("web-1", ip="10.0.0.1", ips=["10.0.0.1", "fd00::1"], labels={"env": "prod"}, last_cpu_usage=10.0)
        make_node("web-2", status="offline", tags=["canary", "legacy"], labels={"env": "prod"}, last_cpu_usage=20.0)
        make_node("db-1", ip="10.0.0.2", version="1.4.2", maintenance_until=now() + timedelta(hours=1))
        make_node("new-1", status="pending")
    for query, expected in LISTS:
        assert names(cast["vera"], query) == expected, query


def test_a_group_filter_takes_the_subtree(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        prod, _production = make_group("prod"), make_group("production")
        make_node("a", group="prod")
        make_node("b", group="prod/eu/west")
        make_node("c", group="production")
        make_node("d")
    assert names(cast["vera"], f"?group_id={prod}") == ["a", "b"]
    assert names(cast["vera"], "?group_id=999") == []


def test_a_wrong_query_is_1001(app: Flask, cast: dict[str, Api]) -> None:
    wrong = ["page=0", "page_size=101", "sort=secret", "status=gone", "selector=a+or", "colour=red", "page=1&page=2"]
    for query in wrong:
        answer = cast["vera"].get(f"/nodes?{query}")
        assert (answer.status_code, answer.json["code"]) == (400, 1001), query
        assert answer.json["data"]["errors"][0]["field"] == query.partition("=")[0]


def test_a_change_leaves_alone_what_was_left_out(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        group_id = make_group("prod")
        node_id = make_node(tags=["a"], labels={"env": "prod"}, description="old")
    put = cast["oscar"].put
    assert put(f"/nodes/{node_id}", {"tags": ["b", "a", "b"]}).json["data"]["tags"] == ["a", "b"]
    changed = put(f"/nodes/{node_id}", {"group_id": group_id, "labels": {"env": "test", "role": "web"}}).json["data"]
    assert changed["group"] == {"id": group_id, "name": "prod"}
    assert (changed["tags"], changed["description"]) == (["a", "b"], "old")
    assert changed["labels"] == {"env": "test", "role": "web"}
    assert put(f"/nodes/{node_id}", {"group_id": None, "description": None}).json["data"]["group"] is None
    with app.app_context():
        assert tags_of(node_id) == ["a", "b"]
        assert labels_of(node_id) == {"env": "test", "role": "web"}
    detail = audited(app, "node.update")[0].detail
    assert detail == {"before": {"tags": ["a"]}, "after": {"tags": ["a", "b"]}}


WRONG_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"hostname": "x"}, "hostname"),
    ({"group_id": 999}, "group_id"),
    ({"group_id": "1"}, "group_id"),
    ({"tags": ["two words"]}, "tags.0"),
    ({"tags": [f"t{n}" for n in range(65)]}, "tags"),
    ({"labels": {"version": "1"}}, "labels"),
    ({"labels": {"env": 1}}, "labels.env"),
]


def test_a_wrong_change_is_1001_and_changes_nothing(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node(tags=["a"])
    for body, field in WRONG_CHANGES:
        answer = cast["oscar"].put(f"/nodes/{node_id}", body)
        assert (answer.status_code, answer.json["code"]) == (400, 1001), answer.text
        assert answer.json["data"]["errors"][0]["field"] == field
    with app.app_context():
        assert tags_of(node_id) == ["a"]


def test_a_deleted_node_is_gone_and_its_certificates_open_nothing(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node("web-1", tags=["a"], labels={"env": "prod"})
        make_certificate(node_id, "ab" * 32)
    assert cast["oscar"].delete(f"/nodes/{node_id}").status_code == 403
    answer = cast["alice"].delete(f"/nodes/{node_id}")
    assert (answer.status_code, answer.json["data"]) == (200, None)
    with app.app_context():
        assert node(node_id) is None
        assert (tags_of(node_id), labels_of(node_id)) == ([], {})
        assert db.session.query(Revocation.fingerprint).all() == [("ab" * 32,)]
    assert audited(app, "node.delete")[0].detail["before"]["hostname"] == "web-1"
    happened = cast["vera"].get("/events").json["data"]["items"][0]
    assert (happened["kind"], happened["hostname"], happened["message"]) == (
        "node.deleted",
        "web-1",
        "deleted by alice",
    )


def test_a_revoked_node_stays_but_its_certificates_open_nothing(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node()
        make_certificate(node_id, "cd" * 32)
    assert cast["oscar"].post(f"/nodes/{node_id}/revoke").status_code == 403
    assert cast["alice"].post(f"/nodes/{node_id}/revoke").json["data"]["status"] == "revoked"
    again = cast["alice"].post(f"/nodes/{node_id}/revoke")
    assert (again.status_code, again.json["code"]) == (409, 1006)
    with app.app_context():
        assert db.session.query(Revocation).count() == 1


def test_maintenance_begins_moves_and_ends(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node()
    path, oscar = f"/nodes/{node_id}/maintenance", cast["oscar"]
    begun = oscar.post(path, {"until": SOON.isoformat(), "reason": "kernel"}).json["data"]
    assert begun["maintenance"] is True
    assert begun["maintenance_until"] == SOON.isoformat().replace("+00:00", "Z")
    assert begun["maintenance_reason"] == "kernel"
    ended = oscar.delete(path)
    assert (ended.status_code, ended.json["data"]) == (200, None)
    shown = oscar.get(f"/nodes/{node_id}").json["data"]
    assert (shown["maintenance"], shown["maintenance_until"]) == (False, None)
    assert oscar.delete(path).status_code == 200
    kinds = [item["kind"] for item in oscar.get(f"/nodes/{node_id}/events").json["data"]["items"]]
    assert kinds == ["node.maintenance_ended", "node.maintenance"]


def test_maintenance_ends_in_the_future_and_within_a_year(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node()
    for until in ("2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z", "2027-01-01T00:00:00", "soon"):
        answer = cast["oscar"].post(f"/nodes/{node_id}/maintenance", {"until": until})
        assert (answer.status_code, answer.json["data"]["errors"][0]["field"]) == (400, "until")


def test_maintenance_that_is_over_is_no_maintenance(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node(maintenance_until=now() - timedelta(seconds=1))
    assert cast["vera"].get(f"/nodes/{node_id}").json["data"]["maintenance"] is False
    assert names(cast["vera"], "?maintenance=true") == []


def test_a_node_by_hand_comes_with_a_token_for_itself(app: Flask, cast: dict[str, Api]) -> None:
    body = {"hostname": "db-7", "tags": ["gpu"], "labels": {"env": "lab"}}
    assert cast["oscar"].post("/nodes", body).status_code == 403
    answer = cast["alice"].post("/nodes", body, Idempotency_Key="k1")
    assert answer.status_code == 201, answer.text
    data = answer.json["data"]
    assert (data["hostname"], data["status"], data["tags"]) == ("db-7", "unknown", ["gpu"])
    assert data["token"].startswith("ops_join_")
    assert data["install_command"].startswith("curl -fsSk --pinnedpubkey")
    assert data["install_command"].endswith(f"--token {data['token']}")
    assert cast["alice"].post("/nodes", body, Idempotency_Key="k1").json["data"]["id"] == data["id"]
    twice = cast["alice"].post("/nodes", body)
    assert (twice.status_code, twice.json["code"]) == (409, 2002)
    tokens = cast["alice"].get("/enrollment/tokens").json["data"]["items"]
    assert [(token["node_id"], token["max_uses"]) for token in tokens] == [(data["id"], 1)]


def test_a_nodes_events_are_its_own(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id, other = make_node("web-1"), make_node("web-2")
        session = db.session()
        in_transaction(session, lambda: note(session, "node.offline", "x", node_id=node_id, severity="warning"))
        in_transaction(session, lambda: note(session, "node.online", "y", node_id=other))
    data = cast["vera"].get(f"/nodes/{node_id}/events?severity=warning").json["data"]
    assert (data["total"], data["items"][0]["kind"], data["items"][0]["node_id"]) == (1, "node.offline", node_id)
    assert cast["vera"].get(f"/nodes/{node_id}/events?node_id={other}").json["code"] == 1001


def test_viewers_look_and_operators_edit(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node()
    for path, method, body in (
        (f"/nodes/{node_id}", "PUT", {"tags": ["x"]}),
        (f"/nodes/{node_id}/maintenance", "POST", {"until": SOON.isoformat()}),
        ("/nodes/bulk", "POST", {"action": "tag", "tags": ["x"], "node_ids": [node_id]}),
    ):
        assert cast["vera"].call(method, path, body).json["code"] == 1003, path
        assert cast["oscar"].call(method, path, body).status_code == 200, path


def test_a_list_takes_the_same_few_statements_however_long_it_is(app: Flask, cast: dict[str, Api]) -> None:
    statements: list[str] = []

    def count_for(page_size: int) -> int:
        statements.clear()
        assert len(names(cast["vera"], f"?page_size={page_size}")) == page_size
        return len(statements)

    with app.app_context():
        for number in range(12):
            make_node(f"web-{number}", group="prod", tags=["a"], labels={"env": "prod"})
        sql_event.listen(db.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    # The fewest of some: now and then one of them also reads the settings again.
    assert min(count_for(2) for _ in range(3)) == min(count_for(12) for _ in range(3))
