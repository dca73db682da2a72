"""What the scheduler has done to measurements: rolled up, forgotten, partitions made.

Work is done in slices, each in a transaction of its own and with a pause after it, so that hosts can store their points
meanwhile. A job ends after some seconds even if work is left: other jobs wait for the worker too, and the next run goes
on where this one ended.
"""

import time
from collections.abc import Iterator
from functools import partial

from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from app.metrics import actions
from app.metrics.models import FIVE_MINUTES, epoch_ms
from app.metrics.partitions import WIDTHS, create_partitions

BUDGET_S = 5.0
LEAST_PAUSE_S = 0.06
"""Longer than another process sleeps between two looks whether SQLite is free."""


def roll_up() -> None:
    session = db.session()
    for _ in _turns():
        if not in_transaction(session, lambda: actions.roll_up(session, now())):
            break


def clean_up() -> None:
    session = db.session()
    cutoffs = in_transaction(session, lambda: actions.cutoffs(session, now()))
    in_transaction(session, lambda: actions.forget_old_fleet_points(session, cutoffs[FIVE_MINUTES]))
    left, node_id = list(cutoffs.items()), 0
    for _ in _turns():
        table, before_ms = left[0]
        place = in_transaction(session, partial(actions.forget_old, session, table, before_ms, node_id))
        node_id = place or 0
        if place is None:
            left.pop(0)
        if not left:
            break


def keep_partitions() -> None:
    """Days to come get their partitions, on databases that have them."""
    session = db.session()
    if session.get_bind().dialect.name == "mysql":
        for table in WIDTHS:
            create_partitions(session.connection(), table, epoch_ms(now()))


def _turns() -> Iterator[None]:
    """Turns with pauses between them, each as long as the turn was, until time is up."""
    ends_at = time.monotonic() + BUDGET_S
    while True:
        began = time.monotonic()
        yield
        if time.monotonic() > ends_at:
            return
        time.sleep(max(LEAST_PAUSE_S, time.monotonic() - began))
