"""Records for people: a host's part in a run, its output as it comes, that of all hosts, and a host's history."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from uuid import UUID

from flask import Blueprint, Response, render_template, request, url_for
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from app.commands.models import Command
from app.commands.queries import TargetView
from app.kernel.access import current_actor
from app.kernel.db import db
from app.kernel.edges import page, see_other
from app.kernel.errors import NotFound
from app.kernel.htmx import fragment_of, render_part
from app.kernel.live_settings import live_settings
from app.kernel.paging import Column, lenient_query, row_number
from app.nodes.queries import node_by_id
from app.shell import tell
from app.tasks import following, queries, record_queries, running
from app.tasks.file_queries import fetched_file
from app.tasks.harmless import harmless
from app.tasks.pages_runs import REFRESH_S, RUN, HostsQuery, reasons_of, reloading, run_frame, urgent_first
from app.tasks.serving import fetched_response, may_fetch
from app.tasks.words_runs import RECORD_STATUS_NAMES

pages = Blueprint("records", __name__)

RECORD = f"{RUN}/records/<id:record_id>"
SHOWN_BYTES = 96 * 1024
"""Of the end of each stream; all of it is a click away."""
HELD_S = 20.0
NEIGHBOURS = 16
NEWEST_PIECES = 300
"""Of a run's output, with which its page begins."""
NODE_COLUMNS = (
    Column("task_name", _l("Task"), sortable=True),
    Column("status", _l("Status")),
    Column("what", _l("What happened")),
    Column("exit_code", _l("Exit code"), numeric=True),
    Column("duration_ms", _l("Duration"), numeric=True),
    Column("id", _l("When"), sortable=True, numeric=True),
)
STREAMS = ("stdout", "stderr")


class Part(NamedTuple):
    left_out: int
    """Bytes that the host wrote before it and nobody kept."""
    text: str


class Shown(NamedTuple):
    """The end of a stream, or all of it, fit to be shown."""

    stream: str
    parts: list[Part]
    size: int
    hidden: int
    """Bytes before it that are kept, but not shown."""
    is_cut: bool
    """The host wrote more than is kept."""


@page(pages, RECORD, permission="tasks.read")
def show_record(execution_id: UUID, record_id: int) -> Any:
    session = db.session()
    frame = run_frame(execution_id)
    run = queries.run_by_uuid(session, str(execution_id))
    view = queries.record_view(session, run, record_id)
    tries = record_queries.attempts(session, record_id)
    chosen = next((one for one in tries if one.number == request.args.get("attempt", type=int)), None)
    is_past = chosen is not None and chosen.number != view.attempt
    shown = _of_attempt(view, chosen.command) if chosen is not None and is_past else view
    context = {
        **frame,
        "record": shown,
        "reason": reasons_of(run.fanout, [shown])[shown.id],
        "attempts": tries,
        "file": fetched_file(session, shown),
        "may_fetch": may_fetch(current_actor()),
        "exit_of": exit_of,
        "is_past": is_past,
        "is_live": not is_past and view.status in ("pending", "running"),
        "refresh_s": REFRESH_S,
        "record_base": url_for("records.show_record", execution_id=execution_id, record_id=record_id),
    }
    if fragment_of("record-state"):
        return render_template("tasks/_record_state.html", **context)
    found = queries.records(session, run, urgent_first(HostsQuery(page_size=NEIGHBOURS)))
    streams = [_shown(session, shown, stream) for stream in STREAMS]
    html = render_template("tasks/record.html", **context, neighbours=found, streams=streams, total=found.total)
    return reloading(html, is_open=bool(context["is_live"]))


STATUS_OF_COMMAND = {"succeeded": "success", "timed_out": "timeout", "queued": "pending", "delivered": "pending"}
STATUS_OF_COMMAND |= {"accepted": "pending", "started": "running"}


def exit_of(command: Command) -> Any:
    return RECORD_STATUS_NAMES[STATUS_OF_COMMAND.get(command.state, command.state)]


def _of_attempt(view: TargetView, command: Command) -> TargetView:
    """The record as it was after an earlier attempt."""
    names = ("exit_code", "signal", "error", "error_code", "delivered_at", "accepted_at", "started_at", "finished_at")
    known: dict[str, Any] = {name: getattr(command, name) for name in (*names, "duration_ms", "attempt")}
    status = STATUS_OF_COMMAND.get(command.state, command.state)
    known |= {"status": status, "user": command.run_as, "waiting_for": None, "due_at": None}
    return replace(view, command_id=command.id, truncated=command.is_truncated, **known)


def _shown(session: Session, view: TargetView, stream: str) -> Shown:
    pieces: list[tuple[int, list[bytes]]] = []
    for piece in record_queries.stream_pieces(session, view.command_id, stream):
        if pieces and not piece.left_out:
            pieces[-1][1].append(piece.data)
        else:
            pieces.append((piece.left_out, [piece.data]))
    parts = [(left_out, b"".join(data)) for left_out, data in pieces]
    size = sum(len(data) for _left_out, data in parts)
    hidden = skip = 0 if request.args.get("whole") == stream else max(0, size - SHOWN_BYTES)
    while parts and skip >= len(parts[0][1]):
        skip -= len(parts.pop(0)[1])
    if skip:
        begin = skip + _beginning(parts[0][1][skip:])
        parts[0], hidden = (0, parts[0][1][begin:]), hidden + begin - skip
    fit = [Part(left_out, harmless(data.decode(errors="replace"))) for left_out, data in parts]
    return Shown(stream, fit, size, hidden, record_queries.is_stream_cut(session, view, stream))


