"""What time alone changes in fan-outs: deadlines, silence, retries, hosts that came back or were deleted.

Which fan-outs have anything to do is asked without locks; each is then worked on by itself, in a transaction of its
own, under its lock, where everything is looked at again. So several workers may sweep at once, and a sweep that died
half-way is simply followed by the next one.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, not_, or_, select
from sqlalchemy.orm import Session

from app.commands import dispatch
from app.commands.models import (
    BY_DEADLINE,
    EXPIRED,
    IN_FLIGHT,
    ISSUED,
    PARKED,
    PAUSED,
    RETRYING,
    RUNNING,
    STARTED,
    UNFINISHED,
    WAITING,
    Command,
    Fanout,
    Target,
)
from app.kernel.clock import now
from app.nodes.models import ONLINE, OUTSIDERS, Node
from protocol import states

AT_ONCE = 5000
"""Targets of one fan-out that one sweep works on: so that its lock is not held for long."""


def fanouts_to_sweep(session: Session, at: datetime) -> list[int]:
    """Those that a sweep would change, by what can be seen without a lock."""
    is_waiting = exists().where(Target.fanout_id == Fanout.id, Target.state == WAITING)
    has_room = Fanout.in_flight < Fanout.max_in_flight
    is_running = Fanout.state == RUNNING
    reasons: tuple[ColumnElement[bool], ...] = (
        and_(Fanout.state.in_((RUNNING, PAUSED)), Fanout.deadline_at <= at),
        Fanout.id.in_(select(Target.fanout_id).where(Target.due_at <= at)),
        and_(is_running, has_room, is_waiting),
        and_(is_running, exists(_returned(at).correlate(Fanout))),
        and_(is_running, not_(has_room), is_waiting, exists(_unfetched(at).correlate(Fanout))),
        exists(_orphaned().correlate(Fanout)),
        Fanout.success + Fanout.failed + Fanout.cancelled == Fanout.total,
    )
    open_ones = select(Fanout.id).where(Fanout.state.in_(UNFINISHED))
    return sorted({fanout_id for reason in reasons for fanout_id in session.scalars(open_ones.where(reason))})


def sweep_fanout(session: Session, fanout_id: int, heard_since: datetime) -> None:
    """One of them, unless somebody else has it at this moment. Before `heard_since` no host could reach us."""
    fanout = dispatch.lock(session, fanout_id, is_patient=False)
    if fanout is None or fanout.state not in UNFINISHED:
        return
    at = now()
    if fanout.deadline_at is not None and fanout.deadline_at <= at and fanout.state in (RUNNING, PAUSED):
        dispatch.stop(session, fanout, BY_DEADLINE)
    _end_overdue(session, fanout, at, heard_since)
    _end_orphaned(session, fanout)
    if fanout.state == RUNNING:
        _bring_back(session, fanout, at)
        _take_back(session, fanout, at)
    dispatch.mind_errors(session, fanout)
    dispatch.advance(session, fanout)
    session.flush()


def _end_overdue(session: Session, fanout: Fanout, at: datetime, heard_since: datetime) -> None:
    found = dispatch.open_targets(fanout, (WAITING, PARKED, RETRYING, ISSUED, STARTED)).where(Target.due_at <= at)
    rows = session.execute(found.limit(AT_ONCE)).all()
    dispatch.move(session, _in(rows, RETRYING), RETRYING, state=WAITING, due_at=None)
    dispatch.settle_many(session, fanout, [*_in(rows, WAITING), *_in(rows, PARKED)], dispatch.AWAY)
    if issued := _in(rows, ISSUED):
        taken = dispatch.take_queued(session, fanout, [row.id for row in issued], EXPIRED)
        fanout.in_flight -= len(taken)
        dispatch.settle_many(session, fanout, taken, dispatch.UNDELIVERED)
    # What hosts have may still be reported: until some time after its end, and after we could be reached again.
    if at < heard_since + dispatch.SILENCE:
        return
    fetched = dispatch.open_targets(fanout, (ISSUED,)).where(Target.not_after <= at - dispatch.SILENCE)
    _presume(session, fanout, fetched, dispatch.NOT_STARTED)
    silent = dispatch.open_targets(fanout, (STARTED,)).where(Target.due_at <= at)
    _presume(session, fanout, silent, dispatch.SILENT)


def _presume(session: Session, fanout: Fanout, found: dispatch.Finding, ending: dispatch.Ending) -> None:
    """Locked before they are settled, since a report that they started needs no lock of the fan-out."""
    rows = session.execute(found.limit(AT_ONCE).with_for_update()).all()
    fanout.in_flight -= len(rows)
    dispatch.settle_many(session, fanout, rows, ending)


def _in(rows: Sequence[Any], state: str) -> list[Any]:
    return [row for row in rows if row.state == state]


def _is_reachable(at: datetime) -> ColumnElement[bool]:
    is_free = or_(Node.maintenance_until.is_(None), Node.maintenance_until <= at)
    return and_(Node.status == ONLINE, or_(not_(Fanout.waits_for_maintenance), is_free))


def _of_fanout() -> dispatch.Finding:
    """Targets of the fan-out that the statement around this one is about, with their nodes."""
    return select(Target.id).outerjoin(Node, Node.id == Target.node_id).where(Target.fanout_id == Fanout.id)


def _returned(at: datetime) -> dispatch.Finding:
    return _of_fanout().where(Target.state == PARKED, _is_reachable(at))


def _unfetched(at: datetime) -> dispatch.Finding:
    is_its = and_(Command.target_id == Target.id, Command.attempt == Target.attempt)
    found = _of_fanout().join(Command, is_its).where(Target.state == ISSUED, Command.state == states.QUEUED)
    return found.where(not_(_is_reachable(at)))


def _orphaned() -> dispatch.Finding:
    """Whose node is gone. Those that wait for their turn are found out when it comes."""
    is_gone = or_(Node.id.is_(None), Node.status.in_(OUTSIDERS))
    return _of_fanout().where(Target.state.in_((PARKED, *IN_FLIGHT)), is_gone)


def _end_orphaned(session: Session, fanout: Fanout) -> None:
    ids = session.scalars(_orphaned().where(Fanout.id == fanout.id).limit(AT_ONCE)).all()
    for some in dispatch.slices(ids):
        dispatch.take_queued(session, fanout, some, EXPIRED)
        rows = session.execute(dispatch.open_targets(fanout, (PARKED, *IN_FLIGHT), some).with_for_update()).all()
        parked, issued, started = (_in(rows, state) for state in (PARKED, ISSUED, STARTED))
        fanout.in_flight -= len(issued) + len(started)
        dispatch.settle_many(session, fanout, [*parked, *issued], dispatch.NODE_GONE)
        dispatch.settle_many(session, fanout, started, dispatch.NODE_GONE_MEANWHILE)


def _bring_back(session: Session, fanout: Fanout, at: datetime) -> None:
    """To their old places, which are before those whose turn has not come yet."""
    rows = session.execute(_returned(at).where(Fanout.id == fanout.id).limit(AT_ONCE)).all()
    dispatch.move(session, rows, PARKED, state=WAITING)


def _take_back(session: Session, fanout: Fanout, at: datetime) -> None:
    """Hosts that went away before they fetched their command give their places in the window to others."""
    waiting = select(Target.id).where(Target.fanout_id == fanout.id, Target.state == WAITING).limit(1)
    if fanout.in_flight < fanout.max_in_flight or session.scalar(waiting) is None:
        return
    unfetched = _unfetched(at).add_columns(Command.id.label("command_id")).where(Fanout.id == fanout.id)
    rows = session.execute(unfetched.limit(AT_ONCE)).all()
    for some in dispatch.slices(rows):
        ids = [row.command_id for row in some]
        session.execute(delete(Command).where(Command.id.in_(ids), Command.state == states.QUEUED))
        fetched = set(session.scalars(select(Command.id).where(Command.id.in_(ids))))
        back = [row for row in some if row.command_id not in fetched]
        dispatch.move(session, back, ISSUED, state=PARKED, attempt=Target.attempt - 1)
        fanout.in_flight -= len(back)
