"""The engine of fan-outs: hands targets out within the window, settles them, stops what has failed too often.

Every step that hands out or settles holds the lock of the fan-out's row, taken before the rows of its commands and
targets; so of two gateways or workers one waits for the other and then sees what it did. Only a host's report that it
has started does without: it is a guarded update. Each step is complete in its own transaction: after a crash at any
point, what is in the database is a state from which the next report or sweep goes on.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from sqlalchemy import ColumnElement, Row, Select, func, insert, select, update
from sqlalchemy.orm import Session

from app.commands.hooks import Settled, Turn, purpose_of
from app.commands.models import (
    BY_CANCEL,
    BY_DEADLINE,
    BY_ERRORS,
    CANCELLED,
    DONE,
    EXPIRED,
    FAILED,
    IN_FLIGHT,
    INTERRUPTED,
    ISSUED,
    PARKED,
    PAUSED,
    RETRYING,
    RUNNING,
    SETTLED,
    STARTED,
    STOPPED,
    SUCCESS,
    TIMEOUT,
    UNISSUED,
    WAITING,
    Command,
    Fanout,
    Target,
)
from app.commands.payloads import payload_text
from app.kernel.access import MATRIX, Actor, Role
from app.kernel.clock import now
from app.kernel.wake import COMMAND, wake_after_commit
from app.nodes.models import ONLINE, OUTSIDERS, Node
from app.people.models import User
from protocol import states

Item = TypeVar("Item")
Found = Row[*tuple[Any, ...]]
Finding = Select[*tuple[Any, ...]]

SLICE = 1000
"""Rows in one statement."""
SILENCE = timedelta(seconds=60)
"""How long after its time a host may still report before its silence counts as failure."""
CANCEL_WITHIN = timedelta(minutes=15)

OUTCOMES = {
    states.SUCCEEDED: SUCCESS,
    states.FAILED: FAILED,
    states.TIMED_OUT: TIMEOUT,
    states.CANCELLED: CANCELLED,
    states.INTERRUPTED: INTERRUPTED,
    states.EXPIRED: EXPIRED,
}
CODES = {FAILED: "task_failed", TIMEOUT: "task_timeout", INTERRUPTED: "interrupted", EXPIRED: "not_delivered"}
WITH_HOST = (states.DELIVERED, states.ACCEPTED, states.STARTED)


class Ending(NamedTuple):
    """How targets end, and why."""

    state: str
    error: str | None
    is_presumed: bool = False


ENDINGS = {
    BY_CANCEL: Ending(CANCELLED, None),
    BY_ERRORS: Ending(CANCELLED, "not begun: too many others failed"),
    BY_DEADLINE: Ending(EXPIRED, "not begun by the deadline of the run"),
}
AWAY = Ending(EXPIRED, "the host was not there in time")
UNDELIVERED = Ending(EXPIRED, "the host did not fetch it in time")
NOT_STARTED = Ending(EXPIRED, "the host has not said in time that it started", is_presumed=True)
SILENT = Ending(TIMEOUT, "the host has not said how it ended", is_presumed=True)
NODE_GONE = Ending(EXPIRED, "the node was deleted or turned away")
NODE_GONE_MEANWHILE = Ending(INTERRUPTED, "the node was deleted while it ran")
TRIED = Ending(FAILED, None)


def slices(items: Sequence[Item], size: int = SLICE) -> Iterator[Sequence[Item]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def lock(session: Session, fanout_id: int, *, is_patient: bool = True) -> Fanout | None:
    """The fan-out, held until the end of the transaction and as it is now. None if there is none, or it is taken."""
    held = select(Fanout).where(Fanout.id == fanout_id).with_for_update(skip_locked=not is_patient)
    return session.scalar(held.execution_options(populate_existing=True))


def lock_of_commands(session: Session, node_id: int, uuids: Sequence[str]) -> dict[str, Fanout]:
    """The fan-outs that these commands of a node belong to, by the command, all locked in the order of their ids."""
    named = select(Command.uuid, Target.fanout_id).join(Target, Target.id == Command.target_id)
    rows = session.execute(named.where(Command.uuid.in_(uuids), Command.node_id == node_id)).all()
    held = {fanout_id: lock(session, fanout_id) for fanout_id in sorted({row.fanout_id for row in rows})}
    return {row.uuid: fanout for row in rows if (fanout := held[row.fanout_id]) is not None}


def advance(session: Session, fanout: Fanout) -> None:
    """Hand out as much as fits into the window, and end what has come to its end. The caller holds the lock."""
    while fanout.state == RUNNING and fanout.in_flight < fanout.max_in_flight:
        free = fanout.max_in_flight - fanout.in_flight
        rows = session.execute(_next(fanout).limit(min(free, SLICE))).all()
        if not rows:
            break
        _take_turns(session, fanout, rows)
    if fanout.state != DONE and fanout.settled == fanout.total:
        fanout.state, fanout.finished_at = DONE, now()
        session.flush()
        if ended := purpose_of(fanout).on_ended:
            ended(session, fanout)


def _next(fanout: Fanout) -> Finding:
    """Those that wait for their turn, in their order, with what decides whether their host can be reached."""
    columns = (Target.id, Target.node_id, Target.subject, Target.state, Target.attempt, Target.not_after)
    found = select(*columns, Node.status, Node.maintenance_until).outerjoin(Node, Node.id == Target.node_id)
    return found.where(Target.fanout_id == fanout.id, Target.state == WAITING).order_by(Target.id)


def _take_turns(session: Session, fanout: Fanout, rows: Sequence[Found]) -> None:
    at = now()
    gone = [row for row in rows if _is_gone(row)]
    away = [row for row in rows if not _is_gone(row) and not _is_reachable(fanout, row, at)]
    ready = [row for row in rows if not _is_gone(row) and _is_reachable(fanout, row, at)]
    refused = _refused(session, fanout, ready)
    settle_many(session, fanout, gone, NODE_GONE)
    for reason in dict.fromkeys(refused.values()):
        some = [row for row in ready if refused.get(row.id) == reason]
        settle_many(session, fanout, some, Ending(FAILED, reason))
    mind_errors(session, fanout)
    if fanout.state != RUNNING:
        return
    not_after = at + timedelta(seconds=fanout.deliver_within_s)
    limits = {
        "not_after": func.coalesce(Target.not_after, not_after),
        "due_at": func.coalesce(Target.not_after, not_after),
    }
    move(session, away, WAITING, state=PARKED, **limits)
    allowed = [row for row in ready if row.id not in refused]
    if not allowed:
        return
    # Under the lock, what still waits up to here is exactly what may go; one range is quicker than a thousand ids.
    upto = (Target.fanout_id == fanout.id, Target.state == WAITING, Target.id <= rows[-1].id)
    moved = update(Target).where(*upto).values(state=ISSUED, attempt=Target.attempt + 1, **limits)
    _expect(session.execute(moved.execution_options(synchronize_session=False)), len(allowed))
    _order(session, fanout, allowed, at, not_after)
    fanout.in_flight += len(allowed)


def _is_gone(row: Found) -> bool:
    return row.status is None or row.status in OUTSIDERS


def _is_reachable(fanout: Fanout, row: Found, at: datetime) -> bool:
    is_in_maintenance = row.maintenance_until is not None and row.maintenance_until > at
    return row.status == ONLINE and not (fanout.waits_for_maintenance and is_in_maintenance)


def _refused(session: Session, fanout: Fanout, rows: Sequence[Found]) -> Mapping[int, str]:
    """Rights are looked at again whenever something goes out: they may have been taken away meanwhile."""
    if not rows:
        return {}
    purpose = purpose_of(fanout)
    if fanout.created_by_id is not None:
        user = session.get(User, fanout.created_by_id)
        if user is None or not user.is_enabled or Role(user.role) not in MATRIX[purpose.permission]:
            return dict.fromkeys([row.id for row in rows], f"{fanout.created_by} may no longer do this")
    if purpose.refuse is None:
        return {}
    return purpose.refuse(session, fanout, [Turn(row.id, row.node_id, row.subject) for row in rows])


def _order(session: Session, fanout: Fanout, rows: Sequence[Found], at: datetime, not_after: datetime) -> None:
    orders = [
        {
            "uuid": str(uuid4()),
            "node_id": row.node_id,
            "target_id": row.id,
            "attempt": row.attempt + 1,
            "kind": fanout.kind,
            "state": states.QUEUED,
            "issued_at": at,
            "not_after": row.not_after or not_after,
            "created_by": fanout.created_by,
        }
        for row in rows
    ]
    session.execute(insert(Command), orders)
    for row in rows:
        wake_after_commit(session, row.node_id, COMMAND)


def note_start(session: Session, command: Command) -> None:
    """The host has begun: from now on the time to run counts. Guarded, without the fan-out's lock."""
    run = select(Fanout.run_within_s).join(Target, Target.fanout_id == Fanout.id).where(Target.id == command.target_id)
    due_at = now() + timedelta(seconds=session.scalar(run) or 0) + SILENCE
    mine = (Target.id == command.target_id, Target.attempt == command.attempt, Target.state == ISSUED)
    session.execute(update(Target).where(*mine).values(state=STARTED, due_at=due_at))


