"""One command for many hosts: started, paused, resumed, cancelled, repeated.

What features call. Targets are handed out and settled by `dispatch`, results arrive through `actions.take_reports`, and
what time alone changes is `sweeping`'s business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import uuid4

from flask_babel import gettext as _
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from app.audit.actions import record
from app.commands import dispatch
from app.commands.hooks import purpose_of
from app.commands.models import (
    BY_CANCEL,
    DONE,
    ERRORS,
    PAUSED,
    RUNNING,
    STOPPED,
    WAITING,
    Fanout,
    Target,
)
from app.commands.payloads import payload_text
from app.commands.shares import error_limit_of, window_of
from app.kernel.access import Actor, authorize
from app.kernel.clock import now
from app.kernel.errors import BadParameter, Conflict, NotFound
from app.nodes.errors import NodeNotFound
from app.nodes.models import OUTSIDERS, Node

COUNTERS = ("in_flight", "success", "failed", "cancelled")
KEPT_IN_REPETITIONS = (
    "purpose",
    "title",
    "kind",
    "payload",
    "error_limit",
    "deliver_within_s",
    "run_within_s",
    "retries",
    "retry_interval_s",
    "waits_for_maintenance",
)


class NewTarget(NamedTuple):
    """A host to reach. `subject` tells several targets on one host apart; a payload of its own replaces the common."""

    node_id: int
    subject: str = ""
    payload: Mapping[str, Any] | None = None
    hostname: str | None = None
    """Of a member of the fleet, by whoever has just looked; else it is looked up, and whoever is no member refused."""


@dataclass(frozen=True)
class Plan:
    """What is to be done and with how much care.

    `deliver_within_s` counts from the moment a host's turn comes until it must have *started*, also while it is away;
    `run_within_s` from its start until its result must be there. Hosts that say nothing for a while longer have failed.
    """

    purpose: str
    """The name of a `Purpose` in `app.link.takers`."""
    kind: str
    payload: Mapping[str, Any]
    title: str = ""
    max_parallel: int | str | None = None
    """How many at once, 10 or "10%"; None: all."""
    max_errors: int | str | None = None
    """How many errors stop it, 3 or "5%"; None: no number does."""
    deliver_within_s: int = 300
    run_within_s: int = 300
    deadline_s: int | None = None
    """After so long nothing more is handed out, and what was not is `expired`."""
    retries: int = 0
    """After `failed` and `timeout` only, as the host reported them; never after silence or `interrupted`."""
    retry_interval_s: int = 60
    waits_for_maintenance: bool = True
    """Hosts in maintenance are left alone until it ends."""


def start_fanout(session: Session, actor: Actor, plan: Plan, targets: Sequence[NewTarget]) -> Fanout:
    """Make a fan-out and hand out its first window at once, in this transaction. Hosts are woken after the commit.

    Asks nobody's permission and writes no audit row: the feature has done so. Raises BadParameter without targets,
    NodeNotFound for a node that is not a member of the fleet.
    """
    wanted = {(target.node_id, target.subject): target for target in targets}
    if not wanted:
        raise BadParameter(_("No host is selected."))
    names = {target.node_id: target.hostname for target in wanted.values() if target.hostname is not None}
    names |= _hostnames(session, {node_id for node_id, _subject in wanted} - names.keys())
    fanout = _row(actor, plan, len(wanted))
    rows = [
        _target(key, names[target.node_id], None if target.payload is None else payload_text(target.payload))
        for key, target in wanted.items()
    ]
    return _begin(session, fanout, rows)


def _target(key: tuple[int, str], hostname: str, payload: str | None) -> dict[str, Any]:
    node_id, subject = key
    given = {"node_id": node_id, "subject": subject, "hostname": hostname, "payload": payload}
    return given | {"state": WAITING, "attempt": 0, "is_presumed": False}


def _begin(session: Session, fanout: Fanout, rows: Sequence[dict[str, Any]]) -> Fanout:
    session.add(fanout)
    session.flush()
    session.execute(insert(Target), [{"fanout_id": fanout.id} | row for row in rows])
    dispatch.advance(session, fanout)
    session.flush()
    return fanout


def _row(actor: Actor, plan: Plan, total: int) -> Fanout:
    created_at = now()
    return Fanout(
        uuid=str(uuid4()),
        purpose=plan.purpose,
        title=plan.title[:255],
        kind=plan.kind,
        payload=payload_text(plan.payload),
        state=RUNNING,
        max_in_flight=window_of(plan.max_parallel, total),
        error_limit=error_limit_of(plan.max_errors, total),
        deliver_within_s=plan.deliver_within_s,
        run_within_s=plan.run_within_s,
        retries=plan.retries,
        retry_interval_s=plan.retry_interval_s,
        waits_for_maintenance=plan.waits_for_maintenance,
        deadline_at=None if plan.deadline_s is None else created_at + timedelta(seconds=plan.deadline_s),
        total=total,
        **dict.fromkeys(COUNTERS, 0),
        created_by=actor.username,
        created_by_id=actor.user_id,
        created_at=created_at,
    )


def _hostnames(session: Session, node_ids: set[int]) -> dict[int, str]:
    """Of members; whoever is none is refused rather than waited for."""
    found: dict[int, str] = {}
    for some in dispatch.slices(sorted(node_ids)):
        members = select(Node.id, Node.hostname).where(Node.id.in_(some), Node.status.not_in(OUTSIDERS))
        found |= {row.id: row.hostname for row in session.execute(members)}
    if len(found) != len(node_ids):
        raise NodeNotFound
    return found


def pause_fanout(session: Session, actor: Actor, fanout_id: int) -> Fanout:
    """Nothing more is handed out; what is on its way goes on. Raises Conflict unless it is running."""
    fanout = _mine(session, actor, fanout_id)
    if fanout.state != RUNNING:
        raise Conflict(_("Only what is running can be paused."))
    fanout.state = PAUSED
    record(session, actor, "batch.pause", "batch", fanout.uuid)
    session.flush()
    return fanout


def resume_fanout(session: Session, actor: Actor, fanout_id: int) -> Fanout:
    """Go on handing out, at once. Raises Conflict unless it is paused."""
    fanout = _mine(session, actor, fanout_id)
    if fanout.state != PAUSED:
        raise Conflict(_("Only what is paused can be resumed."))
    fanout.state = RUNNING
    record(session, actor, "batch.resume", "batch", fanout.uuid)
    dispatch.advance(session, fanout)
    session.flush()
    return fanout


def cancel_fanout(session: Session, actor: Actor, fanout_id: int) -> Fanout:
    """End it: what no host has yet is cancelled at once, the rest by an order to the host if the purpose knows one.

    Raises Conflict when it has ended already.
    """
    fanout = _mine(session, actor, fanout_id)
    if fanout.state == DONE:
        raise Conflict(_("This has ended already."))
    record(session, actor, "batch.cancel", "batch", fanout.uuid)
    if fanout.state != STOPPED:
        dispatch.stop(session, fanout, BY_CANCEL)
    dispatch.order_cancels(session, actor, fanout)
    session.flush()
    return fanout


def cancel_targets(session: Session, actor: Actor, fanout_id: int, target_ids: Sequence[int]) -> Fanout:
    """The same for some targets only; the others go on. Raises Conflict if none of them is open."""
    fanout = _mine(session, actor, fanout_id)
    withdrawn = dispatch.withdraw(session, fanout, target_ids)
    ordered = dispatch.order_cancels(session, actor, fanout, target_ids)
    if not withdrawn and not ordered:
        raise Conflict(_("This has ended already."))
    record(session, actor, "batch.cancel_targets", "batch", fanout.uuid, after={"target_ids": list(target_ids)})
    dispatch.advance(session, fanout)
    session.flush()
    return fanout


def retry_failed(session: Session, actor: Actor, fanout_id: int) -> Fanout:
    """The same once more for the targets that failed, as a fan-out of its own (`repeats_id` tells of which).

    Raises Conflict while the first one still runs, or when nothing failed.
    """
    fanout = _mine(session, actor, fanout_id)
    if fanout.state != DONE:
        raise Conflict(_("This has not ended yet."))
    failed = select(Target).join(Node, Node.id == Target.node_id)
    failed = failed.where(Target.fanout_id == fanout.id, Target.state.in_(ERRORS), Node.status.not_in(OUTSIDERS))
    rows = session.scalars(failed.order_by(Target.id)).all()
    if not rows:
        raise Conflict(_("Nothing of it failed."))
    again = _repetition(actor, fanout, len(rows))
    targets = [_target((row.node_id, row.subject), row.hostname, row.payload) for row in rows]
    _begin(session, again, targets)
    record(session, actor, "batch.retry", "batch", again.uuid, after={"repeats": fanout.uuid, "targets": again.total})
    return again


def _repetition(actor: Actor, first: Fanout, total: int) -> Fanout:
    created_at = now()
    allowed = None if first.deadline_at is None else first.deadline_at - first.created_at
    kept = {name: getattr(first, name) for name in KEPT_IN_REPETITIONS}
    return Fanout(
        **kept,
        uuid=str(uuid4()),
        state=RUNNING,
        max_in_flight=min(first.max_in_flight, total),
        deadline_at=None if allowed is None else created_at + allowed,
        total=total,
        **dict.fromkeys(COUNTERS, 0),
        repeats_id=first.id,
        created_by=actor.username,
        created_by_id=actor.user_id,
        created_at=created_at,
    )


def _mine(session: Session, actor: Actor, fanout_id: int) -> Fanout:
    """Locked. Raises NotFound, or Forbidden for whoever may not do what it is for."""
    fanout = dispatch.lock(session, fanout_id)
    if fanout is None:
        raise NotFound
    authorize(actor, purpose_of(fanout).permission)
    return fanout
