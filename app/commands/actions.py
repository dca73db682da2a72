"""Every step of a command: made, handed out, reported on, expired. A step is believed only if it is legal."""

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import and_, bindparam, delete, exists, or_, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.commands import dispatch
from app.commands.hooks import hooks
from app.commands.models import DONE, Command, Fanout, Target
from app.commands.payloads import BYTES_AT_ONCE, complete, payload_text, stored_payloads
from app.kernel.access import Actor
from app.kernel.clock import now
from app.kernel.db import is_away
from app.kernel.errors import AppError
from app.kernel.types import UtcDateTime
from app.kernel.wake import COMMAND, wake_after_commit
from app.nodes.enrolment import command_key
from app.nodes.models import Node
from protocol import states
from protocol.commands import Accept, Output, Report, ReportOutcome, Result, Start, state_asked_for
from protocol.commands import Command as Order
from protocol.errors import ILLEGAL_STEP, UNKNOWN_COMMAND
from protocol.limits import COMMANDS
from protocol.signing import sign_command
from protocol.times import to_datetime, to_text

log = logging.getLogger(__name__)

LEASE = timedelta(seconds=30)
FORSAKEN = timedelta(hours=6)
"""How long after its deadline the end of a command that a host took is waited for; logs are followed for an hour."""


_AT = bindparam("at", type_=UtcDateTime)
_IS_DUE = and_(
    Command.node_id == bindparam("node_id"),
    or_(Command.state == states.QUEUED, and_(Command.state == states.DELIVERED, Command.lease_until < _AT)),
    Command.not_after > _AT,
)
# Made once: putting it together takes longer than asking it.
_DUE = select(Command).where(_IS_DUE).order_by(Command.id).limit(COMMANDS).with_for_update(skip_locked=True)
IS_AWAITED = exists().where(_IS_DUE)
"""Whether a poll of the node `node_id` has something to bring at the time `at`: part of the statement that every poll
and every check-in begins with."""


