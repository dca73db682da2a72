"""The statements that roll up: whole sets of hosts and buckets at once, and doing one again changes nothing.

When which of them is due is the business of `actions`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import ColumnElement, Double, Insert, Select, Table, bindparam, func, select
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.orm import Session

from app.metrics.models import FIVE_MINUTES, FLEET_POINTS, POINTS, ROLL_UPS, VALUES

MOST_NODES: Final = 800
"""Hosts in one statement. MariaDB reads a list of a thousand as a table to be joined, and then every row of a host."""

FLEET_VALUES: Final = tuple(column.name for column in FLEET_POINTS.columns if column.name not in ("ts", "nodes"))


def roll_up_nodes(session: Session, step_ms: int, node_ids: Sequence[int], start: int, end: int) -> None:
    """(Re)make the buckets between two moments of at most MOST_NODES hosts out of their raw points.

    A bucket never loses points thereby: where raw ones were forgotten already, the bucket that knew them stays.
    """
    statement = _node_statement(session.get_bind().dialect.name, step_ms)
    session.execute(statement, {"nodes": list(node_ids), "start": start, "end": end})


def roll_up_fleet(session: Session, start: int, end: int) -> None:
    """(Re)make the fleet's means between two moments out of the hosts' five minutes."""
    session.execute(_fleet_statement(session.get_bind().dialect.name), {"start": start, "end": end})


def mean(value: str) -> ColumnElement[float | None]:
    """A float: MySQL's own means of whole numbers are decimal ones."""
    return func.avg(POINTS.c[value], type_=Double()).label(value)


def maximum(value: str) -> ColumnElement[Any]:
    return func.max(POINTS.c[value]).label(f"{value}_max")


def bucket_of(step_ms: int) -> ColumnElement[int]:
    return (POINTS.c.ts - POINTS.c.ts % step_ms).label("bucket")


@cache
def _node_statement(dialect: str, step_ms: int) -> Insert:
    bucket = bucket_of(step_ms)
    made = (
        select(POINTS.c.node_id, bucket, func.count(), *(part(value) for value in VALUES for part in (mean, maximum)))
        .where(POINTS.c.node_id.in_(bindparam("nodes", expanding=True)))
        .where(POINTS.c.ts >= bindparam("start"), POINTS.c.ts < bindparam("end"))
        .group_by(POINTS.c.node_id, bucket)
    )
    return _put_unless_poorer(dialect, ROLL_UPS[step_ms], made, "points")


@cache
def _fleet_statement(dialect: str) -> Insert:
    row = FIVE_MINUTES.c
    made = (
        select(row.ts, func.count(), *(func.avg(row[value]) for value in FLEET_VALUES))
        .where(row.ts >= bindparam("start"), row.ts < bindparam("end"))
        .group_by(row.ts)
    )
    return _put_unless_poorer(dialect, FLEET_POINTS, made, "nodes")


def _put_unless_poorer(dialect: str, table: Table, made: Select[Any], count: str) -> Insert:
    """Insert rows, or replace those of the same key unless they were made of more than these."""
    names = [column.name for column in table.columns]
    changed = [column.name for column in table.columns if not column.primary_key and column.name != count]
    if dialect == "sqlite":
        put = sqlite.insert(table).from_select(names, made)
        return put.on_conflict_do_update(
            index_elements=[column.name for column in table.primary_key],
            set_={name: put.excluded[name] for name in [*changed, count]},
            where=put.excluded[count] >= table.c[count],
        )
    replace = mysql.insert(table).from_select(names, made)
    is_richer = replace.inserted[count] >= table.c[count]
    chosen = [(name, func.if_(is_richer, replace.inserted[name], table.c[name])) for name in changed]
    # Changes happen from left to right, so what they depend on comes last.
    return replace.on_duplicate_key_update([*chosen, (count, func.greatest(replace.inserted[count], table.c[count]))])


def insert_ignoring_known(dialect: str, table: Table) -> str:
    """Driver's own words for a bulk of rows; those whose key is there already stay as they are."""
    placeholder, verb = ("?", "INSERT OR IGNORE") if dialect == "sqlite" else ("%s", "INSERT IGNORE")
    names = [column.name for column in table.columns]
    return f"{verb} INTO {table.name} ({', '.join(names)}) VALUES ({', '.join([placeholder] * len(names))})"
