"""Passwords: how they are kept, what a new one must be, changing and resetting them."""

import re
import time

import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.low_level import Type
from flask import Flask
from sqlalchemy import update

from app.kernel.db import db
from app.people import passwords
from app.people.models import User
from tests.audit.reading import entries
from tests.factories import PASSWORD, Api, api_as, browser_as, make_user, submit

NEW = "another-horse-2"


def stored_hash(app: Flask, username: str) -> str:
    with app.app_context():
        found = db.session.query(User.password_hash).filter_by(username=username).scalar()
        db.session.rollback()
    return found


def test_it_is_kept_as_argon2id_with_a_salt_of_its_own(real_hashing: None, sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada")
        make_user("bert")
    ada, bert = stored_hash(sqlite_app, "ada"), stored_hash(sqlite_app, "bert")
    assert ada != bert
    found = extract_parameters(ada)
    assert (found.type, found.parallelism, found.salt_len) == (Type.ID, 1, 16)
    assert found.memory_cost >= 19 * 1024
    assert found.time_cost >= 2
    assert extract_parameters(passwords.NOBODY) == found


def test_an_outdated_hash_is_made_anew_at_the_next_sign_in(app: Flask) -> None:
    with app.app_context():
        make_user("ada")
        old = PasswordHasher(time_cost=1, memory_cost=16, parallelism=1).hash(PASSWORD)
        with db.engine.begin() as connection:
            connection.execute(update(User).values(password_hash=old))
    api_as(app, "ada")
    assert stored_hash(app, "ada") != old
    assert not passwords.is_outdated(stored_hash(app, "ada"))
    fresh = stored_hash(app, "ada")
    browser_as(app, "ada")
    assert stored_hash(app, "ada") == fresh


@pytest.mark.parametrize("broken", ["", "!", "$argon2id$v=19$garbage", "plain text"])
def test_a_broken_hash_lets_nobody_in_and_breaks_nothing(sqlite_app: Flask, broken: str) -> None:
    with sqlite_app.app_context():
        make_user("ada")
        with db.engine.begin() as connection:
            connection.execute(update(User).values(password_hash=broken))
    assert Api(sqlite_app).post("/auth/login", {"username": "ada", "password": PASSWORD}).status_code == 401


def test_what_is_too_long_is_refused_unseen(
    real_hashing: None, sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite_app.app_context():
        make_user("ada")
    monkeypatch.setattr(passwords, "_apart", None)
    for length in (257, 1_000_000):
        began = time.perf_counter()
        answer = Api(sqlite_app).post("/auth/login", {"username": "ada", "password": "x" * length})
        assert answer.json["code"] == 1001
        assert time.perf_counter() - began < 20
        page = submit(sqlite_app.test_client(), "/login", {"username": "ada", "password": "x" * length})
        assert page.status_code == 422
    assert passwords._matches("!", "x" * 257) is False


@pytest.mark.parametrize(
    ("password", "is_fine"),
    [("x" * 7, False), ("tr0ub4do", True), ("y" * 256, True), ("y" * 257, False), ("PassWord", False),
     ("12345678", False), ("somebody", False), ("Somebody", False), ("密码密码密码密码", True), ("        ", True)],
)  # fmt: skip
def test_what_a_new_password_must_be(
    sqlite_app: Flask, sqlite_cast: dict[str, Api], password: str, is_fine: bool
) -> None:
    body = {"username": "somebody", "password": password}
    answer = sqlite_cast["alice"].post("/system/users", body)
    assert answer.status_code == (201 if is_fine else 400), answer.text
    if is_fine:
        assert api_as(sqlite_app, "somebody", password).token
    else:
        assert answer.json["data"]["errors"][0]["field"] == "password"
        assert password not in answer.text


def test_changing_the_own_password_ends_every_other_session_and_leaves_this_one(app: Flask) -> None:
    with app.app_context():
        make_user("ada")
        make_user("bert")
    here, elsewhere, program, somebody = (
        browser_as(app, "ada"), browser_as(app, "ada"), api_as(app, "ada"), api_as(app, "bert"),
    )  # fmt: skip
    given = {"current_password": PASSWORD, "new_password": NEW, "repeat_password": NEW}
    assert submit(here, "/profile/password", given).status_code == 303
    assert here.get("/profile").status_code == 200
    assert elsewhere.get("/profile").status_code == 302
    assert program.get("/auth/me").status_code == 401
    assert somebody.get("/auth/me").status_code == 200
    assert Api(app).post("/auth/login", {"username": "ada", "password": PASSWORD}).status_code == 401
    assert api_as(app, "ada", NEW).token
    row = entries(app, action="auth.change_password")[0]
    assert (row.username, row.status, row.detail) == ("ada", "success", None)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"current_password": "wrong-password"}, "current_password"),
        ({"repeat_password": "something-else-3"}, "repeat_password"),
        ({"new_password": "shrt-07", "repeat_password": "shrt-07"}, "new_password"),
        ({"new_password": PASSWORD, "repeat_password": PASSWORD}, "new_password"),
        ({"new_password": "", "repeat_password": ""}, "new_password"),
    ],
)
def test_a_wrong_form_comes_back_with_what_is_wrong(sqlite_app: Flask, given: dict[str, str], field: str) -> None:
    with sqlite_app.app_context():
        make_user("ada")
    client = browser_as(sqlite_app, "ada")
    values = {"current_password": PASSWORD, "new_password": NEW, "repeat_password": NEW} | given
    answer = submit(client, "/profile/password", values)
    assert answer.status_code == 422
    assert f'href="#f-{field}"' in answer.text
    assert not any(value in answer.text for value in values.values() if value)
    assert api_as(sqlite_app, "ada").token


