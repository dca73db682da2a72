"""What the scheduler has done for agents: pushes that came to nothing are noted, what is old is forgotten."""

from datetime import timedelta
from functools import partial

from app.agents import actions, configuring, reporting
from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from app.kernel.live_settings import live_settings

NODES_IN_SLICE = 100
SLICES = 200


def settle_lost_pushes() -> None:
    configuring.settle_lost_pushes(db.session())


def forget_old() -> None:
    """In slices, each a transaction of its own; what is left is for the next run."""
    session = db.session()
    days = live_settings().metrics.detail_retention_days
    before_ms = int((now() - timedelta(days=days)).timestamp() * 1000)
    node_id: int | None = 0
    for _ in range(SLICES):
        forget = partial(reporting.forget_points, session, before_ms, node_id or 0, NODES_IN_SLICE)
        node_id = in_transaction(session, forget)
        if node_id is None:
            break
    crashes_until = now() - timedelta(days=live_settings().events.retention_days)
    in_transaction(session, lambda: reporting.forget_crashes(session, crashes_until))
    in_transaction(session, lambda: actions.forget_read_logs(session))
