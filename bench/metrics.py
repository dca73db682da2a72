"""What measurements cost: `python -m bench.metrics`.

Check-ins of one point as hosts send them every minute, the roll-up of a fleet, ninety days of one host as a chart,
every host's newest values for Prometheus, and clean-up; on SQLite and on a private MariaDB, in this process and without
HTTP.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from flask import Flask
from flask_migrate import upgrade
from sqlalchemy import Table, insert, select, text

from app.factory import create_app
from app.kernel.clock import now
from app.kernel.db import db, in_transaction, reading
from app.metrics import actions, queries
from app.metrics.charts import charted, latest, node_charts
from app.metrics.models import (
    DAY_MS,
    FIVE_MINUTES_MS,
    HOUR_MS,
    MINUTE_MS,
    POINTS,
    ROLL_UPS,
    VALUES,
    RollUpProgress,
    epoch_ms,
    moment_of,
)
from app.metrics.partitions import WIDTHS, create_partitions
from app.metrics.prometheus import exposition
from app.nodes.models import ONLINE, Node
from bench.foundation import machine
from bench.mariadb import GrownMariaDb
from config import load_settings
from protocol.metrics import Batch, Detail, DiskIo, Interface, Mount, Point
from protocol.times import to_text

CHUNK = 5000
VALUES_OF_A_HOST = (12.5, 50.0, 2**33, 2**34, 2**20, 75.5, 2**39, 1000.5, 2000.5, 0.5, 0.25, 0.125, 120, 40)
READ_HOST = text("SELECT id, status, lease FROM nodes WHERE id = :host")
CHANGE_HOST = text("UPDATE nodes SET last_cpu_usage = :usage WHERE id = :host")
chance = random.Random(1)


class Cost(NamedTuple):
    """Milliseconds: of the processor in this process, and by the clock."""

    cpu: float
    p50: float
    p95: float
    most: float


def measured(work: Callable[[], object], times: int) -> Cost:
    taken, cpu = [], time.process_time()
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - began))
    cpu = 1000 * (time.process_time() - cpu) / times
    taken.sort()
    return Cost(cpu, taken[times // 2], taken[times * 95 // 100], taken[-1])


def say(what: str, cost: Cost) -> None:
    print(f"  {what:58}{cost.cpu:9.2f}{cost.p50:9.2f}{cost.p95:9.2f}{cost.most:9.2f}", flush=True)


def detail() -> Detail:
    """Eight cores, three mounts, two interfaces, two disks."""

    def big() -> int:
        return chance.randrange(10**12)

    def rate() -> float:
        return round(chance.random() * 1e6, 1)

    return Detail(
        tuple(round(chance.random() * 100, 2) for _ in range(8)),
        tuple(Mount(f"/m{n}", f"/dev/vd{n}", "ext4", big(), big(), 40.25) for n in range(3)),
        tuple(Interface(f"eth{n}", big(), big(), big(), big(), 0, 0, 0, 0, rate(), rate()) for n in range(2)),
        tuple(DiskIo(f"vd{n}", big(), big(), big(), big(), rate(), rate(), 3.5) for n in range(2)),
        None,
        (),
    )


def point(at: datetime) -> Point:
    values = dict.fromkeys(Point._fields) | dict(zip(VALUES, VALUES_OF_A_HOST, strict=True))
    values |= {"timestamp": to_text(at.timestamp()), "cpu_usage": round(chance.random() * 100, 2), "detail": detail()}
    return Point(**values)  # type: ignore[arg-type]


def make_nodes(count: int) -> list[int]:
    session = db.session()
    have = session.scalar(select(text("COUNT(*)")).select_from(Node)) or 0
    for first in range(have, count, CHUNK):
        session.execute(
            insert(Node),
            [
                {"uuid": f"{n:036}", "hostname": f"host-{n:05}", "status": ONLINE, "last_metrics_at": now()}
                for n in range(first, min(count, first + CHUNK))
            ],
        )
    found = list(session.scalars(select(Node.id).order_by(Node.id)))
    session.commit()
    return found


def fill(table: Table, node_ids: Sequence[int], times: Sequence[int]) -> int:
    """Rows for each host and time, past the product."""
    width = len(table.columns) - 2
    row = VALUES_OF_A_HOST if table is POINTS else (1, *(value for value in VALUES_OF_A_HOST for _ in range(2)))
    assert len(row) == width
    mark = "?" if db.engine.dialect.name == "sqlite" else "%s"
    statement = f"INSERT INTO {table.name} VALUES ({', '.join([mark] * (width + 2))})"
    # By time, as points come; and each time all hosts.
    rows = ((node_id, ts, *row) for ts in times for node_id in node_ids)
    done = 0
    while some := list(islice(rows, CHUNK)):
        with db.engine.begin() as connection:
            connection.exec_driver_sql(statement, some)
        done += len(some)
    return done


def checkins(node_ids: Sequence[int], times: int) -> None:
    """Each with its commit, as hosts see it; with what any check-in does to the host's row, and without."""
    session, start = db.session(), now() - timedelta(minutes=1)
    told = iter([Batch(f"b{n}", (point(start + timedelta(milliseconds=n)),)) for n in range(2 * times)])

    def store() -> None:
        batch = next(told)
        in_transaction(session, lambda: actions.store_batches(session, chance.choice(node_ids), (batch,), now()))

    def whole() -> None:
        batch, node_id = next(told), chance.choice(node_ids)

        def take() -> None:
            session.execute(READ_HOST, {"host": node_id}).one()
            stored = actions.store_batches(session, node_id, (batch,), now())
            assert stored.newest is not None
            session.execute(CHANGE_HOST, {"host": node_id, "usage": stored.newest.cpu_usage})

        in_transaction(session, take)

    def nothing() -> None:
        in_transaction(session, lambda: session.execute(text("SELECT 1")))

    say("an empty transaction, for comparison", measured(nothing, times))
    say("store a point with its parts, and commit", measured(store, times))
    say("the same with reading and updating the host's row", measured(whole, times))
    again = Batch("again", (point(start - timedelta(hours=1)),))
    in_transaction(session, lambda: actions.store_batches(session, node_ids[0], (again,), now()))
    repeat = partial(actions.store_batches, session, node_ids[0], (again,), now())
    say("a batch that is known already, and commit", measured(lambda: in_transaction(session, repeat), times))
    backlog = iter(
        [Batch(f"c{n}", tuple(point(start - timedelta(minutes=100 * n + m)) for m in range(100))) for n in range(1, 31)]
    )

    def late() -> None:
        some = (next(backlog),)
        in_transaction(session, lambda: actions.store_batches(session, node_ids[1], some, now()))

    say("100 points of a backlog in a batch, and commit", measured(late, 30))


