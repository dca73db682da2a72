"""Fixtures of the browser tests: one browser and one web server for a run, fresh users and an empty log for each test."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Locator, Page

from app.kernel.access import Actor
from app.kernel.db import db, in_transaction
from app.people import actions
from app.people.identity import COOKIE
from app.people.models import User
from tests import browser as browsers
from tests.browser import Browser, Visit
from tests.conftest import Applications
from tests.factories import PASSWORD, make_user
from tests.web.server import WebServer

with_and_without_scripts = pytest.mark.parametrize("javascript", [True, False], ids=["js", "no-js"])


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


@pytest.fixture
def manager(applications: Applications, web_server: WebServer) -> Iterator[Flask]:
    """An application over the server's own data, which is empty now; for looking into it and filling it."""
    app = applications.empty("web")
    with app.app_context():
        make_user("alice", "admin", email="alice@example.org")
        yield app
        db.session.rollback()


class Visitor:
    """Somebody in front of a browser."""

    def __init__(self, visit: Visit, manager: Flask) -> None:
        self._visit, self._manager = visit, manager
        self.javascript, self.context, self.witness, self.page = (
            visit.javascript,
            visit.context,
            visit.witness,
            visit.page,
        )

    def sign_in(self, username: str = "alice") -> None:
        """Without the form, which has tests of its own."""
        browser = Actor(ip="127.0.0.1", user_agent="tests")
        user = db.session.query(User).filter_by(username=username).one()
        secret = in_transaction(
            db.session(), lambda: actions.open_browser_session(db.session(), browser, user, PASSWORD)
        )
        self.context.add_cookies([{"name": COOKIE, "value": secret, "url": self._visit.base_url}])
