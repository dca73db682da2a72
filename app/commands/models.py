"""The tables of commands and of fan-outs: one command sent to many hosts, a target for each of them."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.kernel.clock import now
from app.kernel.db import TABLE_OPTIONS, Base
from app.kernel.types import BigId, Json, LongText, Name, UtcDateTime
from app.nodes.models import Node
from protocol.states import QUEUED

RUNNING, PAUSED, STOPPED, DONE = "running", "paused", "stopped", "done"
UNFINISHED = (RUNNING, PAUSED, STOPPED)
"""A fan-out that is `stopped` hands out nothing more and waits for what is on its way."""

BY_CANCEL, BY_ERRORS, BY_DEADLINE = "cancel", "errors", "deadline"

WAITING, PARKED, RETRYING, ISSUED, STARTED = "waiting", "parked", "retrying", "issued", "running"
SUCCESS, FAILED, TIMEOUT, CANCELLED, INTERRUPTED, EXPIRED = (
    "success",
    "failed",
    "timeout",
    "cancelled",
    "interrupted",
    "expired",
)
UNISSUED = (WAITING, PARKED, RETRYING)
IN_FLIGHT = (ISSUED, STARTED)
ERRORS = (FAILED, TIMEOUT, INTERRUPTED, EXPIRED)
SETTLED = (SUCCESS, *ERRORS, CANCELLED)
TARGET_STATES = (*UNISSUED, *IN_FLIGHT, *SETTLED)


class Fanout(Base):
    """One command for many hosts. Its row is the lock under which its targets are handed out and settled."""

    __tablename__ = "fanouts"
    __table_args__ = (Index("ix_fanouts_purpose_id", "purpose", "id"), TABLE_OPTIONS)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    uuid: Mapped[str] = mapped_column(Name(36), unique=True)
    purpose: Mapped[str] = mapped_column(Name(32))
    title: Mapped[str] = mapped_column(Name(255), default="")
    kind: Mapped[str] = mapped_column(Name(64))
    payload: Mapped[str] = mapped_column(LongText, deferred=True)
    """Read only where it is needed: the row itself is read at every result, and this may be long."""
    state: Mapped[str] = mapped_column(Name(16), default=RUNNING, index=True)
    stopped_by: Mapped[str | None] = mapped_column(Name(16))
    max_in_flight: Mapped[int]
    """The window: so many hosts at once."""
    error_limit: Mapped[int | None]
    """So many errors stop it."""
    deliver_within_s: Mapped[int]
    run_within_s: Mapped[int]
    retries: Mapped[int] = mapped_column(default=0)
    retry_interval_s: Mapped[int] = mapped_column(default=60)
    waits_for_maintenance: Mapped[bool] = mapped_column(default=True)
    deadline_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    total: Mapped[int] = mapped_column(default=0)
    in_flight: Mapped[int] = mapped_column(default=0)
    success: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    """Targets that ended in one of `ERRORS`."""
    cancelled: Mapped[int] = mapped_column(default=0)
    repeats_id: Mapped[int | None] = mapped_column(ForeignKey("fanouts.id", ondelete="SET NULL"))
    created_by: Mapped[str] = mapped_column(Name(64), default="")
    created_by_id: Mapped[int | None] = mapped_column(BigId)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    @property
    def settled(self) -> int:
        return self.success + self.failed + self.cancelled

    @property
    def status(self) -> str:
        """In the contract's words for a run: pending, running, paused, success, failed, partial, cancelled."""
        if self.state == DONE:
            return self._outcome()
        if self.state == PAUSED:
            return PAUSED
        return "pending" if self.state == RUNNING and not self.in_flight and not self.settled else RUNNING

    def _outcome(self) -> str:
        if self.success == self.total:
            return SUCCESS
        if self.stopped_by == BY_CANCEL:
            return CANCELLED
        return "partial" if self.success else FAILED


class Target(Base):
    """A fan-out's part on one host, and all there is of its state: what a feature adds refers to this row.

    `waiting` for its turn, `parked` because its turn came while the host was away, `retrying` after a failure, `issued`
    as a command, `running`; then one of `SETTLED`. The command of each attempt has this row's id and the attempt's
    number, and no two have the same. `due_at` is when the present state ends by itself.
    """

    __tablename__ = "fanout_targets"
    __table_args__ = (
        UniqueConstraint("fanout_id", "node_id", "subject"),
        Index("ix_fanout_targets_fanout_id_state_id", "fanout_id", "state", "id"),
        Index("ix_fanout_targets_node_id_id", "node_id", "id"),
        TABLE_OPTIONS,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    fanout_id: Mapped[int] = mapped_column(ForeignKey(Fanout.id, ondelete="CASCADE"))
    node_id: Mapped[int] = mapped_column(BigId)
    """No reference: what was done to a host outlives its row."""
    hostname: Mapped[str] = mapped_column(Name(253))
    subject: Mapped[str] = mapped_column(Name(64), default="")
    """What on the host it is about, where one host may be several targets: an agent's name, an instance's."""
    payload: Mapped[str | None] = mapped_column(LongText, deferred=True)
    """Its own, instead of the fan-out's."""
    state: Mapped[str] = mapped_column(Name(16), default=WAITING)
    attempt: Mapped[int] = mapped_column(default=0)
    not_after: Mapped[datetime | None] = mapped_column(UtcDateTime)
    due_at: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    error_code: Mapped[str | None] = mapped_column(Name(32))
    error: Mapped[str | None] = mapped_column(LongText)
    is_presumed: Mapped[bool] = mapped_column(default=False)
    """Settled by the host's silence only: its own word, should it come, still counts."""


class Command(Base):
    """One order for one host. Its steps are the wire's (`protocol.states`); every step is a guarded update."""

    __tablename__ = "commands"
    __table_args__ = (
        Index("ix_commands_node_id_state", "node_id", "state"),
        Index("ix_commands_state_not_after", "state", "not_after"),
        UniqueConstraint("target_id", "attempt"),
        TABLE_OPTIONS,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    uuid: Mapped[str] = mapped_column(Name(36), unique=True)
    node_id: Mapped[int] = mapped_column(ForeignKey(Node.id, ondelete="CASCADE"))
    target_id: Mapped[int | None] = mapped_column(ForeignKey(Target.id, ondelete="CASCADE"))
    attempt: Mapped[int] = mapped_column(default=1)
    kind: Mapped[str] = mapped_column(Name(64))
    payload: Mapped[str | None] = mapped_column(LongText)
    """None: its target's, or its fan-out's."""
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
    run_as: Mapped[str | None] = mapped_column(Name(64))
    stdout_bytes: Mapped[int] = mapped_column(BigId, default=0)
    stderr_bytes: Mapped[int] = mapped_column(BigId, default=0)
    is_truncated: Mapped[bool] = mapped_column(default=False)
    error_code: Mapped[str | None] = mapped_column(Name(32))
    error: Mapped[str | None] = mapped_column(LongText)
    result: Mapped[Any] = mapped_column(Json, nullable=True)
    created_by: Mapped[str] = mapped_column(Name(64), default="")
