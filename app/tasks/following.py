"""Output as it comes: of one record by offset, of a whole run in the order of its arrival; held until there is some.

Edges that only read call this, pages and API alike. It ends the transaction that is open and answers plain values.
"""

import re
import time
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

from flask_babel import gettext as _
from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from app.commands.models import DONE, Command, Target
from app.commands.queries import TargetView
from app.kernel.clock import rfc3339
from app.kernel.db import db, reading
from app.kernel.errors import BadParameter, FieldError
from app.kernel.holding import look_until
from app.tasks.models import TaskOutput, TaskRun
from app.tasks.queries import record_view, run_by_uuid, shown_runs
from app.tasks.taking import record_topic, run_topic
from protocol import states

READ_AT_ONCE = 256 * 1024
PIECES_AT_ONCE = 500
MOST_HOLES, LOOKED_BACK = 32, 2000
PATIENCE_S = 10
"""A number that was given out and is in no row after so long was never committed."""
CURSOR = re.compile(r"[0-9]{1,18}(~[0-9]{1,18}\.[0-9]{1,12}){0,32}")
Found = Row[*tuple[Any, ...]]
COUNTS = ("status", "paused", "total", "pending", "running", "success", "failed", "cancelled")


def record_output(
    uuid: str, record_id: int, stream: str, offset: int, attempt: int | None = None, wait_s: float = 0
) -> dict[str, Any]:
    """What a record's program wrote after so many bytes, in its present attempt or in an earlier one."""
    look = _look_at_record(uuid, record_id, stream, offset, attempt)
    return look_until(record_topic(record_id), look, _has_moved, wait_s)


def _look_at_record(uuid: str, record_id: int, stream: str, offset: int, attempt: int | None) -> Any:
    def look() -> dict[str, Any]:
        session = db.session()
        view = record_view(session, run_by_uuid(session, uuid), record_id)
        return output_after(session, view, stream, offset, attempt)

    return look


def _has_moved(found: dict[str, Any]) -> bool:
    return bool(found["next_offset"] > found["offset"] or found["is_complete"])


def output_after(
    session: Session, view: TargetView, stream: str, offset: int, attempt: int | None = None
) -> dict[str, Any]:
    """Up to the next place where something was left out, which `skipped` bytes tell of; then from behind it.

    A character whose last bytes are still to come is kept back until then.
    """
    number = attempt or view.attempt
    its = select(Command).where(Command.target_id == view.id, Command.attempt == number)
    command = session.scalar(its)
    is_record_over = view.status not in ("pending", "running")
    is_over = is_record_over or (command is not None and command.state in states.TERMINAL)
    data, is_cut, end, skipped = b"", False, offset, 0
    if command is not None:
        data, is_cut, end, skipped = _read_stream(session, command.id, stream, offset, is_over=is_over)
    has_all = not skipped and end >= (_last_byte(session, command, stream) if command else 0)
    # Who does not say which attempt he means waits for the next one, if there will be one.
    is_complete = has_all and (is_record_over if attempt is None else is_over)
    if not is_complete and not skipped:
        data = data[: whole_characters(data)]
    return {
        "stream": stream,
        "offset": offset,
        "next_offset": offset + len(data) + skipped,
        "data": data.decode(errors="replace"),
        "skipped": skipped,
        "truncated": is_cut or (command is not None and command.is_truncated),
        "is_complete": is_complete,
        "attempt": number,
        "attempts": view.attempt,
        "status": view.status,
    }


