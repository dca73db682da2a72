"""`flask ops …`: the first start, administrators from the command line, and one clear line for what goes wrong."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import select, text

from app.kernel.db import db
from app.people.models import User
from tests.conftest import Applications
from tests.factories import api_as
from tests.variants import build, count_rows, dispose

GIVEN = "correct-horse-9"


def run(app: Flask, *words: str, typed: str = "") -> Result:
    return app.test_cli_runner().invoke(args=["ops", *words], input=typed)


def password_in(result: Result) -> str:
    return result.output.rpartition("Password: ")[2].strip()


def names(app: Flask) -> list[str]:
    with app.app_context():
        return list(db.session.scalars(select(User.username)))


def assert_one_line(result: Result, *words: str) -> None:
    """Something is wrong, it is said in one line, and the exit code says so as well."""
    assert result.exit_code == 1, result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    assert all(word in result.output for word in words), result.output


def test_the_first_start_makes_an_administrator_and_tells_the_password_once(app: Flask) -> None:
    first = run(app, "init")
    assert first.exit_code == 0, first.output
    api_as(app, "admin", password_in(first))
    second = run(app, "init", "--json")
    assert json.loads(second.output)["admin_created"] is False
    assert names(app) == ["admin"]


def test_a_given_password_is_used_and_not_repeated(sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPS_ADMIN_PASSWORD", GIVEN)
    started = run(sqlite_app, "init", "--json")
    assert json.loads(started.output) == {
        "admin_created": True,
        "username": "admin",
        "password": None,
        "warnings": [],
    }
    api_as(sqlite_app, "admin", GIVEN)


@pytest.mark.parametrize("given", ["short", "x" * 300, "12345678"])
def test_a_given_password_that_will_not_do_is_told_in_one_line_and_nothing_is_half_made(
    sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("OPS_ADMIN_PASSWORD", given)
    refused = run(sqlite_app, "init")
    assert_one_line(refused, "OPS_ADMIN_PASSWORD: ")
    assert given not in refused.output
    assert names(sqlite_app) == []
    assert count_rows(sqlite_app, "audit_logs") == 0
    monkeypatch.setenv("OPS_ADMIN_PASSWORD", GIVEN)
    assert run(sqlite_app, "init").exit_code == 0


def test_an_administrator_can_be_made_and_restored_at_the_command_line(sqlite_app: Flask) -> None:
    made = run(sqlite_app, "create-admin", "ada")
    api_as(sqlite_app, "ada", password_in(made))
    with sqlite_app.app_context():
        db.session.execute(text("UPDATE users SET role = 'viewer', status = 'disabled'"))
        db.session.commit()
    restored = run(sqlite_app, "create-admin", "ada", "--password-stdin", typed=f"{GIVEN}\n")
    assert (restored.exit_code, GIVEN in restored.output) == (0, False)
    me = api_as(sqlite_app, "ada", GIVEN).get("/auth/me").json["data"]
    assert (me["role"], me["status"]) == ("admin", "enabled")


@pytest.mark.parametrize(
    ("username", "typed", "word"),
    [
        *(("ada", typed, "password") for typed in ("short\n", "\n", "")),
        *((username, f"{GIVEN}\n", "username") for username in ("a b", "x" * 65, "")),
    ],
)
def test_a_name_or_password_that_will_not_do_is_told_in_one_line(
    sqlite_app: Flask, username: str, typed: str, word: str
) -> None:
    assert_one_line(run(sqlite_app, "create-admin", username, "--password-stdin", typed=typed), f"{word}: ")
    assert names(sqlite_app) == []


def test_what_is_wrong_with_the_database_is_told_in_one_line(applications: Applications, tmp_path: Path) -> None:
    app = build(applications, OPS_DATABASE_URL=f"sqlite:///{tmp_path}/none/ops.db")
    assert_one_line(run(app, "init"), "The database cannot be used: unable to open database file")
    dispose(app)


def test_a_database_that_refuses_us_is_told_in_one_line_without_the_password(applications: Applications) -> None:
    app = build(applications, OPS_DATABASE_URL="mysql://ops:c4nary@127.0.0.1:1/none")
    refused = run(app, "init")
    assert_one_line(refused, "The database cannot be used: ")
    assert "c4nary" not in refused.output
    dispose(app)
