"""The timeline for programs. One node's own timeline is at the node."""

from app.events import queries
from app.events.models import Event
from app.events.schemas import EventOut, EventQuery
from app.kernel.api import ApiRoom, Listing
from app.kernel.db import db
from app.kernel.paging import Page

api = ApiRoom("events", "Events")


@api.get(
    "/events",
    permission="events.read",
    summary="What happened, newest first",
    query=EventQuery,
    returns=Listing[EventOut],
)
def list_events(query: EventQuery) -> Page[Event]:
    return queries.events(db.session(), query)