def issue(
    session: Session, actor: Actor, node_id: int, kind: str, payload: Mapping[str, Any], valid_for: timedelta
) -> Command:
    """An order for a host. It leaves as soon as this transaction is committed and the host polls."""
    issued_at = now()
    command = Command(
        uuid=str(uuid4()),
        node_id=node_id,
        kind=kind,
        payload=payload_text(payload),
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
    found = session.scalars(_DUE, {"node_id": node.id, "at": at}, execution_options={"populate_existing": True}).all()
    if not found:
        return []
    key, stored, room = command_key(node), stored_payloads(session, found), BYTES_AT_ONCE
    orders: list[Order] = []
    for command in found:
        try:
            payload = complete(session, command, stored[command.id])
        except Exception as error:
            if isinstance(error, DBAPIError) or is_away(error):
                raise
            # What could not be made will not be made the next time either, and must not hold up what waits behind it.
            if not isinstance(error, AppError):
                log.exception("the order of command %s could not be made", command.uuid)
            _fail(session, command, str(error.message if isinstance(error, AppError) else type(error).__name__))
            # That may have stopped a fan-out and so taken back what was found beside it: look again.
            return orders or deliver(session, node, ())
        room -= len(json.dumps(payload))
        if room < 0 and orders:
            break
        command.state, command.lease_until = states.DELIVERED, at + LEASE
        command.delivered_at = command.delivered_at or at
        orders.append(_signed(command, payload, node.uuid, key))
    session.flush()
    return orders


def _fail(session: Session, command: Command, why: str) -> None:
    """What could not even be said to the host. Rarely enough that its fan-out's lock may be taken out of order."""
    command.state, command.finished_at = states.FAILED, now()
    command.error_code, command.error = "task_failed", why
    session.flush()
    for fanout in dispatch.lock_of_commands(session, command.node_id, [command.uuid]).values():
        dispatch.settle(session, fanout, command)


def _signed(command: Command, payload: str, node_uuid: str, key: bytes) -> Order:
    issued_at, not_after = (to_text(moment.timestamp(), 6) for moment in (command.issued_at, command.not_after))
    signature = sign_command(key, command.uuid, node_uuid, command.kind, payload, issued_at, not_after)
    return Order(command.uuid, node_uuid, command.kind, payload, issued_at, not_after, signature)


def take_reports(session: Session, node_id: int, reports: Sequence[Report]) -> list[ReportOutcome]:
    """Reports of one host, one by one, in order: only about its own commands, only legal steps, repeats are fine.

    A result that ends a target of a fan-out hands out the next one right here: nothing waits for a worker.
    """
    uuids = [report.command for report in reports if isinstance(report, Result)]
    fanouts = dispatch.lock_of_commands(session, node_id, uuids) if uuids else {}
    return [_take(session, node_id, report, fanouts) for report in reports]


def _take(session: Session, node_id: int, report: Report, fanouts: Mapping[str, Fanout]) -> ReportOutcome:
    mine = select(Command).where(Command.uuid == report.command, Command.node_id == node_id).with_for_update()
    command = session.scalar(mine.execution_options(populate_existing=True))
    if command is None:
        return ReportOutcome(report.command, report.type, False, UNKNOWN_COMMAND)
    if isinstance(report, Output):
        return _take_output(session, command, report)
    wanted = state_asked_for(report)
    if wanted is None or not (_is_done(command.state, wanted) or states.can_move(command.state, wanted)):
        return ReportOutcome(report.command, report.type, False, ILLEGAL_STEP)
    if not _is_done(command.state, wanted):
        command.state = wanted
        _note_step(command, report)
        session.flush()
        _pass_on(session, command, report, fanouts.get(command.uuid))
    return ReportOutcome(report.command, report.type, True, None)


def _take_output(session: Session, command: Command, report: Output) -> ReportOutcome:
    """A piece of a stream, for the feature that keeps it: also late or again, which the feature recognises."""
    take = hooks().outputs.get(command.kind)
    if take is None or command.state == states.QUEUED:
        return ReportOutcome(report.command, report.type, False, ILLEGAL_STEP)
    take(session, command, report)
    session.flush()
    return ReportOutcome(report.command, report.type, True, None)


def _pass_on(session: Session, command: Command, report: Report, fanout: Fanout | None) -> None:
    """To the feature, and to the fan-out that the command belongs to."""
    if isinstance(report, Result):
        if take := hooks().results.get(command.kind):
            take(session, command, report)
        if fanout is not None:
            dispatch.settle(session, fanout, command)
    elif isinstance(report, Start) and command.target_id is not None:
        dispatch.note_start(session, command)
    session.flush()


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
        command.run_as, command.is_truncated = report.user, report.truncated
        command.stdout_bytes, command.stderr_bytes = report.stdout_bytes, report.stderr_bytes


def _moment(text: str | None) -> datetime | None:
    return None if text is None else to_datetime(text)


def expire_overdue(session: Session) -> int:
    """What could not be started before its deadline never will be. Open ones that did start report for themselves, but
    are not waited for without end.

    Those of fan-outs are left to their sweep.
    """
    at = now()
    waiting, taken = (states.QUEUED, states.DELIVERED), (states.ACCEPTED, states.STARTED)
    expired = _end_alone(session, waiting, at, state=states.EXPIRED, error_code="not_delivered")
    return expired + _end_alone(session, taken, at - FORSAKEN, state=states.INTERRUPTED, error_code="interrupted")


def _end_alone(session: Session, open_states: Sequence[str], before: datetime, **values: str) -> int:
    alone = (Command.target_id.is_(None), Command.state.in_(open_states), Command.not_after < before)
    changed = session.execute(update(Command).where(*alone).values(finished_at=now(), **values))
    return int(changed.rowcount)  # type: ignore[attr-defined]


def forget_old(session: Session, before: datetime, most: int = 1000) -> bool:
    """Delete some of what ended before then, with all that refers to it. Answers whether there may be more."""
    ended = select(Fanout.id).where(Fanout.state == DONE, Fanout.finished_at < before).order_by(Fanout.id).limit(1)
    fanout_id = session.scalar(ended)
    if fanout_id is not None:
        parts = session.scalars(select(Target.id).where(Target.fanout_id == fanout_id).limit(most)).all()
        gone = delete(Target).where(Target.id.in_(parts)) if parts else delete(Fanout).where(Fanout.id == fanout_id)
        session.execute(gone.execution_options(synchronize_session=False))
        return True
    # Found by the index of when they were issued: what ended before then was issued before then.
    alone = (Command.issued_at < before, Command.target_id.is_(None), Command.finished_at < before)
    old = session.scalars(select(Command.id).where(*alone).order_by(Command.issued_at).limit(most)).all()
    session.execute(delete(Command).where(Command.id.in_(old)).execution_options(synchronize_session=False))
    return len(old) == most
