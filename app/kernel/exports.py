"""CSV and JSON of what a list shows."""

import csv
import io
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flask import Response, request
from flask.globals import app_ctx, request_ctx

from app.kernel.errors import TooManyRequests

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
MOST_AT_ONCE = 10
"""In one process. Each keeps a connection to the database for as long as whoever asked takes to read it."""
BUSY_S = 5
_places = threading.BoundedSemaphore(MOST_AT_ONCE)


def csv_response(name: str, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Response:
    """A download for spreadsheets. The byte order mark is what makes Excel read UTF-8."""

    def lines() -> Iterator[str]:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        yield "\ufeff"
        writer.writerow(fields)
        for record in rows:
            writer.writerow([_cell(record.get(field)) for field in fields])
            if buffer.tell() > 32_000:
                yield buffer.getvalue()
                buffer.seek(0)
                buffer.truncate()
        yield buffer.getvalue()

    return _download(lines(), f"{name}.csv", "text/csv")


def json_response(name: str, rows: Iterable[Mapping[str, Any]]) -> Response:
    def lines() -> Iterator[str]:
        yield "["
        for number, record in enumerate(rows):
            yield (",\n" if number else "\n") + json.dumps(record, ensure_ascii=False)
        yield "\n]\n"

    return _download(lines(), f"{name}.json", "application/json")


def jsonl_response(name: str, rows: Iterable[Mapping[str, Any]]) -> Response:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in rows)
    return _download(lines, f"{name}.jsonl", "application/x-ndjson")


def _download(lines: Iterator[str], file_name: str, mimetype: str) -> Response:
    # Whoever asks for the head only never takes a line, and so would never let go of the request.
    response = Response("" if request.method == "HEAD" else _with_request(lines), mimetype=mimetype)
    response.headers["Content-Disposition"] = f'attachment; filename="{file_name}"'
    return response


def _with_request(lines: Iterator[str]) -> Iterator[str]:
    """Keeps the request, and so its session and its reading transaction, until the last line is sent.

    Flask's own `stream_with_context` ends the request first and takes it up again: a query would then begin a new
    transaction, a writing one, on a session that nobody closes any more. Raises TooManyRequests.
    """
    if not _places.acquire(blocking=False):
        raise TooManyRequests(retry_after_s=BUSY_S)
    application, asked = app_ctx._get_current_object(), request_ctx._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001

    def generator() -> Iterator[str]:
        try:
            with application, asked:
                yield ""
                yield from lines
        finally:
            _places.release()

    made = generator()
    next(made)
    return made


def _cell(value: Any) -> str:
    """A cell that no spreadsheet runs as a formula."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"'{text}" if isinstance(value, str) and text.startswith(FORMULA) else text
