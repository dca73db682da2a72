"""What can be asked of the audit log, and what it shows."""

from typing import Any, Literal

from pydantic import AwareDatetime, Field

from app.kernel.api import Out
from app.kernel.paging import ListQuery


class AuditQuery(ListQuery):
    keyword: str | None = Field(None, max_length=100, description="In user, action, resource or address.")
    username: str | None = Field(None, max_length=64)
    user_id: int | None = Field(None, ge=1, le=2**63 - 1)
    action: str | None = Field(None, max_length=64)
    resource_type: str | None = Field(None, max_length=32)
    resource_id: str | None = Field(None, max_length=64)
    status: Literal["success", "failed"] | None = None
    start: AwareDatetime | None = None
    end: AwareDatetime | None = None


class AuditOut(Out):
    id: int
    sequence: int
    user_id: int | None
    username: str
    action: str
    resource_type: str
    resource_id: str | None
    detail: Any
    ip: str
    user_agent: str
    request_id: str
    status: str
    error_message: str | None
    created_at: AwareDatetime
    hash: str
