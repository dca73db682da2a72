"""Signing in and out, by page and by API."""

import json
import re
import time
from html import unescape
from statistics import median
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import update

from app.kernel.db import db
from app.people import actions
from app.people.identity import COOKIE
from app.people.models import User
from tests.audit.reading import entries
from tests.factories import PASSWORD, Api, api_as, browser_as, make_user, submit


def test_it_signs_a_browser_in_and_out(app: Flask) -> None:
    with app.app_context():
        make_user("ada", "admin")
    client = browser_as(app, "ada")
    assert client.get("/users").status_code == 200
    assert submit(client, "/logout", {}, page="/profile").status_code == 303
    assert client.get_cookie(COOKIE) is None
    assert client.get("/users").status_code == 302


def test_it_signs_a_program_in_and_out(app: Flask) -> None:
    with app.app_context():
        make_user("ada", "admin")
    api = api_as(app, "ada")
    assert api.get("/auth/me").json["data"]["username"] == "ada"
    assert api.post("/auth/logout").status_code == 200
    assert api.get("/auth/me").status_code == 401


def test_sign_out_ends_the_session_itself_and_not_only_the_cookie(app: Flask) -> None:
    with app.app_context():
        make_user("ada", "admin")
    client = browser_as(app, "ada")
    cookie = client.get_cookie(COOKIE).value
    submit(client, "/logout", {}, page="/profile")
    thief = app.test_client()
    thief.set_cookie(COOKIE, cookie)
    assert thief.get("/users").status_code == 302


def test_the_answer_to_a_sign_in_has_the_contracts_fields(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada", "operator")
    answer = Api(sqlite_app).post("/auth/login", {"username": "ada", "password": PASSWORD, "totp": "123456"})
    data = answer.json["data"]
    assert data["token_type"] == "Bearer"
    assert data["expires_in"] == 7200
    assert set(data) == {"access_token", "refresh_token", "token_type", "expires_in", "user"}
    assert data["user"]["last_login_ip"] == "127.0.0.1"
    assert data["user"]["last_login_at"].endswith("Z")


def test_it_records_who_signed_in_and_out_from_where(app: Flask) -> None:
    with app.app_context():
        user_id = make_user("ada").id
    client = app.test_client()
    client.environ_base["HTTP_USER_AGENT"] = "a browser"
    submit(client, "/login", {"username": "ada", "password": PASSWORD})
    submit(client, "/logout", {}, page="/profile")
    row, out = entries(app, action="auth.sign_in")[0], entries(app, action="auth.sign_out")[0]
    assert (row.username, row.user_id, row.resource_id, row.detail) == (
        "ada", user_id, str(user_id), {"after": {"kind": "web"}},
    )  # fmt: skip
    assert (row.ip, row.user_agent, row.status) == ("127.0.0.1", "a browser", "success")
    assert out.user_id == user_id
    assert row.request_id != out.request_id


CSRF_TOKEN = re.compile(r'"csrf.token" (value|content)="[^"]+"')
WRONG = (("ada", "wrong-password"), ("nobody-here", PASSWORD), ("dora", PASSWORD))
"""A wrong password, a wrong name, and the right password of somebody who is disabled."""


def test_the_api_says_the_same_for_every_cause(app: Flask) -> None:
    with app.app_context():
        make_user("ada")
        make_user("dora", status="disabled")
    answers = [Api(app).post("/auth/login", {"username": name, "password": word}) for name, word in WRONG]
    bodies = [{name: value for name, value in answer.json.items() if name != "timestamp"} for answer in answers]
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0]["code"] == 1002
    assert {answer.status_code for answer in answers} == {401}


def test_the_page_says_the_same_for_every_cause(app: Flask) -> None:
    with app.app_context():
        make_user("ada")
        make_user("dora", status="disabled")
    seen = set()
    for name, word in WRONG:
        answer = submit(app.test_client(), "/login", {"username": name, "password": word})
        assert answer.status_code == 422
        assert word not in answer.text
        seen.add(CSRF_TOKEN.sub("", answer.text.replace(f'"{name}"', "NAME")))
    assert len(seen) == 1


def test_an_unknown_name_takes_as_long_as_a_wrong_password(real_hashing: None, sqlite_app: Flask) -> None:
    """Only as a wide ratio: hashing takes tens of milliseconds, and leaving it out would show at once."""
    with sqlite_app.app_context():
        make_user("ada")

    def seconds(name: str) -> float:
        began = time.perf_counter()
        Api(sqlite_app).post("/auth/login", {"username": name, "password": "wrong-password"})
        return time.perf_counter() - began

    known, unknown = median(seconds("ada") for _ in range(4)), median(seconds("nobody-here") for _ in range(4))
    assert 0.25 < known / unknown < 4


def test_refused_sign_ins_are_in_the_log_without_saying_who_exists(app: Flask) -> None:
    with app.app_context():
        make_user("ada")
    for name in ("ada", "nobody-here"):
        Api(app).post("/auth/login", {"username": name, "password": "wrong-password"})
    rows = entries(app, action="auth.sign_in", status="failed")
    assert [row.resource_id for row in rows] == ["ada", "nobody-here"]
    assert rows[0].error_message == rows[1].error_message
    assert {(row.username, row.user_id) for row in rows} == {("", None)}


