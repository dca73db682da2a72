"""The table of commands."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.kernel.clock import now
from app.kernel.db import TABLE_OPTIONS, Base
from app.kernel.types import BigId, Json, LongText, Name, UtcDateTime
from app.nodes.models import Node
from protocol.states import QUEUED


class Command(Base):
    """One order for one host. Its steps are the wire's (`protocol.states`); every step is a guarded update."""

    __tablename__ = "commands"
    __table_args__ = (
        Index("ix_commands_node_id_state", "node_id", "state"),
        Index("ix_commands_state_not_after", "state", "not_after"),
        TABLE_OPTIONS,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    uuid: Mapped[str] = mapped_column(Name(36), unique=True)
    node_id: Mapped[int] = mapped_column(ForeignKey(Node.id, ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(Name(64))
    payload: Mapped[str] = mapped_column(LongText)
    state: Mapped[str] = mapped_column(Name(16), default=QUEUED)
    issued_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)
    not_after: Mapped[datetime] = mapped_column(UtcDateTime)
    lease_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    delivered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    accepted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    duration_ms: Mapped[int | None] = mapped_column(BigId)
    exit_code: Mapped[int | None] = mapped_column(BigId)
    signal: Mapped[int | None]
    error_code: Mapped[str | None] = mapped_column(Name(32))
    error: Mapped[str | None] = mapped_column(LongText)
    result: Mapped[Any] = mapped_column(Json, nullable=True)
    created_by: Mapped[str] = mapped_column(Name(64), default="")
