"""`flask ops …`: what needs the database or the keys and so is run on the Manager itself."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fcntl import LOCK_EX, flock

import click
from flask import Flask
from flask.cli import AppGroup
from flask_migrate import upgrade
from sqlalchemy import select, text

from app.audit import actions as audit
from app.audit.verification import verify
from app.kernel.access import Actor
from app.kernel.context import ops
from app.kernel.db import db, in_transaction
from app.kernel.errors import AppError
from app.people import actions as people
from app.people import passwords
from app.people.models import User
from app.people.queries import user_by_name
from app.people.schemas import UserCreate

commands = AppGroup("ops", help="What needs the database or the keys.")
LOCK_WAIT_S = 120


def install(app: Flask) -> None:
    app.cli.add_command(commands)


@dataclass
class Start:
    """What `init` found or made, for whoever started it."""

    admin_created: bool = False
    username: str = "admin"
    password: str | None = None
    warnings: list[str] = field(default_factory=list)


@commands.command("init")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
def init(as_json: bool) -> None:
    """Bring the database to the newest revision and make the first administrator, if there is none."""
    with migration_lock():
        upgrade()
    start = in_transaction(db.session(), first_administrator)
    if as_json:
        click.echo(json.dumps(asdict(start)))
    elif start.admin_created:
        click.echo(f"Created user {start.username}." + (f" Password: {start.password}" if start.password else ""))


def first_administrator() -> Start:
    session = db.session()
    if session.scalar(select(User.id).limit(1)) is not None:
        return Start()
    given = os.environ.get("OPS_ADMIN_PASSWORD", "")
    password = given or passwords.generated_password()
    _create_admin("admin", password)
    return Start(True, password=None if given else password)


@commands.command("create-admin")
@click.argument("username")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input instead of making one.")
def create_admin(username: str, password_stdin: bool) -> None:
    """Make an administrator, or make an existing user one again with a new password."""
    password = sys.stdin.readline().rstrip("\n") if password_stdin else passwords.generated_password()
    with _errors_as_lines():
        in_transaction(db.session(), lambda: _create_admin(username, password))
    click.echo(f"User {username} is an administrator." + ("" if password_stdin else f" Password: {password}"))


def _create_admin(username: str, password: str) -> None:
    session, actor = db.session(), Actor.system("command line")
    user = user_by_name(session, username)
    if user is None:
        people.create_user(session, actor, UserCreate(username=username, password=password, role="admin"))
    else:
        people.restore_admin(session, actor, user, password)


@commands.group("audit")
def audit_commands() -> None:
    """The audit log."""


@audit_commands.command("verify")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
def audit_verify(as_json: bool) -> None:
    """Check the whole audit log. Exit code 1 when somebody touched it; names the first bad row."""
    report = verify(db.session())
    finding = report.finding
    if as_json:
        shown = None if finding is None else {"sequence": finding.sequence, "problem": finding.problem}
        click.echo(json.dumps({"rows": report.rows, "checkpoints": report.checkpoints, "finding": shown}))
    elif finding is None:
        click.echo(f"{report.rows} rows and {report.checkpoints} checkpoints are as they were written.")
    else:
        click.echo(f"Row {finding.sequence} {finding.problem}.", err=True)
    if finding is not None:
        raise SystemExit(1)


@audit_commands.command("checkpoint")
def audit_checkpoint() -> None:
    """Sign the head of the audit log now."""
    link = in_transaction(db.session(), lambda: audit.write_checkpoint(db.session()))
    click.echo(f"Signed row {link.sequence}: {link.hash}")


@commands.command("rekey")
def rekey() -> None:
    """Add a new encryption key. Everything is encrypted with it from now on; what is older stays readable."""
    identifier = ops().keys.box.rotate()
    session, actor = db.session(), Actor.system("command line")
    in_transaction(session, lambda: audit.record(session, actor, "keys.rotate", "key", identifier))
    click.echo(f"New encryption key {identifier}.")


@contextmanager
def migration_lock() -> Iterator[None]:
    """Several Managers may start at once; one migrates, the others wait for it."""
    if db.engine.dialect.name == "sqlite":
        with (ops().settings.data_path / "migrate.lock").open("w") as lock:
            flock(lock, LOCK_EX)
            yield
        return
    with db.engine.connect() as connection:
        got = connection.execute(text("SELECT GET_LOCK('ops_migrate', :wait)"), {"wait": LOCK_WAIT_S}).scalar()
        if got != 1:
            raise click.ClickException("Another Manager has been migrating the database for two minutes.")
        try:
            yield
        finally:
            connection.execute(text("SELECT RELEASE_LOCK('ops_migrate')"))


@contextmanager
def _errors_as_lines() -> Iterator[None]:
    try:
        yield
    except AppError as error:
        details = [f"{item['field']}: {item['message']}" for item in error.errors]
        raise click.ClickException("; ".join(details) or str(error.message)) from None
