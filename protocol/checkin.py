"""The check-in: one request that brings metrics, events, agents and inventory and takes settings and receipts."""

from __future__ import annotations

from typing import Any, NamedTuple

from protocol.fields import HEX_32, HEX_64, WORD, Fields
from protocol.inventory import Inventory, Machine, parse_inventory, parse_machine
from protocol.limits import ACKS, AGENTS, BATCHES, BIG, EVENTS
from protocol.metrics import Batch, parse_batch
from protocol.settings import Settings, parse_settings

SEVERITIES = ("info", "warning", "critical")
AGENT_STATUSES = ("running", "starting", "stopping", "stopped", "backoff", "error", "unknown")
AGENT_SOURCES = ("builtin", "manager", "host", "service", "adopted")
CAPABILITY_STATES = ("file", "missing", "unsafe", "invalid")


class Dropped(NamedTuple):
    """Points lost on the host since `epoch` began: a running total, so a lost answer counts nothing twice."""

    epoch: str
    points: int
    since: str | None


class Event(NamedTuple):
    """Something that happened on the host. Acknowledged like a batch."""

    id: str
    timestamp: str
    kind: str
    severity: str
    message: str
    data: dict[str, Any] | None


class Health(NamedTuple):
    """One health check's last outcome."""

    kind: str
    ok: bool
    detail: str
    checked_at: str


class AgentStatus(NamedTuple):
    """A supervised program, as the contract's agent object."""

    name: str
    type: str
    version: str | None
    status: str
    desired: str
    pid: int | None
    cpu_usage: float | None
    memory_usage: int | None
    start_time: str | None
    restart_count: int
    last_error: str | None
    health: tuple[Health, ...]
    config_version: int | None
    drifted: bool
    source: str


class Capabilities(NamedTuple):
    """What the host allows, and where that comes from; `unsafe` and `invalid` files deny everything."""

    state: str
    scripts: bool
    terminal: bool
    packages: bool
    config: bool
    run_as: tuple[str, ...]
    files: tuple[str, ...]


class Clock(NamedTuple):
    """How far the Manager's clock is ahead of the host's, as the host knows it; null before the first answer."""

    offset_ms: int | None
    round_trip_ms: int | None


class AuditHead(NamedTuple):
    """Head of the Manager's audit chain; the host keeps the furthest it was ever given."""

    sequence: int
    hash: str


class CheckIn(NamedTuple):
    """Body of `POST checkin`."""

    instance_id: str
    generation: int
    sequence: int
    lease: str | None
    challenge: str | None
    machine: Machine
    sent_at: str
    uptime_s: float
    daemon_version: str
    settings_version: int
    settings_error: str | None
    inventory_hash: str
    inventory: Inventory | None
    metrics: tuple[Batch, ...]
    pending_points: int
    dropped: Dropped
    events: tuple[Event, ...]
    agents_hash: str
    agents: tuple[AgentStatus, ...] | None
    capabilities: Capabilities
    clock: Clock
    audit_head: AuditHead | None


class RefusedBatch(NamedTuple):
    """A batch or event that will never be taken; the host drops it and says so in its log."""

    id: str
    reason: str


class CheckInAnswer(NamedTuple):
    """What the Manager says to a check-in, after it committed."""

    ack: tuple[str, ...]
    refused: tuple[RefusedBatch, ...]
    lease: str | None
    want_inventory: bool
    want_agents: bool
    settings: Settings | None
    next_checkin_s: float | None
    commands_pending: bool
    reenrol: bool
    audit_head: AuditHead | None
    server_time: str


def parse_checkin(fields: Fields) -> CheckIn:
    """Read a check-in."""
    return CheckIn(
        instance_id=fields.text("instance_id", 32, 32, HEX_32),
        generation=fields.integer("generation", 0, BIG),
        sequence=fields.integer("sequence", 1, BIG),
        lease=fields.text_or_none("lease", 128, 8, WORD),
        challenge=fields.text_or_none("challenge", 128, 8, WORD),
        machine=parse_machine(fields.inner("machine")),
        sent_at=fields.time("sent_at"),
        uptime_s=fields.number("uptime_s", 0, 1e10),
        daemon_version=fields.text("daemon_version", 64),
        settings_version=fields.integer("settings_version", 0, BIG),
        settings_error=fields.text_or_none("settings_error", 500),
        inventory_hash=fields.text("inventory_hash", 64, 64, HEX_64),
        inventory=fields.inner_or_none("inventory", parse_inventory),
        metrics=fields.each("metrics", BATCHES, parse_batch),
        pending_points=fields.integer("pending_points", 0, BIG),
        dropped=_parse_dropped(fields.inner("dropped")),
        events=fields.each("events", EVENTS, parse_event),
        agents_hash=fields.text("agents_hash", 64, 64, HEX_64),
        agents=fields.each_or_none("agents", AGENTS, _parse_agent),
        capabilities=_parse_capabilities(fields.inner("capabilities")),
        clock=_parse_clock(fields.inner("clock")),
        audit_head=fields.inner_or_none("audit_head", _parse_audit_head),
    )


