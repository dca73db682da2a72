"""`flask ops …`: what needs the database or the keys and so is run on the Manager itself."""

import json
import os
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import IO, TextIO

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flask import Flask
from flask.cli import AppGroup
from flask_migrate import upgrade
from pydantic import ValidationError
from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError

from app.audit import actions as audit
from app.audit.exported import verify_export
from app.audit.verification import verify
from app.kernel.access import Actor
from app.kernel.clock import now
from app.kernel.context import ops
from app.kernel.db import db, in_transaction, is_away, migration_engine
from app.kernel.errors import AppError, BadParameter, FieldError
from app.kernel.secrets import KeysError
from app.kernel.validation import field_errors
from app.launch.checks import NotPossibleError, claim_data_directory
from app.nodes import enrolment
from app.nodes.models import MEMBERS, Node
from app.nodes.schemas import TokenIn
from app.people import actions as people
from app.people import passwords
from app.people.models import User
from app.people.queries import user_by_name
from app.people.schemas import UserCreate
from app.system import backups

commands = AppGroup("ops", help="What needs the database or the keys.")
LOCK_WAIT_S = 120
LOCK_NAME = "CONCAT('ops_migrate.', LEFT(DATABASE(), 50))"


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
    with _errors_as_lines(), migration_lock():
        upgrade()
        start = in_transaction(db.session(), first_administrator)
    if as_json:
        click.echo(json.dumps(asdict(start)))
    elif start.admin_created:
        click.echo(f"Created user {start.username}." + (f" Password: {start.password}" if start.password else ""))


def _given_password() -> str:
    """From the environment, or from the file that it names."""
    path = os.environ.get("OPS_ADMIN_PASSWORD_FILE", "")
    if not path:
        return os.environ.get("OPS_ADMIN_PASSWORD", "")
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise BadParameter(errors=[FieldError("OPS_ADMIN_PASSWORD_FILE", f"{path} cannot be read")]) from None


def first_administrator() -> Start:
    session = db.session()
    if session.scalar(select(User.id).limit(1)) is not None:
        return Start()
    given = _given_password()
    password = given or passwords.generated_password()
    try:
        _create_admin("admin", password)
    except BadParameter as error:
        problems = [FieldError("OPS_ADMIN_PASSWORD", item["message"]) for item in error.errors]
        raise BadParameter(errors=problems) from None
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
        people.create_user(session, actor, _new_admin(username, password))
    else:
        people.restore_admin(session, actor, user, password)


def _new_admin(username: str, password: str) -> UserCreate:
    try:
        return UserCreate(username=username, password=password, role="admin")
    except ValidationError as error:
        raise BadParameter(errors=field_errors(error)) from None


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
        click.echo(json.dumps({**report._asdict(), "finding": shown}))
    elif finding is None:
        click.echo(f"{report.rows} rows and {report.checkpoints} checkpoints are as they were written.")
        if report.unsigned:
            click.echo(f"The newest {report.unsigned} rows are younger than any checkpoint.")
    else:
        click.echo(str(finding), err=True)
    if not as_json:
        for warning in report.warnings:
            click.echo(f"Note: {warning}", err=True)
    if finding is not None:
        raise SystemExit(1)


@audit_commands.command("public-key")
def audit_public_key() -> None:
    """Print the key that exports are checked with, anywhere."""
    click.echo(b64encode(ops().keys.audit.public_key().public_bytes_raw()).decode())


@audit_commands.command("verify-export")
@click.argument("file", type=click.File(encoding="utf-8"))
@click.option("--public-key", "key_text", help="Of the Manager that made it; empty: this Manager's.")
def audit_verify_export(file: TextIO, key_text: str | None) -> None:
    """Check an export in JSONL. Exit code 1 when somebody changed it."""
    key = ops().keys.audit.public_key()
    if key_text:
        try:
            key = Ed25519PublicKey.from_public_bytes(b64decode(key_text))
        except ValueError:
            raise click.ClickException("--public-key: not a key as `audit public-key` prints it") from None
    report = verify_export(file, key)
    if report.finding is not None:
        click.echo(str(report.finding), err=True)
        raise SystemExit(1)
    scope = "the whole log" if report.is_complete else "a part of the log"
    click.echo(f"{report.rows} rows are as they were exported: {scope}.")


@audit_commands.command("checkpoint")
def audit_checkpoint() -> None:
    """Sign the head of the audit log now."""
    link = in_transaction(db.session(), lambda: audit.write_checkpoint(db.session()))
    click.echo(f"Signed row {link.sequence}: {link.hash}")