def _read_stream(
    session: Session, command_id: int, stream: str, offset: int, *, is_over: bool
) -> tuple[bytes, bool, int, int]:
    """The bytes from there on, whether something is left out in or behind them, their end, and how much is missing
    behind that."""
    mine = (TaskOutput.command_id == command_id, TaskOutput.stream == stream)
    later = select(TaskOutput).where(*mine, TaskOutput.offset + TaskOutput.size >= offset)
    data, is_cut, end = b"", False, offset
    for piece in session.scalars(later.order_by(TaskOutput.offset, TaskOutput.size, TaskOutput.id).limit(64)):
        if piece.offset > end:
            # Either it was left out, or what lies between has not come yet and does while the program runs.
            return data, is_cut, end, piece.offset - end if is_cut or is_over else 0
        if len(data) >= READ_AT_ONCE:
            break
        data += piece.data[end - piece.offset :]
        end, is_cut = max(end, piece.offset + piece.size), is_cut or piece.is_cut
    return data, is_cut, end, 0


def _last_byte(session: Session, command: Command, stream: str) -> int:
    mine = (TaskOutput.command_id == command.id, TaskOutput.stream == stream)
    ends = select(TaskOutput.offset + TaskOutput.size).where(*mine)
    return session.scalar(ends.order_by(TaskOutput.offset.desc(), TaskOutput.size.desc()).limit(1)) or 0


