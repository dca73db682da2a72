"""Whether what the Manager stands on is there, and the numbers that are asked for rather than counted."""

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.kernel.context import ops
from app.kernel.db import db
from app.kernel.errors import AppError
from app.kernel.queue import queue_depths


def health() -> dict[str, str]:
    """`ok` or what is wrong, for each thing we need."""
    return {
        "database": _state(lambda: db.session.execute(text("SELECT 1"))),
        "redis": _state(ops().redis.ping),
    }


def _state(ask: Callable[[], object]) -> str:
    try:
        ask()
    except (AppError, SQLAlchemyError, RedisError, OSError):
        db.session.rollback()
        return "unreachable"
    return "ok"


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
