"""What hosts write while they run a task, taken in pieces: each once, within bounds, whatever a host says."""

from datetime import timedelta
from typing import Any

from sqlalchemy import Row, delete, exists, func, select
from sqlalchemy.orm import Session

from app.commands.models import Command, Target
from app.kernel.clock import now
from app.kernel.wake import tell_after_commit
from app.tasks.models import TaskOutput
from protocol.commands import Output

OUTPUT_BYTES = 1024 * 1024
"""Of the beginning of each stream that are kept, whatever the host sends."""
TAIL_BYTES = 128 * 1024
"""And of what lies behind that the newest: a host that left out the middle has kept the end."""
MOST_PIECES = 10_000
"""Of one command: hosts number them from 0, so what has a higher number is too much."""
LAST_OFFSET = 2**53
"""What readers may ask for, and what databases can still add to."""
LATE = timedelta(minutes=10)
"""How long after a command's end what belongs to it is still waited for."""


def run_topic(fanout_id: int) -> str:
    return f"run:{fanout_id}"


def record_topic(target_id: int) -> str:
    return f"record:{target_id}"


def is_late(command: Command) -> bool:
    return command.finished_at is not None and now() > command.finished_at + LATE


def take_output(session: Session, command: Command, piece: Output) -> None:
    """Keep a piece of a stream, once; what is beyond the bounds is left out and marked. The command's row is locked.

    No two pieces of a stream overlap: so the bounds hold for what is stored, in whatever order pieces come.
    """
    if command.target_id is None or piece.seq >= MOST_PIECES or piece.offset > LAST_OFFSET or is_late(command):
        return
    standing = _standing(session, command, piece)
    if standing.is_known or (standing.end or 0) > piece.offset:
        return
    is_tail = piece.offset > OUTPUT_BYTES
    kept = piece.data[-TAIL_BYTES:] if is_tail else piece.data[: OUTPUT_BYTES - piece.offset]
    is_cut = piece.cut or (len(kept) < len(piece.data) and not is_tail) or piece.seq == MOST_PIECES - 1
    if not kept and not is_cut:
        return
    if is_tail:
        _make_room(session, command.id, piece.stream, len(kept))
    session.add(
        TaskOutput(
            command_id=command.id,
            fanout_id=standing.fanout_id,
            seq=piece.seq,
            stream=piece.stream,
            offset=piece.offset + (len(piece.data) - len(kept) if is_tail else 0),
            size=len(kept),
            data=kept,
            is_cut=is_cut,
        )
    )
    tell_after_commit(session, run_topic(standing.fanout_id), record_topic(command.target_id))


def _standing(session: Session, command: Command, piece: Output) -> Row[Any]:
    """What has to be known of what is here, in one question. `end`: of the last piece that begins before its end."""
    mine = (TaskOutput.command_id == command.id, TaskOutput.stream == piece.stream)
    before = TaskOutput.offset < piece.offset + max(1, len(piece.data))
    last = select(TaskOutput.offset + TaskOutput.size).where(*mine, before)
    last = last.order_by(TaskOutput.offset.desc(), TaskOutput.size.desc()).limit(1)
    is_known = exists().where(TaskOutput.command_id == command.id, TaskOutput.seq == piece.seq)
    asked = select(Target.fanout_id, is_known.label("is_known"), last.scalar_subquery().label("end"))
    return session.execute(asked.where(Target.id == command.target_id)).one()


def _make_room(session: Session, command_id: int, stream: str, size: int) -> None:
    """The oldest of what lies behind the beginning goes."""
    behind = (TaskOutput.command_id == command_id, TaskOutput.stream == stream, TaskOutput.offset > OUTPUT_BYTES)
    held = session.scalar(select(func.sum(TaskOutput.size)).where(*behind)) or 0
    if held + size <= TAIL_BYTES:
        return
    for row in session.execute(select(TaskOutput.id, TaskOutput.size).where(*behind).order_by(TaskOutput.offset)).all():
        session.execute(delete(TaskOutput).where(TaskOutput.id == row.id).execution_options(synchronize_session=False))
        held -= row.size
        if held + size <= TAIL_BYTES:
            return