def whole_characters(data: bytes) -> int:
    """How many bytes end with a whole character of UTF-8; at most three are left over."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        wanted = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(data) - back if wanted > back else len(data)
    return len(data)


class Cursor(NamedTuple):
    """How far a reader of a run has come: up to a piece's number, but for those that were not committed yet.

    Numbers are given out before the commit, so a smaller one may appear after a larger one was read.
    """

    upto: int
    holes: dict[int, int]
    """Number → since when (Unix time) it is waited for."""

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        if not text:
            return cls(0, {})
        if not CURSOR.fullmatch(text):
            raise BadParameter(errors=[FieldError("after", _("This is not what an answer said."))])
        upto, *holes = text.split("~")
        return cls(int(upto), {int(number): int(since) for number, since in (hole.split(".") for hole in holes)})

    def __str__(self) -> str:
        return "~".join([str(self.upto), *(f"{number}.{since}" for number, since in self.holes.items())])


def run_output(
    uuid: str, after: str = "", wait_s: float = 0, record_id: int | None = None, newest: int | None = None
) -> dict[str, Any]:
    """What all records of a run wrote (or one of them), in the order in which it came, after what was read before.

    Who has read nothing yet may begin with the `newest` pieces. Also answers, without any, as soon as a record has
    ended or the run's state has changed in another way.
    """
    cursor = Cursor.parse(after)
    first: list[Any] = []

    def look() -> dict[str, Any]:
        session = db.session()
        run = run_by_uuid(session, uuid)
        begin = Cursor(_before_newest(session, run, record_id, newest), {}) if newest and not after else cursor
        found = _run_pieces(session, run, begin, record_id) | {"skipped": begin.upto > cursor.upto}
        shown = shown_runs(session, [run])[0]
        found |= {name: shown[name] for name in COUNTS}
        found["is_complete"] = run.fanout.state == DONE and not found["has_more"]
        return found

    def is_news(found: dict[str, Any]) -> bool:
        state = [found[name] for name in COUNTS]
        is_changed = bool(first) and state != first[0]
        first[:] = first or [state]
        return bool(found["items"]) or found["is_complete"] or is_changed

    with reading():
        fanout_id = run_by_uuid(db.session(), uuid).fanout_id
    return look_until(run_topic(fanout_id), look, is_news, wait_s)


def _before_newest(session: Session, run: TaskRun, record_id: int | None, newest: int) -> int:
    """The number of the last piece that is older than so many; 0 if there is none."""
    asked = select(TaskOutput.id).where(TaskOutput.fanout_id == run.fanout_id)
    if record_id is not None:
        its = select(Command.id).where(Command.target_id == record_id)
        asked = asked.where(TaskOutput.command_id.in_(its))
    return session.scalar(asked.order_by(TaskOutput.id.desc()).offset(newest).limit(1)) or 0


def _run_pieces(session: Session, run: TaskRun, cursor: Cursor, record_id: int | None) -> dict[str, Any]:
    # Numbers first: what is committed between the two questions is at worst looked for once more.
    newest = session.scalar(select(func.max(TaskOutput.id))) or 0
    known = set(session.scalars(select(TaskOutput.id).where(TaskOutput.id > max(cursor.upto, newest - LOOKED_BACK))))
    columns = (
        TaskOutput.id,
        TaskOutput.command_id,
        TaskOutput.stream,
        TaskOutput.offset,
        TaskOutput.size,
        TaskOutput.data,
        TaskOutput.is_cut,
        TaskOutput.arrived_at,
        Command.attempt,
        Target.id.label("record_id"),
        Target.node_id,
        Target.hostname,
    )
    of_run = select(*columns).join(Command, Command.id == TaskOutput.command_id)
    of_run = of_run.join(Target, Target.id == Command.target_id).where(TaskOutput.fanout_id == run.fanout_id)
    if record_id is not None:
        of_run = of_run.where(Target.id == record_id)
    rows = list[Found]()
    if cursor.holes:
        rows += session.execute(of_run.where(TaskOutput.id.in_(cursor.holes))).all()
    newer = of_run.where(TaskOutput.id > cursor.upto).order_by(TaskOutput.id).limit(PIECES_AT_ONCE)
    has_more, count, size = False, 0, sum(row.size for row in rows)
    for row in session.execute(newer):
        if size >= READ_AT_ONCE:
            has_more = True
            break
        rows.append(row)
        size, count = size + row.size, count + 1
    return {
        "items": _shown_pieces(session, rows),
        "after": str(_moved(cursor, rows, known, newest)),
        "has_more": has_more or count == PIECES_AT_ONCE,
    }


def _moved(cursor: Cursor, rows: Sequence[Found], known: Set[int], newest: int) -> Cursor:
    """Behind what was read. Of the numbers on the way, those that are in no row yet are looked for a while longer."""
    present, read = int(time.time()), {row.id for row in rows}
    upto = max(read | {cursor.upto})
    holes = {number: since for number, since in cursor.holes.items() if since > present - PATIENCE_S}
    for number in range(max(cursor.upto + 1, newest - LOOKED_BACK + 1), upto):
        if number not in known:
            holes[number] = present
    left = sorted(number for number in holes if number not in read)[-MOST_HOLES:]
    return Cursor(upto, {number: holes[number] for number in left})


def _shown_pieces(session: Session, rows: Sequence[Found]) -> list[dict[str, Any]]:
    """As text. A character that stands in two pieces is shown with the second one."""
    names = ("id", "record_id", "node_id", "hostname", "attempt", "stream", "offset")
    rests: dict[tuple[int, str], tuple[int, bytes]] = {}
    shown = []
    for row in rows:
        place, rest = rests.get((row.command_id, row.stream), (-1, b""))
        if row.data[:1] and row.data[0] & 0xC0 == 0x80 and place != row.offset:
            rest = _rest_before(session, row)
        elif place != row.offset:
            rest = b""
        data = rest + row.data
        whole = whole_characters(data)
        rests[row.command_id, row.stream] = (row.offset + row.size, data[whole:])
        text = data[:whole].decode(errors="replace")
        more = {"data": text, "cut": row.is_cut, "arrived_at": rfc3339(row.arrived_at)}
        shown.append({name: getattr(row, name) for name in names} | more)
    return shown


def _rest_before(session: Session, row: Found) -> bytes:
    """What the piece before this one ended with, if that was the beginning of a character."""
    mine = (TaskOutput.command_id == row.command_id, TaskOutput.stream == row.stream)
    asked = select(TaskOutput.data).where(*mine, TaskOutput.offset + TaskOutput.size == row.offset, TaskOutput.size > 0)
    before = session.scalar(asked.where(TaskOutput.offset < row.offset).limit(1)) or b""
    return before[whole_characters(before) :]
