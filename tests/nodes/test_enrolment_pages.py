"""How hosts come in, for people and programs: tokens, the line to paste, by hand, the queue of those who wait."""

import html as markup
import re
from datetime import timedelta

import pytest
from flask import Flask

from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from app.nodes.models import EnrollmentToken, Node
from tests.factories import Api, submit
from tests.nodes.fleet import make_group, make_node, make_waiting, node
from tests.visitors import make_cast, visit


def token(app: Flask) -> EnrollmentToken:
    with app.app_context():
        return db.session.query(EnrollmentToken).order_by(EnrollmentToken.id.desc()).first()


def test_a_token_is_made_listed_and_revoked_by_program(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        group_id = make_group("prod")
    alice, ends = cast["alice"], (now() + timedelta(days=1)).replace(microsecond=0)
    body = {"name": "eu", "expires_at": ends.isoformat(), "max_uses": 3, "group_id": group_id, "tags": ["a"]}
    made = alice.post("/enrollment/tokens", body)
    assert made.status_code == 201, made.text
    data = made.json["data"]
    assert data["token"].startswith(data["prefix"])
    assert data["install_command"].endswith(f"--token {data['token']}")
    assert (data["uses"], data["max_uses"], data["created_by"]) == (0, 3, "alice")
    listed = alice.get("/enrollment/tokens").json["data"]
    assert (listed["total"], listed["items"][0]["id"]) == (1, data["id"])
    assert "token" not in listed["items"][0]
    assert alice.delete(f"/enrollment/tokens/{data['id']}").json["data"] is None
    assert alice.get("/enrollment/tokens").json["data"]["items"][0]["revoked_at"] is not None
    assert alice.delete("/enrollment/tokens/99").json["code"] == 1004
    past = {"name": "x", "expires_at": "2020-01-01T00:00:00Z"}
    for wrong in ({}, {"name": "x", "max_uses": 0}, past, {"name": "x", "group_id": 999_999}):
        assert alice.post("/enrollment/tokens", wrong).json["code"] == 1001


def test_enrolment_is_the_administrators(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        waiting = make_waiting()
    for name in ("oscar", "vera"):
        for method, path, body in (
            ("GET", "/enrollment/tokens", None),
            ("POST", "/enrollment/tokens", {"name": "x"}),
            ("POST", "/nodes", {"hostname": "x"}),
            ("POST", "/nodes/approve", {"node_ids": [waiting]}),
            ("POST", "/nodes/reject", {"node_ids": [waiting]}),
        ):
            assert cast[name].call(method, path, body).json["code"] == 1003, path
        browser = visit(app, name)
        for path in ("/enrollment", "/enrollment/new", "/enrollment/node", "/enrollment/queue"):
            assert browser.get(path).status_code == 403, path
        assert "/enrollment" not in browser.get("/nodes").text


def test_the_page_makes_a_token_and_shows_the_line_once(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        group_id = make_group("prod")
    browser = visit(app, "alice")
    names = {"group_id": group_id, "tags": "a b", "labels": "env=prod"}
    values = names | {"name": "eu", "days": "7", "max_uses": "", "needs_approval": "1"}
    answer = submit(browser, "/enrollment/new", values)
    assert answer.status_code == 200
    text = markup.unescape(answer.text)
    secret = re.search(r"ops_join_[\w-]+", text)[0]
    fetch = r"curl -fsSk --pinnedpubkey sha256//\S+ https://\S+/daemon/v1/install.sh"
    assert re.search(rf"{fetch} \| sh -s -- --token {secret}", text)
    assert "sha256sum -c -" in text
    assert "waits in the queue until you approve it" in text
    made = token(app)
    assert (made.name, made.max_uses, made.needs_approval, made.group_id) == ("eu", None, True, group_id)
    assert (made.tags, made.labels) == (["a", "b"], {"env": "prod"})
    assert timedelta(days=6.9) < made.expires_at - now() <= timedelta(days=7)
    shown = browser.get("/enrollment").text
    assert secret not in shown
    assert made.prefix in shown
    assert submit(browser, f"/enrollment/tokens/{made.id}/revoke", {}, page="/enrollment").status_code == 303
    assert token(app).revoked_at is not None
    assert "revoked" in browser.get("/enrollment").text


def test_a_wrong_token_form_comes_back(app: Flask, cast: dict[str, Api]) -> None:
    browser = visit(app, "alice")
    answer = submit(browser, "/enrollment/new", {"name": "", "days": "0", "labels": "nonsense"})
    assert answer.status_code == 422
    assert "At least 1 is expected." in answer.text
    assert "nonsense</textarea>" in answer.text
    assert token(app) is None


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "valid"),
        ({"expires_at": now() - timedelta(seconds=1)}, "expired"),
        ({"max_uses": 2, "uses": 2}, "used up"),
        ({"revoked_at": now()}, "revoked"),
    ],
)
def test_the_list_says_whether_a_token_still_opens(sqlite_app: Flask, values: dict[str, object], word: str) -> None:
    make = {"name": "t", "prefix": "ops_join_x", "token_hash": "1" * 64, "tags": [], "labels": {}} | values
    make_cast(sqlite_app)
    with sqlite_app.app_context():
        db.session.add(EnrollmentToken(**make))
        db.session.commit()
    html = visit(sqlite_app, "alice").get("/enrollment").text
    assert f">{word}</span>" in html
    assert (">Revoke<" in html) == (word == "valid")


