"""A canary secret put through everything that takes secrets: it comes out nowhere but where it has to.

Looked at: the log as the product writes it, the audit log, every answer, Redis, and the database as it lies there.
"""

import base64
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import MetaData, select
from werkzeug.test import TestResponse

from app.kernel.context import ops
from app.kernel.db import db
from app.kernel.logs import configure_logging
from app.people import passwords
from app.people.identity import COOKIE
from tests import factories

CANARY = "c4nary7f3e"
FIRST, SECOND = f"{CANARY}-first-password", f"{CANARY}-second-password"
TOKEN = re.compile(r"ops_pat_[\w-]{43}")
RESET = re.compile(r"[2-9A-HJ-NP-Za-km-z]{5}(?:-[2-9A-HJ-NP-Za-km-z]{5}){3}")


class Run:
    """Asks the product, keeps every answer, and collects the secrets that the product itself gave out."""

    def __init__(self, app: Flask) -> None:
        self.app, self.client = app, app.test_client()
        self.answers: list[TestResponse] = []
        self.given: set[str] = set()

    def ask(self, method: str, path: str, client: FlaskClient | None = None, **more: Any) -> TestResponse:
        answer = (client or self.client).open(path, method=method, buffered=True, **more)
        self.answers.append(answer)
        return answer

    def api(self, method: str, path: str, body: Any = None, token: str = "", **headers: str) -> TestResponse:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        return self.ask(method, f"/api/v1{path}", self.app.test_client(), json=body, headers=headers)

    def submit(self, path: str, values: dict[str, Any], page: str | None = None) -> TestResponse:
        html = self.ask("GET", page or path).text
        csrf = html.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]
        return self.ask("POST", path, data={"csrf_token": csrf} | values)

    def take(self, answer: TestResponse, *secrets: str) -> None:
        """This answer may hold these secrets, and no other may."""
        assert all(secret in answer.text for secret in secrets)
        self.answers.remove(answer)
        self.given |= set(secrets)


