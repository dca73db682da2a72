"""The slow way: roll-ups worked out in plain Python from what was sent."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import pytest
from sqlalchemy import select

from app.kernel.db import db
from app.metrics.models import FIVE_MINUTES_MS, ROLL_UPS, VALUES, FleetPoint, epoch_ms
from protocol.metrics import Point
from protocol.times import to_datetime

Sent = Mapping[int, Iterable[Point]]


def buckets(sent: Sent, step_ms: int, until: int) -> dict[tuple[int, int], list[Point]]:
    """Points by host and bucket, each time once: the first one told wins."""
    found: dict[tuple[int, int], dict[int, Point]] = defaultdict(dict)
    for node_id, points in sent.items():
        for point in points:
            ts = epoch_ms(to_datetime(point.timestamp))
            if ts < until:
                found[node_id, ts // step_ms * step_ms].setdefault(ts, point)
    return {key: list(points.values()) for key, points in found.items()}


def rolled(points: list[Point]) -> dict[str, Any]:
    row: dict[str, Any] = {"points": len(points)}
    for value in VALUES:
        known = [number for point in points if (number := getattr(point, value)) is not None]
        row[value] = fmean(known) if known else None
        row[f"{value}_max"] = max(known) if known else None
    return row


def nearly(value: float | None) -> Any:
    """MySQL's FLOAT has seven digits, of which it shows six."""
    return None if value is None else pytest.approx(value, rel=1e-5)


def assert_rolled_up(sent: Sent, until: Mapping[int, int]) -> None:
    """Every table of roll-ups, and the fleet's means, are what the points say."""
    for step_ms, table in ROLL_UPS.items():
        wanted = {key: rolled(points) for key, points in buckets(sent, step_ms, until[step_ms]).items()}
        rows = db.session.execute(select(table).where(table.c.ts < until[step_ms])).all()
        assert {(row.node_id, row.ts) for row in rows} == set(wanted)
        for row in rows:
            for name, value in wanted[row.node_id, row.ts].items():
                assert getattr(row, name) == nearly(value), (table.name, row.node_id, row.ts, name)
    _assert_fleet(sent, until[FIVE_MINUTES_MS])
    db.session.rollback()


def _assert_fleet(sent: Sent, until: int) -> None:
    by_bucket: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for (_node_id, ts), points in buckets(sent, FIVE_MINUTES_MS, until).items():
        by_bucket[ts].append(rolled(points))
    found = {row.ts: row for row in db.session.scalars(select(FleetPoint).where(FleetPoint.ts < until))}
    assert set(found) == set(by_bucket)
    for ts, rows in by_bucket.items():
        assert found[ts].nodes == len(rows)
        for value in ("cpu_usage", "memory_usage", "disk_usage"):
            known = [row[value] for row in rows if row[value] is not None]
            assert getattr(found[ts], value) == nearly(fmean(known) if known else None)
