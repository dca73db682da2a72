"""Whether what the Manager stands on is there, and the numbers that are asked for rather than counted."""

from collections.abc import Callable, Iterator
from typing import Any

from flask import current_app
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from sqlalchemy import func, select, table
from sqlalchemy.exc import SQLAlchemyError

from app.kernel.context import ops
from app.kernel.db import probe_engine, reading
from app.kernel.errors import AppError
from app.kernel.queue import queue_depths

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
        depth = GaugeMetricFamily("manager_queue_depth", "Jobs that wait in a queue.", labels=["queue"])
        try:
            for queue, jobs in queue_depths(ops().redis).items():
                depth.add_metric([queue], jobs)
        except RedisError:
            return
        yield depth
