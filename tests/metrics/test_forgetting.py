"""What is older than its retention goes, nothing else does, and hosts store their points meanwhile."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from flask import Flask
from sqlalchemy import Table, select

from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from app.kernel.live_settings import live_settings
from app.metrics import actions, jobs
from app.metrics.models import (
    DAY_MS,
    DETAILS,
    FIVE_MINUTES,
    HOUR_MS,
    HOURS,
    POINTS,
    FleetPoint,
    RollUpProgress,
    epoch_ms,
)
from app.metrics.partitions import WIDTHS
from tests.metrics.builders import DETAIL, batch, make_node, point, put, raw_times, store

pytestmark = pytest.mark.usefixtures("context")
DAY = timedelta(days=1)
TABLES = (POINTS, DETAILS, FIVE_MINUTES, HOURS)


def keep(table: Table) -> int:
    """Days that this table is kept by default."""
    limits = live_settings().metrics
    return {
        POINTS: limits.retention_days,
        DETAILS: limits.detail_retention_days,
        FIVE_MINUTES: limits.rollup_5m_retention_days,
        HOURS: limits.rollup_1h_retention_days,
    }[table]


def times(table: Table, node_id: int) -> list[int]:
    found = list(db.session.scalars(select(table.c.ts).where(table.c.node_id == node_id).order_by(table.c.ts)))
    db.session.rollback()
    return found


def roll_up_is_at(ts: int) -> None:
    in_transaction(db.session(), lambda: db.session.add(RollUpProgress(step_ms=HOUR_MS, until=ts, node_id=0)))


def partition(table: Table) -> None:
    """As on a Manager that has run for years: partitions for all the time that a test looks at."""
    if db.engine.dialect.name != "mysql":
        return
    present, width = epoch_ms(now()), WIDTHS[table.name]
    first = present - (keep(table) + 8) * DAY_MS
    ends = range(first - first % width, present + 2 * width, width)
    parts = ", ".join(f"PARTITION t{end} VALUES LESS THAN ({end})" for end in ends)
    change = f"PARTITION BY RANGE (ts) ({parts}, PARTITION rest VALUES LESS THAN MAXVALUE)"
    with db.engine.connect() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {table.name} {change}")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_nothing_inside_the_retention_goes_and_what_is_older_does(table: Table):
    """On MySQL a partition goes when all of it is old, so what is up to one width older may still be there."""
    partition(table)
    present, kept_ms = epoch_ms(now()), keep(table) * DAY_MS
    width = DAY_MS if db.engine.dialect.name == "sqlite" else WIDTHS[table.name]
    inside = [present - kept_ms, present - kept_ms + 1, present - kept_ms // 2, present]
    outside = [present - kept_ms - width - DAY_MS - n * HOUR_MS for n in range(30)]
    node_id = make_node()
    put(table, node_id, inside + outside)
    roll_up_is_at(present)
    jobs.clean_up()
    assert times(table, node_id) == sorted(inside)


def test_the_cutoff_is_the_beginning_of_a_day():
    present = now()
    roll_up_is_at(epoch_ms(present))
    for table, before_ms in actions.cutoffs(db.session(), present).items():
        assert before_ms % DAY_MS == 0
        assert 0 <= epoch_ms(present) - keep(table) * DAY_MS - before_ms < DAY_MS


def test_raw_points_wait_until_they_are_rolled_up():
    present = now()
    old = epoch_ms(present) - 40 * DAY_MS
    roll_up_is_at(old)
    assert actions.cutoffs(db.session(), present)[POINTS] == old - old % DAY_MS


def test_nothing_raw_goes_before_the_first_roll_up():
    assert actions.cutoffs(db.session(), now())[POINTS] == 0


def test_fleet_points_go_with_the_five_minutes():
    present = epoch_ms(now())
    ages = (0, 89, 92)

    def fill() -> None:
        db.session.add_all(FleetPoint(ts=present - age * DAY_MS, nodes=1) for age in ages)

    in_transaction(db.session(), fill)
    roll_up_is_at(present)
    jobs.clean_up()
    kept = sorted(present - ts for ts in db.session.scalars(select(FleetPoint.ts)))
    assert kept == [0, 89 * DAY_MS]


def test_hosts_store_points_while_old_ones_go(app: Flask, monkeypatch: pytest.MonkeyPatch):
    """A second connection goes on storing; none of its transactions waits for more than a slice."""
    partition(POINTS)
    monkeypatch.setattr(jobs, "LEAST_PAUSE_S", 0.01)
    present = epoch_ms(now())
    nodes = [make_node(f"h{n}") for n in range(40)]
    old = present - 35 * DAY_MS
    for node_id in nodes:
        put(POINTS, node_id, [old - n * 60_000 for n in range(1440)])
    roll_up_is_at(present)
    writer, is_over = make_node("writer"), threading.Event()

    def write() -> list[float]:
        """Seconds that each check-in took."""
        taken = []
        with app.app_context():
            while not is_over.wait(0.002):
                began, at = time.perf_counter(), now() + timedelta(milliseconds=len(taken))
                store(writer, batch(point(at, detail=DETAIL), name=f"b{len(taken)}"), at=at)
                taken.append(time.perf_counter() - began)
        return taken

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            jobs.clean_up()
        finally:
            is_over.set()
        taken = writing.result()
    assert [times(POINTS, node_id) for node_id in nodes] == [[]] * 40
    assert len(raw_times(writer)) == len(taken) >= 3
    assert max(taken) < 1.0
