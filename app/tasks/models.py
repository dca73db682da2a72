"""Tables of tasks: definitions, templates, which fan-outs are their runs, what hosts wrote meanwhile, and files.

A run's state is its fan-out's, a record's is its target's and command's (docs/decisions/0010): here is only what the
engine does not know.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, LargeBinary, UniqueConstraint
from sqlalchemy.dialects.mysql import MEDIUMBLOB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.commands.models import Command, Fanout
from app.kernel.clock import now
from app.kernel.db import TABLE_OPTIONS, Base
from app.kernel.types import BigId, Json, LongText, Name, UtcDateTime

ENABLED, DISABLED = "enabled", "disabled"
MANUAL, SCHEDULE, API, ALERT = "manual", "schedule", "api", "alert"
Bytes = LargeBinary().with_variant(MEDIUMBLOB(), "mysql")
"""MySQL's BLOB ends one byte before a whole piece of output does."""


class TaskTemplate(Base):
    """Work to be filled in: content, and which parameters it takes."""

    __tablename__ = "task_templates"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(Name(128), unique=True)
    description: Mapped[str | None] = mapped_column(Name(255))
    type: Mapped[str] = mapped_column(Name(16))
    content: Mapped[dict[str, Any]] = mapped_column(Json)
    parameters: Mapped[list[dict[str, Any]]] = mapped_column(Json, default=list)
    created_by: Mapped[str] = mapped_column(Name(64), default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class Task(Base):
    """What is to be done, where, how carefully, and perhaps when."""

    __tablename__ = "tasks"
    __table_args__ = (Index("ix_tasks_status_next_run_at", "status", "next_run_at"), TABLE_OPTIONS)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(Name(128), index=True)
    description: Mapped[str | None] = mapped_column(LongText)
    type: Mapped[str] = mapped_column(Name(16))
    content: Mapped[dict[str, Any]] = mapped_column(Json)
    parameters: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    file_id: Mapped[int | None] = mapped_column(BigId, index=True)
    """The upload that its content names, so that it can be asked for."""
    template_id: Mapped[int | None] = mapped_column(ForeignKey(TaskTemplate.id, ondelete="SET NULL"))
    target_type: Mapped[str] = mapped_column(Name(16))
    target_value: Mapped[list[Any]] = mapped_column(Json, default=list)
    cron_expr: Mapped[str | None] = mapped_column(Name(128))
    timezone: Mapped[str] = mapped_column(Name(64), default="UTC")
    catch_up_s: Mapped[int] = mapped_column(default=0)
    timeout: Mapped[int] = mapped_column(default=300)
    retry_count: Mapped[int] = mapped_column(default=0)
    retry_interval: Mapped[int] = mapped_column(default=60)
    max_parallel: Mapped[Any] = mapped_column(Json, nullable=True)
    max_errors: Mapped[Any] = mapped_column(Json, nullable=True)
    not_after_s: Mapped[int] = mapped_column(default=3600)
    status: Mapped[str] = mapped_column(Name(16), default=ENABLED)
    next_run_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_by: Mapped[str] = mapped_column(Name(64), default="")
    created_by_id: Mapped[int | None] = mapped_column(BigId)
    responsible: Mapped[str] = mapped_column(Name(64), default="")
    responsible_id: Mapped[int | None] = mapped_column(BigId)
    """Who said last what is done, where and when: the schedule acts with this person's rights."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class TaskRun(Base):
    """That a fan-out is a run of a task. `scheduled_for` is unique for a task, so a due time cannot run twice."""

    __tablename__ = "task_runs"
    __table_args__ = (UniqueConstraint("task_id", "scheduled_for"), TABLE_OPTIONS)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    fanout_id: Mapped[int] = mapped_column(ForeignKey(Fanout.id, ondelete="CASCADE"), unique=True)
    task_id: Mapped[int | None] = mapped_column(ForeignKey(Task.id, ondelete="SET NULL"))
    task_name: Mapped[str] = mapped_column(Name(128))
    triggered_by: Mapped[str] = mapped_column(Name(16), default=MANUAL)
    scheduled_for: Mapped[datetime | None] = mapped_column(UtcDateTime)
    file_id: Mapped[int | None] = mapped_column(BigId, index=True)
    """The upload that its hosts fetch."""

    fanout: Mapped[Fanout] = relationship(lazy="joined")


class TaskOutput(Base):
    """A piece of what a command wrote, as the host sent it."""

    __tablename__ = "task_outputs"
    __table_args__ = (
        UniqueConstraint("command_id", "seq"),
        Index("ix_task_outputs_command_id_stream_offset", "command_id", "stream", "offset"),
        Index("ix_task_outputs_fanout_id_id", "fanout_id", "id"),
        TABLE_OPTIONS,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    command_id: Mapped[int] = mapped_column(ForeignKey(Command.id, ondelete="CASCADE"))
    fanout_id: Mapped[int] = mapped_column(BigId)
    """Its run's: pieces of all hosts are read in the order of their ids."""
    seq: Mapped[int] = mapped_column(BigId)
    stream: Mapped[str] = mapped_column(Name(8))
    offset: Mapped[int] = mapped_column(BigId)
    size: Mapped[int]
    data: Mapped[bytes] = mapped_column(Bytes)
    is_cut: Mapped[bool] = mapped_column(default=False)
    arrived_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class TaskFile(Base):
    """A file that somebody brought here, for tasks to put on hosts. Its bytes lie in the store under `place`."""

    __tablename__ = "task_files"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(Name(255), index=True)
    """What people call it. It never becomes a path."""
    size: Mapped[int] = mapped_column(BigId)
    sha256: Mapped[str] = mapped_column(Name(64), index=True)
    place: Mapped[str] = mapped_column(Name(32), unique=True)
    created_by: Mapped[str] = mapped_column(Name(64), default="")
    created_by_id: Mapped[int | None] = mapped_column(BigId)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    last_used_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)
    """When it was brought, or last put into a task or run."""


class FetchedFile(Base):
    """A file that a `download` brings from a host, complete once all of it is here and its sha256 is known."""

    __tablename__ = "task_fetched_files"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    command_id: Mapped[int] = mapped_column(ForeignKey(Command.id, ondelete="CASCADE"), unique=True)
    name: Mapped[str] = mapped_column(Name(255))
    size: Mapped[int] = mapped_column(BigId)
    sha256: Mapped[str | None] = mapped_column(Name(64))
    place: Mapped[str] = mapped_column(Name(32), unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
