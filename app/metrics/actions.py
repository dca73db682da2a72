"""Every change of measurements: storing what hosts send, rolling it up, forgetting what is old.

Storing and rolling up agree by the clock alone. A bucket is rolled up three minutes after its end; whoever stores a
point more than two minutes after the end of its bucket says so in `late_buckets`, and the hour is done again. The
minute between is room for transactions that are under way and for clocks of several Managers.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import NamedTuple

from sqlalchemy import Table, delete, func, insert, select
from sqlalchemy.orm import Session

from app.kernel.live_settings import live_settings
from app.metrics import rolling
from app.metrics.details import pack
from app.metrics.models import (
    DAY_MS,
    DETAILS,
    FIVE_MINUTES,
    FIVE_MINUTES_MS,
    FLEET,
    HOUR_MS,
    HOURS,
    MINUTE_MS,
    POINTS,
    ROLL_UPS,
    VALUES,
    FleetPoint,
    LateBucket,
    RollUpProgress,
    epoch_ms,
)
from app.metrics.partitions import drop_partitions
from app.nodes.models import Node
from protocol.metrics import Batch, Point
from protocol.times import to_datetime

LATE_AFTER_MS = 2 * MINUTE_MS
ROLLED_UP_AFTER_MS = 3 * MINUTE_MS
POINTS_IN_SLICE = 12_000
MARKS_IN_SLICE = 200
NODES_IN_SLICE = 500
ROWS_IN_SLICE = 5_000
FURTHEST_FUTURE_MS = DAY_MS

_values_of = attrgetter(*VALUES)
_INSERT_POINTS = {name: rolling.insert_ignoring_known(name, POINTS) for name in ("sqlite", "mysql")}
_INSERT_DETAILS = {name: rolling.insert_ignoring_known(name, DETAILS) for name in ("sqlite", "mysql")}


class Stored(NamedTuple):
    """What became of some batches. `newest` is the latest point of those taken, new or known."""

    acked: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    newest: Point | None
    points_new: int
    points_known: int
    points_refused: int


def store_batches(session: Session, node_id: int, batches: Sequence[Batch], at: datetime) -> Stored:
    """Keep a host's points; what came before is recognised by its time and stays as it was.

    A batch is refused if none of its points lies between the retention and a day ahead. Otherwise it is taken, and
    points of it that lie outside are left out.
    """
    limits, now_ms = live_settings().metrics, epoch_ms(at)
    oldest, latest = now_ms - limits.retention_days * DAY_MS, now_ms + FURTHEST_FUTURE_MS
    taken: list[tuple[int, Point]] = []
    acked, refused, points_refused = [], [], 0
    for batch in batches:
        timed = [(epoch_ms(to_datetime(point.timestamp)), point) for point in batch.points]
        inside = [pair for pair in timed if oldest <= pair[0] <= latest]
        if inside:
            acked.append(batch.id)
            taken += inside
        else:
            refused.append((batch.id, _reason(timed[0][0], oldest)))
        points_refused += len(timed) - len(inside)
    # In the order of the key, so that two requests of one host never wait for each other in a circle.
    taken.sort(key=_time_of)
    points_new = _insert(session, node_id, taken, now_ms, limits.detail_retention_days)
    newest = taken[-1][1] if taken else None
    return Stored(tuple(acked), tuple(refused), newest, points_new, len(taken) - points_new, points_refused)


def _time_of(pair: tuple[int, Point]) -> int:
    return pair[0]


def _reason(ts: int, oldest: int) -> str:
    return "older than the retention" if ts < oldest else "more than a day in the future"


def _insert(session: Session, node_id: int, taken: list[tuple[int, Point]], now_ms: int, detail_days: int) -> int:
    """Answers how many were new. Known ones come only with known ones, after an answer that was lost: no more to do."""
    if not taken:
        return 0
    connection = session.connection()
    dialect = connection.dialect.name
    rows = [(node_id, ts, *_values_of(point)) for ts, point in taken]
    points_new = max(0, connection.exec_driver_sql(_INSERT_POINTS[dialect], rows).rowcount)
    if not points_new:
        return 0
    detailed_from = now_ms - detail_days * DAY_MS
    bodies = [
        (node_id, ts, pack(point, point.detail))
        for ts, point in taken
        if point.detail is not None and ts >= detailed_from
    ]
    if bodies:
        connection.exec_driver_sql(_INSERT_DETAILS[dialect], bodies)
    _mark_late(session, node_id, (ts for ts, _ in taken), now_ms - LATE_AFTER_MS)
    return points_new


def _mark_late(session: Session, node_id: int, times: Iterable[int], ended_before: int) -> None:
    hours = {ts - ts % HOUR_MS for ts in times if ts - ts % FIVE_MINUTES_MS + FIVE_MINUTES_MS <= ended_before}
    if hours:
        session.execute(insert(LateBucket), [{"node_id": node_id, "hour": hour} for hour in sorted(hours)])


def roll_up(session: Session, at: datetime) -> bool:
    """Do the next slice of what is due and answer whether there was any: five minutes, then hours, then what came
    late. To be called again and again, each time in a transaction of its own; any number of callers take turns.
    """
    closed = epoch_ms(at) - ROLLED_UP_AFTER_MS
    progress = {step_ms: _progress(session, step_ms, closed) for step_ms in ROLL_UPS}
    return (
        any(_roll_up_next(session, row, closed - closed % row.step_ms) for row in progress.values())
        or _redo_late_hours(session, progress)
        or _redo_fleet_hour(session, progress[FIVE_MINUTES_MS].until)
    )


def _progress(session: Session, step_ms: int, closed: int) -> RollUpProgress:
    """How far this roll-up is, locked; at the very first time it begins with the oldest point."""
    row = session.get(RollUpProgress, step_ms, with_for_update=True, populate_existing=True)
    if row is None:
        first = session.scalar(select(func.min(POINTS.c.ts)))
        start = closed if first is None else min(first, closed)
        row = RollUpProgress(step_ms=step_ms, until=start - start % step_ms, node_id=0)
        session.add(row)
        session.flush()
    return row


def _roll_up_next(session: Session, progress: RollUpProgress, closed: int) -> bool:
    """One bucket of as many hosts as fit, or if all of them fit, as many buckets as fit."""
    if progress.until >= closed:
        return False
    step_ms, start = progress.step_ms, progress.until
    most = min(rolling.MOST_NODES, POINTS_IN_SLICE * MINUTE_MS // step_ms)
    following = select(Node.id).where(Node.id > progress.node_id).order_by(Node.id).limit(most)
    node_ids = session.scalars(following).all()
    fit = most // max(1, len(node_ids)) if progress.node_id == 0 else 1
    end = min(start + max(1, fit) * step_ms, closed)
    if node_ids:
        rolling.roll_up_nodes(session, step_ms, node_ids, start, end)
    if len(node_ids) == most:
        progress.node_id = node_ids[-1]
    else:
        progress.node_id, progress.until = 0, end
        if step_ms == FIVE_MINUTES_MS:
            rolling.roll_up_fleet(session, start, end)
    session.flush()
    return True


def _redo_late_hours(session: Session, progress: Mapping[int, RollUpProgress]) -> bool:
    """Roll up again the hours that got points too late, and note which hours of the fleet change thereby.

    Nothing is half done at this time: `roll_up` comes here only after it has caught up for all hosts.
    """
    oldest_first = select(LateBucket.id, LateBucket.node_id, LateBucket.hour).where(LateBucket.node_id != FLEET)
    marks = session.execute(oldest_first.order_by(LateBucket.id).limit(MARKS_IN_SLICE)).all()
    if not marks:
        return False
    for (start, end), node_ids in _stretches({(mark.node_id, mark.hour) for mark in marks}).items():
        for step_ms, row in progress.items():
            # What lies behind will be rolled up for the first time, and with these points.
            redo_until = min(end, row.until)
            if start < redo_until:
                rolling.roll_up_nodes(session, step_ms, node_ids, start, redo_until)
    session.execute(delete(LateBucket).where(LateBucket.id.in_([mark.id for mark in marks])))
    hours = sorted({mark.hour for mark in marks})
    session.execute(insert(LateBucket), [{"node_id": FLEET, "hour": hour} for hour in hours])
    return True


def _stretches(late: set[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """Hours without a break between them as one stretch, with all hosts that have exactly this one."""
    found: dict[tuple[int, int], list[int]] = {}
    open_node, start, end = 0, 0, 0
    for node_id, hour in [*sorted(late), (0, 0)]:
        if (node_id, hour) == (open_node, end):
            end += HOUR_MS
            continue
        if open_node:
            found.setdefault((start, end), []).append(open_node)
        open_node, start, end = node_id, hour, hour + HOUR_MS
    return found


def _redo_fleet_hour(session: Session, until: int) -> bool:
    hour = session.scalar(select(LateBucket.hour).where(LateBucket.node_id == FLEET).limit(1))
    if hour is None:
        return False
    rolling.roll_up_fleet(session, hour, min(hour + HOUR_MS, until))
    session.execute(delete(LateBucket).where(LateBucket.node_id == FLEET, LateBucket.hour == hour))
    return True


def cutoffs(session: Session, at: datetime) -> dict[Table, int]:
    """Before which moment each table is forgotten: whole days, and no raw point before it was rolled up."""
    limits, now_ms = live_settings().metrics, epoch_ms(at)
    until = session.scalar(select(RollUpProgress.until).where(RollUpProgress.step_ms == HOUR_MS)) or 0
    days = {
        POINTS: limits.retention_days,
        DETAILS: limits.detail_retention_days,
        FIVE_MINUTES: limits.rollup_5m_retention_days,
        HOURS: limits.rollup_1h_retention_days,
    }
    ends = {table: now_ms - kept * DAY_MS for table, kept in days.items()}
    ends[POINTS] = min(ends[POINTS], until)
    return {table: end - end % DAY_MS for table, end in ends.items()}


def forget_old(session: Session, table: Table, before_ms: int, after_node: int = 0) -> int | None:
    """Forget what a table has from before a moment; answers after which host to go on, None when all is done.

    MySQL drops whole partitions. SQLite deletes a bounded number of rows, a host's day at a time, so that nobody who
    stores points waits for long.
    """
    if session.get_bind().dialect.name != "sqlite":
        drop_partitions(session.connection(), table.name, before_ms)
        return None
    forgotten, node_id = 0, after_node
    for _ in range(NODES_IN_SLICE):
        following = select(table.c.node_id, table.c.ts).where(table.c.node_id > node_id)
        oldest = session.execute(following.order_by(table.c.node_id, table.c.ts).limit(1)).first()
        if oldest is None:
            return None
        end = min(before_ms, oldest.ts - oldest.ts % DAY_MS + DAY_MS)
        old = delete(table).where(table.c.node_id == oldest.node_id, table.c.ts < end)
        if oldest.ts < end:
            forgotten += session.connection().execute(old).rowcount
        is_through = oldest.ts >= before_ms or end == before_ms
        node_id = oldest.node_id if is_through else oldest.node_id - 1
        if forgotten >= ROWS_IN_SLICE:
            break
    return node_id


def forget_old_fleet_points(session: Session, before_ms: int) -> None:
    session.execute(delete(FleetPoint).where(FleetPoint.ts < before_ms))
