"""Files of tasks for programs: brought, listed, deleted; and what a run's hosts brought back or wrote, to take away."""

from typing import Any
from uuid import UUID

from flask import Response
from pydantic import AwareDatetime, Field

from app.kernel.access import current_actor
from app.kernel.api import ApiRoom, Listing, Out
from app.kernel.db import db
from app.kernel.errors import Conflict, NotFound
from app.kernel.exports import csv_response, jsonl_response
from app.tasks import exporting, file_queries, files, serving
from app.tasks.file_queries import FileQuery
from app.tasks.queries import run_by_uuid
from app.tasks.receiving import Received, receive
from app.tasks.schemas import ExportQuery

api = ApiRoom("files", "Files for and from hosts")


class UserOut(Out):
    id: int
    name: str


class FileOut(Out):
    id: int
    name: str
    size: int
    sha256: str
    created_by: str
    created_at: AwareDatetime
    last_used_at: AwareDatetime
    used_by: list[UserOut] = Field(description="Tasks that name it.")


@api.get("/files", permission="tasks.read", summary="Files, newest first", query=FileQuery, returns=Listing[FileOut])
def list_files(query: FileQuery) -> dict[str, Any]:
    found = file_queries.files(db.session(), query)
    items = file_queries.shown_files(db.session(), found.items)
    return {"total": found.total, "items": items, "page": found.page, "page_size": found.page_size}


@api.post(
    "/files",
    permission="tasks.edit",
    summary="Bring a file that tasks can put on hosts: `content.file_id` names it",
    upload=receive,
    returns=FileOut,
    status=201,
    is_idempotent=True,
)
def create_file(uploaded: Received) -> dict[str, Any]:
    file = files.add_file(db.session(), current_actor(), uploaded.name, uploaded.incoming)
    return file_queries.shown_files(db.session(), [file])[0]


@api.get("/files/<id:file_id>", permission="tasks.read", summary="One file", returns=FileOut, errors=(NotFound,))
def show_file(file_id: int) -> dict[str, Any]:
    return file_queries.shown_files(db.session(), [file_queries.file_by_id(db.session(), file_id)])[0]


@api.delete(
    "/files/<id:file_id>",
    permission="tasks.edit",
    summary="Delete a file that nothing names any more",
    errors=(NotFound, Conflict),
)
def delete_file(file_id: int) -> None:
    files.delete_file(db.session(), current_actor(), file_id)


@api.get(
    "/executions/<uuid:execution_id>/records/<id:record_id>/file",
    permission="tasks.run",
    summary="The file that a download task brought from a host",
    media=("application/octet-stream",),
    errors=(NotFound,),
)
def show_fetched_file(execution_id: UUID, record_id: int) -> Response:
    return serving.fetched_response(current_actor(), str(execution_id), record_id)


@api.get(
    "/executions/<uuid:execution_id>/export",
    permission="tasks.read",
    summary="All records of a run with all that was kept of their output",
    query=ExportQuery,
    media=("application/x-ndjson", "text/csv"),
    errors=(NotFound,),
)
def export_run(execution_id: UUID, query: ExportQuery) -> Response:
    run = run_by_uuid(db.session(), str(execution_id))
    name, rows = f"run-{execution_id}", exporting.run_rows(db.session(), run)
    return jsonl_response(name, rows) if query.format == "jsonl" else csv_response(name, exporting.FIELDS, rows)
