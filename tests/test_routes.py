"""Every route there is, also those of rooms that come later: rights, pages, forms, and no change of state by reading.

All of it is derived from the routes that are registered. A room needs to do nothing for it but to declare its rights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from flask import Blueprint, Flask
from flask.testing import FlaskClient
from flask_migrate import upgrade
from sqlalchemy import delete, event, func, select, text
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from app.factory import create_app
from app.kernel.access import MATRIX, PUBLIC, Actor, Role, may
from app.kernel.db import Base, db, in_transaction
from app.kernel.edges import is_for_programs, page
from app.link.models import Presence
from app.people import actions
from app.people.identity import COOKIE
from app.people.models import User, UserSession
from app.people.schemas import TokenCreate
from tests.conftest import Applications
from tests.factories import PASSWORD, make_user
from tests.variants import build, dispose, existing_id

ROLES = ("anonymous", "viewer", "operator", "admin")
SAMPLES = {"id": "999999", "uuid": "6f1c1a52-0000-4000-8000-000000000000", "int": "7"}
ODD_QUERIES = (
    "page=0&page_size=x&sort=--id&keyword=%00%ff",
    "page=99999999999999999999&page_size=-1&sort=%27%3B--&keyword=" + "x" * 5000,
    "format=xml&format=csv&colour=red&keyword=%25_%5C%F0%9F%9A%80&sort=id&sort=name",
    "start=0&end=never&start=9999-12-31T23:59:59-12:00&status=x&role=x&user_id=9e9&next=//evil",
    "&&&=&=x&%=1&a[]=1&__proto__=1",
)


@dataclass
class Caller:
    """Somebody of one role, as a browser and as a program, who signs in again when a request has signed him out."""

    app: Flask
    role: str
    client: FlaskClient = field(init=False)
    token: str = ""

    def __post_init__(self) -> None:
        self.client = self.app.test_client()
        self.sign_in()

    def sign_in(self) -> None:
        """Past the password, whose hashing takes its time."""
        if self.role == "anonymous":
            return
        with self.app.app_context():
            session, stranger = db.session(), Actor(ip="127.0.0.1")
            user = session.scalars(select(User).filter_by(username=self.role)).one()
            session.execute(delete(UserSession).where(UserSession.user_id == user.id))
            cookie = in_transaction(session, lambda: actions.open_browser_session(session, stranger, user, PASSWORD))
            pair = in_transaction(session, lambda: actions.open_api_session(session, stranger, user, PASSWORD))
        self.client.set_cookie(COOKIE, cookie)
        self.token = pair["access_token"]

    def call(self, method: str, path: str, **more: Any) -> TestResponse:
        headers = more.pop("headers", {})
        if is_for_programs(path):
            headers = headers | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
            more = {"json": {}} | more if method in ("POST", "PUT") else more
        answer = self.client.open(path, method=method, headers=headers, **more)
        if method not in ("GET", "HEAD") and self.role != "anonymous" and self._sessions() < 2:
            self.sign_in()
        return answer

    def _sessions(self) -> int:
        """Of the browser and of the program; a request may have ended one of them."""
        with self.app.app_context():
            joined = select(func.count()).select_from(UserSession).join(User)
            return db.session.scalar(joined.where(User.username == self.role)) or 0

    def actor(self) -> Actor:
        return Actor() if self.role == "anonymous" else Actor("user", 1, self.role, Role(self.role))


@pytest.fixture(scope="module")
def house(applications: Applications) -> Iterator[Flask]:
    """The application with somebody of each role and a row of most things. Forms need no token here; see below."""
    environment = {"OPS_SERVER__DEVELOPMENT": "true", "OPS_SERVER__RATE_LIMIT__ANONYMOUS": "1000000"}
    app = create_app(applications.settings("house", **environment), keys=applications._keys[1])
    app.testing, app.config["WTF_CSRF_ENABLED"] = True, False
    with app.app_context():
        upgrade()
        for role in ROLES[1:]:
            user = make_user(role, role)
            mine = actions.as_user(Actor(ip="127.0.0.1"), user)
            given = TokenCreate(name="a token")
            in_transaction(db.session(), lambda mine=mine, given=given: actions.create_token(db.session(), mine, given))
    yield app
    dispose(app)


@pytest.fixture(scope="module")
def callers(house: Flask) -> dict[str, Caller]:
    return {role: Caller(house, role) for role in ROLES}


def routes(app: Flask) -> Iterator[tuple[str, Rule, str]]:
    """Method, rule and permission of everything but files."""
    for rule in app.url_map.iter_rules():
        if rule.endpoint != "static":
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield method, rule, getattr(app.view_functions[rule.endpoint], "permission", "")


def path_of(app: Flask, rule: Rule, samples: dict[str, str] | None = None) -> str:
    """An address of this rule: of things that exist where `samples` names them, else of things that do not."""
    values = {}
    for name in rule.arguments:
        kind = next((key for key in SAMPLES if f"<{key}:{name}>" in rule.rule), "")
        values[name] = (samples or {}).get(name) or SAMPLES.get(kind, "x")
    with app.test_request_context():
        built = rule.build(values, append_unknown=False)
    assert built is not None, rule
    return built[1]


def undeclared(app: Flask) -> list[str]:
    return [
        f"{method} {rule.rule}"
        for method, rule, permission in routes(app)
        if permission != PUBLIC and permission not in MATRIX
    ]


# Rights


def test_every_route_declares_a_right_that_exists(house: Flask) -> None:
    assert undeclared(house) == []


def test_a_route_that_declares_none_or_an_unknown_one_is_noticed(applications: Applications) -> None:
    extra = Blueprint("extra", __name__)
    extra.add_url_rule("/forgotten", "forgotten", lambda: "x")
    page(extra, "/misspelt", permission="users.raed")(lambda: "x")
    app = build(applications, lambda app: app.register_blueprint(extra))
    assert undeclared(app) == ["GET /forgotten", "GET /misspelt"]
    dispose(app)


def is_refused(answer: TestResponse, path: str) -> bool:
    """Whether it was refused for want of rights, in the way that befits the path."""
    if is_for_programs(path):
        return answer.status_code in (401, 403)
    is_sent_to_sign_in = answer.status_code == 302 and answer.headers["Location"].startswith("/login")
    return is_sent_to_sign_in or answer.status_code in (401, 403)


@pytest.mark.parametrize("role", ROLES)
def test_everybody_gets_what_the_matrix_says(house: Flask, callers: dict[str, Caller], role: str) -> None:
    caller, wrong = callers[role], []
    for method, rule, permission in routes(house):
        path = path_of(house, rule)
        answer = caller.call(method, path)
        is_allowed = may(caller.actor(), permission)
        if is_refused(answer, path) == is_allowed or answer.status_code >= 500:
            wrong.append(f"{method} {path} ({permission}): {answer.status_code}")
        if not is_allowed and is_for_programs(path):
            assert answer.json["code"] == (1002 if role == "anonymous" else 1003), path
        if not is_allowed and role != "anonymous":
            assert answer.status_code == 403, path
    assert wrong == []


def test_a_cookie_opens_no_api_and_a_token_no_page(house: Flask, callers: dict[str, Caller]) -> None:
    """So nothing under /api can be done by a form on somebody else's page."""
    admin = callers["admin"]
    for method, rule, permission in routes(house):
        path = path_of(house, rule)
        if permission == PUBLIC:
            continue
        if is_for_programs(path):
            answer = admin.client.open(path, method=method, json={})
            assert answer.status_code == 401, path
        else:
            headers = {"Authorization": f"Bearer {admin.token}"}
            answer = house.test_client().open(path, method=method, headers=headers)
            assert is_refused(answer, path), path


