"""Applications with settings of their own, and servers that a test may stop and pause without harm to other tests."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask_migrate import upgrade
from sqlalchemy import func, select, text

from app.factory import create_app
from app.kernel.db import Base, db
from tests.conftest import Applications, wipe
from tests.services import MariaDb, Redis

MakeApp = Callable[..., Flask]


def build(
    applications: Applications,
    prepare: Callable[[Flask], object] = lambda _app: None,
    kind: str = "sqlite",
    **environment: str,
) -> Flask:
    """An application over the emptied database of a kind, with settings: `OPS_LOG__LEVEL="debug"`.

    `prepare` may add routes to it, which Flask allows only before the first request.
    """
    url = applications.empty(kind).config["SQLALCHEMY_DATABASE_URI"]
    settings = applications.settings("sqlite", **({"OPS_DATABASE_URL": url} | environment))
    app = create_app(settings, keys=applications._keys[1])
    app.testing = True
    prepare(app)
    return app


@pytest.fixture
def make_app(applications: Applications) -> Iterator[MakeApp]:
    """`build`, with what was built disposed of at the end."""
    made: list[Flask] = []

    def make(*arguments: Any, **named: Any) -> Flask:
        made.append(build(applications, *arguments, **named))
        return made[-1]

    yield make
    for app in made:
        dispose(app)


@pytest.fixture(scope="module")
def own_redis() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture(scope="module")
def own_mariadb() -> Iterator[MariaDb]:
    if reason := MariaDb.why_unavailable():
        pytest.skip(reason)
    with MariaDb(durable=True) as server:
        yield server


@pytest.fixture(scope="module")
def fragile_app(applications: Applications, own_mariadb: MariaDb, own_redis: Redis) -> Iterator[Flask]:
    """An application whose servers belong to this module's tests. Each leaves them running."""
    environment = {
        "OPS_DATABASE_URL": own_mariadb.create_database(),
        "OPS_REDIS_URL": own_redis.url,
        "OPS_DATABASE__ANSWER_TIMEOUT": "1s",
    }
    app = create_app(applications.settings("sqlite", **environment), keys=applications._keys[1])
    app.testing = True
    with app.app_context():
        upgrade()
    yield app
    dispose(app)


def emptied(app: Flask) -> Flask:
    """The same application as if it had just been made."""
    with app.app_context():
        wipe()
        app.extensions["ops"].redis.flushall()
    forget(app)
    return app


def forget(app: Flask) -> None:
    for name in ("live_settings", "local_counters"):
        app.extensions.pop(name, None)


def dispose(app: Flask) -> None:
    with app.app_context():
        db.engine.dispose()
    app.extensions["ops"].redis.close()


def count_rows(app: Flask, table: str) -> int:
    with app.app_context():
        return int(db.session.scalar(text(f"SELECT COUNT(*) FROM {table}")) or 0)


TABLES = {"token_id": "access_tokens", "row_id": "audit_logs", "session_id": "user_sessions"}


def existing_id(parameter: str) -> int | None:
    """The newest row that `<id:user_id>` and the like may mean, by the name of the table. Needs a context."""
    table = Base.metadata.tables.get(TABLES.get(parameter, parameter.removesuffix("_id") + "s"))
    return None if table is None else db.session.scalar(select(func.max(table.c.id)))
