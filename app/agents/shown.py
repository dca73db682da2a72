"""What templates of agents need beside words: moments that hosts tell as text, lengths of time, events as a feed."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from flask.sansio.app import App
from flask_babel import format_timedelta

from app.agents.words import FOR_TEMPLATES
from app.events.models import Event
from protocol.times import to_datetime


def moment(value: object) -> datetime | None:
    """A time as a host tells it, or as we know it already; None for what is none."""
    if isinstance(value, datetime):
        return value
    try:
        return to_datetime(value) if isinstance(value, str) else None
    except ValueError:
        return None


def seconds(value: float) -> str:
    return str(format_timedelta(timedelta(seconds=min(abs(value), 1e9)), granularity="second", threshold=1.2))


def events_feed(events: Sequence[Event]) -> list[dict[str, Any]]:
    return [
        {"state": event.state, "at": event.occurred_at, "text": event.sentence, "detail": event.remark}
        for event in events
    ]


def install(app: App) -> None:
    app.jinja_env.globals.update(FOR_TEMPLATES, events_feed=events_feed)
    app.jinja_env.filters.update({"moment": moment, "seconds": seconds})
