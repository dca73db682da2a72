"""What gets into the log: one row for each change, in the transaction that made it, and no secret."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from pymysql.err import OperationalError as DriverError
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.audit.actions import PENDING, record
from app.kernel.access import Actor
from app.kernel.db import db, in_transaction
from app.kernel.errors import Conflict
from app.people import actions
from tests.audit.conftest import ACTOR
from tests.audit.reading import checked, entries
from tests.factories import PASSWORD, SYSTEM, Api, api_as, make_user


def test_every_change_of_people_and_settings_is_exactly_one_row(app: Flask) -> None:
    with app.app_context():
        make_user("alice", "admin")
        bert = make_user("bert").id
    api = api_as(app, "alice")
    changes: list[tuple[str, str, str, Any]] = [
        ("user.create", "POST", "/system/users", {"username": "zoe", "password": PASSWORD}),
        ("user.update", "PUT", f"/system/users/{bert}", {"role": "operator"}),
        ("user.update", "PUT", f"/system/users/{bert}", {"password": "another-horse-2"}),
        ("user.delete", "DELETE", f"/system/users/{bert}", None),
        ("settings.change", "PUT", "/system/settings", {"values": {"ui.timezone": "Asia/Shanghai"}}),
        ("user.update_profile", "PUT", "/auth/me", {"phone": "555 123"}),
        ("token.create", "POST", "/auth/tokens", {"name": "script"}),
        ("token.revoke", "DELETE", "/auth/tokens/1", None),
        ("auth.change_password", "POST", "/auth/password",
         {"current_password": PASSWORD, "new_password": "another-horse-2"}),
        ("auth.sign_out", "POST", "/auth/logout", None),
    ]  # fmt: skip
    for action, method, path, body in changes:
        if action == "token.revoke":
            path = f"/auth/tokens/{api.get('/auth/tokens').json['data']['items'][0]['id']}"
        before = len(entries(app))
        answer = api.call(method, path, body, User_Agent="a program", X_Request_ID=f"ask-{before}")
        assert answer.json["code"] == 0, answer.text
        rows = entries(app)[before:]
        assert [row.action for row in rows] == [action]
        assert (rows[0].username, rows[0].ip, rows[0].user_agent) == ("alice", "127.0.0.1", "a program")
        assert rows[0].request_id == answer.headers["X-Request-ID"] == f"ask-{before}"
        assert rows[0].status == "success"
    assert checked(app).finding is None


def test_a_change_of_settings_says_what_it_was_and_what_it_is(app: Flask) -> None:
    with app.app_context():
        make_user("alice", "admin")
    api = api_as(app, "alice")
    api.put("/system/settings", {"values": {"auth.session_idle": 3600, "ui.timezone": "UTC"}})
    row = entries(app, action="settings.change")[0]
    assert row.detail == {"before": {"auth.session_idle": 43200.0}, "after": {"auth.session_idle": 3600.0}}
    assert api.put("/system/settings", {"values": {"auth.session_idle": 3600}}).json["code"] == 0
    assert api.put("/system/settings", {"values": {"auth.session_idle": 1, "ui.timezone": "UTC"}}).json["code"] == 1001
    assert len(entries(app, action="settings.change")) == 1


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/system/users", {"username": "alice", "password": PASSWORD}),
        ("POST", "/system/users", {"username": "zoe", "password": "short"}),
        ("PUT", "/system/users/1", {"role": "viewer"}), ("DELETE", "/system/users/999999", None),
        ("DELETE", "/auth/tokens/999999", None), ("DELETE", "/auth/sessions/999999", None),
    ],
)  # fmt: skip
def test_what_was_not_done_is_not_said_to_be_done(app: Flask, method: str, path: str, body: Any) -> None:
    with app.app_context():
        alice = make_user("alice", "admin").id
    api = api_as(app, "alice")
    before = entries(app)
    assert api.call(method, path.replace("/1", f"/{alice}"), body).json["code"] != 0
    assert len(entries(app)) == len(before)


def test_a_rollback_takes_the_row_along(context: Flask) -> None:
    session = db.session()
    for fail in (False, True):

        def work(fail: bool = fail) -> None:
            actions.create_user(session, SYSTEM, actions.UserCreate(username=f"zoe{fail}", password=PASSWORD))
            if fail:
                raise Conflict

        if fail:
            with pytest.raises(Conflict):
                in_transaction(session, work)
        else:
            in_transaction(session, work)
    assert [row.detail["after"]["username"] for row in entries(context, action="user.create")] == ["zoeFalse"]


def test_an_entry_that_was_undone_before_any_statement_does_not_come_up_later(context: Flask) -> None:
    session = db.session()
    record(session, ACTOR, "test.undone", "thing")
    session.rollback()
    in_transaction(session, lambda: record(session, ACTOR, "test.done", "thing"))
    assert [row.action for row in entries(context)] == ["test.done"]


def test_with_a_savepoint_only_what_was_said_inside_is_undone(context: Flask) -> None:
    session = db.session()
    record(session, ACTOR, "test.outside", "thing")
    with session.begin_nested():
        record(session, ACTOR, "test.kept", "thing")
    nested = session.begin_nested()
    record(session, ACTOR, "test.undone", "thing")
    nested.rollback()
    record(session, ACTOR, "test.after", "thing")
    session.commit()
    assert PENDING not in session.info or not session.info[PENDING]
    assert [row.action for row in entries(context)] == ["test.outside", "test.kept", "test.after"]
    assert checked(context).finding is None


def test_after_a_deadlock_that_was_tried_again_there_is_one_row(context: Flask) -> None:
    session, attempts = db.session(), []

    def work() -> None:
        record(session, ACTOR, "test.done", "thing", len(attempts))
        session.flush()
        attempts.append(1)
        if len(attempts) < 3:
            raise OperationalError("UPDATE", {}, DriverError(1213, "Deadlock found"))

    in_transaction(session, work)
    rows = entries(context, action="test.done")
    assert [row.resource_id for row in rows] == ["2"]
    assert checked(context).rows == 1


@pytest.mark.mariadb
def test_after_a_real_deadlock_each_change_is_there_once(applications: Any) -> None:
    app = applications.empty("mariadb")
    with app.app_context():
        ids = [make_user(name).id for name in ("bert", "carl")]
    both_hold_one, tries = threading.Barrier(2), []

    def change(first: int, second: int) -> None:
        with app.app_context():
            session = db.session()

            def work() -> None:
                tries.append(first)
                record(session, ACTOR, "test.done", "user", first)
                session.execute(text("UPDATE users SET phone = '1' WHERE id = :id"), {"id": first})
                if len(tries) <= 2:
                    both_hold_one.wait(10)
                session.execute(text("UPDATE users SET phone = '2' WHERE id = :id"), {"id": second})

            in_transaction(session, work)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(change, ids, reversed(ids)))
    assert len(tries) > 2
    assert sorted(row.resource_id for row in entries(app, action="test.done")) == sorted(map(str, ids))
    assert checked(app).finding is None


def test_of_two_states_only_what_differs_is_kept(context: Flask) -> None:
    session = db.session()
    before, after = {"a": 1, "b": 2, "gone": 3}, {"a": 1, "b": 5, "new": None}
    in_transaction(session, lambda: record(session, ACTOR, "test.done", "thing", 1, before, after))
    assert entries(context)[0].detail == {"before": {"b": 2, "gone": 3}, "after": {"b": 5}}


def test_values_of_secret_names_are_masked_however_deep_they_lie(context: Flask) -> None:
    session = db.session()
    after = {
        "password": "hunter2", "config": [{"api_key": "hunter2", "url": "https://ada:hunter2@example.org/"}],
        "note": "Authorization: Bearer hunter2", "token_type": "Bearer", "raw": b"hunter2",
    }  # fmt: skip
    in_transaction(session, lambda: record(session, ACTOR, "test.done", "thing", 1, None, after))
    row = entries(context)[0]
    assert "hunter2" not in row.canonical + str(row.detail)
    assert row.detail["after"]["token_type"] == "Bearer"
    assert row.detail["after"]["config"][0]["url"] == "https://***@example.org/"


@pytest.mark.parametrize("value", ["x" * 300, "🦊" * 300, '\u2028\n\t"\\', " blanks ", "quote ' and % and _"])
def test_long_and_strange_texts_are_cut_and_kept_as_they_are(context: Flask, value: str) -> None:
    session = db.session()
    actor = Actor(username=value, ip=value, user_agent=value, request_id=value)
    in_transaction(session, lambda: record(session, actor, "test.done", "thing", value, None, {"text": value}))
    row = entries(context)[0]
    assert (row.username, row.ip, row.user_agent) == (value[:64], value[:45], value[:255])
    assert row.detail == {"after": {"text": value}}
    assert checked(context).finding is None


def test_times_are_kept_to_the_microsecond(context: Flask) -> None:
    session = db.session()
    for number in range(5):
        in_transaction(session, lambda n=number: record(session, ACTOR, "test.done", "thing", n))
    times = [row.created_at for row in entries(context)]
    assert times == sorted(times)
    assert any(moment.microsecond % 1000 for moment in times)


def test_rows_have_no_gaps_after_failures(context: Flask) -> None:
    session = db.session()
    for number in range(6):

        def work(number: int = number) -> None:
            record(session, ACTOR, "test.done", "thing", number)
            session.flush()
            if number % 2:
                raise Conflict

        try:
            in_transaction(session, work)
        except Conflict:
            continue
    assert [(row.id, row.resource_id) for row in entries(context)] == [(1, "0"), (2, "2"), (3, "4")]


def test_nothing_but_the_log_itself_writes_to_it(app: Flask) -> None:
    """Reading, also of the log, leaves no trace in it."""
    with app.app_context():
        make_user("alice", "admin")
    api = api_as(app, "alice")
    before = len(entries(app))
    for path in ("/auth/me", "/system/users", "/system/audit-logs", "/system/settings", "/health"):
        assert api.get(path).status_code == 200
    assert len(entries(app)) == before


def test_refusals_are_rows_of_their_own_and_floods_are_cut(app: Flask) -> None:
    with app.app_context():
        vera = make_user("vera").id
    api = api_as(app, "vera")
    for number in range(14):
        assert api.post("/system/users", {"username": f"x{number}", "password": PASSWORD}).status_code == 403
    api.get("/system/audit-logs")
    rows = entries(app, status="failed")
    assert [row.resource_id for row in rows] == ["users.manage"] * 10 + ["audit.read"]
    assert {(row.user_id, row.action, row.error_message) for row in rows} == {(vera, "access.refused", "forbidden")}
    assert checked(app).finding is None


def test_a_refusal_inside_a_change_is_logged_and_the_change_is_not(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refused transaction had already written something and said so."""
    with app.app_context():
        make_user("alice", "admin")
    api = api_as(app, "alice")
    real: Callable[..., Any] = actions.create_user

    def create_and_stumble(*arguments: Any) -> None:
        real(*arguments)
        raise actions.Forbidden("users.manage")

    monkeypatch.setattr(actions, "create_user", create_and_stumble)
    assert api.post("/system/users", {"username": "zoe", "password": PASSWORD}).status_code == 403
    assert [row.action for row in entries(app)][-1] == "access.refused"
    assert [row.resource_id for row in entries(app, action="user.create")] == [str(entries(app)[0].resource_id)]


def test_a_stranger_is_nobody_in_the_log(app: Flask) -> None:
    Api(app).post("/auth/login", {"username": "made-up", "password": "x"})
    row = entries(app)[0]
    assert (row.username, row.user_id, row.resource_id, row.ip) == ("", None, "made-up", "127.0.0.1")