def test_a_reset_is_shown_once_and_has_to_be_replaced(app: Flask) -> None:
    with app.app_context():
        make_user("alice", "admin")
        ada = make_user("ada").id
    admin, before = browser_as(app, "alice"), browser_as(app, "ada")
    shown = submit(admin, f"/users/{ada}/reset-password", {}, page=f"/users/{ada}")
    password = re.search(r"[2-9A-HJ-NP-Za-km-z]{5}(-[2-9A-HJ-NP-Za-km-z]{5}){3}", shown.text)[0]
    assert password not in admin.get(f"/users/{ada}").text
    assert before.get("/profile").status_code == 302
    assert Api(app).post("/auth/login", {"username": "ada", "password": PASSWORD}).status_code == 401

    client = app.test_client()
    answer = submit(client, "/login", {"username": "ada", "password": password})
    assert answer.headers["Location"] == "/profile/password"
    assert client.get(client.get("/").headers["Location"]).headers["Location"] == "/profile/password"
    new = {"current_password": password, "new_password": NEW, "repeat_password": NEW}
    assert submit(client, "/profile/password", new).status_code == 303
    assert client.get("/documentation").status_code == 200
    row = entries(app, action="user.update")[0]
    assert row.detail["after"]["password"] == "***"
    assert row.detail["after"]["must_change_password"] is True
    assert password not in row.canonical


def test_until_it_is_changed_nothing_else_opens_neither_page_nor_api(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada", "admin", must_change_password=True)
    client, api = browser_as(sqlite_app, "ada"), api_as(sqlite_app, "ada")
    for path in ("/users", "/audit", "/settings", "/audit?format=csv"):
        assert client.get(path).headers.get("Location") == "/profile/password", path
    page = client.get("/profile/password").text
    token = page.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]
    new_user = {"csrf_token": token, "username": "mallory", "password": NEW, "role": "admin"}
    assert client.post("/users/new", data=new_user).headers.get("Location") == "/profile/password"
    for method, path in (("GET", "/system/users"), ("POST", "/system/users"), ("GET", "/system/audit-logs")):
        assert api.call(method, path, {} if method == "POST" else None).json["code"] == 1003, path
    assert api.post("/auth/tokens", {"name": "a way around"}).json["code"] == 1003
    made = {"csrf_token": token, "name": "a way around", "scopes": "*"}
    assert client.post("/profile/tokens/new", data=made).status_code == 403
    assert api.get("/auth/me").json["data"]["must_change_password"] is True
    assert api.post("/auth/password", {"current_password": PASSWORD, "new_password": NEW}).status_code == 200
    assert api.get("/system/users").json["data"]["total"] == 1
    assert len(entries(sqlite_app, action="user.create", username="ada")) == 0


def test_a_password_that_an_administrator_sets_ends_the_users_sessions(
    sqlite_app: Flask, sqlite_cast: dict[str, Api]
) -> None:
    vera = sqlite_cast["vera"].get("/auth/me").json["data"]["id"]
    assert sqlite_cast["alice"].put(f"/system/users/{vera}", {"password": NEW}).status_code == 200
    assert sqlite_cast["vera"].get("/auth/me").status_code == 401
    assert sqlite_cast["oscar"].get("/auth/me").status_code == 200
    assert api_as(sqlite_app, "vera", NEW).token


def test_a_change_that_comes_too_late_is_refused(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator resets the password while its owner, or a thief, is just changing it."""
    with app.app_context():
        make_user("ada")
    api = api_as(app, "ada")
    check = passwords.check_new_password

    def interrupted(*arguments: str) -> None:
        check(*arguments)
        db.session.rollback()
        with db.engine.begin() as connection:
            connection.execute(update(User).values(password_hash="reset"))

    monkeypatch.setattr(passwords, "check_new_password", interrupted)
    answer = api.post("/auth/password", {"current_password": PASSWORD, "new_password": NEW})
    assert answer.json["code"] == 1006
    assert stored_hash(app, "ada") == "reset"


def test_generated_passwords_are_long_random_and_readable() -> None:
    made = {passwords.generated_password() for _ in range(200)}
    assert len(made) == 200
    assert all(re.fullmatch(r"([2-9A-HJ-NP-Za-km-z]{5}-){3}[2-9A-HJ-NP-Za-km-z]{5}", one) for one in made)
