"""`Idempotency-Key`: whatever is sent twice happens once, and both get the same answer."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from app.kernel import idempotency
from app.kernel.clock import now
from app.kernel.db import db
from app.kernel.idempotency import KEPT, IdempotentAnswer
from app.people.models import User
from tests.factories import Api, api_as, make_user
from tests.kernel.lab import Lab


@pytest.fixture
def client(any_client: FlaskClient) -> FlaskClient:
    return any_client


@pytest.fixture
def lab(any_lab: Lab) -> Lab:
    return any_lab


def make(client: FlaskClient, name: str, key: str, path: str = "/lab/things", **headers: str) -> TestResponse:
    return client.post(f"/api/v1{path}", json={"name": name}, headers={"Idempotency-Key": key} | headers)


def test_the_same_key_and_body_get_the_same_answer_and_happen_once(client: FlaskClient, lab: Lab) -> None:
    first, second = (make(client, "a", "k-1") for _time in range(2))
    assert first.status_code == second.status_code == 201
    assert first.data == second.data
    assert first.mimetype == second.mimetype == "application/json"
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert lab.calls == ["a"]


def test_the_same_key_with_another_request_is_a_conflict(client: FlaskClient, lab: Lab) -> None:
    make(client, "a", "k-1")
    for answer in (
        make(client, "b", "k-1"),
        client.post("/api/v1/lab/things", data='{"name":  "a"}', headers={"Idempotency-Key": "k-1"}),
        client.post("/api/v1/lab/start", headers={"Idempotency-Key": "k-1"}),
    ):
        assert (answer.status_code, answer.json["code"]) == (409, 1006)
    assert lab.calls == ["a"]


def test_another_key_is_another_request(client: FlaskClient, lab: Lab) -> None:
    assert make(client, "a", "k-1").status_code == 201
    assert make(client, "a", "K-1").status_code == 409, "the row is there already, and keys tell cases apart"
    assert make(client, "b", "k-2").status_code == 201
    assert lab.calls == ["a", "a", "b"]


def test_starting_something_honours_the_key_too(client: FlaskClient) -> None:
    first, second = (client.post("/api/v1/lab/start", headers={"Idempotency-Key": "k"}) for _time in range(2))
    assert (first.status_code, first.data) == (second.status_code, second.data)
    assert first.status_code == 202


@pytest.mark.parametrize("key", ["", " ", "a b", "é", "x" * 201, "a\tb"])
def test_a_key_that_is_none_is_refused(client: FlaskClient, lab: Lab, key: str) -> None:
    answer = make(client, "a", key)
    assert answer.status_code == 400
    assert answer.json["data"]["errors"][0]["field"] == "Idempotency-Key"
    assert lab.calls == []


def test_a_refused_request_is_not_remembered(client: FlaskClient, lab: Lab) -> None:
    lab.failures = [RuntimeError("now")]
    assert make(client, "a", "k").status_code == 500
    assert make(client, "", "k").status_code == 400
    assert make(client, "a", "k").status_code == 201
    assert lab.calls == ["a", "a"]


def test_a_key_is_forgotten_after_a_day(client: FlaskClient, lab: Lab) -> None:
    make(client, "a", "k")
    with client.application.app_context():
        db.session.execute(update(IdempotentAnswer).values(created_at=now() - KEPT - timedelta(seconds=1)))
        db.session.commit()
    assert make(client, "b", "k").status_code == 201
    assert lab.calls == ["a", "b"]
    assert make(client, "b", "k").headers["Idempotency-Replayed"] == "true"


def test_old_answers_are_cleared_away(client: FlaskClient) -> None:
    for name in ("old", "new"):
        make(client, name, name)
    with client.application.app_context():
        first = select(db.func.min(IdempotentAnswer.id)).scalar_subquery()
        statement = update(IdempotentAnswer).values(created_at=now() - KEPT - timedelta(seconds=1))
        oldest = db.session.scalar(select(first))
        db.session.execute(statement.where(IdempotentAnswer.id == oldest))
        assert idempotency.forget_old_answers(db.session()) == 1
        db.session.commit()
    assert make(client, "new", "new").headers["Idempotency-Replayed"] == "true"


def test_remembered_answers_cannot_be_read_in_the_database(client: FlaskClient) -> None:
    make(client, "c4nary", "my-key")
    with client.application.app_context():
        row = db.session.scalars(select(IdempotentAnswer)).one()
        stored = f"{row.key_hash} {row.request_hash} {row.body}"
    assert row.status == 201
    assert "c4nary" not in stored
    assert "my-key" not in stored


def test_where_nothing_is_made_or_started_the_key_means_nothing(client: FlaskClient, lab: Lab) -> None:
    for name in ("a", "b"):
        answer = client.put("/api/v1/lab/echo", json={"name": name}, headers={"Idempotency-Key": "k"})
        assert answer.json["data"]["name"] == name


def test_two_at_the_same_moment_happen_once_and_get_the_same_answer(app: Flask) -> None:
    """Both begin before either has ended; what they make must be unique, so the second would be refused by itself."""
    with app.app_context():
        make_user("alice", "admin")
    alice, barrier, answers = api_as(app, "alice"), threading.Barrier(4), list[TestResponse]()
    body = {"username": "bob", "password": "correct-horse-2"}

    def send() -> None:
        barrier.wait(10)
        answers.append(alice.post("/system/users", body, Idempotency_Key="k"))

    threads = [threading.Thread(target=send) for _sender in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [201] * 4, [answer.text for answer in answers]
    assert len({answer.data for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 3
    with app.app_context():
        assert sorted(db.session.scalars(select(User.username))) == ["alice", "bob"]


def test_two_users_may_choose_the_same_key(app: Flask) -> None:
    with app.app_context():
        for name in ("ada", "ben"):
            make_user(name)
    made: list[Any] = []
    for name in ("ada", "ben", "ada"):
        api: Api = api_as(app, name)
        made.append(api.post("/auth/tokens", {"name": "t"}, Idempotency_Key="k").json["data"])
    assert made[0] == made[2]
    assert made[0]["token"] != made[1]["token"]
    assert made[0]["user_id"] != made[1]["user_id"]


def test_every_operation_that_makes_or_starts_something_honours_the_key(sqlite_app: Flask) -> None:
    operations = [operation for room in sqlite_app.extensions["api_rooms"] for operation in room.operations]
    makers = [operation for operation in operations if operation.status in (201, 202)]
    assert makers
    assert [operation.name for operation in makers if not operation.is_idempotent] == []