def test_a_password_typed_into_the_name_field_is_not_logged(app: Flask) -> None:
    for name in ("Tr0ub4dor & 3!", "геслo", "=cmd|' /C calc'!A0"):
        Api(app).post("/auth/login", {"username": name, "password": "x"})
    assert [row.resource_id for row in entries(app, action="auth.sign_in")] == ["***"] * 3


@pytest.mark.parametrize("change", [{"password_hash": "reset"}, {"status": "disabled"}])
def test_who_was_shut_out_between_the_password_and_the_session_gets_none(
    app: Flask, monkeypatch: pytest.MonkeyPatch, change: dict[str, str]
) -> None:
    """The password is compared outside of the transaction that opens the session."""
    with app.app_context():
        make_user("ada")
    verified_user = actions.verified_user

    def interrupted(*arguments: Any) -> User:
        user = verified_user(*arguments)
        with db.engine.begin() as connection:
            connection.execute(update(User).values(**change))
        return user

    monkeypatch.setattr(actions, "verified_user", interrupted)
    assert Api(app).post("/auth/login", {"username": "ada", "password": PASSWORD}).status_code == 401
    assert entries(app, action="auth.sign_in", status="success") == []


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/", "//evil.example/", "///evil.example", "/\\evil.example", "\\\\evil.example",
        "http:evil.example", "javascript:alert(1)", "/\t/evil.example", "/\n/evil.example", " //evil.example",
        "evil.example", "/%0d%0aLocation:https://evil.example" + "\r\nX: y", "https:///evil.example", "",
    ],
)  # fmt: skip
def test_nobody_is_sent_to_a_foreign_place_after_signing_in(sqlite_app: Flask, target: str) -> None:
    with sqlite_app.app_context():
        make_user("ada")
    answer = submit(sqlite_app.test_client(), "/login", {"username": "ada", "password": PASSWORD, "next": target})
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/"
    assert wanted(sqlite_app.test_client().get("/login", query_string={"next": target}).text) is None


def wanted(html: str) -> str | None:
    """Where the sign-in form wants to go on to."""
    form = html.split('action="/login"', 1)[1]
    found = re.search(r'name="next" value="([^"]*)"', form)
    return unescape(found[1]) if found else None


@pytest.mark.parametrize("target", ["/users?sort=username&page=2", "/audit/7", "/profile?next=//evil.example"])
def test_one_comes_back_to_the_page_that_asked_for_the_sign_in(sqlite_app: Flask, target: str) -> None:
    with sqlite_app.app_context():
        make_user("ada", "admin")
    client = sqlite_app.test_client()
    asked = client.get(target)
    assert asked.status_code == 302
    given = wanted(client.get(asked.headers["Location"]).text)
    assert given == target
    answer = submit(client, "/login", {"username": "ada", "password": PASSWORD, "next": given})
    assert answer.headers["Location"] == target


def test_the_cookie_of_a_page_is_nothing_to_the_api_and_the_other_way_round(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada", "admin")
    client = browser_as(sqlite_app, "ada")
    assert client.get("/api/v1/auth/me").status_code == 401
    api = api_as(sqlite_app, "ada")
    headers = {"Authorization": f"Bearer {api.token}"}
    assert sqlite_app.test_client().get("/users", headers=headers).status_code == 302


def test_a_form_without_its_token_changes_nothing(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada", "admin")
    client = browser_as(sqlite_app, "ada")
    for path in ("/login", "/logout", "/profile", "/profile/password", "/users/new", "/users/bulk", "/users/1/delete"):
        assert client.post(path, data={"csrf_token": "made-up"}).status_code == 400, path
    assert client.get("/users").status_code == 200


def test_names_that_nobody_can_have_are_refused_quietly(app: Flask) -> None:
    for name in ("ada\u0000", "a\ud800", "\u202eada", "ada" * 22, ""):
        body = json.dumps({"username": name, "password": "x"})
        answer = app.test_client().post("/api/v1/auth/login", data=body, content_type="application/json")
        assert answer.status_code in (400, 401), name
        typed = name.encode("utf-8", "replace").decode()
        assert submit(app.test_client(), "/login", {"username": typed, "password": "x"}).status_code == 422


def test_somebody_who_is_signed_in_is_not_asked_again(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada", "admin")
    client = browser_as(sqlite_app, "ada")
    assert client.get("/login").status_code == 302


def test_nothing_of_one_person_is_left_for_the_next_at_the_same_browser(sqlite_app: Flask) -> None:
    """Messages that wait to be shown lie in the cookie of the forms."""
    with sqlite_app.app_context():
        make_user("ada", "admin")
        make_user("bert")
    client = browser_as(sqlite_app, "ada")
    token = client.get("/profile").text.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]
    with client.session_transaction() as state:
        state["_flashes"] = [("ok", "secret-project was created")]
    assert client.post("/logout", data={"csrf_token": token}).status_code == 303
    shown = client.get("/login").text
    submit(client, "/login", {"username": "bert", "password": PASSWORD})
    assert "secret-project" not in shown + client.get("/profile").text