def settle(session: Session, fanout: Fanout, command: Command) -> None:
    """A command has ended: so has its target, unless it is tried again. The caller holds the lock of both."""
    asked = select(Target).where(Target.id == command.target_id).with_for_update()
    target = session.scalars(asked.execution_options(populate_existing=True)).one()
    if target.attempt != command.attempt:
        return
    ending = Ending(OUTCOMES[command.state], command.error)
    code = command.error_code or CODES.get(ending.state)
    if target.state in SETTLED:
        if not target.is_presumed:
            return
        _count(fanout, target.state, -1)
    else:
        fanout.in_flight -= 1
        if _is_retried(fanout, target, ending.state):
            _retry(fanout, target, code, command.error)
            session.flush()
            advance(session, fanout)
            return
    _count(fanout, ending.state, 1)
    target.state, target.error_code, target.error, target.is_presumed = ending.state, code, ending.error, False
    target.finished_at, target.due_at = command.finished_at or now(), None
    session.flush()
    _tell(session, fanout, [target], ending.state)
    mind_errors(session, fanout)
    advance(session, fanout)


def _is_retried(fanout: Fanout, target: Target, state: str) -> bool:
    """Only what the host itself calls failed or too slow: of what died or fell silent nobody knows what it has done."""
    return state in (FAILED, TIMEOUT) and target.attempt <= fanout.retries and fanout.state in (RUNNING, PAUSED)


