"""The check-in: one request that brings everything a host has to say, taken in one transaction or not at all."""

import secrets
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select, true
from sqlalchemy.orm import Session, defer

from app.agents import reporting as agents
from app.audit.models import AuditHead
from app.commands.actions import IS_AWAITED
from app.events.actions import note
from app.events.models import Event
from app.kernel.clock import now
from app.link.identity import refusal
from app.link.settings import settings_for, with_agents
from app.metrics.actions import store_batches
from app.nodes.enrolment import INVENTORY, take_inventory, take_machine, take_version
from app.nodes.models import MEMBERS, OFFLINE, ONLINE, Node
from protocol import errors as wire
from protocol.checkin import AuditHead as WireAuditHead
from protocol.checkin import CheckIn, CheckInAnswer, RefusedBatch
from protocol.checkin import Event as HostEvent
from protocol.errors import ProtocolError
from protocol.manifests import TASK_AGENT
from protocol.times import to_datetime, to_text

LEASES_LOST_A_DAY = 3
_STANDING = (
    select(Node, IS_AWAITED, AuditHead.sequence, AuditHead.hash)
    .outerjoin(AuditHead, true())
    .where(Node.id == bindparam("node_id"))
    .options(*(defer(getattr(Node, name)) for name in INVENTORY))
)
"""Without what only an inventory changes: a third of a wide row."""


class Verdict(Enum):
    """What the lease says of a check-in (docs/protocol.md, section 8)."""

    LATE = "late"
    FRESH = "fresh"
    REPEATED = "repeated"
    CLONE = "clone"


def judge(node: Node, message: CheckIn, at: datetime) -> Verdict:
    """The rules for leases, in their order. Pure but for counting lost leases on the node."""
    is_answer = message.challenge is not None and message.challenge == node.challenge
    if (message.generation, message.sequence) <= (node.generation, node.sequence) and node.lease and not is_answer:
        return Verdict.LATE
    if message.lease == node.lease or (node.lease is None and message.lease is None):
        return Verdict.FRESH
    if message.lease is not None and message.lease == node.previous_lease:
        return Verdict.REPEATED
    if node.boot_id == message.machine.boot_id and node.instance_id != message.instance_id:
        day = at.date().isoformat()
        node.lost_leases = node.lost_leases + 1 if node.lost_leases_day == day else 1
        node.lost_leases_day = day
        if node.lost_leases <= LEASES_LOST_A_DAY:
            return Verdict.FRESH
    return Verdict.CLONE


class Standing(NamedTuple):
    """What a check-in begins with."""

    node: Node
    is_awaited: bool
    audit_head: WireAuditHead | None


def standing(session: Session, node_id: int) -> Standing:
    """All of it in one question. Raises ProtocolError for a node that is no more."""
    row = session.execute(_STANDING, {"node_id": node_id, "at": now()}).first()
    if row is None:
        raise refusal(wire.NOT_AUTHENTICATED, wire.CERTIFICATE_UNKNOWN, "the node was deleted")
    node, is_awaited, sequence, digest = row
    # There is none before the first line of the log, whatever its column says.
    head: tuple[int | None, str] = sequence, digest
    return Standing(node, is_awaited, None if head[0] is None else WireAuditHead(head[0], head[1]))


def take_checkin(session: Session, before: Standing, message: CheckIn, ip: str) -> CheckInAnswer:
    """Everything of one check-in. The caller commits before the answer leaves.

    What only has to be read is read first, so that all that changes is written once, at the end.
    """
    at, node = now(), before.node
    known = agents.known_agents(session, node.id)
    settings = settings_for(known)
    if node.status not in MEMBERS:
        raise refusal(wire.FORBIDDEN, wire.REVOKED, f"this node is {node.status}")
    verdict = judge(node, message, at)
    if verdict is Verdict.LATE:
        raise ChallengeError(node)
    if verdict is Verdict.CLONE:
        return _clone(session, node, message, ip, at)
    _hold_lease(node, message, verdict)
    _come_online(session, node, at)
    node.heartbeat_interval_s = settings.heartbeat_interval_s
    stored = store_batches(session, node.id, message.metrics, at)
    if stored.newest is not None:
        point = stored.newest
        node.last_cpu_usage, node.last_memory_usage, node.last_disk_usage = (
            point.cpu_usage,
            point.memory_usage,
            point.disk_usage,
        )
        node.last_metrics_at = to_datetime(point.timestamp)
    refused = [RefusedBatch(batch_id, reason[:200]) for batch_id, reason in stored.refused]
    event_ids = _take_events(session, node, message.events, at)
    _take_losses(session, node, message)
    want_inventory = _take_facts(node, message, ip)
    want_agents = _take_agents(session, node, known, message, at)
    has_settings = settings.version == message.settings_version
    return CheckInAnswer(
        ack=(*stored.acked, *event_ids),
        refused=tuple(refused),
        lease=node.lease,
        want_inventory=want_inventory,
        want_agents=want_agents,
        settings=None if has_settings else with_agents(session, node.id, settings),
        next_checkin_s=float(settings.heartbeat_interval_s),
        commands_pending=before.is_awaited,
        reenrol=False,
        audit_head=before.audit_head,
        server_time=to_text(now().timestamp()),
    )


