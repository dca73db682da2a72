"""Reading measurements: one host's history in the right resolution, newest values, the fleet's trend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from app.kernel.clock import now
from app.kernel.live_settings import live_settings
from app.metrics.details import Parts, unpack
from app.metrics.models import (
    DAY_MS,
    DETAILS,
    FIVE_MINUTES_MS,
    HOUR_MS,
    MINUTE_MS,
    POINTS,
    ROLL_UPS,
    VALUES,
    FleetPoint,
    RollUpProgress,
    epoch_ms,
)
from app.metrics.rolling import MOST_NODES, bucket_of, maximum, mean
from app.nodes.models import MEMBERS, Node

Resolution = Literal["auto", "raw", "5m", "1h"]
RAW: Final = 0
STEPS: Final[Mapping[Resolution, int]] = {"raw": RAW, "5m": FIVE_MINUTES_MS, "1h": HOUR_MS}
LONGEST_RAW_MS: Final = 26 * HOUR_MS
LONGEST_5M_MS: Final = 8 * DAY_MS
RECENT_MS: Final = 15 * MINUTE_MS
"""Three times the longest interval: what is older is not how a host is now."""


@dataclass(frozen=True)
class History:
    """Measurements in the order of time, by value. Rolled-up ones are means at the beginning of their buckets, and
    have maxima beside them; a bucket without points is not there.
    """

    step_ms: int
    times: Sequence[int]
    values: Mapping[str, Sequence[Any]]
    maxima: Mapping[str, Sequence[Any]]

    @property
    def resolution(self) -> Resolution:
        return next(name for name, step_ms in STEPS.items() if step_ms == self.step_ms)


def series(
    session: Session,
    node_id: int,
    start: datetime,
    end: datetime,
    resolution: Resolution = "auto",
    *,
    most: int | None = None,
    values: Sequence[str] = VALUES,
    maxima: Sequence[str] = VALUES,
) -> History:
    """One host between two moments, both included. What is not rolled up yet is made of raw points on the way.

    Of more than `most` points one more than that is answered, so that the caller sees it. Fewer values are read faster.
    """
    start_ms, end_ms = epoch_ms(start), epoch_ms(end)
    step_ms = fitting_step(start_ms, end_ms) if resolution == "auto" else STEPS[resolution]
    limit = None if most is None else most + 1
    if step_ms == RAW:
        columns: list[Any] = [POINTS.c.ts, *(POINTS.c[value] for value in values)]
        rows = session.execute(_of_node(select(*columns), POINTS.c, node_id, start_ms, end_ms).limit(limit)).all()
        return _history(RAW, rows, values, ())
    until = session.scalar(select(RollUpProgress.until).where(RollUpProgress.step_ms == step_ms)) or 0
    start_ms -= start_ms % step_ms
    rolled = ROLL_UPS[step_ms].c
    columns = [rolled.ts, *(rolled[value] for value in values), *(rolled[f"{value}_max"] for value in maxima)]
    known = _of_node(select(*columns), rolled, node_id, start_ms, min(end_ms, until - 1)).limit(limit)
    rows = session.execute(known).all() if start_ms < until else []
    if end_ms >= until:
        bucket = bucket_of(step_ms)
        columns = [bucket, *(mean(value) for value in values), *(maximum(value) for value in maxima)]
        fresh = _of_node(select(*columns), POINTS.c, node_id, max(start_ms, until), end_ms, bucket)
        rows = [*rows, *session.execute(fresh.group_by(bucket).limit(limit))]
    return _history(step_ms, rows[:limit], values, maxima)


def fitting_step(start_ms: int, end_ms: int) -> int:
    """The finest resolution that still has the beginning, and not many more points than a chart shows."""
    limits, now_ms = live_settings().metrics, epoch_ms(now())
    if end_ms - start_ms <= LONGEST_RAW_MS and start_ms >= now_ms - limits.retention_days * DAY_MS:
        return RAW
    if end_ms - start_ms <= LONGEST_5M_MS and start_ms >= now_ms - limits.rollup_5m_retention_days * DAY_MS:
        return FIVE_MINUTES_MS
    return HOUR_MS


def _of_node(
    statement: Select[Any], columns: Any, node_id: int, start_ms: int, end_ms: int, order: Any = None
) -> Select[Any]:
    between = statement.where(columns.node_id == node_id, columns.ts >= start_ms, columns.ts <= end_ms)
    return between.order_by(columns.ts if order is None else order)


def _history(step_ms: int, rows: Sequence[Row[Any]], values: Sequence[str], maxima: Sequence[str]) -> History:
    times, *columns = list(zip(*rows, strict=True)) or [()] * (1 + len(values) + len(maxima))
    means, highest = columns[: len(values)], columns[len(values) :]
    return History(step_ms, times, dict(zip(values, means, strict=True)), dict(zip(maxima, highest, strict=True)))


def newest_points(session: Session, node_ids: Sequence[int]) -> dict[int, Row[Any]]:
    """Each host's newest raw point (columns of `metric_points`) by host, without those that were silent of late."""
    present = epoch_ms(now())
    # Bounded on both sides, so that MySQL looks into two partitions instead of all that are made ahead.
    is_recent = POINTS.c.ts.between(present - RECENT_MS, present + DAY_MS)
    found: dict[int, Row[Any]] = {}
    for first in range(0, len(node_ids), MOST_NODES):
        newest = (
            select(POINTS.c.node_id, func.max(POINTS.c.ts).label("ts"))
            .where(POINTS.c.node_id.in_(node_ids[first : first + MOST_NODES]), is_recent)
            .group_by(POINTS.c.node_id)
            .subquery()
        )
        rows = select(POINTS).join(newest, (POINTS.c.node_id == newest.c.node_id) & (POINTS.c.ts == newest.c.ts))
        found |= {row.node_id: row for row in session.execute(rows.where(is_recent))}
    return found


