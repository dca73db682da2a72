"""One action on many nodes: by program, and by the pages behind the list's ticked rows."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from flask import Flask

from app.audit.models import AuditRow
from app.kernel.db import db
from app.nodes.models import Node, Revocation
from tests.factories import Api, submit
from tests.nodes.fleet import labels_of, make_certificate, make_group, make_node, make_waiting, node, tags_of
from tests.visitors import visit

SOON = (datetime.now(UTC) + timedelta(hours=2)).isoformat()


def bulk(api: Api, **body: Any) -> Any:
    return api.post("/nodes/bulk", body)


def test_each_action_touches_those_it_names_and_is_one_audit_row(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        group_id = make_group("prod")
        one, two = make_node("a", tags=["x"], labels={"env": "lab"}), make_node("b", labels={"role": "db"})
        rest = make_node("c")
    ids, oscar = [one, two], cast["oscar"]
    answer = bulk(oscar, action="tag", tags=["new"], node_ids=ids)
    assert answer.json["data"] == {"changed": 2, "node_ids": [one, two]}
    assert bulk(oscar, action="label", labels={"env": "prod"}, node_ids=ids).status_code == 200
    assert bulk(oscar, action="move", group_id=group_id, node_ids=ids).status_code == 200
    assert bulk(oscar, action="maintenance", until=SOON, reason="r", node_ids=ids).status_code == 200
    with app.app_context():
        assert (tags_of(one), tags_of(two), tags_of(rest)) == (["new", "x"], ["new"], [])
        assert (labels_of(one), labels_of(two)) == ({"env": "prod"}, {"env": "prod", "role": "db"})
        touched = db.session.query(Node.id).filter(Node.group_id == group_id, Node.maintenance_until.is_not(None))
        assert sorted(row.id for row in touched) == ids
    assert bulk(oscar, action="untag", tags=["new", "x"], node_ids=ids).status_code == 200
    assert bulk(oscar, action="move", group_id=None, node_ids=ids).status_code == 200
    assert bulk(oscar, action="end_maintenance", node_ids=ids).status_code == 200
    with app.app_context():
        assert (tags_of(one), tags_of(two)) == ([], [])
        assert (
            db.session.query(Node).filter(Node.group_id.is_not(None) | Node.maintenance_until.is_not(None)).count() == 0
        )
        rows = db.session.query(AuditRow).filter(AuditRow.action == "node.bulk_tag").all()
        assert [row.detail["after"]["node_ids"] for row in rows] == [ids]


def test_a_selector_names_members_only(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        wanted = make_node("a", labels={"env": "prod"})
        make_node("b", labels={"env": "prod"}, status="revoked")
        make_waiting("c")
    assert bulk(cast["oscar"], action="tag", tags=["t"], selector="env=prod").json["data"]["node_ids"] == [wanted]
    assert bulk(cast["oscar"], action="tag", tags=["t"], selector="env=none").json["data"]["changed"] == 0


INCOMPLETE: list[tuple[dict[str, Any], str]] = [
    ({"action": "tag", "tags": ["x"]}, "selector"),
    ({"action": "tag", "tags": ["x"], "selector": "all", "node_ids": [1]}, "selector"),
    ({"action": "tag", "selector": "all"}, "tags"),
    ({"action": "label", "selector": "all", "labels": {}}, "labels"),
    ({"action": "move", "selector": "all"}, "group_id"),
    ({"action": "move", "selector": "all", "group_id": 999}, "group_id"),
    ({"action": "maintenance", "selector": "all"}, "until"),
    ({"action": "maintenance", "selector": "all", "until": "2020-01-01T00:00:00Z"}, "until"),
    ({"action": "explode", "selector": "all"}, "action"),
    ({"action": "tag", "tags": ["x"], "selector": "env="}, "selector"),
    ({"action": "tag", "tags": ["x"], "node_ids": []}, "node_ids"),
    ({"action": "approve", "selector": "all"}, "node_ids"),
]


def test_what_lacks_something_is_1001(app: Flask, cast: dict[str, Api]) -> None:
    for body, field in INCOMPLETE:
        answer = cast["alice"].post("/nodes/bulk", body)
        assert (answer.status_code, answer.json["code"]) == (400, 1001), answer.text
        assert answer.json["data"]["errors"][0]["field"] == field


def test_all_or_none(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        full = make_node("a", tags=[f"t{n:02}" for n in range(64)])
        other = make_node("b")
    assert bulk(cast["oscar"], action="tag", tags=["new"], node_ids=[other, full]).json["code"] == 1001
    assert bulk(cast["oscar"], action="tag", tags=["new"], node_ids=[other, 999]).json["code"] == 2001
    with app.app_context():
        assert tags_of(other) == []


def test_only_administrators_delete_revoke_and_approve(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        one, two, waiting = make_node("a"), make_node("b"), make_waiting("c")
        make_certificate(one, "11" * 32)
        make_certificate(two, "22" * 32)
    for action, node_id in (("delete", one), ("revoke", one), ("approve", waiting), ("reject", waiting)):
        assert bulk(cast["oscar"], action=action, node_ids=[node_id]).json["code"] == 1003
    assert bulk(cast["alice"], action="revoke", node_ids=[one]).json["data"]["changed"] == 1
    assert bulk(cast["alice"], action="delete", node_ids=[one, two]).json["data"]["changed"] == 2
    assert bulk(cast["alice"], action="approve", node_ids=[waiting]).json["data"]["node_ids"] == [waiting]
    with app.app_context():
        assert (node(one), node(two)) == (None, None)
        revoked = sorted(row.fingerprint for row in db.session.query(Revocation))
        assert revoked == ["11" * 32, "22" * 32]


def test_a_thousand_are_changed_and_deleted_in_a_moment(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        db.session.add_all(Node(uuid=f"{n:036}", hostname=f"n-{n:04}", status="online") for n in range(1200))
        db.session.commit()
    for body in ({"action": "tag", "tags": ["x", "y"]}, {"action": "maintenance", "until": SOON}, {"action": "delete"}):
        assert bulk(cast["alice"], selector="all", **body).json["data"]["changed"] == 1200
    assert cast["alice"].get("/nodes").json["data"]["total"] == 0


def choose(browser: Any, action: str, ids: list[int], query: str = "") -> str:
    """From the list to the action's page, as the bar of ticked rows does it."""
    answer = submit(browser, "/nodes/bulk", {"ids": ids, "action": action, "query": query}, page="/nodes")
    assert answer.status_code == 303, answer.text
    return str(answer.headers["Location"])