def _retry(fanout: Fanout, target: Target, code: str | None, error: str | None) -> None:
    target.error_code, target.error, target.not_after = code, error, None
    pause_s = fanout.retry_interval_s
    target.state = RETRYING if pause_s else WAITING
    target.due_at = now() + timedelta(seconds=pause_s) if pause_s else None


def _count(fanout: Fanout, state: str, by: int) -> None:
    if state == SUCCESS:
        fanout.success += by
    elif state == CANCELLED:
        fanout.cancelled += by
    else:
        fanout.failed += by


def mind_errors(session: Session, fanout: Fanout) -> None:
    """Reaching the limit stops what has not been handed out to a host."""
    limit = fanout.error_limit
    is_open = fanout.state in (RUNNING, PAUSED) and fanout.settled < fanout.total
    if is_open and limit is not None and fanout.failed >= limit:
        stop(session, fanout, BY_ERRORS)


def stop(session: Session, fanout: Fanout, why: str) -> None:
    """Hand out nothing more: what no host has yet ends at once, what is with hosts goes on. The caller has the lock."""
    fanout.state, fanout.stopped_by = STOPPED, why
    withdraw(session, fanout, ending=ENDINGS[why])
    advance(session, fanout)


def withdraw(
    session: Session, fanout: Fanout, target_ids: Sequence[int] | None = None, ending: Ending = ENDINGS[BY_CANCEL]
) -> int:
    """End targets (all, or these) that no host has yet. What was tried before has failed rather than been cancelled."""
    unissued = session.execute(open_targets(fanout, UNISSUED, target_ids)).all()
    queued = take_queued(session, fanout, target_ids, ending.state)
    fanout.in_flight -= len(queued)
    settle_many(session, fanout, [row for row in unissued if row.attempt > 0], TRIED)
    settle_many(session, fanout, [row for row in queued if row.attempt > 1], TRIED)
    settle_many(session, fanout, [row for row in unissued if row.attempt == 0], ending)
    settle_many(session, fanout, [row for row in queued if row.attempt == 1], ending)
    mind_errors(session, fanout)
    return len(unissued) + len(queued)


