"""The table of events."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.events.sentences import remark_for, sentence_for, state_of
from app.kernel.clock import now
from app.kernel.db import TABLE_OPTIONS, Base
from app.kernel.types import BigId, Json, LongText, Name, UtcDateTime


class Event(Base):
    """Something that happened. `host_event_id` is what a host calls it, so that one told twice is kept once."""

    __tablename__ = "events"
    __table_args__ = (
        UniqueConstraint("node_id", "host_event_id"),
        Index("ix_events_node_id_id", "node_id", "id"),
        Index("ix_events_kind_id", "kind", "id"),
        Index("ix_events_severity_id", "severity", "id"),
        TABLE_OPTIONS,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    node_id: Mapped[int | None] = mapped_column(BigId)
    hostname: Mapped[str] = mapped_column(Name(253), default="")
    kind: Mapped[str] = mapped_column(Name(64))
    severity: Mapped[str] = mapped_column(Name(16))
    message: Mapped[str] = mapped_column(LongText)
    data: Mapped[Any] = mapped_column(Json, nullable=True)
    source: Mapped[str] = mapped_column(Name(16), default="manager")
    host_event_id: Mapped[str | None] = mapped_column(Name(64))
    occurred_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)

    @property
    def sentence(self) -> str:
        """In words, in the reader's language."""
        return sentence_for(self)

    @property
    def remark(self) -> str:
        return remark_for(self)

    @property
    def state(self) -> str:
        """How good the news is: ok, warn, bad or idle."""
        return state_of(self)