def newest_detail(session: Session, node_id: int) -> Parts | None:
    """The parts behind the newest point that has any."""
    statement = select(DETAILS.c.ts, DETAILS.c.body).where(DETAILS.c.node_id == node_id)
    row = session.execute(statement.order_by(DETAILS.c.ts.desc()).limit(1)).first()
    return None if row is None else unpack(row.ts, row.body)


def details(session: Session, node_id: int, start: datetime, end: datetime, about: int | None = None) -> list[Parts]:
    """The parts behind points between two moments: all, or `about` that many spread evenly over the time."""
    start_ms, end_ms = epoch_ms(start), epoch_ms(end)
    statement = _of_node(select(DETAILS.c.ts, DETAILS.c.body), DETAILS.c, node_id, start_ms, end_ms)
    if about is not None:
        slot = DETAILS.c.ts - DETAILS.c.ts % max(1, (end_ms - start_ms) // about)
        inside = (DETAILS.c.node_id == node_id, DETAILS.c.ts >= start_ms, DETAILS.c.ts <= end_ms)
        shown = select(func.min(DETAILS.c.ts).label("ts")).where(*inside).group_by(slot).subquery()
        statement = statement.join(shown, DETAILS.c.ts == shown.c.ts)
    return [unpack(row.ts, row.body) for row in session.execute(statement)]


def fleet_trend(session: Session, hours: int = 24) -> Sequence[FleetPoint]:
    """Means over all hosts, every five minutes."""
    since = epoch_ms(now()) - hours * HOUR_MS
    return session.scalars(select(FleetPoint).where(FleetPoint.ts >= since).order_by(FleetPoint.ts)).all()


@dataclass(frozen=True)
class NodeNow:
    """A host's state, and its newest point if that is recent (columns of `metric_points`)."""

    uuid: str
    hostname: str
    status: str
    is_in_maintenance: bool
    last_heartbeat: datetime | None
    point: Row[Any] | None


def nodes_metrics_for_prometheus(session: Session) -> list[NodeNow]:
    """All hosts of the fleet, by name."""
    columns = (Node.id, Node.uuid, Node.hostname, Node.status, Node.maintenance_until, Node.last_heartbeat)
    rows = session.execute(select(*columns).where(Node.status.in_(MEMBERS)).order_by(Node.hostname, Node.id)).all()
    newest, present = newest_points(session, [row.id for row in rows]), now()
    return [
        NodeNow(
            uuid=row.uuid,
            hostname=row.hostname,
            status=row.status,
            is_in_maintenance=row.maintenance_until is not None and row.maintenance_until > present,
            last_heartbeat=row.last_heartbeat,
            point=newest.get(row.id),
        )
        for row in rows
    ]
