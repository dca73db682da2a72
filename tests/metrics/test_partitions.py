"""Partitions on MariaDB: made ahead, used by queries, dropped whole, and never in anybody's way for long."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from flask import Flask
from sqlalchemy import Connection, insert, select, text

from app.kernel.clock import now
from app.kernel.db import db
from app.metrics import jobs
from app.metrics.models import DAY_MS, FIVE_MINUTES, HOURS, POINTS, epoch_ms
from app.metrics.partitions import AHEAD, WIDTHS, create_partitions, drop_partitions, partitions
from tests.conftest import Applications

pytestmark = pytest.mark.mariadb
PRESENT = 1_795_176_000_000  # 2026-11-20 12:00 UTC
TODAY = PRESENT - PRESENT % DAY_MS
ONE_PARTITION = "PARTITION BY RANGE (ts) (PARTITION rest VALUES LESS THAN MAXVALUE)"


@pytest.fixture
def connection(applications: Applications) -> Iterator[Connection]:
    app = applications.empty("mariadb")
    with app.app_context(), db.engine.connect() as opened:
        for table in WIDTHS:
            opened.exec_driver_sql(f"ALTER TABLE {table} {ONE_PARTITION}")
        yield opened
        opened.rollback()


@pytest.fixture
def app(connection: Connection, applications: Applications) -> Flask:
    return applications.empty("mariadb")


def ends(connection: Connection, table: str) -> list[int | None]:
    found = [one.end for one in partitions(connection, table)]
    connection.rollback()
    return found


def put(connection: Connection, *times: int) -> None:
    connection.execute(insert(POINTS), [{"node_id": 1, "ts": ts} for ts in times])
    connection.commit()


def rows_by_partition(connection: Connection) -> dict[str, int]:
    names = [one.name for one in partitions(connection, "metric_points")]
    found = {
        name: connection.scalar(text(f"SELECT COUNT(*) FROM metric_points PARTITION ({name})")) or 0 for name in names
    }
    connection.rollback()
    return {name: rows for name, rows in found.items() if rows}


@pytest.mark.parametrize("table", WIDTHS)
def test_a_migrated_table_has_the_one_partition_that_takes_everything(connection: Connection, table: str):
    assert ends(connection, table) == [None]


@pytest.mark.parametrize("table", WIDTHS)
def test_today_and_some_time_ahead_get_partitions(connection: Connection, table: str):
    create_partitions(connection, table, PRESENT)
    width = WIDTHS[table]
    first = PRESENT - PRESENT % width + width
    assert ends(connection, table) == [*(first + n * width for n in range(AHEAD + 1)), None]


def test_names_tell_the_last_day(connection: Connection):
    create_partitions(connection, "metric_points", PRESENT)
    names = [one.name for one in partitions(connection, "metric_points")]
    assert names[:2] == ["p20261120", "p20261121"]
    assert names[-1] == "rest"


def test_a_second_time_changes_nothing_and_the_next_day_adds_one(connection: Connection):
    create_partitions(connection, "metric_points", PRESENT)
    before = ends(connection, "metric_points")
    create_partitions(connection, "metric_points", PRESENT)
    assert ends(connection, "metric_points") == before
    create_partitions(connection, "metric_points", PRESENT + DAY_MS)
    assert ends(connection, "metric_points") == [*before[:-1], (before[-2] or 0) + DAY_MS, None]


def test_points_from_a_time_without_partitions_find_their_place_later(connection: Connection):
    put(connection, TODAY - 5 * DAY_MS, TODAY, TODAY + DAY_MS)
    assert rows_by_partition(connection) == {"rest": 3}
    create_partitions(connection, "metric_points", PRESENT)
    assert rows_by_partition(connection) == {"p20261120": 2, "p20261121": 1}


def test_days_that_nobody_made_are_made_up_for(connection: Connection):
    create_partitions(connection, "metric_points", PRESENT)
    late = TODAY + 30 * DAY_MS
    put(connection, late)
    create_partitions(connection, "metric_points", late)
    assert rows_by_partition(connection) == {"p20261220": 1}
    assert len(ends(connection, "metric_points")) == 30 + AHEAD + 2


def test_a_table_that_lost_its_partitions_gets_them_back(connection: Connection):
    connection.exec_driver_sql("ALTER TABLE metric_points REMOVE PARTITIONING")
    put(connection, TODAY)
    create_partitions(connection, "metric_points", PRESENT)
    assert rows_by_partition(connection) == {"p20261120": 1}


def test_only_what_is_over_as_a_whole_is_dropped(connection: Connection):
    create_partitions(connection, "metric_points", PRESENT)
    put(connection, TODAY, TODAY + DAY_MS - 1, TODAY + DAY_MS, TODAY + 2 * DAY_MS)
    assert drop_partitions(connection, "metric_points", TODAY + DAY_MS - 1) == ()
    assert drop_partitions(connection, "metric_points", TODAY + DAY_MS) == ["p20261120"]
    left = connection.scalars(select(POINTS.c.ts).order_by(POINTS.c.ts)).all()
    assert left == [TODAY + DAY_MS, TODAY + 2 * DAY_MS]


def test_the_last_one_is_never_dropped(connection: Connection):
    put(connection, TODAY)
    assert drop_partitions(connection, "metric_points", TODAY + 999 * DAY_MS) == ()
    assert rows_by_partition(connection) == {"rest": 1}


def test_a_chart_reads_only_the_days_it_shows(connection: Connection):
    create_partitions(connection, "metric_points", PRESENT)
    question = select(POINTS).where(
        POINTS.c.node_id == 1, POINTS.c.ts >= TODAY + DAY_MS, POINTS.c.ts <= TODAY + 2 * DAY_MS
    )
    asked = question.compile(connection, compile_kwargs={"literal_binds": True})
    plan = connection.execute(text(f"EXPLAIN PARTITIONS {asked}")).one()
    assert plan.partitions == "p20261121,p20261122"
    assert plan.key == "PRIMARY"


def test_who_waits_for_a_reader_gives_up_and_lets_the_others_pass(connection: Connection, app: Flask):
    """A reader in a long transaction holds the table; the drop is left to the next time."""
    create_partitions(connection, "metric_points", PRESENT)
    with db.engine.connect() as reader:
        reader.execute(select(POINTS).limit(1)).all()
        assert drop_partitions(connection, "metric_points", TODAY + DAY_MS) == ()
        reader.rollback()
    assert drop_partitions(connection, "metric_points", TODAY + DAY_MS) == ["p20261120"]
    assert connection.scalar(text("SELECT @@SESSION.lock_wait_timeout")) > 1


def test_the_job_cares_for_every_table(connection: Connection, app: Flask):
    with app.app_context():
        jobs.keep_partitions()
        db.session.rollback()
    for table in (POINTS, FIVE_MINUTES, HOURS):
        last = ends(connection, table.name)[-2]
        assert last is not None
        assert last > epoch_ms(now() + timedelta(days=AHEAD))


def test_elsewhere_the_job_has_nothing_to_do(sqlite_app: Flask):
    with sqlite_app.app_context():
        jobs.keep_partitions()
