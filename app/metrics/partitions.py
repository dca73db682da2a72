"""Partitions by time on MySQL and MariaDB: days to come are made ahead, days that are over are dropped whole.

Whatever no partition was made for goes into the last one, `rest`, so a point never lacks a place. Other databases have
no partitions, and nothing here is called for them.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from app.kernel.db import is_deadlock
from app.metrics.models import DAY_MS, DETAILS, FIVE_MINUTES, HOURS, POINTS

log = logging.getLogger(__name__)

WIDTHS: Final = {
    POINTS.name: DAY_MS,
    DETAILS.name: DAY_MS,
    FIVE_MINUTES.name: 7 * DAY_MS,
    HOURS.name: 28 * DAY_MS,
}
AHEAD: Final = 7
LAST: Final = "PARTITION rest VALUES LESS THAN MAXVALUE"
LONGEST_WAIT_S: Final = 1


class Partition(NamedTuple):
    """One partition; it holds times before `end`, and None means: whatever comes."""

    name: str
    end: int | None


def partitions(connection: Connection, table: str) -> list[Partition]:
    """In their order; none if the table is not partitioned at all."""
    rows = connection.execute(
        text(
            "SELECT partition_name AS name, partition_description AS bound FROM information_schema.partitions"
            " WHERE table_schema = DATABASE() AND table_name = :table AND partition_name IS NOT NULL"
            " ORDER BY partition_ordinal_position"
        ),
        {"table": table},
    )
    return [Partition(row.name, None if row.bound == "MAXVALUE" else int(row.bound)) for row in rows]


def create_partitions(connection: Connection, table: str, now_ms: int) -> None:
    """Make what will be needed for some time to come. It is cheap as long as nothing has got into `rest` meanwhile."""
    width, found = WIDTHS[table], partitions(connection, table)
    today = now_ms - now_ms % width
    last = max((one.end for one in found if one.end is not None), default=today)
    ends = range(last + width, today + (AHEAD + 1) * width + 1, width)
    if not ends and found:
        return
    wanted = ", ".join([*(f"PARTITION {_name(end)} VALUES LESS THAN ({end})" for end in ends), LAST])
    if found:
        _alter(connection, table, f"REORGANIZE PARTITION rest INTO ({wanted})")
    else:
        _alter(connection, table, f"PARTITION BY RANGE (ts) ({wanted})")


def drop_partitions(connection: Connection, table: str, before_ms: int) -> Sequence[str]:
    """Drop those that hold nothing from `before_ms` on; answers their names."""
    names = [one.name for one in partitions(connection, table) if one.end is not None and one.end <= before_ms]
    if names and _alter(connection, table, f"DROP PARTITION {', '.join(names)}"):
        log.info("dropped %s of %s", ", ".join(names), table)
        return names
    return ()


def _name(end: int) -> str:
    """After the last day in it."""
    return f"p{datetime.fromtimestamp(end / 1000 - 1, UTC):%Y%m%d}"


def _alter(connection: Connection, table: str, change: str) -> bool:
    """Change a table, unless somebody reads it for long: everybody else would queue behind us. Then it is left to the
    next time. Commits whatever is open, as every change of a table does.
    """
    connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {LONGEST_WAIT_S}")
    try:
        connection.exec_driver_sql(f"ALTER TABLE {table} {change}")
    except OperationalError as error:
        if not is_deadlock(error):
            raise
        log.info("%s is in use, its partitions are left as they are for now", table)
        return False
    finally:
        connection.exec_driver_sql("SET SESSION lock_wait_timeout = DEFAULT")
    return True
