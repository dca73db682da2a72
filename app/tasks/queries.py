"""Reading tasks, templates, runs, their records and what hosts wrote."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, LargeBinary, Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session

from app.commands import queries as commands
from app.commands.models import BY_CANCEL, DONE, PAUSED, Command, Fanout, Target
from app.commands.queries import TargetView
from app.commands.schemas import TargetQuery
from app.kernel.clock import now
from app.kernel.errors import NotFound
from app.kernel.paging import Page, paginate
from app.nodes.models import ONLINE, Node
from app.nodes.selecting import matches, members
from app.tasks.errors import TaskNotFound
from app.tasks.models import Task, TaskOutput, TaskRun, TaskTemplate
from app.tasks.schemas import RecordQuery, RunQuery, TaskQuery, TemplateQuery
from app.tasks.targeting import condition_of

TASKS_SORTABLE = {
    "id": Task.id,
    "name": Task.name,
    "type": Task.type,
    "status": Task.status,
    "created_at": Task.created_at,
    "updated_at": Task.updated_at,
    "next_run_at": Task.next_run_at,
}
TEMPLATES_SORTABLE = {"id": TaskTemplate.id, "name": TaskTemplate.name, "updated_at": TaskTemplate.updated_at}
RUNS_SORTABLE = {
    "id": TaskRun.id,
    "task_name": TaskRun.task_name,
    "created_at": Fanout.created_at,
    "finished_at": Fanout.finished_at,
}
SHOWN_WITH_RECORD = 64 * 1024
"""Bytes of each stream that are shown with a record; all of it is read by its own address."""
PIECES_WITH_RECORD = 1000


def task_by_id(session: Session, task_id: int) -> Task:
    task = session.get(Task, task_id)
    if task is None:
        raise TaskNotFound
    return task


def tasks(session: Session, query: TaskQuery) -> Page[Task]:
    found = select(Task)
    if query.keyword is not None:
        found = found.where(matches(Task.name, f"*{query.keyword.strip('*')}*"))
    if query.type is not None:
        found = found.where(Task.type == query.type)
    if query.status is not None:
        found = found.where(Task.status == query.status)
    if query.scheduled is not None:
        found = found.where(Task.cron_expr.is_not(None) if query.scheduled else Task.cron_expr.is_(None))
    return paginate(session, found, query, TASKS_SORTABLE, "-id")


def template_by_id(session: Session, template_id: int) -> TaskTemplate:
    template = session.get(TaskTemplate, template_id)
    if template is None:
        raise NotFound
    return template


def templates(session: Session, query: TemplateQuery) -> Page[TaskTemplate]:
    found = select(TaskTemplate)
    if query.keyword is not None:
        found = found.where(matches(TaskTemplate.name, f"*{query.keyword.strip('*')}*"))
    return paginate(session, found, query, TEMPLATES_SORTABLE, "name")


class PreviewedNode(NamedTuple):
    id: int
    hostname: str
    status: str
    maintenance: bool
    waiting_for: str | None


def preview(session: Session, task: Task) -> dict[str, Any]:
    """The very hosts that it would run on now, and which of them could not begin at once."""
    at = now()
    columns = (Node.id, Node.hostname, Node.status, Node.maintenance_until)
    meant = select(*columns).where(members(), condition_of(session, task.target_type, task.target_value))
    items = []
    for id_, hostname, status, until in session.execute(meant.order_by(Node.hostname, Node.id)):
        is_in_maintenance = until is not None and until > at
        waits = "node_offline" if status != ONLINE else "node_maintenance" if is_in_maintenance else None
        items.append(PreviewedNode(id_, hostname, status, is_in_maintenance, waits))
    online = sum(item.status == ONLINE for item in items)
    return {
        "total": len(items),
        "online": online,
        "offline": len(items) - online,
        "maintenance": sum(item.maintenance for item in items),
        "items": items,
    }


def run_by_uuid(session: Session, uuid: str) -> TaskRun:
    found = select(TaskRun).join(Fanout, Fanout.id == TaskRun.fanout_id).where(Fanout.uuid == uuid)
    run = session.scalar(found)
    if run is None:
        raise NotFound
    return run


def runs(session: Session, query: RunQuery, *conditions: ColumnElement[bool]) -> Page[TaskRun]:
    """Newest first."""
    return paginate(session, runs_found(query).where(*conditions), query, RUNS_SORTABLE, "-id")


def runs_found(query: RunQuery) -> Select[TaskRun]:
    """What its filters leave."""
    found = select(TaskRun).join(Fanout, Fanout.id == TaskRun.fanout_id)
    if query.task_id is not None:
        found = found.where(TaskRun.task_id == query.task_id)
    if query.triggered_by is not None:
        found = found.where(TaskRun.triggered_by == query.triggered_by)
    if query.keyword is not None:
        found = found.where(matches(TaskRun.task_name, f"*{query.keyword.strip('*')}*"))
    if query.status is not None:
        found = found.where(_has_status(query.status))
    return found


def _has_status(status: str) -> ColumnElement[bool]:
    """`run_status` as a condition."""
    is_done, all_good = Fanout.state == DONE, Fanout.success == Fanout.total
    is_cancelled = func.coalesce(Fanout.stopped_by, "") == BY_CANCEL
    has_begun = or_(Fanout.in_flight > 0, Fanout.success + Fanout.failed + Fanout.cancelled > 0)
    conditions = {
        "pending": and_(Fanout.state != DONE, ~has_begun),
        "running": and_(Fanout.state != DONE, has_begun),
        "success": and_(is_done, all_good),
        "cancelled": and_(is_done, ~all_good, is_cancelled),
        "partial": and_(is_done, ~all_good, ~is_cancelled, Fanout.success > 0),
        "failed": and_(is_done, ~all_good, ~is_cancelled, Fanout.success == 0),
    }
    return conditions[status]


def run_status(fanout: Fanout) -> str:
    """In the contract's words: a pause is shown beside it."""
    if fanout.state == DONE:
        return fanout.status
    return "running" if fanout.in_flight or fanout.settled else "pending"


