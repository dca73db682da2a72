"""Tables of measurements: raw points, the parts behind them, and their means over five minutes and an hour.

Times are epoch milliseconds. The key is the host and the time: one host's history lies together, and a point that comes
twice is recognised by it. On MySQL and MariaDB the tables are partitioned by time (see `partitions`), which is why
nothing refers to `nodes`.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Double, Float, Index, Integer, LargeBinary, Table
from sqlalchemy.dialects.mysql import MEDIUMBLOB
from sqlalchemy.orm import Mapped, mapped_column

from app.kernel.db import TABLE_OPTIONS, Base
from app.kernel.types import BigId

MINUTE_MS: Final = 60_000
FIVE_MINUTES_MS: Final = 5 * MINUTE_MS
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

KEYED_BY_TIME: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mysql_partition_by": "RANGE (ts) (PARTITION rest VALUES LESS THAN MAXVALUE)",
    "sqlite_with_rowid": False,
}
"""Options of tables whose key is the host and the time."""


def epoch_ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _MILLISECOND


def moment_of(ts: int) -> datetime:
    return _EPOCH + ts * _MILLISECOND


class MetricPoint(Base):
    """One measurement of one host, as it came. What could not be read is null."""

    __tablename__ = "metric_points"
    __table_args__ = KEYED_BY_TIME

    node_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    ts: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    cpu_usage: Mapped[float | None] = mapped_column(Float)
    memory_usage: Mapped[float | None] = mapped_column(Float)
    memory_used: Mapped[int | None] = mapped_column(BigInteger)
    memory_total: Mapped[int | None] = mapped_column(BigInteger)
    swap_used: Mapped[int | None] = mapped_column(BigInteger)
    disk_usage: Mapped[float | None] = mapped_column(Float)
    disk_used: Mapped[int | None] = mapped_column(BigInteger)
    network_rx: Mapped[float | None] = mapped_column(Double)
    network_tx: Mapped[float | None] = mapped_column(Double)
    load_avg_1: Mapped[float | None] = mapped_column(Float)
    load_avg_5: Mapped[float | None] = mapped_column(Float)
    load_avg_15: Mapped[float | None] = mapped_column(Float)
    process_count: Mapped[int | None] = mapped_column(Integer)
    tcp_connections: Mapped[int | None] = mapped_column(Integer)


POINTS: Final = Base.metadata.tables[MetricPoint.__tablename__]
VALUES: Final = tuple(column.name for column in POINTS.columns if not column.primary_key)
"""What is measured, in the order of the columns."""


class MetricDetail(Base):
    """The parts behind a point (cores, mounts, interfaces …), packed by `details`."""

    __tablename__ = "metric_details"
    __table_args__ = KEYED_BY_TIME

    node_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    ts: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    body: Mapped[bytes] = mapped_column(LargeBinary().with_variant(MEDIUMBLOB(), "mysql"))


DETAILS: Final = Base.metadata.tables[MetricDetail.__tablename__]


def _roll_up_table(name: str) -> Table:
    """A bucket's first moment, how many points it has, and of each value the mean (under its own name) and maximum."""
    columns: list[Column[Any]] = [
        Column("node_id", BigInteger, primary_key=True, autoincrement=False),
        Column("ts", BigInteger, primary_key=True, autoincrement=False),
        Column("points", Integer, nullable=False),
    ]
    for value in VALUES:
        raw_type = POINTS.c[value].type
        mean_type = Double() if isinstance(raw_type, BigInteger | Double) else Float()
        columns += [Column(value, mean_type), Column(f"{value}_max", raw_type)]
    return Table(name, Base.metadata, *columns, **KEYED_BY_TIME)


FIVE_MINUTES: Final = _roll_up_table("metric_5m")
HOURS: Final = _roll_up_table("metric_1h")
ROLL_UPS: Final = {FIVE_MINUTES_MS: FIVE_MINUTES, HOUR_MS: HOURS}
"""By the length of their buckets."""

# Holds all that the fleet's mean is made of, so that it never has to look at the rows of ten thousand hosts.
Index("ix_metric_5m_ts", *(FIVE_MINUTES.c[name] for name in ("ts", "cpu_usage", "memory_usage", "disk_usage")))


class FleetPoint(Base):
    """Means over all hosts that were measured in these five minutes."""

    __tablename__ = "fleet_points"
    __table_args__ = {
        name: value for name, value in KEYED_BY_TIME.items() if name not in ("mysql_partition_by", "sqlite_with_rowid")
    }

    ts: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    nodes: Mapped[int] = mapped_column(Integer)
    cpu_usage: Mapped[float | None] = mapped_column(Float)
    memory_usage: Mapped[float | None] = mapped_column(Float)
    disk_usage: Mapped[float | None] = mapped_column(Float)


FLEET_POINTS: Final = Base.metadata.tables[FleetPoint.__tablename__]
FLEET: Final = 0
"""Stands for the whole fleet where a node's number is expected."""


class LateBucket(Base):
    """An hour of a host that got points after it was rolled up, or may have been. One row for each time it happened:
    rows are only added and removed, so those who store points never wait for the one who rolls up.
    """

    __tablename__ = "late_buckets"
    __table_args__ = TABLE_OPTIONS

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    node_id: Mapped[int] = mapped_column(BigInteger)
    hour: Mapped[int] = mapped_column(BigInteger)


class RollUpProgress(Base):
    """How far a roll-up has come: every host has its buckets before `until`, and hosts up to `node_id` the next one."""

    __tablename__ = "roll_up_progress"
    __table_args__ = TABLE_OPTIONS

    step_ms: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    until: Mapped[int] = mapped_column(BigInteger)
    node_id: Mapped[int] = mapped_column(BigInteger, default=0)
