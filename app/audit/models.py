"""Tables of the audit log: its rows, the one head they grow from, and signed checkpoints of that head."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from app.audit.chain import GENESIS_HASH as GENESIS_HASH
from app.kernel.clock import now
from app.kernel.db import TABLE_OPTIONS, Base
from app.kernel.types import BigId, Json, LongText, Name, UtcDateTime


class AuditRow(Base):
    """One entry. `id` is its place in the chain; `canonical` is the text that was hashed, columns are for filters."""

    __tablename__ = "audit_logs"
    __table_args__ = (
        Index("ix_audit_logs_action_id", "action", "id"),
        Index("ix_audit_logs_user_id_id", "user_id", "id"),
        Index("ix_audit_logs_username_id", "username", "id"),
        Index("ix_audit_logs_status_id", "status", "id"),
        Index("ix_audit_logs_resource", "resource_type", "resource_id", "id"),
        TABLE_OPTIONS,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    user_id: Mapped[int | None] = mapped_column(BigId)
    username: Mapped[str] = mapped_column(Name(64))
    action: Mapped[str] = mapped_column(Name(64))
    resource_type: Mapped[str] = mapped_column(Name(32))
    resource_id: Mapped[str | None] = mapped_column(Name(64))
    detail: Mapped[Any] = mapped_column(Json, nullable=True)
    ip: Mapped[str] = mapped_column(Name(45))
    user_agent: Mapped[str] = mapped_column(Name(255))
    request_id: Mapped[str] = mapped_column(Name(64))
    status: Mapped[str] = mapped_column(Name(16))
    error_message: Mapped[str | None] = mapped_column(LongText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    canonical: Mapped[str] = mapped_column(LongText)
    hash: Mapped[str] = mapped_column(Name(64))
    seal: Mapped[str] = mapped_column(Name(64))

    @property
    def sequence(self) -> int:
        return self.id


class AuditHead(Base):
    """The chain's end, in a single row that every writer locks last before it commits."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    sequence: Mapped[int] = mapped_column(BigId)
    hash: Mapped[str] = mapped_column(Name(64))
    seal: Mapped[str] = mapped_column(Name(64))


class AuditCheckpoint(Base):
    """The head as it was at some moment, signed. The same line also goes to a file, out of the database's reach."""

    __tablename__ = "audit_checkpoints"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    sequence: Mapped[int] = mapped_column(BigId, index=True)
    hash: Mapped[str] = mapped_column(Name(64))
    signature: Mapped[str] = mapped_column(Name(128))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
