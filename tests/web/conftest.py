"""Fixtures of the browser tests: one browser and one web server for a run; each test begins with nobody and nothing."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from flask import Flask
from sqlalchemy import insert

from app.audit.actions import record
from app.audit.models import AuditRow
from app.kernel.access import Actor
from app.kernel.db import db, in_transaction
from app.people import actions
from app.people.identity import COOKIE
from app.people.models import User
from app.people.schemas import TokenCreate, UserUpdate
from tests import browser as browsers
from tests.browser import Browser, Visit
from tests.conftest import Applications
from tests.factories import PASSWORD, SYSTEM, make_user
from tests.web.server import WebServer

Arrive = Callable[..., Visit]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if reason := browsers.why_unavailable():
        pytest.skip(reason)
    with Browser() as running:
        yield running


@pytest.fixture(scope="session")
def web_server(applications: Applications) -> Iterator[WebServer]:
    settings = applications.empty("web").extensions["ops"].settings
    with WebServer(settings) as server:
        yield server


class Manager:
    """The server's own data, to fill it and to look into it."""

    def __init__(self, app: Flask, url: str) -> None:
        self.app, self.url = app, url

    def user(self, username: str, role: str = "viewer", **values: Any) -> int:
        with self.app.app_context():
            return make_user(username, role, **values).id

    def many_users(self, count: int) -> None:
        """`user-00` and on, who cannot sign in: hashing passwords takes time."""
        with self.app.app_context():
            rows = [{"username": f"user-{n:02}", "password_hash": "!", "role": "viewer"} for n in range(count)]
            in_transaction(db.session(), lambda: db.session.execute(insert(User), rows))

    def change(self, username: str, **values: Any) -> None:
        """As an administrator would."""
        with self.app.app_context():
            session, user = db.session(), db.session.query(User).filter_by(username=username).one()
            in_transaction(session, lambda: actions.update_user(session, SYSTEM, user.id, UserUpdate(**values)))

    def token(self, username: str, name: str, scopes: list[str]) -> str:
        with self.app.app_context():
            session, user = db.session(), db.session.query(User).filter_by(username=username).one()
            actor, values = actions.as_user(Actor(ip="127.0.0.1"), user), TokenCreate(name=name, scopes=scopes)
            return in_transaction(session, lambda: actions.create_token(session, actor, values))[1]

    def refuse(self, username: str) -> None:
        """A stranger's sign-in, as the log has it."""
        with self.app.app_context():
            stranger, session = Actor(ip="203.0.113.9", user_agent="curl/8.5.0"), db.session()
            given = (session, stranger, "auth.sign_in", "user", username)
            in_transaction(session, lambda: record(*given, error_message="wrong user name or password"))

    def is_there(self, username: str) -> bool:
        return self.find(username) is not None

    def find(self, username: str) -> User | None:
        with self.app.app_context():
            return db.session.query(User).filter_by(username=username).one_or_none()

    def audited(self, action: str) -> list[AuditRow]:
        with self.app.app_context():
            return db.session.query(AuditRow).filter_by(action=action).order_by(AuditRow.id).all()

    def cookie(self, username: str) -> Any:
        """A signed-in browser's, without the form, which has tests of its own."""
        with self.app.app_context():
            here, session = Actor(ip="127.0.0.1", user_agent="Mozilla/5.0 (X11; Linux) Firefox/128.0"), db.session()
            user = session.query(User).filter_by(username=username).one()
            secret = in_transaction(session, lambda: actions.open_browser_session(session, here, user, PASSWORD))
        return {"name": COOKIE, "value": secret, "url": self.url}

    def ask(self, path: str, token: str) -> tuple[int, Any]:
        """What the running server's API answers to a program."""
        request = Request(f"{self.url}/api/v1{path}", headers={"Authorization": f"Bearer {token}"})
        try:
            with urlopen(request, timeout=10) as answer:
                return answer.status, json.load(answer)["data"]
        except HTTPError as error:
            with error:
                return error.code, None


@pytest.fixture
def manager(applications: Applications, web_server: WebServer) -> Manager:
    """One administrator, `alice`, and nothing else."""
    found = Manager(applications.empty("web"), web_server.url)
    found.user("alice", "admin", email="alice@example.org")
    return found


@pytest.fixture
def arrive(browser: Browser, manager: Manager) -> Iterator[Arrive]:
    """`arrive("alice", javascript=False)`: a visitor, signed in if a name is given, whose witness must stay silent."""
    with contextlib.ExitStack() as visits:

        def come(username: str | None = None, **options: Any) -> Visit:
            visit = visits.enter_context(browser.visit(manager.url, **options))
            if username is not None:
                visit.context.add_cookies([manager.cookie(username)])
            return visit

        yield come


@pytest.fixture(params=[True, False], ids=["js", "no-js"])
def javascript(request: pytest.FixtureRequest) -> bool:
    """Whether the browser runs scripts: what takes this runs with both."""
    return bool(request.param)
