"""The audit log for people: filters, one entry's detail, export."""

from collections.abc import Iterator, Mapping
from typing import Any

from flask import Blueprint, Response, render_template, request
from flask_babel import lazy_gettext as _l

from app.audit import actions, queries
from app.audit.chain import FIELDS as CHAINED
from app.audit.exported import Source, export_lines
from app.audit.models import AuditRow
from app.audit.schemas import AuditOut, AuditQuery
from app.kernel.context import ops
from app.kernel.db import db
from app.kernel.edges import page
from app.kernel.errors import NotFound
from app.kernel.exports import csv_response, json_response, jsonl_response
from app.kernel.htmx import fragment_of, render_part
from app.kernel.paging import Column, lenient_query

pages = Blueprint("audit", __name__)

COLUMNS = (
    Column("created_at", _l("Time"), sortable=True),
    Column("username", _l("Who"), sortable=True),
    Column("action", _l("Action"), sortable=True),
    Column("resource", _l("On what")),
    Column("status", _l("Outcome"), sortable=True),
    Column("ip", _l("From"), klass="wide"),
    Column("id", _l("No."), sortable=True, numeric=True, klass="wide"),
)
FIELDS = tuple(AuditOut.model_fields)
READ = (*CHAINED, "id", "created_at", "canonical", "hash", "seal")


@page(pages, "/audit", permission="audit.read")
def list_audit_logs() -> Any:
    session, query = db.session(), lenient_query(AuditQuery, request.args)
    match request.args.get("format"):
        case "csv":
            return csv_response("audit", FIELDS, _shown_rows(query))
        case "json":
            return json_response("audit", _shown_rows(query))
        case "jsonl":
            return _signed_export(query)
    return render_part(
        "audit-table",
        "audit/_audit_table.html",
        "audit/audit.html",
        page=queries.audit_rows(session, query),
        columns=COLUMNS,
        actions=[] if fragment_of("audit-table") else queries.known_actions(session),
    )


def _shown_rows(query: AuditQuery) -> Iterator[dict[str, Any]]:
    session = db.session()
    chunks = queries.exported_chunks(session, query, queries.newest_row(session).sequence)
    yield from queries.taking_turns(_shown(row) for rows in chunks for row in rows)


def _signed_export(query: AuditQuery) -> Response:
    """Lines that somebody else can check with our public key: see `exported`."""
    session, keys = db.session(), ops().keys
    head = actions.sealed_head(session)

    def rows() -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], str]]:
        for chunk in queries.exported_chunks(session, query, head.sequence):
            for row, previous in zip(chunk, queries.hashes_before(session, chunk), strict=True):
                yield _shown(row), {name: getattr(row, name) for name in READ}, previous

    source = Source(queries.taking_turns(rows()), head, queries.filters_of(query))
    return jsonl_response("audit", export_lines(source, keys.audit_seal, keys.audit))


def _shown(row: AuditRow) -> dict[str, Any]:
    return AuditOut.model_validate(row).model_dump(mode="json")


@page(pages, "/audit/<id:row_id>", permission="audit.read")
def show_audit_row(row_id: int) -> str:
    row = db.session.get(AuditRow, row_id)
    if row is None:
        raise NotFound
    return render_template("audit/row.html", row=row)