@pytest.fixture
def log_file(app: Flask, tmp_path: Path) -> Iterator[Path]:
    """The product's own log, everything in it."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    levels = {name: logger.level for name, logger in root.manager.loggerDict.items() if hasattr(logger, "level")}
    path = tmp_path / "manager.log"
    settings = app.extensions["ops"].settings
    file = settings.log.file.model_copy(update={"enabled": True, "path": str(path)})
    configure_logging(
        settings.model_copy(update={"log": settings.log.model_copy(update={"level": "debug", "file": file})})
    )
    yield path
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    for name, former in levels.items():
        logging.getLogger(name).setLevel(former)


def go_through_everything(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_in_right_and_wrong(run)
    signed_in = run.api("POST", "/auth/login", {"username": "ada", "password": FIRST})
    data = signed_in.json["data"]
    run.take(signed_in, data["access_token"], data["refresh_token"])
    renewed = run.api("POST", "/auth/refresh", {"refresh_token": data["refresh_token"]})
    token = renewed.json["data"]["access_token"]
    run.take(renewed, token, renewed.json["data"]["refresh_token"])

    made = run.api("POST", "/auth/tokens", {"name": "script"}, token, Idempotency_Key=f"{CANARY}-key")
    run.take(made, made.json["data"]["token"])
    again = run.api("POST", "/auth/tokens", {"name": "script"}, token, Idempotency_Key=f"{CANARY}-key")
    run.take(again, made.json["data"]["token"])
    page = run.submit("/profile/tokens/new", {"name": "script", "scopes": "*"})
    run.take(page, TOKEN.search(page.text)[0])

    change_passwords_and_people(run, token)
    script = made.json["data"]["token"]
    settings_headers_and_malformed_requests(run, script)
    monkeypatch.setattr(passwords, "check_new_password", lambda *_arguments: 1 // 0)
    broken = run.api("POST", "/system/users", {"username": "erik", "password": f"{CANARY}-erik"}, script)
    assert broken.status_code == 500
    values = {"current_password": SECOND, "new_password": FIRST, "repeat_password": FIRST}
    assert run.submit("/profile/password", values).status_code == 500


def sign_in_right_and_wrong(run: Run) -> None:
    run.submit("/login", {"username": "ada", "password": f"{CANARY}-wrong", "totp": f"{CANARY}"})
    run.submit("/login", {"username": f"{CANARY} in the wrong field!", "password": "x"}, "/login?next=/users")
    run.answers.pop()  # what was typed as a name is shown to whoever typed it
    run.submit("/login", {"username": "ada", "password": CANARY * 40})
    for body in ({"password": f"{CANARY}-wrong"}, {"password": f"{CANARY}-wrong", "totp": CANARY}):
        run.api("POST", "/auth/login", {"username": "ada"} | body)
    run.api("POST", "/auth/login", {"username": ["ada"], "password": {"value": CANARY}})
    run.submit("/login", {"username": "ada", "password": FIRST})
    run.given.add(run.client.get_cookie(COOKIE).value)


def change_passwords_and_people(run: Run, token: str) -> None:
    wrong = {"current_password": f"{CANARY}-wrong", "new_password": SECOND, "repeat_password": f"{CANARY}-other"}
    run.submit("/profile/password", wrong)
    run.submit("/profile/password", wrong | {"repeat_password": SECOND})
    run.api("POST", "/auth/password", {"current_password": f"{CANARY}-wrong", "new_password": SECOND}, token)
    new = {"username": "carl", "password": f"{CANARY}-carl", "email": "carl@example.org"}
    carl = run.api("POST", "/system/users", new, token).json["data"]["id"]
    run.api("POST", "/system/users", new, token)
    run.api("POST", "/system/users", new | {"role": "root"}, token)
    run.submit("/users/new", new | {"role": "viewer", "status": "enabled"})
    run.api("PUT", f"/system/users/{carl}", {"password": f"{CANARY}-carl-2"}, token)
    reset = run.submit(f"/users/{carl}/reset-password", {}, f"/users/{carl}")
    run.take(reset, RESET.search(reset.text)[0])
    for path in ("/users", f"/users/{carl}", "/audit?page_size=100", "/audit?format=csv", "/audit?format=jsonl",
                 "/profile/sessions", "/profile/tokens", "/audit/1", "/audit/5"):  # fmt: skip
        run.ask("GET", path)
    right = {"current_password": FIRST, "new_password": SECOND, "repeat_password": SECOND}
    assert run.submit("/profile/password", right).status_code == 303
    signed_in = run.api("POST", "/auth/login", {"username": "ada", "password": SECOND})
    run.take(signed_in, signed_in.json["data"]["access_token"], signed_in.json["data"]["refresh_token"])


def settings_headers_and_malformed_requests(run: Run, token: str) -> None:
    keys = ("auth.jwt.access_secret", "database.password", "redis.url", "ui.timezone", "auth.session_idle", "no.such")
    for key in keys:
        run.api("PUT", "/system/settings", {"values": {key: f"{CANARY}-setting"}}, token)
    run.api("GET", "/system/settings", None, token)
    basic = base64.b64encode(f"ada:{CANARY}".encode()).decode()
    for header in (f"Bearer {CANARY}", f"Bearer ops_pat_{CANARY}", f"Basic {basic}", f"Bearer a.{CANARY}.c", CANARY):
        run.ask("GET", "/api/v1/auth/me", run.app.test_client(), headers={"Authorization": header})
        sent = {"Authorization": header, "Cookie": f"{COOKIE}={CANARY}"}
        run.ask("GET", "/users", run.app.test_client(), headers=sent)
    run.given.add(basic)
    for path in ("/health?token=", "/auth/me?password=", f"/system/users?x={CANARY}&keyword="):
        run.api("GET", path + CANARY, None, token)
    run.ask("POST", "/logout", run.app.test_client(), data={"csrf_token": CANARY, "password": CANARY})
    bodies = (
        f'{{"password": "{CANARY}', f'"{CANARY}"', f'["{CANARY}"]', f'{{"password": "{CANARY}\ud800"}}',
        f'{{"password": "{CANARY}", "password": "{CANARY}"}}', f'{{"refresh_token": "{CANARY}"}}',
        f"password={CANARY}", "[" * 5000 + CANARY,
    )  # fmt: skip
    for body in bodies:
        for path in ("/auth/login", "/auth/refresh", "/auth/tokens", "/system/users"):
            data, headers = body.encode("utf-8", "surrogatepass"), {"Authorization": f"Bearer {token}"}
            where = run.app.test_client()
            run.ask("POST", f"/api/v1{path}", where, data=data, content_type="application/json", headers=headers)


def everything_in_redis(app: Flask) -> bytes:
    with app.app_context():
        redis = ops().redis
    found = b""
    for key in redis.scan_iter("*"):
        found += key + b"\n" + (redis.dump(key) or b"") + b"\n"
        if redis.type(key) == b"string":
            found += redis.get(key) + b"\n"
    return found


def everything_in_the_database(app: Flask) -> str:
    """Every value of every table, and on SQLite the files themselves."""
    with app.app_context():
        engine, path = db.engine, ops().settings.data_path
        tables = MetaData()
        with engine.connect() as connection:
            tables.reflect(connection)
            found = "".join(str(connection.execute(select(table)).all()) for table in tables.sorted_tables)
        if engine.dialect.name == "sqlite":
            engine.dispose()
            found += "".join(file.read_bytes().decode("latin-1") for file in path.glob("ops.db*"))
    return found


def number_inside(token: str) -> str:
    """The random number that a JWT is about."""
    middle = token.split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))["jti"])


def test_it_comes_out_nowhere(app: Flask, log_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factories, "PASSWORD", FIRST)
    monkeypatch.setattr(passwords, "HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    with app.app_context():
        factories.make_user("ada", "admin")
    run = Run(app)
    go_through_everything(run, monkeypatch)
    numbers = {number_inside(secret) for secret in run.given if secret.startswith("eyJ")}
    secrets = {CANARY, *run.given, *numbers}
    places = {
        "the log": log_file.read_text(),
        "Redis": everything_in_redis(app).decode("latin-1"),
        "the database": everything_in_the_database(app),
        "an answer": "\n".join(shown(answer) for answer in run.answers),
    }
    assert {name: [secret for secret in secrets if secret in text] for name, text in places.items()} == {
        name: [] for name in places
    }
    assert len(secrets) > 10
    assert len(run.answers) > 80
    assert places["the log"].count("\n") > 100
    assert "ZeroDivisionError" in places["the log"]
    assert "auth.sign_in" in places["the database"]
    assert "rate:" in places["Redis"]


def shown(answer: TestResponse) -> str:
    """All of an answer but the cookie, which has to reach its owner."""
    headers = [f"{name}: {value}" for name, value in answer.headers if not value.startswith(f"{COOKIE}=")]
    return "\n".join([*headers, answer.text])
