"""Disabling, deleting and demoting people: it holds from the next request on, and one administrator always stays."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.kernel.db import db, in_transaction
from app.kernel.errors import Conflict
from app.people import actions
from app.people.models import User
from app.people.schemas import UserUpdate
from tests.audit.reading import entries
from tests.factories import SYSTEM, Api, api_as, browser_as, make_user, submit


class Everywhere:
    """Somebody who is signed in in every way there is."""

    def __init__(self, app: Flask, username: str) -> None:
        self.browser: FlaskClient = browser_as(app, username)
        self.program = api_as(app, username)
        self.script = Api(app, self.program.post("/auth/tokens", {"name": "script"}).json["data"]["token"])

    def answers(self, page: str, path: str) -> list[int]:
        return [
            self.browser.get(page).status_code,
            self.program.get(path).status_code,
            self.script.get(path).status_code,
        ]


@pytest.fixture
def oscar(app: Flask) -> Everywhere:
    with app.app_context():
        make_user("alice", "admin")
        make_user("oscar", "admin")
    return Everywhere(app, "oscar")


def change(app: Flask, username: str, **values: Any) -> None:
    with app.app_context():
        session = db.session()
        user_id = session.query(User.id).filter_by(username=username).scalar()
        session.rollback()
        in_transaction(session, lambda: actions.update_user(session, SYSTEM, user_id, UserUpdate(**values)))


def test_disabling_ends_cookie_jwt_and_token_at_the_next_request(app: Flask, oscar: Everywhere) -> None:
    assert oscar.answers("/users", "/auth/me") == [200, 200, 200]
    change(app, "oscar", status="disabled")
    assert oscar.answers("/users", "/auth/me") == [302, 401, 401]
    assert Api(app).post("/auth/login", {"username": "oscar", "password": "correct-horse-1"}).status_code == 401
    change(app, "oscar", status="enabled")
    assert oscar.answers("/users", "/auth/me") == [302, 401, 200]


def test_deleting_ends_everything_and_leaves_the_log(app: Flask, oscar: Everywhere) -> None:
    admin = api_as(app, "alice")
    user_id = oscar.program.get("/auth/me").json["data"]["id"]
    assert admin.delete(f"/system/users/{user_id}").status_code == 200
    assert oscar.answers("/users", "/auth/me") == [302, 401, 401]
    row = entries(app, action="user.delete")[0]
    assert (row.username, row.resource_id, row.detail["before"]["username"]) == ("alice", str(user_id), "oscar")
    assert [row.username for row in entries(app, action="auth.sign_in", user_id=user_id)] == ["oscar", "oscar"]
    assert admin.get(f"/system/users/{user_id}").json["code"] == 1004


def test_the_number_of_a_deleted_user_is_never_given_again(app: Flask) -> None:
    with app.app_context():
        make_user("alice", "admin")
        last = make_user("zoe").id
        in_transaction(db.session(), lambda: actions.delete_user(db.session(), SYSTEM, last))
        assert make_user("zoe").id > last


def test_a_new_role_applies_at_the_next_request(app: Flask, oscar: Everywhere) -> None:
    assert oscar.answers("/users", "/system/users") == [200, 200, 200]
    change(app, "oscar", role="viewer")
    assert oscar.answers("/users", "/system/users") == [403, 403, 403]
    change(app, "oscar", role="admin")
    assert oscar.answers("/users", "/system/users") == [200, 200, 200]


def test_the_last_administrator_cannot_be_disabled_demoted_or_deleted(app: Flask) -> None:
    with app.app_context():
        alice = make_user("alice", "admin").id
        make_user("dora", "admin", status="disabled")
    admin, page = api_as(app, "alice"), browser_as(app, "alice")
    for body in ({"status": "disabled"}, {"role": "operator"}, {"role": "viewer", "status": "disabled"}):
        answer = admin.put(f"/system/users/{alice}", body)
        assert (answer.status_code, answer.json["code"]) == (409, 1006), body
    form = submit(page, f"/users/{alice}", {"role": "viewer", "status": "enabled"})
    assert form.status_code == 422
    assert admin.delete(f"/system/users/{alice}").json["code"] == 1006
    with app.app_context(), pytest.raises(Conflict):
        in_transaction(db.session(), lambda: actions.delete_user(db.session(), SYSTEM, alice))
    assert admin.get("/system/users").json["data"]["total"] == 2
    assert admin.put(f"/system/users/{alice}", {"email": "alice@example.org"}).status_code == 200


@pytest.mark.parametrize("how", ["disable", "demote", "delete"])
def test_of_two_administrators_who_remove_each_other_at_once_one_stays(app: Flask, how: str) -> None:
    with app.app_context():
        ids = [make_user(name, "admin").id for name in ("alice", "bob")]
    act: dict[str, Callable[[int], object]] = {
        "disable": lambda n: actions.update_user(db.session(), SYSTEM, n, UserUpdate(status="disabled")),
        "demote": lambda n: actions.update_user(db.session(), SYSTEM, n, UserUpdate(role="viewer")),
        "delete": lambda n: actions.delete_user(db.session(), SYSTEM, n),
    }
    for number in range(4):
        start = Barrier(2)

        def remove(user_id: int, start: Barrier = start) -> str:
            with app.app_context():
                start.wait()
                try:
                    in_transaction(db.session(), lambda: act[how](user_id))
                except Conflict as error:
                    return str(error)[:4]
                return "done"

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(remove, ids)) == ["1006", "done"]
        with app.app_context():
            left = db.session.query(User).filter_by(role="admin", status="enabled").one().id
            db.session.rollback()
            ids = [left, make_user(f"carol{number}", "admin").id]


def test_nobody_deletes_himself(sqlite_cast: dict[str, Api], sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("bob", "admin")
    alice = sqlite_cast["alice"].get("/auth/me").json["data"]["id"]
    assert sqlite_cast["alice"].delete(f"/system/users/{alice}").json["code"] == 1006


@pytest.mark.parametrize("who", ["oscar", "vera"])
def test_only_administrators_see_and_change_people(sqlite_app: Flask, sqlite_cast: dict[str, Api], who: str) -> None:
    own = sqlite_cast[who].get("/auth/me").json["data"]["id"]
    asked = [
        ("GET", "/system/users", None), ("GET", f"/system/users/{own}", None), ("DELETE", "/system/users/1", None),
        ("POST", "/system/users", {"username": "mallory", "password": "x" * 9, "role": "admin"}),
        ("PUT", f"/system/users/{own}", {"role": "admin"}), ("GET", "/system/audit-logs", None),
        ("GET", "/system/settings", None), ("PUT", "/system/settings", {"values": {"ui.timezone": "UTC"}}),
    ]  # fmt: skip
    for method, path, body in asked:
        assert sqlite_cast[who].call(method, path, body).json["code"] == 1003, path
    client = browser_as(sqlite_app, who)
    for path in ("/users", "/users/new", f"/users/{own}", f"/users/{own}/delete", "/audit", "/audit/1", "/settings"):
        assert client.get(path).status_code == 403, path
    rows = entries(sqlite_app, action="access.refused")
    assert {row.username for row in rows} == {who}
    assert {row.resource_id for row in rows} == {
        "users.read", "users.manage", "audit.read", "settings.read", "settings.manage",
    }  # fmt: skip
