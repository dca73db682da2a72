"""Reading the timeline."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from app.events.models import Event
from app.events.schemas import EventQuery
from app.kernel.clock import now
from app.kernel.paging import Page, paginate, sort_keys

SORTABLE = {
    "id": Event.id,
    "occurred_at": Event.occurred_at,
    "created_at": Event.created_at,
    "kind": Event.kind,
    "severity": Event.severity,
    "hostname": Event.hostname,
}
CHUNK = 500
MOST_EXPORTED = 1_000_000


def events(session: Session, query: EventQuery) -> Page[Event]:
    """A page of the timeline, in the order in which the Manager heard of things."""
    return paginate(session, _filtered(query), query, SORTABLE, "-id")


def exported_events(session: Session, query: EventQuery) -> Iterator[Event]:
    statement = _filtered(query).order_by(*sort_keys(query.sort or "-id", SORTABLE, "-id")).limit(MOST_EXPORTED)
    for row in session.scalars(statement.execution_options(yield_per=CHUNK)):
        yield row
        session.expunge(row)


def recent_events(session: Session, limit: int, node_id: int | None = None) -> Sequence[Event]:
    statement = select(Event).order_by(Event.id.desc()).limit(limit)
    return session.scalars(statement if node_id is None else statement.where(Event.node_id == node_id)).all()


def recent_troubles(session: Session, limit: int) -> Sequence[Event]:
    """The newest things that somebody should look at."""
    found: list[Event] = []
    for severity in ("critical", "warning"):  # each by its index: the timeline is long and troubles are few
        statement = select(Event).where(Event.severity == severity).order_by(Event.id.desc()).limit(limit)
        found += session.scalars(statement)
    return sorted(found, key=lambda event: event.id, reverse=True)[:limit]


def known_kinds(session: Session) -> list[str]:
    """The kinds that occur, for the filter. Walks the index from one to the next instead of reading every row."""
    found: list[str] = []
    while len(found) < 200:
        kind = session.scalar(select(func.min(Event.kind)).where(Event.kind > (found[-1] if found else "")))
        if kind is None:
            break
        found.append(kind)
    return found


def _filtered(query: EventQuery) -> Select[Event]:
    statement = select(Event)
    for column, wanted in (
        (Event.kind, query.kind),
        (Event.severity, query.severity),
        (Event.source, query.source),
        (Event.node_id, query.node_id),
    ):
        if wanted is not None:
            statement = statement.where(column == wanted)
    if query.hours:
        statement = statement.where(Event.occurred_at >= now() - timedelta(hours=query.hours))
    if query.start:
        statement = statement.where(Event.occurred_at >= query.start)
    if query.end:
        statement = statement.where(Event.occurred_at < query.end)
    if query.keyword:
        words = (Event.hostname, Event.kind, Event.message)
        statement = statement.where(or_(*(column.icontains(query.keyword, autoescape=True) for column in words)))
    return statement
