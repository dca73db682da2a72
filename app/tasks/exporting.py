"""A whole run to take away: a row for each record, with all that was kept of its output, read a little at a time."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from flask_babel import gettext as _
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.commands.models import Target
from app.commands.queries import TargetView, target_views
from app.kernel.clock import rfc3339
from app.tasks.models import TaskOutput, TaskRun

FACTS = (
    "id",
    "node_id",
    "hostname",
    "status",
    "exit_code",
    "signal",
    "user",
    "error_code",
    "error",
    "waiting_for",
    "attempt",
    "queued_at",
    "delivered_at",
    "started_at",
    "finished_at",
    "duration_ms",
    "truncated",
)
FIELDS = (*FACTS, "stdout", "stderr")
RECORDS_AT_ONCE = 200
BYTES_AT_ONCE = 4 * 1024 * 1024


def run_rows(session: Session, run: TaskRun) -> Iterator[dict[str, Any]]:
    """In the order of the records, each in its present attempt."""
    fanout_id, last = run.fanout_id, 0
    while True:
        later = select(Target.id).where(Target.fanout_id == fanout_id, Target.id > last).order_by(Target.id)
        ids = session.scalars(later.limit(RECORDS_AT_ONCE)).all()
        if not ids:
            return
        last = ids[-1]
        views = target_views(session, ids)
        session.expunge_all()
        for some in _portions(session, views):
            outputs = _outputs(session, [view.command_id for view in some if view.command_id is not None])
            for view in some:
                yield _row(view, outputs)


def _portions(session: Session, views: Sequence[TargetView]) -> Iterator[list[TargetView]]:
    """As many as have not too much output together to be held at once."""
    ids = [view.command_id for view in views if view.command_id is not None]
    counted = select(TaskOutput.command_id, func.sum(TaskOutput.size)).where(TaskOutput.command_id.in_(ids))
    sizes = {row[0]: int(row[1]) for row in session.execute(counted.group_by(TaskOutput.command_id))}
    portion, held = list[TargetView](), 0
    for view in views:
        size = sizes.get(view.command_id or 0, 0)
        if portion and held + size > BYTES_AT_ONCE:
            yield portion
            portion, held = [], 0
        portion.append(view)
        held += size
    yield portion


def _outputs(session: Session, command_ids: Sequence[int]) -> dict[tuple[int, str], str]:
    """Whole streams as text, with a mark wherever something was left out."""
    order = (TaskOutput.command_id, TaskOutput.stream, TaskOutput.offset, TaskOutput.size, TaskOutput.id)
    asked = select(*order[:3], TaskOutput.data, TaskOutput.is_cut).where(TaskOutput.command_id.in_(command_ids))
    pieces: dict[tuple[int, str], list[bytes]] = {}
    ends: dict[tuple[int, str], tuple[int, bool]] = {}
    for command_id, stream, offset, data, is_cut in session.execute(asked.order_by(*order)):
        key = (command_id, stream)
        end, was_cut = ends.get(key, (0, False))
        missing = offset - end
        found = pieces.setdefault(key, [])
        if missing > 0:
            found.append(_mark(missing))
        found.append(data)
        ends[key] = (max(end, offset + len(data)), is_cut or (was_cut and missing <= 0))
    return {
        key: b"".join([*found, _mark(None)] if ends[key][1] else found).decode(errors="replace")
        for key, found in pieces.items()
    }


def _mark(missing: int | None) -> bytes:
    text = _("something was left out") if missing is None else _("%(count)s bytes were left out", count=missing)
    return f"\n[… {text} …]\n".encode()


def _row(view: TargetView, outputs: dict[tuple[int, str], str]) -> dict[str, Any]:
    shown = {name: _plain(getattr(view, name)) for name in FACTS}
    streams = {name: outputs.get((view.command_id or 0, name), "") for name in ("stdout", "stderr")}
    return shown | streams


def _plain(value: Any) -> Any:
    return rfc3339(value) if isinstance(value, datetime) else value
