"""Reading commands and fan-outs: one command, a fan-out's progress, its targets as records, what they wait for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, case, func, select
from sqlalchemy.orm import Session, aliased

from app.commands.hooks import hooks
from app.commands.models import (
    CANCELLED,
    DONE,
    ERRORS,
    ISSUED,
    PAUSED,
    RETRYING,
    STARTED,
    TARGET_STATES,
    UNFINISHED,
    UNISSUED,
    Command,
    Fanout,
    Target,
)
from app.commands.schemas import BatchQuery, TargetQuery
from app.kernel.clock import now
from app.kernel.errors import NotFound
from app.kernel.paging import Page, paginate
from app.nodes.models import ONLINE, Node
from app.nodes.selecting import matches
from protocol import states

STATUS_OF = dict.fromkeys((*UNISSUED, ISSUED), "pending") | {
    state: state for state in TARGET_STATES if state not in (*UNISSUED, ISSUED)
}
"""State of a target → status of a record."""
FANOUTS_SORTABLE = {"id": Fanout.id, "created_at": Fanout.created_at, "finished_at": Fanout.finished_at}
NOTHING_TOLD = Command(stdout_bytes=0, stderr_bytes=0, is_truncated=False)
"""For targets without a command: everything that a host would have told is None."""
URGENCY = case(
    (Target.state.in_(ERRORS), 0),
    (Target.state == STARTED, 1),
    (Target.state == ISSUED, 2),
    (Target.state.in_(UNISSUED), 3),
    (Target.state == CANCELLED, 4),
    else_=5,
)
"""What somebody should look at comes first: failures, then what goes on."""
_PRESENT = (Command.target_id == Target.id, Command.attempt == Target.attempt)
TARGETS_SORTABLE = {
    "id": Target.id,
    "hostname": Target.hostname,
    "finished_at": Target.finished_at,
    "status": URGENCY,
    "duration_ms": select(Command.duration_ms).where(*_PRESENT).correlate(Target).scalar_subquery(),
}


@dataclass(frozen=True)
class TargetView:
    """A target with the command of its present attempt: all that a record shows but its output."""

    id: int
    fanout_id: int
    node_id: int
    hostname: str
    subject: str
    status: str
    command_id: int | None
    command_uuid: str | None
    exit_code: int | None
    signal: int | None
    user: str | None
    stdout_bytes: int
    stderr_bytes: int
    truncated: bool
    error: str | None
    error_code: str | None
    waiting_for: str | None
    attempt: int
    queued_at: datetime
    delivered_at: datetime | None
    accepted_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    duration_ms: int | None
    not_after: datetime | None
    due_at: datetime | None
    """When it is tried again, while it waits for that."""
    result: Any


def command_by_id(session: Session, command_id: int) -> Command:
    command = session.get(Command, command_id)
    if command is None:
        raise NotFound
    return command


def shown_command(session: Session, command: Command) -> dict[str, Any]:
    """A command as everybody may see it: without its payload, and without a result that holds a host's files."""
    shown = {column.key: getattr(command, column.key) for column in Command.__table__.columns}
    if command.kind in hooks().private:
        shown["result"] = None
    part_of = select(Fanout.uuid).join(Target, Target.fanout_id == Fanout.id).where(Target.id == command.target_id)
    return shown | {"batch_id": session.scalar(part_of)}


def fanout_by_uuid(session: Session, uuid: str) -> Fanout:
    fanout = session.scalar(select(Fanout).where(Fanout.uuid == uuid))
    if fanout is None:
        raise NotFound
    return fanout


def fanouts(session: Session, query: BatchQuery) -> Page[Fanout]:
    """Newest first."""
    found = select(Fanout)
    if query.purpose is not None:
        found = found.where(Fanout.purpose == query.purpose)
    if query.is_open is not None:
        found = found.where(Fanout.state.in_(UNFINISHED) if query.is_open else Fanout.state == DONE)
    return paginate(session, found, query, FANOUTS_SORTABLE, "-id")


def running_counts(session: Session, found: Iterable[Fanout]) -> dict[int, int]:
    """Fan-out id → how many of its targets run on their hosts now. Few rows: never more than the windows."""
    open_ids = [fanout.id for fanout in found if fanout.state != DONE]
    if not open_ids:
        return {}
    counted = select(Target.fanout_id, func.count()).where(Target.fanout_id.in_(open_ids), Target.state == STARTED)
    return {row[0]: row[1] for row in session.execute(counted.group_by(Target.fanout_id))}


def progress(session: Session, fanout: Fanout) -> dict[str, int]:
    """The contract's counts: `total` is the sum of the five others."""
    return _counts(fanout, running_counts(session, [fanout]).get(fanout.id, 0))