class ChallengeError(ProtocolError):
    """409: this may be an old request that the network held back; a live host answers the challenge."""

    def __init__(self, node: Node) -> None:
        super().__init__("", "answer the challenge", wire.CONFLICT, wire.CHALLENGE)
        self.challenge = secrets.token_urlsafe(18)
        self.node_id = node.id


def _hold_lease(node: Node, message: CheckIn, verdict: Verdict) -> None:
    if verdict is Verdict.FRESH:
        node.previous_lease = node.lease
    node.lease, node.challenge = secrets.token_urlsafe(18), None
    node.generation, node.sequence = message.generation, message.sequence
    node.instance_id, node.boot_id = message.instance_id, message.machine.boot_id
    take_machine(node, message.machine)


def _come_online(session: Session, node: Node, at: datetime) -> None:
    if node.status != ONLINE:
        what = "node.online" if node.status == OFFLINE else "node.first_seen"
        silent_s = None if node.last_heartbeat is None else int((at - node.last_heartbeat).total_seconds())
        data = None if silent_s is None else {"silent_s": silent_s}
        note(session, what, "", node_id=node.id, hostname=node.hostname, data=data)
        node.status, node.status_changed_at = ONLINE, at
    node.last_heartbeat, node.connection_lost_at = at, None


def _clone(session: Session, node: Node, message: CheckIn, ip: str, at: datetime) -> CheckInAnswer:
    """Two machines share this identity. Nothing of the body is taken; the caller is told to enrol as itself."""
    if node.cloned_at is None or at - node.cloned_at > timedelta(hours=1):
        data = {"ip": ip, "boot_id": message.machine.boot_id, "hardware_id": message.machine.hardware_id}
        text = f"two machines use this identity; the one at {ip} has to enrol again"
        note(session, "node.cloned", text, node_id=node.id, hostname=node.hostname, severity="critical", data=data)
    node.cloned_at = at
    return CheckInAnswer((), (), None, False, False, None, 60.0, False, True, None, to_text(at.timestamp()))


def _take_events(session: Session, node: Node, events: tuple[HostEvent, ...], at: datetime) -> list[str]:
    """Events of the host, each once: its own id is unique for it. Times are kept as told, within reason."""
    if not events:
        return []
    wanted = {event.id: event for event in events}
    told = select(Event.host_event_id).where(Event.node_id == node.id, Event.host_event_id.in_(wanted))
    known = set(session.scalars(told).all())
    for event in wanted.values():
        if event.id not in known:
            occurred_at = min(to_datetime(event.timestamp), at + timedelta(minutes=5))
            session.add(
                Event(
                    node_id=node.id,
                    hostname=node.hostname,
                    kind=event.kind,
                    severity=event.severity,
                    message=event.message,
                    data=_told_of(session, node, event, at),
                    source="host",
                    host_event_id=event.id,
                    occurred_at=occurred_at,
                )
            )
    return list(wanted)


def _told_of(session: Session, node: Node, event: HostEvent, at: datetime) -> dict[str, Any] | None:
    """What the timeline keeps of an event; a crash's dossier is long and has a place of its own."""
    return agents.take_crash(session, node, event, at) if event.kind == agents.CRASHED else event.data


def _take_losses(session: Session, node: Node, message: CheckIn) -> None:
    """What the host's spool had to drop. It counts on within an epoch, so the difference is what is new."""
    node.pending_points = message.pending_points
    dropped = message.dropped
    before = node.dropped_points if node.dropped_epoch == dropped.epoch else 0
    if dropped.points > before:
        lost = dropped.points - before
        data = {"points": lost, "since": dropped.since}
        text = f"{lost} measurements were lost on the host"
        note(session, "node.points_lost", text, node_id=node.id, hostname=node.hostname, severity="warning", data=data)
    node.dropped_epoch, node.dropped_points = dropped.epoch, dropped.points


def _take_facts(node: Node, message: CheckIn, ip: str) -> bool:
    """Copy what changed. Answers whether the whole inventory is wanted."""
    if message.inventory is not None:
        take_inventory(node, message.inventory)
        node.inventory_hash = message.inventory_hash
    take_version(node, message.daemon_version)
    if not node.ip:
        node.ip = ip
    capabilities = message.capabilities._asdict()
    shown = {name: list(value) if isinstance(value, tuple) else value for name, value in capabilities.items()}
    if node.capabilities != shown:
        node.capabilities = shown
    node.clock_offset_ms, node.settings_error = message.clock.offset_ms, message.settings_error
    return node.inventory_hash != message.inventory_hash


def _take_agents(session: Session, node: Node, known: list[agents.Known], message: CheckIn, at: datetime) -> bool:
    """All agents, and the one for tasks again for lists of nodes. Answers whether they changed but were not sent."""
    if message.agents is not None:
        agents.take_agents(session, node, known, message.agents, at)
        node.agents_hash = message.agents_hash
        # Of several the one that tasks go to.
        of_type = [agent for agent in message.agents if agent.type == "task"]
        task_agent = min(of_type, key=lambda agent: agent.name != TASK_AGENT, default=None)
        node.agent_status = task_agent.status if task_agent else "unknown"
        node.agent_version = task_agent.version if task_agent else None
    return node.agents_hash != message.agents_hash