def parse_checkin_answer(fields: Fields) -> CheckInAnswer:
    """Read the answer."""
    return CheckInAnswer(
        ack=fields.texts("ack", ACKS, 64, WORD),
        refused=fields.each("refused", ACKS, _parse_refused),
        lease=fields.text_or_none("lease", 128, 8, WORD),
        want_inventory=fields.flag("want_inventory", False),
        want_agents=fields.flag("want_agents", False),
        settings=fields.inner_or_none("settings", parse_settings),
        next_checkin_s=fields.number_or_none("next_checkin_s", 1, 600),
        commands_pending=fields.flag("commands_pending", False),
        reenrol=fields.flag("reenrol", False),
        audit_head=fields.inner_or_none("audit_head", _parse_audit_head),
        server_time=fields.time("server_time"),
    )


def _parse_dropped(fields: Fields) -> Dropped:
    return Dropped(
        epoch=fields.text("epoch", 32, 1, WORD),
        points=fields.integer("points"),
        since=fields.time_or_none("since"),
    )


def parse_event(fields: Fields) -> Event:
    """Read an event."""
    return Event(
        id=fields.text("id", 64, 1, WORD),
        timestamp=fields.time("timestamp"),
        kind=fields.text("kind", 64, 1, WORD),
        severity=fields.choice("severity", SEVERITIES),
        message=fields.text("message", 1000),
        data=fields.free("data", 50),
    )


def _parse_health(fields: Fields) -> Health:
    return Health(
        kind=fields.text("kind", 32),
        ok=fields.flag("ok"),
        detail=fields.text("detail", 500, 0),
        checked_at=fields.time("checked_at"),
    )


def _parse_agent(fields: Fields) -> AgentStatus:
    return AgentStatus(
        name=fields.text("name", 64, 1, WORD),
        type=fields.text("type", 32, 1, WORD),
        version=fields.text_or_none("version", 64),
        status=fields.choice("status", AGENT_STATUSES),
        desired=fields.choice("desired", ("running", "stopped")),
        pid=fields.integer_or_none("pid", 1, 2**31),
        cpu_usage=fields.number_or_none("cpu_usage", 0, 1e6),
        memory_usage=fields.integer_or_none("memory_usage"),
        start_time=fields.time_or_none("start_time"),
        restart_count=fields.integer("restart_count", 0, BIG),
        last_error=fields.text_or_none("last_error", 1000),
        health=fields.each("health", 16, _parse_health),
        config_version=fields.integer_or_none("config_version"),
        drifted=fields.flag("drifted", False),
        source=fields.choice("source", AGENT_SOURCES),
    )


def _parse_capabilities(fields: Fields) -> Capabilities:
    return Capabilities(
        state=fields.choice("state", CAPABILITY_STATES),
        scripts=fields.flag("scripts"),
        terminal=fields.flag("terminal"),
        packages=fields.flag("packages"),
        config=fields.flag("config"),
        run_as=fields.texts("run_as", 100, 64),
        files=fields.texts("files", 100, 1024),
    )


def _parse_clock(fields: Fields) -> Clock:
    return Clock(
        offset_ms=fields.integer_or_none("offset_ms", -BIG, BIG),
        round_trip_ms=fields.integer_or_none("round_trip_ms", 0, BIG),
    )


def _parse_audit_head(fields: Fields) -> AuditHead:
    return AuditHead(fields.integer("sequence", 0, BIG), fields.text("hash", 64, 64, HEX_64))


def _parse_refused(fields: Fields) -> RefusedBatch:
    return RefusedBatch(fields.text("id", 64, 1, WORD), fields.text("reason", 200))
