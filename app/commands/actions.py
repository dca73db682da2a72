"""Every step of a command: made, handed out, reported on, expired. A step is believed only if it is legal."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import and_, bindparam, or_, select, update
from sqlalchemy.orm import Session

from app.commands.models import Command
from app.kernel.access import Actor
from app.kernel.clock import now
from app.kernel.types import UtcDateTime
from app.kernel.wake import COMMAND, wake_after_commit
from app.nodes.enrolment import command_key
from app.nodes.models import Node
from protocol import states
from protocol.codec import canonical
from protocol.commands import Accept, Output, Report, ReportOutcome, Result, Start, state_asked_for
from protocol.commands import Command as Order
from protocol.errors import ILLEGAL_STEP, UNKNOWN_COMMAND
from protocol.limits import COMMANDS
from protocol.signing import sign_command
from protocol.times import to_datetime, to_text

LEASE = timedelta(seconds=30)
TakeResult = Callable[[Session, Command, Result], None]


_AT = bindparam("at", type_=UtcDateTime)
# Made once: every poll and every check-in asks it.
_WAITING = (
    select(Command.id)
    .where(
        Command.node_id == bindparam("node_id"),
        or_(Command.state == states.QUEUED, and_(Command.state == states.DELIVERED, Command.lease_until < _AT)),
        Command.not_after > _AT,
    )
    .limit(1)
)


def issue(
    session: Session, actor: Actor, node_id: int, kind: str, payload: Mapping[str, Any], valid_for: timedelta
) -> Command:
    """An order for a host. It leaves as soon as this transaction is committed and the host polls."""
    issued_at = now()
    command = Command(
        uuid=str(uuid4()),
        node_id=node_id,
        kind=kind,
        payload=canonical(dict(payload)),
        issued_at=issued_at,
        not_after=issued_at + valid_for,
        created_by=actor.username,
    )
    session.add(command)
    session.flush()
    wake_after_commit(session, node_id, COMMAND)
    return command


def deliver(session: Session, node: Node, have: Sequence[str]) -> list[Order]:
    """What this host is to do next, signed for it. Handed out under a lease: again, if it is not accepted in time."""
    at = now()
    if have:
        mine = and_(Command.node_id == node.id, Command.uuid.in_(have), Command.state == states.DELIVERED)
        session.execute(update(Command).where(mine).values(lease_until=at + LEASE))
    due = or_(
        Command.state == states.QUEUED,
        and_(Command.state == states.DELIVERED, Command.lease_until < at),
    )
    waiting = select(Command).where(Command.node_id == node.id, due, Command.not_after > at).order_by(Command.id)
    found = session.scalars(waiting.limit(COMMANDS).with_for_update(skip_locked=True)).all()
    if not found:
        return []
    key = command_key(node)
    orders = []
    for command in found:
        command.state, command.lease_until = states.DELIVERED, at + LEASE
        command.delivered_at = command.delivered_at or at
        orders.append(_signed(command, node.uuid, key))
    session.flush()
    return orders


def has_waiting(session: Session, node_id: int) -> bool:
    """Whether a poll of this node has something to bring, without touching it."""
    return session.scalar(_WAITING, {"node_id": node_id, "at": now()}) is not None


def _signed(command: Command, node_uuid: str, key: bytes) -> Order:
    issued_at, not_after = (to_text(moment.timestamp(), 6) for moment in (command.issued_at, command.not_after))
    signature = sign_command(key, command.uuid, node_uuid, command.kind, command.payload, issued_at, not_after)
    return Order(command.uuid, node_uuid, command.kind, command.payload, issued_at, not_after, signature)


def take_reports(
    session: Session, node_id: int, reports: Sequence[Report], takers: Mapping[str, TakeResult]
) -> list[ReportOutcome]:
    """Reports of one host, one by one, in order: only about its own commands, only legal steps, repeats are fine."""
    return [_take(session, node_id, report, takers) for report in reports]


def _take(session: Session, node_id: int, report: Report, takers: Mapping[str, TakeResult]) -> ReportOutcome:
    mine = select(Command).where(Command.uuid == report.command, Command.node_id == node_id)
    command = session.scalar(mine.with_for_update())
    if command is None:
        return ReportOutcome(report.command, report.type, False, UNKNOWN_COMMAND)
    wanted = state_asked_for(report)
    if wanted is None or isinstance(report, Output):
        return ReportOutcome(report.command, report.type, False, ILLEGAL_STEP)
    if _is_done(command.state, wanted):
        return ReportOutcome(report.command, report.type, True, None)
    if not states.can_move(command.state, wanted):
        return ReportOutcome(report.command, report.type, False, ILLEGAL_STEP)
    command.state = wanted
    _note_step(command, report)
    if isinstance(report, Result) and command.kind in takers:
        takers[command.kind](session, command, report)
    session.flush()
    return ReportOutcome(report.command, report.type, True, None)


def _is_done(state: str, wanted: str) -> bool:
    """A report that was told before, or was overtaken by a later one, is fine and changes nothing."""
    if state == wanted:
        return True
    order = (states.QUEUED, states.DELIVERED, states.ACCEPTED, states.STARTED)
    return wanted in order and (state not in order or order.index(state) > order.index(wanted))


def _note_step(command: Command, report: Report) -> None:
    if isinstance(report, Accept):
        command.accepted_at = to_datetime(report.at)
    elif isinstance(report, Start):
        command.started_at = to_datetime(report.at)
    elif isinstance(report, Result):
        command.started_at = _moment(report.started_at) or command.started_at
        command.finished_at = to_datetime(report.finished_at)
        command.exit_code, command.signal, command.duration_ms = report.exit_code, report.signal, report.duration_ms
        command.error_code, command.error, command.result = report.error_code, report.error, report.data


def _moment(text: str | None) -> datetime | None:
    return None if text is None else to_datetime(text)


def expire_overdue(session: Session) -> int:
    """What could not be started before its deadline never will be. Open ones that did start report for themselves."""
    waiting = (states.QUEUED, states.DELIVERED)
    overdue = update(Command).where(Command.state.in_(waiting), Command.not_after < now())
    changed = session.execute(overdue.values(state=states.EXPIRED, finished_at=now(), error_code="not_delivered"))
    return int(changed.rowcount)  # type: ignore[attr-defined]