# Pages


def pages_to_read(house: Flask) -> Iterator[tuple[str, bool]]:
    """Addresses of all pages, and whether what they are about exists."""
    for method, rule, _permission in routes(house):
        if method == "GET" and not is_for_programs(rule.rule):
            with house.app_context():
                samples = {name: existing_id(name) for name in rule.arguments}
            there = {name: str(number) for name, number in samples.items() if number is not None}
            yield path_of(house, rule, there), len(there) == len(rule.arguments)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_page_is_shown_in_every_language(house: Flask, callers: dict[str, Caller], language: str) -> None:
    client = callers["admin"].client
    client.set_cookie("ops_lang", language)
    for path, is_there in pages_to_read(house):
        answer = client.get(path)
        if answer.status_code in (302, 303):
            assert path in ("/", "/login"), path
            continue
        assert answer.status_code == 200 if is_there else 400 <= answer.status_code < 500, path
        if answer.mimetype == "text/html":
            assert f'<html lang="{language}' in answer.text, path
            assert "Traceback" not in answer.text, path
    client.delete_cookie("ops_lang")


def test_no_page_fails_whatever_is_asked(house: Flask, callers: dict[str, Caller]) -> None:
    client = callers["admin"].client
    fragment = {"HX-Request": "true", "HX-Target": "x"}
    for path, _is_there in pages_to_read(house):
        for query in ODD_QUERIES:
            assert client.get(f"{path}?{query}").status_code < 500, (path, query)
        assert client.get(path, headers=fragment).status_code < 500, path