def _beginning(data: bytes) -> int:
    """Where to begin within what was cut off anywhere: with a line if there is one soon, else with a character."""
    if (end_of_line := data.find(b"\n", 0, 4096)) >= 0:
        return end_of_line + 1
    return next((at for at in range(min(4, len(data))) if data[at] & 0xC0 != 0x80), 0)


@page(pages, f"{RECORD}/cancel", permission="tasks.run", methods=("POST",))
def cancel_record(execution_id: UUID, record_id: int) -> AnyResponse:
    session = db.session()
    view = queries.record_view(session, queries.run_by_uuid(session, str(execution_id)), record_id)
    running.cancel_record(session, current_actor(), str(execution_id), record_id)
    tell(_("%(host)s: it is being cancelled.", host=view.hostname))
    if request.form.get("back") == "run":
        return see_other(url_for("runs.show_run", execution_id=execution_id))
    return see_other(url_for("records.show_record", execution_id=execution_id, record_id=record_id))


@page(pages, f"{RECORD}/<stream>.txt", permission="tasks.read")
def download_stream(execution_id: UUID, record_id: int, stream: str) -> Response:
    """The very bytes, of the attempt that is asked for or the last one."""
    if stream not in STREAMS:
        raise NotFound
    session = db.session()
    view = queries.record_view(session, queries.run_by_uuid(session, str(execution_id)), record_id)
    number = request.args.get("attempt", view.attempt, type=int)
    found = [one.command.id for one in record_queries.attempts(session, record_id) if one.number == number]
    pieces = record_queries.stream_pieces(session, found[0] if found else None, stream)
    data = b"".join((b"\n[%d bytes left out]\n" % one.left_out if one.left_out else b"") + one.data for one in pieces)
    response = Response(data, mimetype="text/plain; charset=utf-8")
    safe = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in view.hostname)
    response.headers["Content-Disposition"] = f'attachment; filename="{safe or "host"}-{stream}.txt"'
    return response


@page(pages, f"{RECORD}/file", permission="tasks.run")
def download_file(execution_id: UUID, record_id: int) -> Response:
    """What a `download` brought from the host."""
    return fetched_response(current_actor(), str(execution_id), record_id)


@page(pages, f"{RUN}/output", permission="tasks.read")
def show_output(execution_id: UUID) -> Response:
    """What all hosts wrote, in the order in which it came here."""
    after = request.args.get("after", "")
    found = following.run_output(str(execution_id), after, newest=None if after else NEWEST_PIECES)
    frame = run_frame(execution_id)
    html = render_template(
        "tasks/output.html",
        **frame,
        pieces=joined(found["items"]),
        cursor=found["after"],
        has_more=found["has_more"],
        skipped=found["skipped"],
        refresh_s=REFRESH_S,
        is_over=found["is_complete"],
    )
    return reloading(html, is_open=frame["is_open"])


@page(pages, f"{RUN}/output/follow", permission="tasks.read")
def follow_output(execution_id: UUID) -> dict[str, Any]:
    """What came after `after`, of all hosts or of one; if nothing did, the answer waits a while."""
    session, record_id = db.session(), request.args.get("record", type=row_number)
    if record_id is not None:
        queries.record_view(session, queries.run_by_uuid(session, str(execution_id)), record_id)
    found = following.run_output(str(execution_id), request.args.get("after", ""), HELD_S, record_id=record_id)
    return {
        "pieces": joined(found["items"]),
        "next": found["after"],
        "more": found["has_more"],
        "over": found["is_complete"],
    }


def joined(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pieces that follow one another on the same stream of the same host as one, fit to be shown."""
    made: list[dict[str, Any]] = []
    for item in items:
        same = ("record_id", "stream", "attempt")
        if made and all(made[-1][name] == item[name] for name in same) and not made[-1]["cut"]:
            made[-1]["text"] += item["data"]
            made[-1]["cut"] = item["cut"]
        else:
            names = ("record_id", "hostname", "stream", "attempt", "cut")
            made.append({name: item[name] for name in names} | {"text": item["data"]})
    for piece in made:
        piece["text"] = harmless(piece["text"])
    return made


@page(pages, "/nodes/<id:node_id>/tasks", permission="tasks.read")
def list_node_records(node_id: int) -> Any:
    session = db.session()
    node = node_by_id(session, node_id)
    query = lenient_query(record_queries.NodeRecordQuery, request.args)
    if (query.sort or "id").removeprefix("-") not in record_queries.NODE_SORTABLE:
        query = query.model_copy(update={"sort": None})
    found = record_queries.node_records(session, node_id, query)
    return render_part(
        "records-table",
        "tasks/_node_records_table.html",
        "tasks/node_records.html",
        node=node,
        page=found,
        columns=NODE_COLUMNS,
        base=url_for("records.list_node_records", node_id=node_id),
        reasons=_reasons(found.items),
        last_words=record_queries.last_words(session, [one.view for one in found.items]),
        refresh_s=int(live_settings().ui.refresh_interval),
    )


def _reasons(found: Sequence[record_queries.NodeRecord]) -> Mapping[int, Any]:
    made: dict[int, Any] = {}
    for one in found:
        made |= reasons_of(one.run.fanout, [one.view])
    return made
