"""Tables of nodes: the hosts themselves, how they are grouped and labelled, how they came in and prove who they are."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.kernel.clock import now
from app.kernel.db import TABLE_OPTIONS, Base
from app.kernel.selectors import quoted
from app.kernel.types import BigId, Json, LongText, Name, UtcDateTime

PENDING, UNKNOWN, ONLINE, OFFLINE, REJECTED, REVOKED = "pending", "unknown", "online", "offline", "rejected", "revoked"
STATUSES = (PENDING, UNKNOWN, ONLINE, OFFLINE, REJECTED, REVOKED)
MEMBERS = (UNKNOWN, ONLINE, OFFLINE)
"""Statuses of nodes that belong to the fleet; the others wait, or were turned away."""
OUTSIDERS = (PENDING, REJECTED, REVOKED)


class NodeGroup(Base):
    """A node of the tree of groups. `path` is the names from the root, joined by `/`: subtrees are prefixes of it."""

    __tablename__ = "node_groups"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(Name(64))
    path: Mapped[str] = mapped_column(Name(512), unique=True)
    description: Mapped[str | None] = mapped_column(Name(255))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("node_groups.id"), index=True)
    sort_order: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class SmartGroup(Base):
    """A selector with a name."""

    __tablename__ = "smart_groups"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(Name(64), unique=True)
    selector: Mapped[str] = mapped_column(LongText)
    description: Mapped[str | None] = mapped_column(Name(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class SavedView(Base):
    """A list as somebody likes to see it: the query of its address."""

    __tablename__ = "saved_views"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(Name(64))
    query: Mapped[str] = mapped_column(LongText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class Node(Base):
    """A host. Facts of higher features that lists show (`agent_*`, `last_*`) are copied here by each check-in."""

    __tablename__ = "nodes"
    __table_args__ = (
        Index("ix_nodes_status_last_heartbeat", "status", "last_heartbeat"),
        Index("ix_nodes_group_id_status", "group_id", "status"),
        TABLE_OPTIONS,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    uuid: Mapped[str] = mapped_column(Name(36), unique=True)
    hostname: Mapped[str] = mapped_column(Name(253), index=True)
    ip: Mapped[str] = mapped_column(Name(64), default="", index=True)
    ips: Mapped[list[str]] = mapped_column(Json, default=list)
    macs: Mapped[list[str]] = mapped_column(Json, default=list)
    os: Mapped[str] = mapped_column(Name(16), default="linux")
    os_name: Mapped[str] = mapped_column(Name(128), default="")
    os_version: Mapped[str] = mapped_column(Name(64), default="")
    kernel_version: Mapped[str] = mapped_column(Name(128), default="")
    arch: Mapped[str] = mapped_column(Name(32), default="")
    cpu_model: Mapped[str] = mapped_column(Name(128), default="")
    cpu_cores: Mapped[int] = mapped_column(default=0)
    memory_total: Mapped[int] = mapped_column(BigId, default=0)
    swap_total: Mapped[int] = mapped_column(BigId, default=0)
    disk_total: Mapped[int] = mapped_column(BigId, default=0)
    disks: Mapped[list[Any]] = mapped_column(Json, default=list)
    python_version: Mapped[str] = mapped_column(Name(32), default="")
    daemon_version: Mapped[str] = mapped_column(Name(64), default="")
    daemon_version_key: Mapped[str] = mapped_column(Name(255), default="", index=True)
    boot_time: Mapped[datetime | None] = mapped_column(UtcDateTime)
    virtualization: Mapped[str | None] = mapped_column(Name(64))
    cloud: Mapped[str | None] = mapped_column(Name(64))
    timezone: Mapped[str | None] = mapped_column(Name(64))

    status: Mapped[str] = mapped_column(Name(16), default=PENDING)
    status_changed_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    last_heartbeat: Mapped[datetime | None] = mapped_column(UtcDateTime)
    heartbeat_interval_s: Mapped[int] = mapped_column(default=60)
    connection_lost_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    maintenance_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    maintenance_reason: Mapped[str | None] = mapped_column(Name(255))
    group_id: Mapped[int | None] = mapped_column(ForeignKey(NodeGroup.id))
    description: Mapped[str | None] = mapped_column(Name(255))

    agent_status: Mapped[str] = mapped_column(Name(16), default="unknown")
    agent_version: Mapped[str | None] = mapped_column(Name(64))
    last_cpu_usage: Mapped[float | None]
    last_memory_usage: Mapped[float | None]
    last_disk_usage: Mapped[float | None]
    last_metrics_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    machine_id: Mapped[str | None] = mapped_column(Name(64))
    hardware_id: Mapped[str | None] = mapped_column(Name(64))
    boot_id: Mapped[str | None] = mapped_column(Name(64))
    instance_id: Mapped[str | None] = mapped_column(Name(32))
    generation: Mapped[int] = mapped_column(BigId, default=0)
    sequence: Mapped[int] = mapped_column(BigId, default=0)
    lease: Mapped[str | None] = mapped_column(Name(128))
    previous_lease: Mapped[str | None] = mapped_column(Name(128))
    challenge: Mapped[str | None] = mapped_column(Name(128))
    lost_leases: Mapped[int] = mapped_column(default=0)
    lost_leases_day: Mapped[str] = mapped_column(Name(10), default="")
    cloned_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    command_key: Mapped[str] = mapped_column(LongText, default="")
    certificate_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    inventory_hash: Mapped[str] = mapped_column(Name(64), default="")
    agents_hash: Mapped[str] = mapped_column(Name(64), default="")
    capabilities: Mapped[Any] = mapped_column(Json, nullable=True)
    clock_offset_ms: Mapped[int | None] = mapped_column(BigId)
    settings_error: Mapped[str | None] = mapped_column(LongText)
    dropped_epoch: Mapped[str] = mapped_column(Name(32), default="")
    dropped_points: Mapped[int] = mapped_column(BigId, default=0)
    pending_points: Mapped[int] = mapped_column(BigId, default=0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    group: Mapped[NodeGroup | None] = relationship(lazy="raise_on_sql")
    tag_rows: Mapped[list["NodeTag"]] = relationship(
        lazy="raise_on_sql", order_by="NodeTag.tag", cascade="all, delete-orphan", passive_deletes=True
    )
    label_rows: Mapped[list["NodeLabel"]] = relationship(
        lazy="raise_on_sql", order_by="NodeLabel.key", cascade="all, delete-orphan", passive_deletes=True
    )

    @property
    def tags(self) -> list[str]:
        return [row.tag for row in self.tag_rows]

    @property
    def labels(self) -> dict[str, str]:
        return {row.key: row.value for row in self.label_rows}

    @property
    def marks(self) -> list[tuple[str, str]]:
        """Tags and labels in one row, each with the selector that finds those who share it."""
        tags = [(tag, f"tag:{quoted(tag)}") for tag in self.tags]
        return tags + [(f"{key}={value}", f"{quoted(key)}={quoted(value)}") for key, value in self.labels.items()]

    @property
    def maintenance(self) -> bool:
        return self.maintenance_until is not None and self.maintenance_until > now()

    @property
    def is_cloned(self) -> bool:
        return self.cloned_at is not None

    @property
    def is_member(self) -> bool:
        return self.status in MEMBERS

    @property
    def is_suspect(self) -> bool:
        """Still online by its heartbeat, but its connection broke off since."""
        lost, heard = self.connection_lost_at, self.last_heartbeat
        return self.status == ONLINE and lost is not None and (heard is None or lost > heard)


class NodeTag(Base):
    __tablename__ = "node_tags"

    node_id: Mapped[int] = mapped_column(ForeignKey(Node.id, ondelete="CASCADE"), primary_key=True)
    tag: Mapped[str] = mapped_column(Name(64), primary_key=True, index=True)


class NodeLabel(Base):
    __tablename__ = "node_labels"
    __table_args__ = (Index("ix_node_labels_key_value", "key", "value"), TABLE_OPTIONS)

    node_id: Mapped[int] = mapped_column(ForeignKey(Node.id, ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(Name(64), primary_key=True)
    value: Mapped[str] = mapped_column(Name(255))


class NodeCertificate(Base):
    """A certificate that a node has or had. `current` and `candidate` open the door, `superseded` ones no longer do."""

    __tablename__ = "node_certificates"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    node_id: Mapped[int] = mapped_column(ForeignKey(Node.id, ondelete="CASCADE"), index=True)
    fingerprint: Mapped[str] = mapped_column(Name(64), unique=True)
    key_hash: Mapped[str] = mapped_column(Name(64), index=True)
    state: Mapped[str] = mapped_column(Name(16))
    pem: Mapped[str] = mapped_column(LongText)
    not_after: Mapped[datetime] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class Revocation(Base):
    """A certificate that must not open the door any more; kept when its node is deleted. Gateways watch its end."""

    __tablename__ = "revocations"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(Name(64), index=True)
    node_id: Mapped[int] = mapped_column(BigId)
    revoked_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)


class EnrollmentToken(Base):
    """What lets hosts in: shown once, kept as a hash, with an end, a number of uses and what it gives."""

    __tablename__ = "enrollment_tokens"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(Name(64))
    prefix: Mapped[str] = mapped_column(Name(16))
    token_hash: Mapped[str] = mapped_column(Name(64), unique=True)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    max_uses: Mapped[int | None]
    uses: Mapped[int] = mapped_column(default=0)
    needs_approval: Mapped[bool] = mapped_column(default=False)
    group_id: Mapped[int | None] = mapped_column(ForeignKey(NodeGroup.id, ondelete="SET NULL"))
    tags: Mapped[list[str]] = mapped_column(Json, default=list)
    labels: Mapped[dict[str, str]] = mapped_column(Json, default=dict)
    node_id: Mapped[int | None] = mapped_column(ForeignKey(Node.id, ondelete="CASCADE"))
    created_by: Mapped[str] = mapped_column(Name(64), default="")
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class Enrolment(Base):
    """One machine's wish to become a node (or to become one again), known by the public key it made."""

    __tablename__ = "enrolments"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    key_hash: Mapped[str] = mapped_column(Name(64), unique=True)
    ticket_hash: Mapped[str] = mapped_column(Name(64), unique=True)
    kind: Mapped[str] = mapped_column(Name(16))
    node_id: Mapped[int] = mapped_column(ForeignKey(Node.id, ondelete="CASCADE"), index=True)
    token_id: Mapped[int | None] = mapped_column(ForeignKey(EnrollmentToken.id, ondelete="SET NULL"))
    origin_node_id: Mapped[int | None] = mapped_column(BigId)
    csr_pem: Mapped[str] = mapped_column(LongText)
    ip: Mapped[str] = mapped_column(Name(45))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