def open_targets(fanout: Fanout, among: Sequence[str], target_ids: Sequence[int] | None = None) -> Finding:
    columns = (Target.id, Target.node_id, Target.subject, Target.state, Target.attempt, Target.not_after)
    found = select(*columns).where(Target.fanout_id == fanout.id, Target.state.in_(among))
    return (found if target_ids is None else found.where(Target.id.in_(target_ids))).order_by(Target.id)


def with_command(found: Finding, *conditions: ColumnElement[bool]) -> Finding:
    is_its = (Command.target_id == Target.id) & (Command.attempt == Target.attempt)
    return found.add_columns(Command.id.label("command_id")).join(Command, is_its).where(*conditions)


def take_queued(session: Session, fanout: Fanout, target_ids: Sequence[int] | None, state: str) -> list[Found]:
    """Targets whose command no host has fetched, and which none will fetch any more."""
    ended = states.EXPIRED if state == EXPIRED else states.CANCELLED
    rows = session.execute(
        with_command(open_targets(fanout, (ISSUED,), target_ids), Command.state == states.QUEUED)
    ).all()
    taken: list[Found] = []
    for some in slices(rows):
        ids = [row.command_id for row in some]
        mine = update(Command).where(Command.id.in_(ids), Command.state == states.QUEUED)
        values = {"state": ended, "finished_at": now(), "error_code": CODES.get(state)}
        changed = session.execute(mine.values(values).execution_options(synchronize_session=False))
        if _count_of(changed) == len(some):
            taken += some
            continue
        # Some were fetched at this very moment. Deliveries wait for us now, so this look is final.
        now_ended = set(session.scalars(select(Command.id).where(Command.id.in_(ids), Command.state == ended)))
        taken += [row for row in some if row.command_id in now_ended]
    return taken


def settle_many(session: Session, fanout: Fanout, rows: Sequence[Found], ending: Ending) -> None:
    """Targets that end in the same way. Who took them out of flight has said so on the fan-out."""
    if not rows:
        return
    values: dict[str, Any] = {"state": ending.state, "finished_at": now(), "due_at": None}
    if ending is not TRIED:
        values |= {"error": ending.error, "error_code": CODES.get(ending.state), "is_presumed": ending.is_presumed}
    for some in slices(rows):
        open_ones = update(Target).where(Target.id.in_([row.id for row in some]), Target.state.not_in(SETTLED))
        _expect(session.execute(open_ones.values(values).execution_options(synchronize_session=False)), len(some))
    _count(fanout, ending.state, len(rows))
    _tell(session, fanout, rows, ending.state)


def move(session: Session, rows: Sequence[Found], source: str, **values: Any) -> None:
    for some in slices(rows):
        mine = update(Target).where(Target.id.in_([row.id for row in some]), Target.state == source)
        _expect(session.execute(mine.values(values).execution_options(synchronize_session=False)), len(some))


def _tell(session: Session, fanout: Fanout, rows: Sequence[Any], state: str) -> None:
    if told := purpose_of(fanout).on_settled:
        session.flush()
        told(session, fanout, [Settled(row.id, row.node_id, row.subject, state) for row in rows])


def _count_of(result: Any) -> int:
    return int(result.rowcount)


def _expect(result: Any, count: int) -> None:
    """Under the lock nobody else changes these rows; if somebody did, nothing of this transaction may remain."""
    if _count_of(result) != count:
        raise RuntimeError(f"{count} targets were to be changed, {_count_of(result)} were")


def order_cancels(session: Session, actor: Actor, fanout: Fanout, target_ids: Sequence[int] | None = None) -> int:
    """Tell hosts to end what they have already, if this purpose knows how. Answers how many are told."""
    make = purpose_of(fanout).cancel_order
    if make is None:
        return 0
    found = with_command(open_targets(fanout, IN_FLIGHT, target_ids), Command.state.in_(WITH_HOST))
    ids = [row.command_id for row in session.execute(found)]
    at, count = now(), 0
    for some in slices(ids):
        orders = []
        for command in session.scalars(select(Command).where(Command.id.in_(some))):
            kind, payload = make(session, fanout, command)
            orders.append(
                {
                    "uuid": str(uuid4()),
                    "node_id": command.node_id,
                    "kind": kind,
                    "payload": payload_text(payload),
                    "issued_at": at,
                    "not_after": at + CANCEL_WITHIN,
                    "created_by": actor.username,
                }
            )
            wake_after_commit(session, command.node_id, COMMAND)
        session.execute(insert(Command), orders)
        count += len(orders)
    return count
