"""The timeline of the whole fleet for people: filters, export, refreshing itself."""

from typing import Any

from flask import Blueprint, request, url_for
from flask_babel import lazy_gettext as _l

from app.events import queries
from app.events.schemas import EventOut, EventQuery
from app.kernel.db import db
from app.kernel.edges import page
from app.kernel.exports import csv_response, json_response
from app.kernel.htmx import render_part
from app.kernel.live_settings import live_settings
from app.kernel.paging import Column, lenient_query

SEVERITY_NAMES = {"info": _l("note"), "warning": _l("warning"), "critical": _l("critical")}
SOURCE_NAMES = {"manager": _l("Manager"), "host": _l("host")}

pages = Blueprint("events", __name__)
pages.record_once(
    lambda state: state.app.jinja_env.globals.update(SEVERITY_NAMES=SEVERITY_NAMES, SOURCE_NAMES=SOURCE_NAMES)
)

COLUMNS = (
    Column("occurred_at", _l("Time"), sortable=True),
    Column("severity", _l("Severity"), sortable=True),
    Column("hostname", _l("Host"), sortable=True),
    Column("message", _l("What happened")),
    Column("kind", _l("Kind"), sortable=True, klass="wide"),
    Column("source", _l("Said by"), klass="wide"),
)
FIELDS = tuple(EventOut.model_fields)
SPANS = {
    1: _l("Last hour"),
    24: _l("Last 24 hours"),
    24 * 7: _l("Last 7 days"),
    24 * 30: _l("Last 30 days"),
}


@page(pages, "/events", permission="events.read")
def list_events() -> Any:
    session, query = db.session(), lenient_query(EventQuery, request.args)
    wanted = request.args.get("format")
    if wanted in ("csv", "json"):
        rows = (EventOut.model_validate(row).model_dump(mode="json") for row in queries.exported_events(session, query))
        return csv_response("events", FIELDS, rows) if wanted == "csv" else json_response("events", rows)
    return render_part(
        "events-table",
        "events/_events_table.html",
        "events/events.html",
        page=queries.events(session, query),
        base=url_for("events.list_events"),
        columns=COLUMNS,
        kinds=queries.known_kinds(session),
        spans=SPANS,
        refresh_s=int(live_settings().ui.refresh_interval),
    )