def test_ticked_rows_lead_to_a_page_that_says_whom_it_is_about(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        one, two = make_node("web-1"), make_node("web-2")
        make_node("web-3")
    browser = visit(app, "oscar")
    address = choose(browser, "names", [one, two], "keyword=web")
    assert parse_qs(urlsplit(address).query) == {"ids": [f"{one},{two}"], "query": ["keyword=web"]}
    html = browser.get(address).text
    assert "web-1" in html
    assert "web-3" not in html
    assert "Take all 3 nodes of the list instead" in html
    values = {"ids": f"{one},{two}", "query": "keyword=web", "tags": "a, b", "labels": "env=prod\nrole=db"}
    done = submit(browser, "/nodes/bulk/names", values, page=address)
    assert (done.status_code, done.headers["Location"]) == (303, "/nodes?keyword=web")
    with app.app_context():
        assert (tags_of(one), labels_of(two)) == (["a", "b"], {"env": "prod", "role": "db"})


def test_everything_means_what_the_filters_leave(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        wanted = [make_node(f"web-{n}", labels={"env": "prod"}) for n in range(3)]
        other = make_node("db-1")
    browser = visit(app, "oscar")
    values = {"everything": "1", "query": "selector=env%3Dprod", "untags": "", "tags": "all-of-them"}
    page = "/nodes/bulk/names?everything=1&query=selector%3Denv%253Dprod"
    assert submit(browser, "/nodes/bulk/names", values, page=page).status_code == 303
    with app.app_context():
        assert [tags_of(node_id) for node_id in wanted] == [["all-of-them"]] * 3
        assert tags_of(other) == []


def test_many_are_deleted_only_when_their_number_is_typed(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        ids = [make_node("web-1"), make_node("web-2")]
    browser = visit(app, "alice")
    address, carried = choose(browser, "delete", ids), {"ids": f"{ids[0]},{ids[1]}"}
    refused = submit(browser, "/nodes/bulk/delete", carried | {"confirm": "3"}, page=address)
    assert refused.status_code == 422
    assert "Please type 2." in refused.text
    assert submit(browser, "/nodes/bulk/delete", carried | {"confirm": "2"}, page=address).status_code == 303
    with app.app_context():
        assert db.session.query(Node).count() == 0


def test_operators_cannot_open_the_page_that_deletes(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node()
    browser = visit(app, "oscar")
    assert browser.get(f"/nodes/bulk/delete?ids={node_id}").status_code == 403
    assert 'value="delete"' not in browser.get("/nodes").text
    assert 'name="ids"' not in visit(app, "vera").get("/nodes").text


def test_maintenance_of_many_by_hours_by_the_clock_and_its_end(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node()
    browser, page = visit(app, "oscar"), f"/nodes/bulk/maintenance?ids={node_id}"
    assert submit(browser, "/nodes/bulk/maintenance", {"ids": node_id, "hours": "4"}, page=page).status_code == 303
    with app.app_context():
        until = node(node_id).maintenance_until
        assert timedelta(hours=3.9) < until - datetime.now(UTC) <= timedelta(hours=4)
    # What is typed without a zone is meant on the clock of whoever typed it.
    browser.post("/preferences/language")
    typed = (datetime.now(UTC) + timedelta(hours=9)).strftime("%Y-%m-%dT%H:%M")
    given = {"ids": node_id, "hours": "4", "until": typed}
    assert submit(browser, "/nodes/bulk/maintenance", given, page=page).status_code == 303
    with app.app_context():
        assert node(node_id).maintenance_until.strftime("%Y-%m-%dT%H:%M") == typed
    assert submit(browser, "/nodes/bulk/maintenance", {"ids": node_id, "end": "1"}, page=page).status_code == 303
    with app.app_context():
        assert node(node_id).maintenance_until is None


WRONG_FORMS: list[tuple[str, dict[str, str], str]] = [
    ("names", {}, "Nothing was filled in."),
    ("names", {"labels": "env"}, "key=value is expected"),
    ("names", {"labels": "env=prod role=web"}, "key=value is expected"),
    ("names", {"tags": "a:b"}, "not allowed"),
    ("maintenance", {"hours": "", "until": "2020-01-01T10:00"}, "within the next year"),
    ("move", {"group_id": "999"}, "no such group"),
]


def test_a_wrong_form_comes_back_with_what_is_wrong(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node()
    browser = visit(app, "oscar")
    for action, values, message in WRONG_FORMS:
        page = f"/nodes/bulk/{action}?ids={node_id}"
        answer = submit(browser, f"/nodes/bulk/{action}", {"ids": node_id} | values, page=page)
        assert answer.status_code == 422, values
        assert message in answer.text


def test_nothing_ticked_leads_back_with_a_word(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        make_node()
    browser = visit(app, "oscar")
    assert choose(browser, "names", [], "status=online") == "/nodes?status=online"
    assert "Tick some nodes first." in browser.get("/nodes").text


def test_an_unknown_action_and_nodes_that_are_gone_are_refused(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node()
    browser = visit(app, "oscar")
    assert browser.get(f"/nodes/bulk/explode?ids={node_id}").status_code == 400
    assert browser.get("/nodes/bulk/names?ids=99").status_code == 400
    assert browser.get("/nodes/bulk/names").status_code == 400
