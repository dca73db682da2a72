"""Whether what the Manager stands on is there, and the numbers that are asked for rather than counted."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from flask import current_app
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from sqlalchemy import func, select, table
from sqlalchemy.exc import SQLAlchemyError

from app.kernel.context import ops
from app.kernel.db import db, probe_engine, reading
from app.kernel.errors import AppError
from app.kernel.queue import queue_depths
from app.nodes.models import STATUSES
from app.nodes.queries import status_counts

PROBE = "health_probe"
PATIENCE_S = 3.0
REVISIONS = table("alembic_version")
"""A table that is there once the database was migrated."""


def health() -> dict[str, Any]:
    """`ok`, or which of the things we need is not there."""
    checks = {"database": _state(_ask_database), "redis": _state(ops().redis.ping)}
    return {"status": "ok" if set(checks.values()) == {"ok"} else "unhealthy", "checks": checks}


def _state(ask: Callable[[], object]) -> str:
    try:
        ask()
    except (AppError, SQLAlchemyError, RedisError, OSError):
        return "unreachable"
    return "ok"


def _ask_database() -> None:
    """On a connection of its own, which neither waits behind requests nor as long as they may."""
    engine = current_app.extensions.get(PROBE)
    if engine is None:
        engine = current_app.extensions[PROBE] = probe_engine(ops().settings, PATIENCE_S)
    with reading(), engine.connect() as connection:
        connection.execute(select(func.count()).select_from(REVISIONS))


class PresentNumbers(Collector):
    """Gauges that are looked up when Prometheus asks. What cannot be looked up is left out, not invented."""

    def collect(self) -> Iterator[Metric]:
        with suppress(RedisError):
            depths = queue_depths(ops().redis)
            yield _gauge("manager_queue_depth", "Jobs that wait in a queue.", "queue", depths)
        try:
            counts = dict.fromkeys(STATUSES, 0) | status_counts(db.session())
        except (AppError, SQLAlchemyError):
            db.session.rollback()
            return
        yield _gauge("manager_nodes_total", "Nodes by status.", "status", counts)


def _gauge(name: str, meaning: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