def test_no_form_fails_whatever_is_sent(house: Flask, callers: dict[str, Caller]) -> None:
    """Fields that are missing, doubled, odd or far too long: 4xx or the form again, never a trace."""
    admin = callers["admin"]
    odd = [["\x00", "\ufffd🚀"], ["9" * 30, "-1"], ["²", "9" * 5000], ["x" * 5000, "'\"<>"]]
    names = ("ids", "username", "name", "password", "email", "value", "next", "action", "scopes", "days", "role", "id")
    for method, rule, _permission in routes(house):
        if method != "POST" or is_for_programs(rule.rule):
            continue
        path = path_of(house, rule)
        for values in odd:
            answer = admin.call(method, path, data=dict.fromkeys(names, values))
            assert answer.status_code < 500, (path, values)


def test_every_form_wants_its_token(applications: Applications) -> None:
    app = build(applications)
    with app.app_context():
        make_user("admin", "admin")
    admin = Caller(app, "admin")
    before = contents(app)
    for method, rule, _permission in routes(app):
        path = path_of(app, rule)
        if method == "GET" or is_for_programs(path):
            continue
        for data in ({}, {"csrf_token": "x"}):
            assert admin.client.open(path, method=method, data=data).status_code == 400, path
    assert contents(app) == before
    dispose(app)


# Reading


def contents(app: Flask) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, but for the one that gateways of other tests keep writing while they stand."""
    with app.app_context():
        return {
            table.name: [tuple(row) for row in db.session.execute(text(f"SELECT * FROM {table.name}"))]
            for table in Base.metadata.sorted_tables
            if table.name != Presence.__tablename__
        }


def test_reading_changes_nothing_and_never_waits_for_a_writer(house: Flask, callers: dict[str, Caller]) -> None:
    admin, begun = callers["admin"], []

    def note(connection: Any) -> None:
        if "has_write_turn" in connection.info:
            begun.append(connection)

    with house.app_context():
        engine = db.engine
    before = contents(house)
    begun.clear()
    event.listen(engine, "begin", note)
    try:
        for method, rule, _permission in routes(house):
            if method == "GET":
                admin.call("GET", path_of(house, rule))
                admin.call("HEAD", path_of(house, rule))
    finally:
        event.remove(engine, "begin", note)
    assert begun == []
    assert contents(house) == before
