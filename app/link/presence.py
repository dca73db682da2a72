"""Since when Daemons could reach us without a break; silence before that is nobody's fault but ours."""

import os
import socket
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.kernel.clock import now
from app.link.models import Presence

ALIVE = timedelta(seconds=20)
FORGOTTEN = timedelta(days=1)


def note_presence(session: Session, started_at: datetime) -> None:
    name = f"{socket.gethostname()}:{os.getpid()}"[:128]
    row = session.get(Presence, name)
    if row is None:
        session.add(Presence(name=name, started_at=started_at, seen_at=now()))
        session.execute(delete(Presence).where(Presence.seen_at < now() - FORGOTTEN))
    else:
        row.started_at, row.seen_at = started_at, now()


def heard_since(session: Session) -> datetime:
    """When the longest-lived of the present gateways began to listen; now, if there is none."""
    alive = select(Presence.started_at).where(Presence.seen_at > now() - ALIVE).order_by(Presence.started_at).limit(1)
    return session.scalar(alive) or now()
