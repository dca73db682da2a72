"""Runs of tasks for people: their history, one run while it goes on and afterwards, and what may be done with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, render_template, request, url_for
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from pydantic import Field
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from app.agents.pages import TYPED_ABOVE
from app.commands import fanouts
from app.commands import queries as batches
from app.commands.models import PAUSED, Fanout
from app.commands.queries import TargetView
from app.kernel.access import Actor, current_actor, may
from app.kernel.db import db
from app.kernel.edges import page, see_other
from app.kernel.errors import Conflict, FieldError
from app.kernel.exports import csv_response, json_response, jsonl_response
from app.kernel.forms import Form
from app.kernel.htmx import render_part
from app.kernel.live_settings import live_settings
from app.kernel.paging import Column, lenient_query
from app.shell import tell
from app.tasks import exporting, queries, record_queries, running
from app.tasks.errors import NotInThisState
from app.tasks.explaining import Reason, duration, explain, signal_name
from app.tasks.models import MANUAL, Task, TaskRun
from app.tasks.schemas import RecordOut, RecordQuery, RunOut, RunQuery
from app.tasks.words_runs import FOR_TEMPLATES, WAITING_REASONS

pages = Blueprint("runs", __name__)
WORDS = {**FOR_TEMPLATES, "signal_name": signal_name, "duration": duration}
pages.record_once(lambda state: state.app.jinja_env.globals.update(WORDS))

COLUMNS = (
    Column("task_name", _l("Task"), sortable=True),
    Column("status", _l("Status")),
    Column("hosts", _l("Hosts")),
    Column("triggered_by", _l("Begun")),
    Column("created_at", _l("When"), sortable=True, numeric=True),
    Column("finished_at", _l("Duration"), numeric=True),
)
RECORD_COLUMNS = (
    Column("hostname", _l("Host"), sortable=True),
    Column("status", _l("Status"), sortable=True),
    Column("what", _l("What happened")),
    Column("exit_code", _l("Exit code"), numeric=True),
    Column("attempt", _l("Attempt"), numeric=True, klass="wide"),
    Column("duration_ms", _l("Duration"), sortable=True, numeric=True),
    Column("finished_at", _l("Ended"), sortable=True, numeric=True),
)
RUN_FIELDS = tuple(name for name in RunOut.model_fields if name != "records")
RECORD_FIELDS = tuple(name for name in RecordOut.model_fields if name not in ("stdout", "stderr"))
REFRESH_S = 2
RELOADED_S = 3
"""Without JavaScript, a page that follows a run loads itself anew so often."""
RUN = "/executions/<uuid:execution_id>"


class HistoryQuery(RunQuery):
    output: str | None = Field(None, min_length=1, max_length=200)


class HostsQuery(RecordQuery):
    page_size: int = Field(50, ge=1, le=100)


def urgent_first(asked: HostsQuery) -> HostsQuery:
    """Failures stand above, unless somebody sorts otherwise."""
    sort = asked.sort if (asked.sort or "").removeprefix("-") in batches.TARGETS_SORTABLE else "status"
    return asked.model_copy(update={"sort": sort})


@page(pages, "/executions", permission="tasks.read")
def list_runs() -> Any:
    return _history(lenient_query(HistoryQuery, request.args), None)


@page(pages, "/tasks/<id:task_id>/executions", permission="tasks.read")
def list_task_runs(task_id: int) -> Any:
    task = queries.task_by_id(db.session(), task_id)
    return _history(lenient_query(HistoryQuery, request.args), task)


def _history(asked: HistoryQuery, task: Task | None) -> Any:
    session = db.session()
    query = RunQuery(**asked.model_dump(exclude_unset=True, exclude={"output"}))
    if task is not None:
        query = query.model_copy(update={"task_id": task.id})
    search = None if asked.output is None else record_queries.runs_that_wrote(session, query, asked.output)
    if (wanted := request.args.get("format")) in ("csv", "json"):
        rows = _exported_runs(query, None if search is None else search.found)
        return csv_response("runs", RUN_FIELDS, rows) if wanted == "csv" else json_response("runs", rows)
    if query.sort is not None and query.sort.removeprefix("-") not in queries.RUNS_SORTABLE:
        query = query.model_copy(update={"sort": None})
    found = queries.runs(session, query, *([] if search is None else [TaskRun.id.in_(search.found)]))
    shown = asked.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"page"})
    if task is not None:
        shown.pop("task_id", None)
    return render_part(
        "runs-table",
        "tasks/_runs_table.html",
        "tasks/runs.html",
        page=replace(found, items=queries.shown_runs(session, found.items), query=shown),  # type: ignore[arg-type]
        columns=COLUMNS if task is None else (Column("execution_id", _l("Run")), *COLUMNS[1:]),
        base=url_for("runs.list_runs") if task is None else url_for("runs.list_task_runs", task_id=task.id),
        task=task,
        search=search,
        refresh_s=int(live_settings().ui.refresh_interval),
    )


def _exported_runs(query: RunQuery, among: Sequence[int] | None) -> Any:
    session = db.session()
    for run in record_queries.exported_runs(session, query, among):
        yield RunOut.model_validate(queries.shown_runs(session, [run])[0]).model_dump(mode="json", exclude={"records"})


def run_frame(execution_id: UUID) -> dict[str, Any]:
    """For `tasks/_run.html`: what stands around every page about one run. Raises NotFound."""
    session = db.session()
    run = queries.run_by_uuid(session, str(execution_id))
    shown = queries.shown_runs(session, [run])[0]
    fanout = run.fanout
    first = None if fanout.repeats_id is None else session.get(Fanout, fanout.repeats_id)
    return {
        "run": shown,
        "run_id": run.id,
        "fanout": fanout,
        "repeats": first,
        "is_open": fanout.finished_at is None,
        "is_paused": fanout.state == PAUSED,
        "may_run": may(current_actor(), "tasks.run"),
        "left": fanout.total - fanout.settled,
        "is_many": fanout.total - fanout.settled > TYPED_ABOVE,
        "again_href": None if run.task_id is None else url_for("tasks.confirm_execute", task_id=run.task_id),
        "base": url_for("runs.show_run", execution_id=execution_id),
        "here": request.endpoint,
    }


@page(pages, RUN, permission="tasks.read")
def show_run(execution_id: UUID) -> Any:
    session, frame = db.session(), run_frame(execution_id)
    run = queries.run_by_uuid(session, str(execution_id))
    asked = urgent_first(lenient_query(HostsQuery, request.args))
    if (wanted := request.args.get("format")) in ("csv", "json"):
        rows = _exported_records(run, asked)
        name = f"hosts-{run.fanout.uuid}"
        return csv_response(name, RECORD_FIELDS, rows) if wanted == "csv" else json_response(name, rows)
    if request.headers.get("HX-Target") == "run-state":
        return render_template("tasks/_run_state.html", **frame, waiting=_waiting(run.fanout), refresh_s=REFRESH_S)
    found = queries.records(session, run, asked)
    html = render_part(
        "records-table",
        "tasks/_records_table.html",
        "tasks/run.html",
        **frame,
        page=found,
        columns=RECORD_COLUMNS,
        reasons=reasons_of(run.fanout, found.items),
        last_words=record_queries.last_words(session, found.items),
        waiting=_waiting(run.fanout),
        status_counts=record_queries.status_counts(session, run.fanout),
        refresh_s=REFRESH_S,
    )
    return reloading(html, is_open=frame["is_open"])


def reloading(html: str, *, is_open: bool) -> Response:
    """`?reload=1` is where a page leads that has no script to follow with."""
    response = Response(html)
    if request.args.get("reload") and is_open:
        response.headers["Refresh"] = str(RELOADED_S)
    return response


def reasons_of(fanout: Fanout, views: Sequence[TargetView]) -> Mapping[int, Reason]:
    """Record id → why it has not run, or what became of it."""
    session = db.session()
    away = record_queries.maintenance_ends(session, [view.node_id for view in views if view.status == "pending"])
    is_paused = fanout.state == PAUSED
    return {view.id: explain(view, is_paused=is_paused, maintenance=away) for view in views}


def _waiting(fanout: Fanout) -> list[dict[str, Any]]:
    if fanout.finished_at is not None or request.args.get("brief"):
        return []
    found = record_queries.waiting_reasons(db.session(), fanout)
    return [{"text": WAITING_REASONS[one.reason], **one._asdict()} for one in found]


def _exported_records(run: TaskRun, asked: RecordQuery) -> Any:
    session, number, pages_of_it = db.session(), 1, 1
    while number <= pages_of_it:
        found = queries.records(session, run, asked.model_copy(update={"page": number, "page_size": 100}))
        pages_of_it, number = found.pages, number + 1
        for view in found.items:
            record = {name: getattr(view, name) for name in RECORD_FIELDS} | {"stdout": "", "stderr": ""}
            yield RecordOut.model_validate(record).model_dump(mode="json", exclude={"stdout", "stderr"})


@page(pages, f"{RUN}/export", permission="tasks.read")
def export_run(execution_id: UUID) -> Response:
    """All records with all that they wrote."""
    session = db.session()
    run = queries.run_by_uuid(session, str(execution_id))
    rows, name = exporting.run_rows(session, run), f"run-{run.fanout.uuid}"
    if request.args.get("format") == "csv":
        return csv_response(name, exporting.FIELDS, rows)
    return jsonl_response(name, rows)


@page(pages, f"{RUN}/cancel", permission="tasks.run")
def confirm_cancel(execution_id: UUID) -> str:
    return render_template("tasks/cancel.html", **run_frame(execution_id), form=Form())


@page(pages, f"{RUN}/cancel", permission="tasks.run", methods=("POST",))
def cancel_run(execution_id: UUID) -> Any:
    frame = run_frame(execution_id)
    if frame["is_open"] and frame["is_many"] and request.form.get("confirm", "").strip() != str(frame["left"]):
        form = Form[Any]()
        form.add_errors([FieldError("confirm", _("Please type %(name)s.", name=frame["left"]))])
        return render_template("tasks/cancel.html", **frame, form=form), 422
    running.cancel_run(db.session(), current_actor(), str(execution_id))
    tell(_("The run is being cancelled. Hosts that run it already are told to stop."))
    return see_other(url_for("runs.show_run", execution_id=execution_id))


@page(pages, f"{RUN}/pause", permission="tasks.run", methods=("POST",))
def pause_run(execution_id: UUID) -> AnyResponse:
    return _step(execution_id, fanouts.pause_fanout)


@page(pages, f"{RUN}/resume", permission="tasks.run", methods=("POST",))
def resume_run(execution_id: UUID) -> AnyResponse:
    return _step(execution_id, fanouts.resume_fanout)


def _step(execution_id: UUID, step: Callable[[Session, Actor, int], Fanout]) -> AnyResponse:
    session, actor = db.session(), current_actor()
    run = queries.run_by_uuid(session, str(execution_id))
    try:
        step(session, actor, run.fanout_id)
    except Conflict as error:
        raise NotInThisState(error.message) from None
    return see_other(url_for("runs.show_run", execution_id=execution_id))


@page(pages, f"{RUN}/retry", permission="tasks.run", methods=("POST",))
def retry_run(execution_id: UUID) -> AnyResponse:
    again = running.retry_run(db.session(), current_actor(), str(execution_id), "failed", MANUAL)
    total = again.fanout.total
    tell(ngettext("Tried again on %(num)s host.", "Tried again on %(num)s hosts.", total))
    return see_other(url_for("runs.show_run", execution_id=again.fanout.uuid))
