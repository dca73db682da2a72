"""Migrations: up and down on both databases, in step with the models, one at a time, and nothing lost by them."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_UN, flock
from pathlib import Path
from typing import Any

import click
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from flask import Flask
from flask_migrate import downgrade, upgrade
from sqlalchemy import Engine, create_engine, inspect, select, text
from sqlalchemy.exc import OperationalError

from app import cli
from app.factory import create_app
from app.kernel.context import ops
from app.kernel.db import Base, db, engine_options, is_away, migration_engine, prepare_engine
from app.kernel.types import Name
from app.people.models import AccessToken
from config import Settings
from tests.conftest import DATABASES, Applications
from tests.factories import make_user
from tests.variants import dispose

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ScriptDirectory(str(ROOT / "migrations"))


@pytest.fixture(params=DATABASES)
def empty_settings(request: pytest.FixtureRequest, applications: Applications, tmp_path: Path) -> Settings:
    """Of an application whose database holds nothing yet."""
    own = {"OPS_DATA_DIR": str(tmp_path)}
    if request.param == "sqlite":
        own["OPS_DATABASE_URL"] = f"sqlite:///{tmp_path / 'empty.db'}"
    return applications.settings(request.param, **own)


@pytest.fixture
def empty_app(empty_settings: Settings, applications: Applications) -> Iterator[Flask]:
    app = create_app(empty_settings, keys=applications._keys[1])
    with app.app_context():
        yield app
    dispose(app)


def tables() -> set[str]:
    return set(inspect(db.engine).get_table_names()) - {"sqlite_sequence"}


def test_there_is_one_line_of_revisions() -> None:
    assert len(SCRIPTS.get_heads()) == 1
    assert len(SCRIPTS.get_bases()) == 1


def test_every_revision_goes_up_down_and_up_again(empty_app: Flask) -> None:
    revisions = [script.revision for script in reversed(list(SCRIPTS.walk_revisions()))]
    before = [set[str]()]
    for revision in revisions:
        upgrade(revision=revision)
        before.append(tables())
        downgrade(revision="-1")
        assert tables() - {"alembic_version"} == before[-2] - {"alembic_version"}, revision
        upgrade(revision=revision)
        assert tables() == before[-1], revision
    downgrade(revision="base")
    assert tables() == {"alembic_version"}
    upgrade()
    assert tables() == set(Base.metadata.tables) | {"alembic_version"}


def test_the_models_are_in_step_with_the_migrations(app: Flask) -> None:
    with app.app_context(), db.engine.connect() as connection:
        options: dict[str, Any] = {"compare_type": True, "render_as_batch": True}
        context = MigrationContext.configure(connection, opts=options)
        differences = compare_metadata(context, Base.metadata)
    assert differences == []


@pytest.mark.mariadb
@pytest.mark.parametrize("app", ["mariadb"], indirect=True)
def test_names_are_told_apart_in_every_migrated_table(app: Flask) -> None:
    """Alembic does not compare collations, so a revision that wrote `String` for a name would go unseen."""
    statement = text(
        "SELECT table_name, column_name, collation_name FROM information_schema.columns WHERE table_schema = DATABASE()"
    )
    with app.app_context():
        collations = {(row[0], row[1]): row[2] for row in db.session.execute(statement)}
    wrong = [
        f"{table.name}.{column.name} {collations[table.name, column.name]}"
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, Name) and collations[table.name, column.name] != "utf8mb4_nopad_bin"
    ]
    assert wrong == []


@pytest.mark.mariadb
@pytest.mark.parametrize("app", ["mariadb"], indirect=True)
def test_every_table_has_transactions_and_tells_cases_apart(app: Flask) -> None:
    statement = text(
        "SELECT table_name, engine, table_collation FROM information_schema.tables WHERE table_schema = DATABASE()"
    )
    with app.app_context():
        found = {row[0]: (row[1], row[2]) for row in db.session.execute(statement) if row[0] != "alembic_version"}
    assert {name: values for name, values in found.items() if values != ("InnoDB", "utf8mb4_bin")} == {}


# Nothing is lost


def token_count() -> int:
    return len(db.session.execute(select(AccessToken.id)).all())


def rebuild_users(engine: Engine) -> None:
    """What a revision does to a table that others refer to."""
    with engine.connect() as connection, connection.begin():
        operations = Operations(MigrationContext.configure(connection))
        with operations.batch_alter_table("users", recreate="always") as batch:
            batch.create_index("ix_users_phone", ["phone"])


@pytest.fixture
def app_with_token(empty_settings: Settings, applications: Applications) -> Iterator[Flask]:
    app = create_app(empty_settings, keys=applications._keys[1])
    with app.app_context():
        upgrade()
        user = make_user("ada")
        db.session.add(AccessToken(user_id=user.id, name="t", prefix="p", token_hash="h", scopes=["*"]))
        db.session.commit()
        yield app
        db.session.remove()
    dispose(app)


@pytest.mark.parametrize("empty_settings", ["sqlite"], indirect=True)
def test_rebuilding_a_table_keeps_what_refers_to_it(app_with_token: Flask) -> None:
    assert token_count() == 1
    db.session.rollback()
    rebuild_users(migration_engine(ops().settings))
    assert token_count() == 1


@pytest.mark.parametrize("empty_settings", ["sqlite"], indirect=True)
def test_rebuilding_a_table_as_requests_see_it_would_delete_what_refers_to_it(app_with_token: Flask) -> None:
    """The harm: SQLite builds the table anew and drops the old one, which counts as deleting all of its rows."""
    rebuild_users(db.engine)
    assert token_count() == 0


@pytest.mark.parametrize("empty_settings", ["sqlite"], indirect=True)
def test_a_migration_that_leaves_broken_references_behind_fails(
    app_with_token: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    engine = migration_engine(ops().settings)
    with engine.begin() as connection:
        connection.execute(text("UPDATE access_tokens SET user_id = 999"))
    with pytest.raises(SystemExit):
        upgrade()
    assert "1 rows refer to what is not there, the first in table access_tokens" in caplog.text


@pytest.mark.mariadb
@pytest.mark.parametrize("empty_settings", ["mariadb"], indirect=True)
def test_a_slow_migration_is_not_cut_off_as_a_slow_request_is(empty_settings: Settings) -> None:
    hasty = empty_settings.model_copy(
        update={"database": empty_settings.database.model_copy(update={"answer_timeout": 1})}
    )
    with migration_engine(hasty).connect() as connection:
        assert connection.scalar(text("SELECT SLEEP(1.3)")) == 0
    engine = create_engine(hasty.database_url, **engine_options(hasty))
    with pytest.raises(OperationalError) as caught, engine.connect() as connection:
        connection.scalar(text("SELECT SLEEP(1.3)"))
    assert is_away(caught.value)
    engine.dispose()


# One at a time


@contextmanager
def held_lock(settings: Settings) -> Iterator[Callable[[], None]]:
    """Another Manager migrates; answers what ends that."""
    if settings.database_url.startswith("sqlite"):
        with (settings.data_path / "migrate.lock").open("w") as lock:
            flock(lock, LOCK_EX)
            yield lambda: flock(lock, LOCK_UN)
    else:
        engine = create_engine(settings.database_url)
        with engine.connect() as connection:
            assert connection.scalar(text(f"SELECT GET_LOCK({cli.LOCK_NAME}, 0)")) == 1
            yield lambda: connection.execute(text(f"SELECT RELEASE_LOCK({cli.LOCK_NAME})"))
        engine.dispose()


def test_whoever_migrates_makes_others_wait(empty_app: Flask) -> None:
    entered = threading.Event()

    def migrate() -> None:
        with empty_app.app_context(), cli.migration_lock():
            entered.set()

    with held_lock(ops().settings) as release:
        thread = threading.Thread(target=migrate)
        thread.start()
        assert not entered.wait(0.3)
        release()
        assert entered.wait(5)
        thread.join()


def test_the_lock_is_given_back_when_a_migration_fails(empty_app: Flask) -> None:
    with pytest.raises(ZeroDivisionError), cli.migration_lock():
        _ = 1 / 0
    started = time.monotonic()
    with cli.migration_lock():
        assert time.monotonic() - started < 20


def test_waiting_ends_with_a_clear_line(empty_app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "LOCK_WAIT_S", 0.2)
    expected = pytest.raises(click.ClickException, match="has been migrating")
    with held_lock(ops().settings), expected, cli.migration_lock():
        pass


@pytest.mark.slow
def test_two_managers_that_start_at_once_migrate_once_and_make_one_administrator(empty_settings: Settings) -> None:
    environment = os.environ | {
        "OPS_DATA_DIR": empty_settings.data_dir,
        "OPS_KEYS__DIR": empty_settings.keys.dir,
        "OPS_DATABASE_URL": empty_settings.database_url,
        "OPS_REDIS_URL": empty_settings.redis_url,
    }
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "ops", "init", "--json"]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _manager in range(2)
    ]
    outputs = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    starts = [json.loads(output.splitlines()[-1]) for output, _errors in outputs]
    assert sorted(start["admin_created"] for start in starts) == [False, True]
    assert sorted(bool(start["password"]) for start in starts) == [False, True]
    engine = create_engine(empty_settings.database_url)
    prepare_engine(engine)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT COUNT(*) FROM users")) == 1
    engine.dispose()
