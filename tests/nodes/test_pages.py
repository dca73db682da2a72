"""The list of nodes, views that people save, and the pages of one node."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta

from flask import Flask

from app.events.actions import note
from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from app.nodes.models import SavedView
from tests.factories import Api, submit
from tests.nodes.fleet import labels_of, make_certificate, make_group, make_node, make_waiting, node, tags_of
from tests.visitors import visit

HTMX = {"HX-Request": "true", "HX-Target": "nodes-table"}


def test_the_list_shows_what_an_operator_asks_of_a_host(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        make_node(
            "web-1",
            ip="10.0.0.7",
            group="prod/eu",
            tags=["canary"],
            labels={"env": "prod"},
            version="1.4.2",
            agent_status="running",
            agent_version="1.4.1",
            last_cpu_usage=96.0,
            last_memory_usage=40.4,
            last_disk_usage=None,
            last_heartbeat=now() - timedelta(minutes=3),
        )
    html = visit(app, "vera").get("/nodes").text
    for shown in ("web-1", "10.0.0.7", "prod/eu", "canary", "env=prod", "1.4.2", "1.4.1", "96%", "40%", "running"):
        assert shown in html, shown
    assert "very high" in html
    assert "no data" in html
    assert "3 minutes ago" in html
    assert "Add nodes" not in html


def test_old_figures_of_a_host_that_is_offline_are_not_shown_as_now(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        make_node("web-1", status="offline", last_cpu_usage=77.0)
    assert "77%" not in visit(app, "vera").get("/nodes").text


def test_what_makes_a_status_less_than_the_truth_stands_beside_it(app: Flask, cast: dict[str, Api]) -> None:
    at = now()
    with app.app_context():
        make_node("a", last_heartbeat=at - timedelta(seconds=20), connection_lost_at=at - timedelta(seconds=5))
        make_node("b", maintenance_until=at + timedelta(hours=2))
        make_node("c", cloned_at=at)
        make_node("d", last_heartbeat=at, connection_lost_at=at - timedelta(seconds=5))
    html = visit(app, "vera").get("/nodes").text
    rows = {name: html.split(f"<b>{name}</b>")[1].split("</tr>")[0] for name in "abcd"}
    assert "connection lost" in rows["a"]
    assert "maintenance ends" in rows["b"]
    assert "in 2 hours" in rows["b"]
    assert "used twice" in rows["c"]
    assert not any(word in rows["d"] for word in ("connection lost", "maintenance", "used twice"))


def test_filters_work_as_links_and_as_a_fragment(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        make_node("web-1", labels={"env": "prod"})
        make_node("db-1", status="offline")
    browser = visit(app, "vera")
    page = browser.get("/nodes?selector=env%3Dprod&sort=-hostname")
    assert "web-1" in page.text
    assert "db-1" not in page.text
    assert '<a class="chip" href="/nodes?sort=-hostname">' in page.text
    fragment = browser.get("/nodes?status=offline", headers=HTMX)
    assert fragment.text.lstrip().startswith('<div class="list" id="nodes-table"')
    assert "HX-Request" in fragment.headers["Vary"]
    assert "db-1" in fragment.text
    # What an address holds that nobody could mean is left out rather than refused.
    assert "db-1" in browser.get("/nodes?status=gone&sort=secret&page=x").text


def test_a_wrong_selector_is_pointed_at_and_finds_nobody(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        make_node("web-1")
    for headers in ({}, HTMX):
        answer = visit(app, "oscar").get("/nodes?selector=env%3Dprod+role+in+web", headers=headers)
        assert answer.status_code == 200
        assert "Column 18: expected “(”." in answer.text
        assert "env=prod role in web\n" + " " * 17 + "↑" in answer.text
        assert "web-1" not in answer.text


def test_names_with_markup_are_only_text(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        make_node("web-1", tags=["<b>x"], labels={"env": '"><script>alert(1)</script>'}, os_name="<i>os")
    for path in ("/nodes", "/nodes/1", "/search?q=web", "/dashboard"):
        html = visit(app, "vera").get(path).text
        assert "<script>alert" not in html, path
        assert "<i>os" not in html, path


def test_the_list_can_be_taken_along(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        make_node("web-1", tags=["a"], labels={"env": "prod"})
        make_node("=cmd()", status="offline")
        make_waiting("new-1")
    browser = visit(app, "vera")
    rows = list(csv.DictReader(io.StringIO(browser.get("/nodes?format=csv").text.lstrip("\ufeff"))))
    assert [row["hostname"] for row in rows] == ["'=cmd()", "web-1"]
    assert (rows[1]["tags"], rows[1]["labels"]) == ('["a"]', '{"env": "prod"}')
    found = json.loads(browser.get("/nodes?format=json&status=online").text)
    assert [row["hostname"] for row in found] == ["web-1"]


def test_a_view_is_saved_shown_replaced_and_forgotten_by_its_owner(app: Flask, cast: dict[str, Api]) -> None:
    vera, oscar = visit(app, "vera"), visit(app, "oscar")
    saved = submit(
        vera, "/nodes/views", {"name": "mine", "query": "status=offline&colour=red&sort=-cpu_usage"}, page="/nodes"
    )
    assert saved.headers["Location"] == "/nodes?sort=-cpu_usage&status=offline"
    with app.app_context():
        assert db.session.query(SavedView.query).scalar() == "sort=-cpu_usage&status=offline"
    again = submit(vera, "/nodes/views", {"name": "mine", "query": "status=online"}, page="/nodes")
    assert again.headers["Location"] == "/nodes?status=online"
    assert 'href="/nodes?status=online">mine</a>' in vera.get("/nodes").text
    assert "mine" not in oscar.get("/nodes").text
    with app.app_context():
        (view_id,) = db.session.query(SavedView.id).one()
    submit(oscar, f"/nodes/views/{view_id}/delete", {}, page="/nodes")
    assert "mine" in vera.get("/nodes").text
    submit(vera, f"/nodes/views/{view_id}/delete", {}, page="/nodes")
    assert 'href="/nodes?status=online">mine</a>' not in vera.get("/nodes").text
    submit(vera, "/nodes/views", {"name": "", "query": "status=online"}, page="/nodes")
    assert "This is needed." in vera.get("/nodes").text


def test_a_views_query_cannot_lead_elsewhere(app: Flask, cast: dict[str, Api]) -> None:
    vera = visit(app, "vera")
    answer = submit(vera, "/nodes/views", {"name": "x", "query": "//evil.example/?a=b\r\nX: y"}, page="/nodes")
    assert answer.headers["Location"] == "/nodes"


def test_every_tab_of_a_node_opens_for_everybody(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node("web-1", group="prod", tags=["canary"])
        make_certificate(node_id, "ab" * 32)
    vera = visit(app, "vera")
    tabs = {"": "Heartbeat every", "/metrics": "No measurements yet", "/live": "Disk traffic", "/events": "Nothing has"}
    for tab, shown in tabs.items():
        html = vera.get(f"/nodes/{node_id}{tab}").text
        assert shown in html
        assert f'<a href="/nodes/{node_id}{tab}" aria-current="page">' in html, tab
        assert "Edit" not in html
    html = vera.get(f"/nodes/{node_id}/identity").text
    assert "ab" * 32 in html
    assert "in use" in html
    assert vera.get("/nodes/99").status_code == 404
    assert "There is no such node." in vera.get("/nodes/99").text


def test_names_are_edited_on_the_page(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        group_id = make_group("prod")
        node_id = make_node("web-1", tags=["a", "b"], labels={"env": "prod"}, description="old")
    browser, path = visit(app, "oscar"), f"/nodes/{node_id}/edit"
    html = browser.get(path).text
    assert 'value="a b"' in html
    assert "env=prod</textarea>" in html
    wrong = submit(browser, path, {"tags": "a b", "labels": "env", "description": "kept as typed"})
    assert wrong.status_code == 422
    assert "env: key=value is expected, one on each line." in wrong.text
    assert "kept as typed" in wrong.text
    values = {"group_id": group_id, "tags": "b, c", "labels": "role=db\nenv=x=y", "description": ""}
    assert submit(browser, path, values).headers["Location"] == f"/nodes/{node_id}"
    with app.app_context():
        assert (tags_of(node_id), labels_of(node_id)) == (["b", "c"], {"role": "db", "env": "x=y"})
        assert (node(node_id).group_id, node(node_id).description) == (group_id, None)
    assert visit(app, "vera").get(path).status_code == 403


def test_maintenance_on_the_page(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node("web-1")
    browser, path = visit(app, "oscar"), f"/nodes/{node_id}/maintenance"
    assert submit(browser, path, {"hours": "8", "reason": "kernel"}).status_code == 303
    with app.app_context():
        assert node(node_id).maintenance_until - datetime.now(UTC) > timedelta(hours=7)
    html = browser.get(f"/nodes/{node_id}").text
    assert "In maintenance: kernel" in html
    assert "maintenance ends" in html
    assert submit(browser, path, {"hours": "", "until": ""}).status_code == 422
    assert submit(browser, f"{path}/end", {}, page=f"/nodes/{node_id}").status_code == 303
    with app.app_context():
        assert node(node_id).maintenance_until is None


def test_a_node_is_deleted_and_revoked_by_typing_its_name(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        one, two = make_node("web-1"), make_node("web-2")
    browser = visit(app, "alice")
    for path in (f"/nodes/{one}/revoke", f"/nodes/{two}/delete"):
        refused = submit(browser, path, {"confirm": "web"})
        assert refused.status_code == 422
        assert "Please type web-" in refused.text
    assert submit(browser, f"/nodes/{one}/revoke", {"confirm": "web-1"}).headers["Location"] == f"/nodes/{one}"
    assert "This host was revoked" in browser.get(f"/nodes/{one}").text
    again = submit(browser, f"/nodes/{one}/revoke", {"confirm": "web-1"})
    assert again.status_code == 422
    assert "This node was revoked already." in again.text
    assert submit(browser, f"/nodes/{two}/delete", {"confirm": "web-2"}).headers["Location"] == "/nodes"
    with app.app_context():
        assert (node(one).status, node(two)) == ("revoked", None)
    oscar = visit(app, "oscar")
    assert [oscar.get(f"/nodes/{one}/{act}").status_code for act in ("revoke", "delete")] == [403, 403]


def test_a_waiting_node_says_so_and_can_be_let_in_there(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_waiting("new-1")
    browser = visit(app, "alice")
    assert "This host waits to be let in." in browser.get(f"/nodes/{node_id}").text
    answer = submit(browser, "/enrollment/queue", {"ids": node_id, "action": "approve"}, page=f"/nodes/{node_id}")
    assert answer.status_code == 303
    with app.app_context():
        assert node(node_id).status == "unknown"
    assert 'value="approve"' not in visit(app, "vera").get(f"/nodes/{node_id}").text


def test_a_clone_is_shown_where_nobody_can_miss_it(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node("web-1", cloned_at=now())
    html = visit(app, "vera").get(f"/nodes/{node_id}").text
    assert "Two machines use the identity of this node." in html


def test_a_nodes_timeline_has_its_own_events_only(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        one, two = make_node("web-1"), make_node("web-2")
        session = db.session()
        in_transaction(session, lambda: note(session, "node.approved", "", node_id=one, data={"by": "alice"}))
        in_transaction(session, lambda: note(session, "node.approved", "", node_id=two, data={"by": "bob"}))
    browser = visit(app, "vera")
    html = browser.get(f"/nodes/{one}/events?kind=node.approved").text
    assert "approved by alice" in html
    assert "approved by bob" not in html
    assert f'href="/nodes/{one}/events"' in html
    assert "node_id" not in html
    fragment = browser.get(f"/nodes/{one}/events", headers=HTMX | {"HX-Target": "events-table"}).text
    assert fragment.lstrip().startswith('<div class="list" id="events-table"')
