"""Records of runs as pages look at them: what they wait for, their last words, one host's history, whole exports."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from pydantic import Field
from sqlalchemy import LargeBinary, case, func, select
from sqlalchemy.orm import Session

from app.commands import dispatch
from app.commands import queries as commands
from app.commands.models import PAUSED, UNISSUED, Command, Fanout, Target
from app.commands.queries import STATUS_OF, TargetView, waiting_for
from app.commands.schemas import TargetStatus
from app.kernel.errors import NotFound
from app.kernel.paging import ListQuery, Page, paginate
from app.nodes.models import Node
from app.nodes.selecting import matches
from app.tasks.harmless import last_line
from app.tasks.models import TaskOutput, TaskRun
from app.tasks.queries import record_view, runs_found
from app.tasks.schemas import RunQuery

TAIL_BYTES = 600
SEARCHED_RUNS, RUNS_AT_ONCE, SEARCHED_FOR_S = 2000, 20, 2.0
PIECES_AT_ONCE = 200
"""Of output, searched by one statement: nothing else goes on meanwhile."""
NODE_SORTABLE = {"id": Target.id, "finished_at": Target.finished_at, "task_name": TaskRun.task_name}


class LastWords(NamedTuple):
    stream: str
    text: str


def last_words(session: Session, views: Sequence[TargetView]) -> dict[int, LastWords]:
    """Record id → the last line that it wrote: of stderr if it failed and wrote any, else of stdout."""
    wrote = {view.command_id: view for view in views if view.command_id is not None}
    of_stream = (TaskOutput.command_id, TaskOutput.stream)
    newest = select(func.max(TaskOutput.id)).where(TaskOutput.command_id.in_(wrote), TaskOutput.size > 0)
    start = case((TaskOutput.size > TAIL_BYTES, TaskOutput.size - TAIL_BYTES + 1), else_=1)
    tail = func.substr(TaskOutput.data, start, TAIL_BYTES, type_=LargeBinary)
    found: dict[int, dict[str, str]] = {}
    for command_id, stream, data in session.execute(
        select(*of_stream, tail).where(TaskOutput.id.in_(newest.group_by(*of_stream)))
    ):
        found.setdefault(command_id, {})[stream] = last_line(data.decode(errors="replace"))
    words = {}
    for command_id, view in wrote.items():
        said = found.get(command_id, {})
        order = ("stdout", "stderr") if view.status in ("success", "running") else ("stderr", "stdout")
        if name := next((name for name in order if said.get(name)), None):
            words[view.id] = LastWords(name, said[name])
    return words


def maintenance_ends(session: Session, node_ids: Sequence[int]) -> dict[int, datetime]:
    """Node id → when its maintenance ends, for those that are in maintenance or were."""
    found = select(Node.id, Node.maintenance_until).where(Node.id.in_(node_ids), Node.maintenance_until.is_not(None))
    return {node_id: until for node_id, until in session.execute(found) if until is not None}


def status_counts(session: Session, fanout: Fanout) -> dict[str, int]:
    """Status of records → how many, in the order in which somebody wants to see them."""
    counted = select(Target.state, func.count()).where(Target.fanout_id == fanout.id).group_by(Target.state)
    found: Counter[str] = Counter()
    for state, count in session.execute(counted):
        found[STATUS_OF[state]] += count
    order = ("failed", "timeout", "interrupted", "expired", "running", "pending", "cancelled", "success")
    return {status: found[status] for status in order if found[status]}


class Waiting(NamedTuple):
    reason: str
    hosts: int
    first: datetime | None
    """When the first of them is given up."""
    last: datetime | None


def waiting_reasons(session: Session, fanout: Fanout) -> list[Waiting]:
    """What the records that have not begun wait for, and how many for what, most first."""
    is_its = (Command.target_id == Target.id) & (Command.attempt == Target.attempt)
    kinds = (Target.state, Command.state, Node.status, Node.maintenance_until)
    asked = select(*kinds, func.count(), func.min(Target.due_at), func.max(Target.due_at)).outerjoin(Command, is_its)
    asked = asked.outerjoin(Node, Node.id == Target.node_id).where(Target.fanout_id == fanout.id)
    waiting = [state for state, status in STATUS_OF.items() if status == "pending"]
    counts: Counter[str] = Counter()
    ends: dict[str, list[datetime]] = {}
    for state, command_state, node_status, until, count, first, last in session.execute(
        asked.where(Target.state.in_(waiting)).group_by(*kinds)
    ):
        command = None if state in UNISSUED else Command(state=command_state)
        reason = waiting_for(Target(state=state), command, fanout, node_status, until)
        key = reason or ("paused" if fanout.state == PAUSED else "delivery")
        counts[key] += count
        ends.setdefault(key, []).extend(moment for moment in (first, last) if moment is not None)
    return [
        Waiting(key, count, min(ends[key], default=None), max(ends[key], default=None))
        for key, count in counts.most_common()
    ]


class Attempt(NamedTuple):
    number: int
    command: Command


def attempts(session: Session, record_id: int) -> list[Attempt]:
    """Its commands, the first one first."""
    found = select(Command).where(Command.target_id == record_id).order_by(Command.attempt)
    return [Attempt(command.attempt, command) for command in session.scalars(found)]


def record_anywhere(session: Session, record_id: int) -> tuple[TaskRun, TargetView]:
    """A record of any run."""
    found = select(TaskRun).join(Target, Target.fanout_id == TaskRun.fanout_id).where(Target.id == record_id)
    run = session.scalar(found)
    if run is None:
        raise NotFound
    return run, record_view(session, run, record_id)


class NodeRecord(NamedTuple):
    run: TaskRun
    view: TargetView


class NodeRecordQuery(ListQuery):
    status: TargetStatus | None = None
    keyword: str | None = Field(None, max_length=100)


def node_records(session: Session, node_id: int, query: NodeRecordQuery) -> Page[NodeRecord]:
    """What ran on one host, newest first."""
    found = select(Target.id).join(TaskRun, TaskRun.fanout_id == Target.fanout_id).where(Target.node_id == node_id)
    if query.status is not None:
        found = found.where(Target.state.in_([state for state, one in STATUS_OF.items() if one == query.status]))
    if query.keyword is not None:
        found = found.where(matches(TaskRun.task_name, f"*{query.keyword.strip('*')}*"))
    cut = paginate(session, found, query, NODE_SORTABLE, "-id")
    views = {view.id: view for view in commands.target_views(session, list(cut.items))}
    asked = select(TaskRun).where(TaskRun.fanout_id.in_({view.fanout_id for view in views.values()}))
    runs = {run.fanout_id: run for run in session.scalars(asked)}
    items = [NodeRecord(runs[views[one].fanout_id], views[one]) for one in cut.items if one in views]
    return Page(items, cut.total, cut.page, cut.page_size, cut.sort, cut.query)


class Search(NamedTuple):
    found: list[int]
    """Of runs."""
    looked_at: int
    is_whole: bool


def runs_that_wrote(session: Session, query: RunQuery, text: str) -> Search:
    """Among the runs that the other filters leave, newest first, as many as can be looked through in a short time."""
    ids = runs_found(query).with_only_columns(TaskRun.fanout_id, TaskRun.id).order_by(TaskRun.id.desc())
    candidates = {row.fanout_id: row.id for row in session.execute(ids)}
    deadline, found, looked_at = time.monotonic() + SEARCHED_FOR_S, list[int](), 0
    is_late = False
    for some in dispatch.slices(list(candidates)[:SEARCHED_RUNS], RUNS_AT_ONCE):
        wrote, left = set[int](), session.scalars(select(TaskOutput.id).where(TaskOutput.fanout_id.in_(some))).all()
        for pieces in dispatch.slices(left, PIECES_AT_ONCE):
            if is_late := time.monotonic() > deadline:
                break
            holds = (TaskOutput.id.in_(pieces), func.instr(TaskOutput.data, text.encode()) > 0)
            wrote.update(session.scalars(select(TaskOutput.fanout_id).where(*holds).distinct()))
            time.sleep(0)  # others have their turn
        found += [candidates[one] for one in some if one in wrote]
        if is_late:
            break
        looked_at += len(some)
    return Search(found, looked_at, looked_at == len(candidates))


def exported_runs(session: Session, query: RunQuery, among: Sequence[int] | None) -> Iterator[TaskRun]:
    found = runs_found(query).order_by(TaskRun.id.desc())
    if among is not None:
        found = found.where(TaskRun.id.in_(among))
    yield from session.scalars(found.limit(SEARCHED_RUNS * 5))


class Piece(NamedTuple):
    left_out: int
    """Bytes before it that the host wrote and nobody kept."""
    data: bytes


def stream_pieces(session: Session, command_id: int | None, stream: str) -> Iterator[Piece]:
    """What a command wrote to one stream, piece by piece. All of it is little, and may be very many pieces."""
    mine = (TaskOutput.command_id == (command_id or 0), TaskOutput.stream == stream)
    asked = select(TaskOutput.offset, TaskOutput.data).where(*mine).order_by(TaskOutput.offset, TaskOutput.id)
    end = 0
    for offset, data in session.execute(asked).all():
        if offset + len(data) > end:
            yield Piece(max(0, offset - end), data[max(0, end - offset) :])
            end = offset + len(data)


def is_stream_cut(session: Session, view: TargetView, stream: str) -> bool:
    """Whether more was written to it than is kept."""
    mine = (TaskOutput.command_id == (view.command_id or 0), TaskOutput.stream == stream)
    return session.scalar(select(TaskOutput.id).where(*mine, TaskOutput.is_cut).limit(1)) is not None
