"""Text that strangers chose is shown everywhere as text: addresses, token names, programs, typed names."""

import json
from html.parser import HTMLParser

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.kernel.db import db, in_transaction
from app.people import actions
from app.people.schemas import TokenCreate
from tests.factories import PASSWORD, browser_as, make_user, submit

HOSTILE = "<script>alert(1)</script><img/src=x onerror=alert(1)>\"'&{{7*7}}"
ADDRESS = "<svg/onload=alert(1)>\"'@x.y"


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def check_harmless(html: str) -> None:
    for tag, attributes in Elements(html).found:
        assert "alert(1)" not in tag
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert tag != "script" or attributes.get("src", "").startswith("/static/"), attributes
        assert tag != "img" or "onerror" not in attributes
    assert "<script>alert" not in html
    assert "<svg/onload" not in html


@pytest.fixture
def client(sqlite_app: Flask) -> FlaskClient:
    """An administrator's browser among hostile texts."""
    with sqlite_app.app_context():
        make_user("alice", "admin", email=ADDRESS)
        session = db.session()
        user = make_user("victim", email="=" + ADDRESS)
        actor = actions.as_user(actions.Actor(ip="127.0.0.1", user_agent=HOSTILE, request_id="r"), user)
        values = TokenCreate(name=HOSTILE[:64], scopes=["*"])
        in_transaction(session, lambda: actions.create_token(session, actor, values))
    stranger = sqlite_app.test_client()
    stranger.environ_base["HTTP_USER_AGENT"] = HOSTILE
    submit(stranger, "/login", {"username": "victim", "password": PASSWORD})
    stranger.post("/api/v1/auth/login", json={"username": HOSTILE[:64], "password": "x"})
    stranger.post("/api/v1/auth/login", json={"username": "a@b" + "c" * 60, "password": "x"})
    client = browser_as(sqlite_app, "alice")
    client.environ_base["HTTP_USER_AGENT"] = HOSTILE
    return client


def test_every_page_that_shows_it_shows_text(sqlite_app: Flask, client: FlaskClient) -> None:
    with sqlite_app.app_context():
        victim = actions.user_by_name(db.session(), "victim").id
        db.session.rollback()
    paths = [
        "/users", "/users?keyword=" + HOSTILE.replace("&", "%26"), f"/users/{victim}", f"/users/{victim}/delete",
        "/profile", "/profile/sessions", "/profile/tokens", "/audit", "/audit?page_size=100",
        "/audit?username=" + HOSTILE[:20], "/audit?keyword=<script>alert(1)",
        '/audit?action="><script>alert(1)</script>', '/audit?sort="><b>',
    ]  # fmt: skip
    paths += [f"/audit/{number}" for number in range(1, 8)]
    shown = ""
    for path in paths:
        answer = client.get(path)
        assert answer.status_code in (200, 400), path
        check_harmless(answer.text)
        shown += answer.text
    assert "&lt;script&gt;alert(1)" in shown
    assert "&lt;svg/onload" in shown


def test_it_is_text_too_where_a_form_comes_back_or_something_was_done(client: FlaskClient) -> None:
    for path, values in (
        ("/users/new", {"username": HOSTILE, "password": HOSTILE, "email": HOSTILE, "role": HOSTILE}),
        ("/profile", {"email": HOSTILE, "phone": HOSTILE, "timezone": HOSTILE, "locale": HOSTILE}),
        ("/profile/tokens/new", {"name": HOSTILE[:64], "scopes": HOSTILE}),
        ("/profile/tokens/new", {"name": HOSTILE[:64], "scopes": "*"}),
        ("/profile/password", {"current_password": HOSTILE, "new_password": HOSTILE, "repeat_password": HOSTILE}),
    ):
        answer = submit(client, path, values)
        assert answer.status_code in (200, 422), path
        check_harmless(answer.text)
    stranger = client.application.test_client()
    check_harmless(submit(stranger, "/login", {"username": HOSTILE[:64], "password": HOSTILE, "next": HOSTILE}).text)
    check_harmless(stranger.get("/login", query_string={"next": "/" + HOSTILE}).text)
    check_harmless(client.get("/no/such/" + HOSTILE).text)


def test_downloads_are_data(client: FlaskClient) -> None:
    for path, kind in (("/users?format=csv", "text/csv"), ("/audit?format=csv", "text/csv"),
                       ("/users?format=json", "application/json"), ("/audit?format=json", "application/json"),
                       ("/audit?format=jsonl", "application/x-ndjson")):  # fmt: skip
        answer = client.get(path)
        assert answer.mimetype == kind
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Disposition"].startswith("attachment")
    assert any(row["user_agent"] == HOSTILE for row in json.loads(client.get("/audit?format=json").text))