def roll_ups(nodes: int) -> None:
    """One hour of a fleet at a point a minute: twelve buckets of five minutes and one of an hour."""
    node_ids, session = make_nodes(nodes), db.session()
    hour = epoch_ms(now()) // HOUR_MS * HOUR_MS - 2 * HOUR_MS
    start_over(dict.fromkeys(ROLL_UPS, hour))
    fill(POINTS, node_ids, range(hour, hour + HOUR_MS, MINUTE_MS))
    if db.engine.dialect.name == "mysql":
        db.session.execute(text("ANALYZE TABLE metric_points"))
        db.session.commit()
    until = moment_of(hour + HOUR_MS + actions.ROLLED_UP_AFTER_MS)
    slices: list[float] = []
    for step_ms, name in ((FIVE_MINUTES_MS, "five minutes"), (HOUR_MS, "an hour")):
        slices.clear()
        while _until(step_ms) < hour + HOUR_MS:
            began = time.perf_counter()
            in_transaction(session, lambda: actions.roll_up(session, until))
            slices.append(1000 * (time.perf_counter() - began))
        buckets = HOUR_MS // step_ms
        print(
            f"  roll up {name} of {nodes:,} hosts{'':20}{sum(slices) / buckets:8.0f} ms in"
            f" {len(slices) / buckets:.0f} slices, the longest {max(slices):.0f} ms",
            flush=True,
        )


def start_over(progress: dict[int, int]) -> None:
    """Without any measurement, rolled up until these moments."""
    with db.engine.begin() as connection:
        for table in (*WIDTHS, "late_buckets", "roll_up_progress"):
            connection.execute(text(f"DELETE FROM {table}"))
        rows = [{"step_ms": step_ms, "until": until, "node_id": 0} for step_ms, until in progress.items()]
        connection.execute(insert(RollUpProgress), rows)


def _until(step_ms: int) -> int:
    until = db.session.scalar(select(RollUpProgress.until).where(RollUpProgress.step_ms == step_ms)) or 0
    db.session.rollback()
    return until


