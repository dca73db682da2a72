"""Fixtures that everybody shares: private servers, and an application over each kind of database."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_migrate import upgrade
from sqlalchemy import Connection, text

from app.audit.models import GENESIS_HASH
from app.factory import create_app
from app.kernel.db import Base, db, set_reads_only
from app.kernel.logs import log_context
from app.kernel.secrets import Keys, create_missing_keys, load_keys
from config import Settings, load_settings
from tests.factories import Api, api_as, make_user
from tests.services import MariaDb, Redis

DATABASES = ("sqlite", pytest.param("mariadb", marks=pytest.mark.mariadb))


@pytest.fixture(autouse=True)
def forget_the_last_request() -> None:
    """What a request leaves in its context ends with it on a server; in a test it would reach the next one."""
    log_context.set({})
    set_reads_only(False)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDb]:
    if reason := MariaDb.why_unavailable():
        pytest.skip(reason)
    with MariaDb() as server:
        yield server


@pytest.fixture(scope="session")
def test_keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Keys]:
    """Keys are made once; every application of the run shares them."""
    settings = load_settings([], {"OPS_DATA_DIR": str(tmp_path_factory.mktemp("keys"))})
    create_missing_keys(settings)
    return settings.keys_path, load_keys(settings)


class Applications:
    """One migrated application for each kind of database, emptied before each test."""

    def __init__(self, request: pytest.FixtureRequest, base: Path, keys: tuple[Path, Keys], redis: Redis) -> None:
        self._request, self._base, self._keys, self._redis = request, base, keys, redis
        self._made: dict[str, Flask] = {}

    def settings(self, kind: str, **environment: str) -> Settings:
        data = self._base / kind
        data.mkdir(exist_ok=True)
        given = {"OPS_DATA_DIR": str(data), "OPS_KEYS__DIR": str(self._keys[0]), "OPS_REDIS_URL": self._redis.url}
        if kind == "mariadb":
            server: MariaDb = self._request.getfixturevalue("mariadb_server")
            given["OPS_DATABASE_URL"] = server.create_database()
        return load_settings([], given | environment)

    def over(self, server: MariaDb) -> Flask:
        """A new application over a database server of the caller's."""
        settings = self.settings("own", OPS_DATABASE_URL=server.create_database())
        app = create_app(settings, keys=self._keys[1])
        app.testing = True
        with app.app_context():
            upgrade()
        return app

    def empty(self, kind: str) -> Flask:
        if kind not in self._made:
            app = create_app(self.settings(kind), keys=self._keys[1])
            app.testing = True
            with app.app_context():
                upgrade()
            self._made[kind] = app
        app = self._made[kind]
        with app.app_context():
            wipe()
        self._redis.wipe()
        for name in ("live_settings", "local_counters"):
            app.extensions.pop(name, None)
        (self._base / kind / "audit-checkpoints.jsonl").unlink(missing_ok=True)
        return app


def wipe() -> None:
    """Every table empty again, the audit log back at its beginning."""
    db.session.remove()
    with db.engine.begin() as connection:
        # A tree's rows refer to each other, and InnoDB looks at every row by itself.
        _check_references(connection, False)
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
        _check_references(connection, True)
        head = "INSERT INTO audit_head (id, sequence, hash, seal) VALUES (1, 0, :hash, '')"
        connection.execute(text(head), {"hash": GENESIS_HASH})


def _check_references(connection: Connection, is_on: bool) -> None:
    if connection.dialect.name == "mysql":
        connection.execute(text(f"SET FOREIGN_KEY_CHECKS = {int(is_on)}"))


@pytest.fixture(scope="session")
def applications(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, test_keys: Any, redis_server: Redis
) -> Iterator[Applications]:
    base = tmp_path_factory.mktemp("applications")
    yield Applications(request, base, test_keys, redis_server)
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(params=DATABASES)
def app(request: pytest.FixtureRequest, applications: Applications) -> Flask:
    """An application with empty tables; the test runs once for each kind of database."""
    return applications.empty(request.param)


@pytest.fixture
def sqlite_app(applications: Applications) -> Flask:
    """For what does not depend on the database."""
    return applications.empty("sqlite")


@pytest.fixture
def context(app: Flask) -> Iterator[Flask]:
    with app.app_context():
        yield app
        db.session.rollback()


@pytest.fixture
def cast(app: Flask) -> dict[str, Api]:
    """The fixed cast: one user of each role, each signed in to the API."""
    with app.app_context():
        for name, role in (("alice", "admin"), ("oscar", "operator"), ("vera", "viewer")):
            make_user(name, role)
    return {name: api_as(app, name) for name in ("alice", "oscar", "vera")}
