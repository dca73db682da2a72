"""What programs are shown of commands, fan-outs ("batches") and their targets, and how they ask for them."""

from typing import Any, Literal

from pydantic import AwareDatetime, Field

from app.kernel.api import Out
from app.kernel.paging import ListQuery

Status = Literal["pending", "running", "paused", "success", "failed", "partial", "cancelled"]
TargetStatus = Literal["pending", "running", "success", "failed", "timeout", "cancelled", "interrupted", "expired"]
WaitingFor = Literal["node_offline", "node_maintenance", "parallel_limit", "delivery", "agent_queue", "retry_interval"]


class CommandOut(Out):
    id: int
    uuid: str
    node_id: int
    kind: str
    state: str = Field(
        description="queued, delivered, accepted, started; then succeeded, failed, timed_out, cancelled, interrupted or"
        " expired."
    )
    issued_at: AwareDatetime
    not_after: AwareDatetime
    delivered_at: AwareDatetime | None
    accepted_at: AwareDatetime | None
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    duration_ms: int | None
    exit_code: int | None
    signal: int | None
    error_code: str | None
    error: str | None
    result: Any = Field(description="What the host answered; null for kinds whose answer holds files of the host.")
    batch_id: str | None = Field(description="The batch that it is part of.")
    created_by: str


class BatchStarted(Out):
    """What everything answers that starts a batch."""

    batch_id: str
    total_nodes: int


class BatchQuery(ListQuery):
    purpose: str | None = Field(None, min_length=1, max_length=32)
    is_open: bool | None = Field(None, description="Only those that have not ended, or only those that have.")


class BatchOut(Out):
    batch_id: str = Field(validation_alias="uuid")
    purpose: str
    title: str
    kind: str
    status: Status
    stopped_by: str | None = Field(description="cancel, errors or deadline.")
    total: int
    pending: int
    running: int
    success: int
    failed: int = Field(description="Targets that ended failed, timeout, interrupted or expired.")
    cancelled: int
    max_parallel: int = Field(description="How many hosts at once.")
    max_errors: int | None = Field(description="So many errors stop it.")
    deadline_at: AwareDatetime | None
    repeats: str | None = Field(description="The batch whose failures this one tries again.")
    created_by: str
    created_at: AwareDatetime
    finished_at: AwareDatetime | None


class TargetQuery(ListQuery):
    status: TargetStatus | None = None
    node_id: int | None = Field(None, ge=1, le=2**63 - 1)
    keyword: str | None = Field(None, min_length=1, max_length=100, description="In the host name.")


class TargetOut(Out):
    """A part on one host, in the words of a record."""

    id: int
    node_id: int
    hostname: str
    subject: str = Field(description="What on the host it is about, such as an agent's name.")
    status: TargetStatus
    exit_code: int | None
    signal: int | None
    user: str | None
    truncated: bool
    error: str | None
    error_code: str | None
    waiting_for: WaitingFor | None
    attempt: int
    queued_at: AwareDatetime
    delivered_at: AwareDatetime | None
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    duration_ms: int | None
    result: Any