def shown_runs(session: Session, found: Iterable[TaskRun]) -> list[dict[str, Any]]:
    rows = list(found)
    fanouts = commands.shown_fanouts(session, [run.fanout for run in rows])
    counts = ("total", "pending", "running", "success", "failed", "cancelled")
    return [
        {
            "execution_id": run.fanout.uuid,
            "task_id": run.task_id,
            "task_name": run.task_name,
            "status": run_status(run.fanout),
            "paused": run.fanout.state == PAUSED,
            "triggered_by": run.triggered_by,
            "created_by": run.fanout.created_by,
            "created_at": run.fanout.created_at,
            "finished_at": run.fanout.finished_at,
        }
        | {name: shown[name] for name in counts}
        for run, shown in zip(rows, fanouts, strict=True)
    ]


def records(session: Session, run: TaskRun, query: RecordQuery) -> Page[TargetView]:
    asked = TargetQuery(**query.model_dump(exclude_unset=True, exclude={"output"}) | {"page_size": query.page_size})
    found = commands.targets(session, run.fanout, asked, *([] if query.output is None else [_wrote(query.output)]))
    return replace(found, query=query.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"page"}))


def shown_records(session: Session, run: TaskRun, query: RecordQuery) -> list[dict[str, Any]]:
    found = records(session, run, query)
    outputs = _beginnings(session, [view.command_id for view in found.items if view.command_id is not None])
    return [_record(view, outputs) for view in found.items]


def _wrote(text: str) -> ColumnElement[bool]:
    """Whether a target's present attempt wrote this, as far as it stands in one piece of its output."""
    pieces = select(TaskOutput.id).join(Command, Command.id == TaskOutput.command_id)
    its = (Command.target_id == Target.id, Command.attempt == Target.attempt)
    return exists(pieces.where(*its, func.instr(TaskOutput.data, text.encode()) > 0).correlate(Target))


def _record(view: TargetView, outputs: dict[tuple[int, str], str]) -> dict[str, Any]:
    streams = {name: outputs.get((view.command_id or 0, name), "") for name in ("stdout", "stderr")}
    return {name: getattr(view, name) for name in view.__dataclass_fields__} | streams


def _beginnings(session: Session, command_ids: Sequence[int]) -> dict[tuple[int, str], str]:
    """The first bytes of each stream of these commands, as text."""
    of_stream = (TaskOutput.command_id, TaskOutput.stream)
    place = func.row_number().over(partition_by=of_stream, order_by=TaskOutput.offset).label("place")
    early = (TaskOutput.command_id.in_(command_ids), TaskOutput.offset < SHOWN_WITH_RECORD)
    first = select(TaskOutput.id, place).where(*early).subquery()
    # What would be cut off is not even loaded.
    data = func.substr(TaskOutput.data, 1, SHOWN_WITH_RECORD - TaskOutput.offset, type_=LargeBinary)
    asked = select(*of_stream, data).join(first, first.c.id == TaskOutput.id).where(first.c.place <= PIECES_WITH_RECORD)
    pieces: dict[tuple[int, str], list[bytes]] = {}
    for command_id, stream, piece in session.execute(asked.order_by(*of_stream, TaskOutput.offset)):
        pieces.setdefault((command_id, stream), []).append(piece or b"")  # of nothing, SQLite's substr is NULL
    return {key: b"".join(found).decode(errors="replace") for key, found in pieces.items()}


def record_view(session: Session, run: TaskRun, record_id: int) -> TargetView:
    mine = select(Target.id).where(Target.id == record_id, Target.fanout_id == run.fanout_id)
    if session.scalar(mine) is None:
        raise NotFound
    return commands.target_views(session, [record_id])[0]


def command_of(session: Session, view: TargetView) -> Command | None:
    return None if view.command_id is None else session.get(Command, view.command_id)
