"""The audit log for people: filters, one entry's detail, export."""

from typing import Any

from flask import Blueprint, render_template, request
from flask_babel import lazy_gettext as _l

from app.audit import queries
from app.audit.models import AuditRow
from app.audit.schemas import AuditOut, AuditQuery
from app.kernel.db import db
from app.kernel.edges import page
from app.kernel.errors import NotFound
from app.kernel.exports import csv_response, json_response, jsonl_response
from app.kernel.htmx import render_part
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
WRITERS = {"json": json_response, "jsonl": jsonl_response}


@page(pages, "/audit", permission="audit.read")
def list_audit_logs() -> Any:
    session, query = db.session(), lenient_query(AuditQuery, request.args)
    wanted = request.args.get("format")
    if wanted in ("csv", "json", "jsonl"):
        rows = (AuditOut.model_validate(row).model_dump(mode="json") for row in queries.exported_rows(session, query))
        return csv_response("audit", FIELDS, rows) if wanted == "csv" else WRITERS[wanted]("audit", rows)
    return render_part(
        "audit-table",
        "audit/_audit_table.html",
        "audit/audit.html",
        page=queries.audit_rows(session, query),
        columns=COLUMNS,
        actions=queries.known_actions(session),
    )


@page(pages, "/audit/<id:row_id>", permission="audit.read")
def show_audit_row(row_id: int) -> str:
    row = db.session.get(AuditRow, row_id)
    if row is None:
        raise NotFound
    return render_template("audit/row.html", row=row)
