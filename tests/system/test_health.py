"""Health, for load balancers and for programs: outside bare, inside enveloped, and alive whatever is gone."""

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import create_engine, text

from app.kernel.db import db
from app.system import queries
from tests.factories import Api
from tests.services import MariaDb, Redis
from tests.variants import MakeApp, emptied, forget

WELL = {"status": "ok", "checks": {"database": "ok", "redis": "ok"}}


def test_outside_it_is_bare(app: Flask) -> None:
    answer = app.test_client().get("/health")
    assert (answer.status_code, answer.mimetype, answer.json) == (200, "application/json", WELL)


def test_inside_it_is_enveloped(app: Flask) -> None:
    answer = Api(app).get("/health")
    assert (answer.status_code, answer.json["code"], answer.json["data"]) == (200, 0, WELL)


def test_alive_is_all_it_says_there(sqlite_app: Flask) -> None:
    answer = sqlite_app.test_client().get("/health/live")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_a_database_that_was_never_migrated_is_not_well(make_app: MakeApp, tmp_path: object) -> None:
    app = make_app(OPS_DATABASE_URL=f"sqlite:///{tmp_path}/empty.db")
    assert app.test_client().get("/health").json["checks"] == {"database": "unreachable", "redis": "ok"}


@pytest.mark.fault
@pytest.mark.mariadb
def test_without_database_and_redis_it_says_so_and_is_still_alive(
    fragile_app: Flask, own_mariadb: MariaDb, own_redis: Redis
) -> None:
    app = emptied(fragile_app)
    client = app.test_client(use_cookies=False)  # so that a Cookie header is sent as it is
    own_mariadb.kill()
    own_redis.kill()
    try:
        found = client.get("/health")
        assert (found.status_code, found.json) == (
            503,
            {"status": "unhealthy", "checks": {"database": "unreachable", "redis": "unreachable"}},
        )
        inside = Api(app).get("/health")
        assert (inside.status_code, inside.json["code"], inside.json["data"]) == (503, 5001, found.json)
        assert int(inside.headers["Retry-After"]) > 0
        for headers in ({}, {"Cookie": "ops_session=x"}, {"Authorization": "Bearer x.y.z"}):
            assert client.get("/health/live", headers=headers).status_code == 200
            assert client.get("/health", headers=headers).status_code == 503
        assert client.get("/metrics").status_code == 200
    finally:
        own_mariadb.start()
        own_redis.start()
    forget(app)
    assert client.get("/health").json == WELL


@pytest.mark.fault
@pytest.mark.mariadb
def test_a_database_that_hangs_makes_health_answer_soon_and_not_hang_too(
    fragile_app: Flask, own_mariadb: MariaDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = emptied(fragile_app)
    app.extensions.pop(queries.PROBE, None)
    monkeypatch.setattr(queries, "PATIENCE_S", 0.5)
    with own_mariadb.paused():
        answer = app.test_client().get("/health")
        assert answer.json["checks"] == {"database": "unreachable", "redis": "ok"}
    assert app.test_client().get("/health").json == WELL
    app.extensions.pop(queries.PROBE, None)


def test_asking_touches_no_connection_of_requests(app: Flask) -> None:
    client: FlaskClient = app.test_client()
    client.get("/health")
    with app.app_context():
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        engine = create_engine(app.config["SQLALCHEMY_DATABASE_URI"])
    if engine.dialect.name == "mysql":
        with engine.connect() as connection:
            rows = connection.execute(text("SHOW PROCESSLIST")).all()
        assert len([row for row in rows if row[3] == engine.url.database and row[4] != "Sleep"]) <= 1
    engine.dispose()