def test_a_node_is_added_by_hand(app: Flask, cast: dict[str, Api]) -> None:
    browser = visit(app, "alice")
    answer = submit(browser, "/enrollment/node", {"hostname": "db-7", "tags": "gpu", "labels": ""})
    assert answer.status_code == 200
    assert "--token ops_join_" in answer.text
    with app.app_context():
        made = db.session.query(Node).one()
        assert (made.hostname, made.status) == ("db-7", "unknown")
    assert token(app).node_id == made.id
    again = submit(browser, "/enrollment/node", {"hostname": "db-7"})
    assert again.status_code == 422
    assert "There is a node of this name already." in again.text


def test_the_queue_shows_what_tells_whether_a_host_belongs_here(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        origin = make_node("db-1")
        session = db.session()
        known = EnrollmentToken(name="eu-web", prefix="ops_join_x", token_hash="1" * 64, tags=[], labels={})
        in_transaction(session, lambda: session.add(known))
        make_waiting("new-1", token_id=known.id, ip="203.0.113.77")
        make_waiting("copy-1", kind="clone", origin_node_id=origin)
        make_waiting("copy-2", kind="clone", origin_node_id=999)
        make_waiting("pi-1", kind="discovery")
    html = visit(app, "alice").get("/enrollment/queue").text
    rows = {name: html.split(f"<b>{name}</b>")[1].split("</tr>")[0] for name in ("new-1", "copy-1", "copy-2", "pi-1")}
    assert "eu-web" in rows["new-1"]
    assert "203.0.113.77" in rows["new-1"]
    assert f'<a href="/nodes/{origin}">db-1</a>' in rows["copy-1"]
    assert "of a node that is gone" in rows["copy-2"]
    assert "without a token" in rows["pi-1"]
    assert '<b class="count">4</b>' in html


def test_one_or_many_are_let_in_or_turned_away(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        one, two, three, four = (make_waiting(f"new-{n}") for n in range(4))
    browser = visit(app, "alice")

    def decide(ids: list[int], action: str) -> int:
        return submit(browser, "/enrollment/queue", {"ids": ids, "action": action}).status_code

    assert decide([one, two], "approve") == 303
    assert "2 hosts were let in." in browser.get("/enrollment/queue").text
    assert decide([three], "reject") == 303
    assert decide([four], "explode") == 400
    assert decide([], "approve") == 303
    assert "Tick some hosts first." in browser.get("/enrollment/queue").text
    with app.app_context():
        assert [node(n).status for n in (one, two, three, four)] == ["unknown", "unknown", "rejected", "pending"]
    happened = cast["vera"].get("/events?kind=node.approved").json["data"]
    assert [item["message"] for item in happened["items"]] == ["approved by alice"] * 2


def test_programs_decide_too_and_only_once(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        one, two, member = make_waiting("new-1"), make_waiting("new-2"), make_node("web-1")
    alice = cast["alice"]
    assert alice.post("/nodes/approve", {"node_ids": [one, member]}).json["data"] == {"changed": 1, "node_ids": [one]}
    assert alice.post("/nodes/approve", {"node_ids": [one]}).json["data"]["changed"] == 0
    assert alice.post("/nodes/reject", {"node_ids": [one, two]}).json["data"]["node_ids"] == [two]
    assert alice.post("/nodes/approve", {"node_ids": []}).json["code"] == 1001
    with app.app_context():
        assert [node(n).status for n in (one, two, member)] == ["unknown", "rejected", "online"]


def test_the_navigation_says_how_many_wait(app: Flask, cast: dict[str, Api]) -> None:
    assert '<b class="count">' not in visit(app, "alice").get("/groups").text
    with app.app_context():
        make_waiting("new-1")
    assert '<b class="count">1</b>' in visit(app, "alice").get("/groups").text
    assert '<b class="count">' not in visit(app, "oscar").get("/groups").text
