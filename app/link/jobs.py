"""What the scheduler has done for the link: who fell silent, which commands came too late, what is old."""

from app.commands import actions as commands
from app.events import actions as events
from app.kernel.db import db
from app.kernel.live_settings import live_settings
from app.link.presence import heard_since
from app.nodes import actions as nodes


def find_silent_nodes() -> None:
    session = db.session()
    nodes.mark_silent_nodes(session, live_settings().node.heartbeat_timeout, heard_since(session))


def expire_commands() -> None:
    commands.expire_overdue(db.session())


def forget_old_events() -> None:
    events.forget_old(db.session(), live_settings().events.retention_days)