@commands.command("local-host")
@click.option("--uuid", default="", help="The node that this machine was, if any.")
def local_host(uuid: str) -> None:
    """Say whether this machine is a node still; if not, make a token that lets it in once."""
    session = db.session()
    if uuid and session.scalar(select(Node.id).where(Node.uuid == uuid, Node.status.in_(MEMBERS))) is not None:
        click.echo(json.dumps({"is_known": True}))
        return
    values = TokenIn(name="this machine", max_uses=1, expires_at=now() + timedelta(minutes=10))
    actor = Actor.system("command line")
    _token, secret = in_transaction(session, lambda: enrolment.create_token(session, actor, values))
    click.echo(json.dumps({"is_known": False, "token": secret}))


@commands.command("rekey")
def rekey() -> None:
    """Add a new encryption key. Everything is encrypted with it from now on; what is older stays readable."""
    identifier = ops().keys.box.rotate()
    session, actor = db.session(), Actor.system("command line")
    in_transaction(session, lambda: audit.record(session, actor, "keys.rotate", "key", identifier))
    click.echo(f"New encryption key {identifier}.")


@commands.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--without-keys", is_flag=True, help="Leave the keys out; they have to be kept elsewhere then.")
@click.option("--without-metrics", is_flag=True, help="Leave measurements out, which are most of it.")
def backup(file: Path, without_keys: bool, without_metrics: bool) -> None:
    """Write everything that must not be lost into one file, while the Manager runs."""
    session, actor = db.session(), Actor.system("command line")
    with _errors_as_lines():
        summary = backups.write_backup(file, with_keys=not without_keys, with_metrics=not without_metrics)
        in_transaction(session, lambda: audit.record(session, actor, "backup.write", "backup", file.name))
    click.echo(f"{file}: {summary.rows} rows of {len(summary.tables)} tables, revision {summary.revision}.")
    if summary.has_keys:
        click.echo("It holds the keys: who has this file can be this Manager. Keep it accordingly.")


@commands.command("restore")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--check", is_flag=True, help="Only read the backup and say whether it is whole.")
@click.option("--replace", "replace_all", is_flag=True, help="Put it in the place of everything that is there.")
def restore(file: Path, check: bool, replace_all: bool) -> None:
    """Put a backup back. The Manager must not run; without --replace the database must be empty."""
    with _errors_as_lines():
        if check:
            summary = backups.check_backup(file)
            click.echo(f"{file}: whole; {summary.rows} rows of {summary.created_at}, revision {summary.revision}.")
            return
        claimed = claim_data_directory(ops().settings.data_path)
        try:
            summary = backups.restore_backup(file, replace_all=replace_all)
        finally:
            os.close(claimed)
        session, actor = db.session(), Actor.system("command line")
        in_transaction(session, lambda: audit.record(session, actor, "backup.restore", "backup", file.name))
        report = verify(session)
    click.echo(f"{summary.rows} rows of {summary.created_at} are back.")
    if report.finding is not None:
        raise click.ClickException(str(report.finding))
    click.echo(f"The audit log's {report.rows} rows are as they were written.")


@contextmanager
def migration_lock() -> Iterator[None]:
    """Several Managers may start at once; one migrates, the others wait for it."""
    if db.engine.dialect.name == "sqlite":
        with (ops().settings.data_path / "migrate.lock").open("w") as lock:
            _wait_until(lambda: _has_locked(lock))
            yield
        return
    with migration_engine(ops().settings).connect() as connection:
        _wait_until(lambda: connection.scalar(text(f"SELECT GET_LOCK({LOCK_NAME}, 1)")) == 1)
        try:
            yield
        finally:
            connection.execute(text(f"SELECT RELEASE_LOCK({LOCK_NAME})"))


def _wait_until(is_ours: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LOCK_WAIT_S
    while not is_ours():
        if time.monotonic() > deadline:
            raise click.ClickException("Another Manager has been migrating the database for minutes.")
        time.sleep(0.1)


def _has_locked(file: IO[str]) -> bool:
    try:
        flock(file, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _errors_as_lines() -> Iterator[None]:
    try:
        yield
    except AppError as error:
        details = [f"{item['field']}: {item['message']}" for item in error.errors]
        raise click.ClickException("; ".join(details) or str(error.message)) from None
    except (backups.BackupError, NotPossibleError, KeysError, OSError) as error:
        raise click.ClickException(str(error)) from None
    except SQLAlchemyError as error:
        if not is_away(error):
            raise
        raise click.ClickException(f"The database cannot be used: {getattr(error, 'orig', None) or error}") from None
