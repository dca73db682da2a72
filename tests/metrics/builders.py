"""Hosts and what they measure, as tests need them."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Table, func, insert, select

from app.kernel.db import db, in_transaction
from app.metrics.actions import Stored, roll_up, store_batches
from app.metrics.models import POINTS, moment_of
from app.nodes.models import ONLINE, Node
from protocol.metrics import Batch, Detail, DiskIo, Gpu, Interface, Mount, Point
from protocol.times import to_text

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
DETAIL = Detail(
    cores=(12.5, 99.0, 0.0, 41.25),
    mounts=(
        Mount("/", "/dev/vda1", "ext4", 100 * 2**30, 40 * 2**30, 40.0),
        Mount("/srv", "/dev/vdb1", "xfs", 900 * 2**30, 855 * 2**30, 95.0),
    ),
    interfaces=(Interface("eth0", 10**9, 2 * 10**9, 10**6, 10**6, 1, 2, 3, 4, 1000.5, 2000.0),),
    disk_io=(DiskIo("vda", 10**9, 10**9, 10**5, 10**5, 4096.0, 8192.0, 3.5),),
    gpu=None,
    missing=(),
)
CARD = Gpu(0, "A100", 88.0, 30 * 2**30, 40 * 2**30, 61.0, 250.5)


def make_node(hostname: str = "web-1", **values: Any) -> int:
    """A host of the fleet, committed; answers its number. Needs an application context."""
    session = db.session()
    given = {"uuid": f"{hostname:0>36}"[-36:], "status": ONLINE, "swap_total": 2**31} | values
    node = Node(hostname=hostname, **given)

    def make() -> int:
        session.add(node)
        session.flush()
        return node.id

    return in_transaction(session, make)


def point(at: datetime, **values: Any) -> Point:
    """A measurement that looks like one; what is given wins."""
    usual: dict[str, Any] = dict.fromkeys(Point._fields)
    usual |= {
        "timestamp": to_text(at.timestamp()),
        "uptime_s": 86400.0,
        "cpu_usage": 12.5,
        "memory_usage": 50.0,
        "memory_total": 16 * 2**30,
        "memory_used": 8 * 2**30,
        "memory_available": 8 * 2**30,
        "memory_cached": 2 * 2**30,
        "swap_total": 2**31,
        "swap_used": 2**20,
        "disk_usage": 75.5,
        "disk_total": 1000 * 2**30,
        "disk_used": 755 * 2**30,
        "network_rx": 1000.5,
        "network_tx": 2000.25,
        "load_avg_1": 0.5,
        "load_avg_5": 0.25,
        "load_avg_15": 0.125,
        "process_count": 120,
        "tcp_connections": 40,
    }
    return Point(**(usual | values))


def batch(*points: Point, name: str = "b1") -> Batch:
    return Batch(name, points)


def store(node_id: int, *batches: Batch, at: datetime = NOON) -> Stored:
    """What a check-in does, committed."""
    session = db.session()
    return in_transaction(session, lambda: store_batches(session, node_id, batches, at))


def store_every_minute(node_id: int, start: datetime, minutes: int, at: datetime | None = None, **values: Any) -> None:
    """Stored in time unless `at` says otherwise."""
    points = [point(start + timedelta(minutes=n), **values) for n in range(minutes)]
    for first in range(0, minutes, 100):
        some = points[first : first + 100]
        store(node_id, Batch(f"b{first}", tuple(some)), at=at or start + timedelta(minutes=first + len(some)))


def put(table: Table, node_id: int, times: Iterable[int]) -> None:
    """Rows of which only the time matters, committed."""
    more: dict[str, Any] = {"metric_details": {"body": b"[]"}, "metric_5m": {"points": 1}, "metric_1h": {"points": 1}}
    rows = [{"node_id": node_id, "ts": ts, **more.get(table.name, {})} for ts in times]
    in_transaction(db.session(), lambda: db.session.execute(insert(table), rows))


def roll_up_all(at: datetime) -> int:
    """Every slice that is due, each in a transaction of its own; answers how many there were."""
    session, slices = db.session(), 0
    while in_transaction(session, lambda: roll_up(session, at)):
        slices += 1
    return slices


def raw_times(node_id: int) -> list[datetime]:
    rows = db.session.scalars(select(POINTS.c.ts).where(POINTS.c.node_id == node_id).order_by(POINTS.c.ts)).all()
    db.session.rollback()
    return [moment_of(ts) for ts in rows]


def count(table: Any) -> int:
    found = db.session.scalar(select(func.count()).select_from(table)) or 0
    db.session.rollback()
    return found