def _counts(fanout: Fanout, running: int) -> dict[str, int]:
    return {
        "total": fanout.total,
        "pending": fanout.total - fanout.settled - running,
        "running": running,
        "success": fanout.success,
        "failed": fanout.failed,
        "cancelled": fanout.cancelled,
    }


def shown_fanouts(session: Session, found: Sequence[Fanout]) -> list[dict[str, Any]]:
    """Fan-outs with their counts, as the API shows them."""
    running = running_counts(session, found)
    repeated = {fanout.repeats_id for fanout in found if fanout.repeats_id is not None}
    named = select(Fanout.id, Fanout.uuid).where(Fanout.id.in_(repeated))
    uuids = {row.id: row.uuid for row in session.execute(named)} if repeated else {}
    own = ("uuid", "purpose", "title", "kind", "status", "stopped_by", "deadline_at")
    who = ("created_by", "created_at", "finished_at")
    return [
        {name: getattr(fanout, name) for name in own + who}
        | _counts(fanout, running.get(fanout.id, 0))
        | {"max_parallel": fanout.max_in_flight, "max_errors": fanout.error_limit}
        | {"repeats": uuids.get(fanout.repeats_id) if fanout.repeats_id is not None else None}
        for fanout in found
    ]


def targets(session: Session, fanout: Fanout, query: TargetQuery, *conditions: ColumnElement[bool]) -> Page[TargetView]:
    """A page of a fan-out's targets (that a feature chooses further), in the order in which their turns come."""
    found = select(Target).where(Target.fanout_id == fanout.id, *conditions)
    if query.status is not None:
        wanted = [state for state, status in STATUS_OF.items() if status == query.status]
        found = found.where(Target.state.in_(wanted))
    if query.node_id is not None:
        found = found.where(Target.node_id == query.node_id)
    if query.keyword is not None:
        found = found.where(matches(Target.hostname, f"*{query.keyword.strip('*')}*"))
    cut = paginate(session, found, query, TARGETS_SORTABLE, "id")
    views = {view.id: view for view in target_views(session, [target.id for target in cut.items])}
    items = [views[target.id] for target in cut.items if target.id in views]
    return Page(items, cut.total, cut.page, cut.page_size, cut.sort, cut.query)


def target_views(session: Session, target_ids: Sequence[int]) -> list[TargetView]:
    """These targets, by id. A feature's records join on them by `Target.id`."""
    return [_view(row) for row in session.execute(_joined().where(Target.id.in_(target_ids)).order_by(Target.id))]


def _joined() -> Select[Target, Command | None, Fanout, str | None, datetime | None]:
    command = aliased(Command)
    is_its = (command.target_id == Target.id) & (command.attempt == Target.attempt)
    found = select(Target, command, Fanout, Node.status, Node.maintenance_until)
    found = found.join(Fanout, Fanout.id == Target.fanout_id).outerjoin(command, is_its)
    return found.outerjoin(Node, Node.id == Target.node_id)


def _view(row: Row[Target, Command | None, Fanout, str | None, datetime | None]) -> TargetView:
    target, command, fanout, _status, _until = row
    is_private = fanout.kind in hooks().private
    told = command or NOTHING_TOLD
    return TargetView(
        id=target.id,
        fanout_id=target.fanout_id,
        node_id=target.node_id,
        hostname=target.hostname,
        subject=target.subject,
        status=STATUS_OF[target.state],
        command_id=None if command is None else command.id,
        command_uuid=None if command is None else command.uuid,
        exit_code=told.exit_code,
        signal=told.signal,
        user=told.run_as,
        stdout_bytes=told.stdout_bytes,
        stderr_bytes=told.stderr_bytes,
        truncated=told.is_truncated,
        error=target.error,
        error_code=target.error_code,
        waiting_for=waiting_for(*row),
        attempt=target.attempt,
        queued_at=fanout.created_at,
        delivered_at=told.delivered_at,
        accepted_at=told.accepted_at,
        started_at=told.started_at,
        finished_at=target.finished_at,
        duration_ms=told.duration_ms,
        not_after=target.not_after,
        due_at=target.due_at if target.state == RETRYING else None,
        result=None if is_private else told.result,
    )


def waiting_for(
    target: Target, command: Command | None, fanout: Fanout, node_status: str | None, maintenance_until: datetime | None
) -> str | None:
    """Why it has not begun, in the contract's words. None: it has, or only the fan-out's pause holds it up."""
    if target.state not in (*UNISSUED, ISSUED):
        return None
    if target.state == RETRYING:
        return "retry_interval"
    if command is not None and target.state == ISSUED and command.state == states.ACCEPTED:
        return "agent_queue"
    if node_status != ONLINE:
        return "node_offline"
    if target.state == ISSUED:
        return "delivery"
    if fanout.waits_for_maintenance and maintenance_until is not None and maintenance_until > now():
        return "node_maintenance"
    return None if fanout.state == PAUSED else "parallel_limit"