def charts(app: Flask, node_ids: Sequence[int]) -> None:
    """Ninety days of one host out of a hundred with as much history."""
    present = epoch_ms(now())
    hours = range(present // HOUR_MS * HOUR_MS - 90 * DAY_MS, present - 2 * HOUR_MS, HOUR_MS)
    fives = range(present // HOUR_MS * HOUR_MS - 7 * DAY_MS, present - HOUR_MS, FIVE_MINUTES_MS)
    start_over({HOUR_MS: hours[-1] + HOUR_MS, FIVE_MINUTES_MS: fives[-1] + FIVE_MINUTES_MS})
    fill(ROLL_UPS[HOUR_MS], node_ids[:100], hours)
    fill(ROLL_UPS[FIVE_MINUTES_MS], node_ids[:100], fives)
    fill(POINTS, node_ids[:100], [present - n * MINUTE_MS for n in range(1440)][::-1])
    for span in ("1h", "24h", "7d", "90d"):
        _chart(app, node_ids[50], span)


def _chart(app: Flask, node_id: int, span: str) -> None:
    window, session = latest(span), db.session()

    def ask() -> None:
        charted(session, node_id, window)
        session.rollback()

    history = queries.series(session, node_id, window.start, window.end)
    say(f"read {span} of a host: {len(history.times):,} points, {history.resolution}", measured(ask, 50))
    node = session.get_one(Node, node_id)
    with app.test_request_context():
        say(f"read and draw seven charts of {span}", measured(lambda: node_charts(session, node, window), 20))
    session.rollback()


def prometheus(nodes: int) -> None:
    node_ids, session = make_nodes(nodes), db.session()
    present = epoch_ms(now())
    fill(POINTS, node_ids, [present - n * MINUTE_MS - 7 for n in range(5)][::-1])
    size = 0

    def ask() -> None:
        nonlocal size
        size = sum(len(part) for part in exposition(queries.nodes_metrics_for_prometheus(session)))
        session.rollback()

    cost = measured(ask, 5)
    say(f"newest values of {nodes:,} hosts for Prometheus, {size / 1e6:.0f} MB", cost)


def clean_up(node_ids: Sequence[int]) -> None:
    """A day of a hundred hosts."""
    session = db.session()
    day = epoch_ms(now()) // DAY_MS * DAY_MS - 40 * DAY_MS
    if db.engine.dialect.name == "mysql":
        with db.engine.connect() as connection:
            bounds = f"PARTITION old VALUES LESS THAN ({day + DAY_MS}), PARTITION rest VALUES LESS THAN MAXVALUE"
            connection.exec_driver_sql(f"ALTER TABLE metric_points PARTITION BY RANGE (ts) ({bounds})")
    rows = fill(POINTS, node_ids[:100], range(day, day + DAY_MS, MINUTE_MS))
    slices: list[float] = []
    place: int | None = 0
    while place is not None:
        began = time.perf_counter()
        work = partial(actions.forget_old, session, POINTS, day + DAY_MS, place)
        place = in_transaction(session, work)
        slices.append(1000 * (time.perf_counter() - began))
    print(f"  forget {rows:,} points in {len(slices)} slices: {sum(slices):.0f} ms, the longest {max(slices):.0f} ms")


@contextmanager
def database_of(kind: str) -> Iterator[str]:
    """A URL; empty for SQLite in the data directory."""
    if kind == "sqlite":
        yield ""
        return
    with GrownMariaDb() as server:
        yield server.create_database()


@contextmanager
def application(kind: str) -> Iterator[Flask]:
    directory = Path(tempfile.mkdtemp(prefix="ops-bench-"))
    try:
        with database_of(kind) as url:
            given = {"OPS_DATA_DIR": str(directory), "OPS_LOG__LEVEL": "warning"}
            app = create_app(load_settings([], given | ({"OPS_DATABASE_URL": url} if url else {})))
            with app.app_context():
                upgrade()
                if url:
                    with db.engine.connect() as connection:
                        for table in WIDTHS:
                            create_partitions(connection, table, epoch_ms(now()))
                yield app
                db.session.remove()
                db.engine.dispose()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run(kind: str, times: int, fleets: Sequence[int]) -> None:
    with application(kind) as app:
        version = db.session.scalar(text("SELECT VERSION()" if kind == "mariadb" else "SELECT sqlite_version()"))
        print(f"\n{kind} {version}\n{'':60}{'cpu ms':>9}{'p50 ms':>9}{'p95 ms':>9}{'most':>9}")
        node_ids = make_nodes(fleets[0])
        checkins(node_ids, times)
        for nodes in fleets:
            roll_ups(nodes)
        with reading():
            prometheus(fleets[-1])
        charts(app, node_ids)
        clean_up(node_ids)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.metrics", description=__doc__)
    parser.add_argument("--times", type=int, default=1000, help="check-ins of each kind")
    parser.add_argument("--fleets", type=int, nargs="+", default=[1000, 10_000], help="hosts that are rolled up")
    parser.add_argument("--database", choices=("sqlite", "mariadb", "both"), default="both")
    options = parser.parse_args(arguments)
    print(machine())
    for kind in ("sqlite", "mariadb") if options.database == "both" else (options.database,):
        if kind == "mariadb" and (reason := GrownMariaDb.why_unavailable()):
            print(f"\nmariadb: left out, {reason}")
            continue
        run(kind, options.times, options.fleets)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
