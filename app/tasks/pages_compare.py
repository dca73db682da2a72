"""Hosts side by side, for people: which said the same in a run, how two runs differ, and how two outputs do."""

from collections import Counter
from uuid import UUID

from flask import Blueprint, render_template, request, url_for
from flask_babel import lazy_gettext as _l
from pydantic import Field

from app.kernel.db import db
from app.kernel.edges import page
from app.kernel.errors import NotFound
from app.kernel.htmx import render_part
from app.kernel.paging import Column, ListQuery, Page, lenient_query, row_number
from app.tasks import comparing, queries, record_queries
from app.tasks.comparing import VERDICTS, Pair
from app.tasks.models import TaskRun
from app.tasks.pages_records import RECORD
from app.tasks.pages_runs import RUN, run_frame
from app.tasks.schemas import RunQuery

pages = Blueprint("compare", __name__)

VERDICT_NAMES = {
    "same": _l("the same"),
    "output": _l("other output"),
    "status": _l("other ending"),
    "open": _l("not ended yet"),
    "only_before": _l("only in the earlier run"),
    "only_after": _l("only in this run"),
}
VERDICT_STATES = {"same": "ok", "output": "warn", "status": "bad"}
pages.record_once(
    lambda state: state.app.jinja_env.globals.update(VERDICT_NAMES=VERDICT_NAMES, VERDICT_STATES=VERDICT_STATES)
)
COLUMNS = (
    Column("hostname", _l("Host")),
    Column("before", _l("Earlier run")),
    Column("after", _l("This run")),
    Column("verdict", _l("Compared")),
)
CANDIDATES = 30


class PairsQuery(ListQuery):
    page_size: int = Field(50, ge=1, le=100)
    verdict: str | None = None
    keyword: str | None = Field(None, max_length=100)


@page(pages, f"{RUN}/groups", permission="tasks.read")
def show_groups(execution_id: UUID) -> str:
    """Hosts in groups of those that ended alike and wrote the same."""
    session = db.session()
    run = queries.run_by_uuid(session, str(execution_id))
    is_loose = bool(request.args.get("loose"))
    found = comparing.outcomes(session, run, is_loose=is_loose)
    made = comparing.groups(found)
    chosen = next((group for group in made if group.key == request.args.get("group")), None)
    return render_template(
        "tasks/groups.html",
        **run_frame(execution_id),
        groups=made,
        chosen=chosen,
        is_loose=is_loose,
        open_count=sum(not one.is_over for one in found),
    )


@page(pages, f"{RUN}/compare", permission="tasks.read")
def compare_run(execution_id: UUID) -> str:
    """With the run that the form names; else with the one that this repeats, or the one before it."""
    run = queries.run_by_uuid(db.session(), str(execution_id))
    if wanted := request.args.get("with"):
        return _compare(run, queries.run_by_uuid(db.session(), wanted))
    others = _others(run)
    repeated = next((one for one in others if one.fanout_id == run.fanout.repeats_id), None)
    return _compare(run, repeated or next(iter(others), None))


@page(pages, f"{RUN}/compare/<uuid:before_id>", permission="tasks.read")
def compare_runs(execution_id: UUID, before_id: UUID) -> str:
    session = db.session()
    return _compare(queries.run_by_uuid(session, str(execution_id)), queries.run_by_uuid(session, str(before_id)))


def _compare(run: TaskRun, before: TaskRun | None) -> str:
    session = db.session()
    query = lenient_query(PairsQuery, request.args)
    found: list[Pair] = []
    if before is not None:
        is_loose = bool(request.args.get("loose"))
        sides = [comparing.outcomes(session, one, is_loose=is_loose) for one in (before, run)]
        found = comparing.pairs(*sides)
    counts = Counter(pair.verdict for pair in found)
    return render_part(
        "pairs-table",
        "tasks/_pairs_table.html",
        "tasks/compare.html",
        **run_frame(UUID(run.fanout.uuid)),
        before=before,
        before_shown=None if before is None else queries.shown_runs(session, [before])[0],
        others=_others(run),
        counts={verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]},
        worse=sum(pair.is_worse for pair in found),
        page=_cut(found, query),
        columns=COLUMNS,
        is_loose=bool(request.args.get("loose")),
        compare_base=None
        if before is None
        else url_for("compare.compare_runs", execution_id=run.fanout.uuid, before_id=before.fanout.uuid),
    )


def _others(run: TaskRun) -> list[TaskRun]:
    """Runs that may be compared with it: of the same task, those before it first."""
    if run.task_id is None:
        return []
    query = RunQuery(task_id=run.task_id, page_size=100)
    found = [one for one in queries.runs(db.session(), query).items if one.id != run.id]
    return sorted(found, key=lambda one: (one.id > run.id, -one.id))[:CANDIDATES]


def _cut(found: list[Pair], query: PairsQuery) -> Page[Pair]:
    keyword = (query.keyword or "").strip("*")
    left = [
        pair for pair in found if query.verdict in (None, pair.verdict) and keyword.lower() in pair.hostname.lower()
    ]
    first = (query.page - 1) * query.page_size
    shown = query.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"page"})
    shown |= {"loose": "1"} if request.args.get("loose") else {}
    return Page(left[first : first + query.page_size], len(left), query.page, query.page_size, "", shown)


@page(pages, f"{RECORD}/difference", permission="tasks.read")
def show_difference(execution_id: UUID, record_id: int) -> str:
    """How this record's output differs from another's, of any run."""
    session = db.session()
    run = queries.run_by_uuid(session, str(execution_id))
    after = queries.record_view(session, run, record_id)
    number = request.args.get("with", type=row_number)
    if number is None:
        raise NotFound
    before_run, before = record_queries.record_anywhere(session, number)
    return render_template(
        "tasks/difference.html",
        **run_frame(execution_id),
        before=before,
        before_run=before_run,
        after=after,
        differences=comparing.differences(session, before, after),
    )
