"""Writing events."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.events.models import Event
from app.kernel.clock import now


def note(
    session: Session,
    kind: str,
    message: str,
    *,
    node_id: int | None = None,
    hostname: str = "",
    severity: str = "info",
    data: Mapping[str, Any] | None = None,
    occurred_at: datetime | None = None,
) -> Event:
    """Put something that happened on the timeline, in the transaction in which it happened."""
    event = Event(
        kind=kind,
        message=message,
        node_id=node_id,
        hostname=hostname,
        severity=severity,
        data=dict(data) if data else None,
        occurred_at=occurred_at or now(),
    )
    session.add(event)
    return event


def forget_old(session: Session, keep_days: int) -> None:
    session.execute(delete(Event).where(Event.created_at < now() - timedelta(days=keep_days)))
