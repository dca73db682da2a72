"""What the scheduler has done for the link: who fell silent, which commands came too late, what is old."""

import logging
import time
from datetime import timedelta
from functools import partial

from app.commands import actions as commands
from app.commands import sweeping
from app.events import actions as events
from app.kernel.clock import now
from app.kernel.db import db, in_transaction, is_away, reading
from app.kernel.live_settings import live_settings
from app.link.presence import heard_since
from app.nodes import actions as nodes

log = logging.getLogger(__name__)
BUDGET_S = 5.0
PAUSE_S = 0.06
"""Longer than another process sleeps between two looks whether SQLite is free."""


def find_silent_nodes() -> None:
    session = db.session()
    nodes.mark_silent_nodes(session, live_settings().node.heartbeat_timeout, heard_since(session))


def expire_commands() -> None:
    commands.expire_overdue(db.session())


def sweep_fanouts() -> None:
    """Each in a transaction of its own, so that a mistake in one of them does not hold up the others."""
    session = db.session()
    with reading():
        due, since = in_transaction(session, lambda: (sweeping.fanouts_to_sweep(session, now()), heard_since(session)))
    for fanout_id in due:
        try:
            in_transaction(session, partial(sweeping.sweep_fanout, session, fanout_id, since))
        except Exception as error:
            if is_away(error):
                raise
            log.exception("fan-out %d could not be swept", fanout_id)


def forget_old_commands() -> None:
    """In slices, each with its commit: a run over a whole fleet has many rows. What is left is for the next time."""
    session, ends_at = db.session(), time.monotonic() + BUDGET_S
    before = now() - timedelta(days=live_settings().tasks.retention_days)
    while in_transaction(session, lambda: commands.forget_old(session, before)) and time.monotonic() < ends_at:
        time.sleep(PAUSE_S)


def forget_old_events() -> None:
    events.forget_old(db.session(), live_settings().events.retention_days)
