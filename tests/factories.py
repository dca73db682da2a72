"""Builders of what tests start from: users of every role, clients that are signed in as them."""

from dataclasses import dataclass
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.kernel.access import Actor
from app.kernel.db import db, in_transaction
from app.people import actions
from app.people.models import User
from app.people.schemas import UserCreate

PASSWORD = "correct-horse-1"
SYSTEM = Actor.system("tests")


def make_user(username: str = "ada", role: str = "viewer", **values: Any) -> User:
    """A user with PASSWORD, committed. Needs an application context."""
    given = UserCreate(username=username, password=PASSWORD, role=role, **values)
    return in_transaction(db.session(), lambda: actions.create_user(db.session(), SYSTEM, given))


@dataclass
class Api:
    """A program's view of the Manager: JSON in, the envelope out."""

    app: Flask
    token: str = ""

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> TestResponse:
        given = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.app.test_client().open(f"/api/v1{path}", method=method, json=body, headers=given)

    def get(self, path: str, **headers: str) -> TestResponse:
        return self.call("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> TestResponse:
        return self.call("POST", path, body, **headers)

    def put(self, path: str, body: Any = None, **headers: str) -> TestResponse:
        return self.call("PUT", path, body, **headers)

    def delete(self, path: str, **headers: str) -> TestResponse:
        return self.call("DELETE", path, **headers)


def api_as(app: Flask, username: str, password: str = PASSWORD) -> Api:
    """Signed in by user name and password."""
    answer = Api(app).post("/auth/login", {"username": username, "password": password})
    assert answer.status_code == 200, answer.text
    return Api(app, answer.json["data"]["access_token"])


def browser_as(app: Flask, username: str, password: str = PASSWORD) -> FlaskClient:
    """A browser without JavaScript that has signed in through the page."""
    client = app.test_client()
    answer = submit(client, "/login", {"username": username, "password": password})
    assert answer.status_code == 303, answer.text
    return client


def submit(client: FlaskClient, path: str, values: dict[str, Any], *, page: str | None = None) -> TestResponse:
    """Load a page with a form and send it, with the CSRF token that stands in it."""
    html = client.get(page or path).text
    token = html.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]
    return client.post(path, data={"csrf_token": token} | values)
