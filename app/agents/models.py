"""Tables of agents: what hosts say of them and what we want of them, configurations, secrets, measurements, crashes."""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.kernel.clock import now
from app.kernel.db import TABLE_OPTIONS, Base
from app.kernel.types import BigId, Json, LongText, Name, UtcDateTime
from app.nodes.models import Node

RUNNING, STARTING, STOPPING, STOPPED = "running", "starting", "stopping", "stopped"
BACKOFF, ERROR, UNKNOWN = "backoff", "error", "unknown"
STATUSES: Final = (RUNNING, STARTING, STOPPING, STOPPED, BACKOFF, ERROR, UNKNOWN)
BUILTIN, MANAGER, HOST, SERVICE, ADOPTED = "builtin", "manager", "host", "service", "adopted"
SOURCES: Final = (BUILTIN, MANAGER, HOST, SERVICE, ADOPTED)

SAVED, PUSHING, KEPT, REVERTED, REFUSED, FAILED = "saved", "pushing", "kept", "reverted", "refused", "failed"
CONFIG_STATES: Final = (SAVED, PUSHING, KEPT, REVERTED, REFUSED, FAILED)


class NodeAgent(Base):
    """A program on a host. With a manifest it is ours to define; without one the host (or a service) defines it.

    What the host says of it is written only when it differs from what it said before (`fingerprint`), so that a
    check-in costs nothing for each agent that goes on as it did. CPU and memory lie in `agent_points`.
    """

    __tablename__ = "node_agents"
    __table_args__ = (
        UniqueConstraint("node_id", "name"),
        Index("ix_node_agents_status_name", "status", "name"),
        Index("ix_node_agents_name_node_id", "name", "node_id"),
        Index("ix_node_agents_type_name", "type", "name"),
        TABLE_OPTIONS,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    node_id: Mapped[int] = mapped_column(ForeignKey(Node.id, ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Name(64))
    type: Mapped[str] = mapped_column(Name(32))
    source: Mapped[str] = mapped_column(Name(16))
    manifest: Mapped[dict[str, Any] | None] = mapped_column(Json, nullable=True)
    digest: Mapped[str] = mapped_column(Name(64), default="")
    """Of all that the host's settings hold about it: they change when this does."""
    desired: Mapped[str] = mapped_column(Name(16), default=RUNNING)
    seq: Mapped[int] = mapped_column(BigInteger, default=0)

    is_reported: Mapped[bool] = mapped_column(Boolean, default=False)
    fingerprint: Mapped[str] = mapped_column(Name(32), default="")
    status: Mapped[str] = mapped_column(Name(16), default=UNKNOWN)
    status_changed_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    version: Mapped[str | None] = mapped_column(Name(64))
    pid: Mapped[int | None] = mapped_column(BigInteger)
    start_time: Mapped[datetime | None] = mapped_column(UtcDateTime)
    restart_count: Mapped[int] = mapped_column(BigInteger, default=0)
    last_error: Mapped[str | None] = mapped_column(LongText)
    health: Mapped[list[dict[str, Any]]] = mapped_column(Json, default=list)
    config_version: Mapped[int | None] = mapped_column(BigInteger)
    drifted: Mapped[bool] = mapped_column(Boolean, default=False)

    host_files: Mapped[str | None] = mapped_column(LongText)
    """The configuration as it last lay on the host, encrypted: it may hold what is secret."""
    host_files_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_by: Mapped[str] = mapped_column(Name(64), default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    node: Mapped[Node] = relationship(lazy="raise_on_sql")

    @property
    def is_ours(self) -> bool:
        """Whether its manifest is the Manager's to change; a host's own agent of the same name comes first."""
        return self.manifest is not None and self.source not in (HOST, SERVICE, BUILTIN)

    @property
    def is_healthy(self) -> bool:
        return all(check.get("ok") for check in self.health)


class AgentConfigText(Base):
    """The templates of a configuration, kept once however many agents have it."""

    __tablename__ = "agent_config_texts"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    digest: Mapped[str] = mapped_column(Name(64), unique=True)
    files: Mapped[list[dict[str, str]]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class AgentConfig(Base):
    """A version of an agent's configuration, before a host's facts and secrets are put in, and how it fared there."""

    __tablename__ = "agent_configs"
    __table_args__ = (
        UniqueConstraint("agent_id", "version"),
        Index("ix_agent_configs_state_command_id", "state", "command_id"),
        TABLE_OPTIONS,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    agent_id: Mapped[int] = mapped_column(ForeignKey(NodeAgent.id, ondelete="CASCADE"))
    version: Mapped[int] = mapped_column(BigInteger)
    text_id: Mapped[int] = mapped_column(ForeignKey(AgentConfigText.id), index=True)
    apply: Mapped[str] = mapped_column(Name(16), default="reload")
    note: Mapped[str | None] = mapped_column(Name(255))
    state: Mapped[str] = mapped_column(Name(16), default=SAVED)
    detail: Mapped[str | None] = mapped_column(LongText)
    command_id: Mapped[int | None] = mapped_column(BigInteger)
    fanout_id: Mapped[int | None] = mapped_column(BigInteger, index=True)
    created_by: Mapped[str] = mapped_column(Name(64), default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    pushed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    text: Mapped[AgentConfigText] = relationship(lazy="raise_on_sql")

    @property
    def files(self) -> list[dict[str, str]]:
        return self.text.files

    @property
    def is_healthy(self) -> bool | None:
        """Whether it proved itself on the host; None as long as nobody knows."""
        return None if self.state in (SAVED, PUSHING) else self.state == KEPT


class AgentSecret(Base):
    """What `{{ secret.NAME }}` stands for in the configuration of one agent. Encrypted, and never shown."""

    __tablename__ = "agent_secrets"

    agent_id: Mapped[int] = mapped_column(ForeignKey(NodeAgent.id, ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(Name(64), primary_key=True)
    value: Mapped[str] = mapped_column(LongText)
    updated_by: Mapped[str] = mapped_column(Name(64), default="")
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class AgentPoint(Base):
    """CPU and memory of all agents of one host at one moment: `{name: [percent of a core, bytes]}`.

    One row for a host and check-in, however many agents it has. Nothing refers to `nodes`, so that a node with a long
    history is deleted at once; what it leaves goes with time.
    """

    __tablename__ = "agent_points"
    __table_args__ = {
        name: value
        for name, value in {**TABLE_OPTIONS, "sqlite_with_rowid": False}.items()
        if name != "sqlite_autoincrement"
    }

    node_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    ts: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    body: Mapped[dict[str, Any]] = mapped_column(Json)


POINTS: Final = Base.metadata.tables[AgentPoint.__tablename__]


class AgentCrash(Base):
    """The dossier of an exit that nobody wanted, as the host put it together at that moment."""

    __tablename__ = "agent_crashes"
    __table_args__ = (
        UniqueConstraint("node_id", "host_event_id"),
        Index("ix_agent_crashes_node_id_name_id", "node_id", "name", "id"),
        TABLE_OPTIONS,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    node_id: Mapped[int] = mapped_column(ForeignKey(Node.id, ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Name(64))
    host_event_id: Mapped[str] = mapped_column(Name(64))
    message: Mapped[str] = mapped_column(LongText)
    exit_code: Mapped[int | None] = mapped_column(BigInteger)
    signal: Mapped[int | None] = mapped_column(BigInteger)
    dossier: Mapped[dict[str, Any]] = mapped_column(Json)
    occurred_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)
