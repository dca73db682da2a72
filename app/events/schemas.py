"""What can be asked of the timeline, and what it shows."""

from typing import Any, Literal

from pydantic import AwareDatetime, Field

from app.kernel.api import Out
from app.kernel.paging import ListQuery

Severity = Literal["info", "warning", "critical"]
Source = Literal["manager", "host"]


class EventQuery(ListQuery):
    keyword: str | None = Field(None, min_length=1, max_length=100, description="In host name, kind or message.")
    kind: str | None = Field(None, min_length=1, max_length=64)
    severity: Severity | None = None
    source: Source | None = Field(None, description="Who says so: the Manager, or the host itself.")
    node_id: int | None = Field(None, ge=1, le=2**63 - 1)
    hours: int | None = Field(None, ge=1, le=24 * 3650, description="Only the last so many hours.")
    start: AwareDatetime | None = None
    end: AwareDatetime | None = None


class NodeEventQuery(ListQuery):
    """The same for one node's timeline."""

    keyword: str | None = Field(None, min_length=1, max_length=100, description="In kind or message.")
    kind: str | None = Field(None, min_length=1, max_length=64)
    severity: Severity | None = None
    source: Source | None = None
    hours: int | None = Field(None, ge=1, le=24 * 3650, description="Only the last so many hours.")
    start: AwareDatetime | None = None
    end: AwareDatetime | None = None

    def of_node(self, node_id: int) -> EventQuery:
        return EventQuery(node_id=node_id, **self.model_dump(exclude_unset=True))


class EventOut(Out):
    """`message` is in the reader's language where the kind is known; `kind` and `data` are for programs."""

    id: int
    node_id: int | None
    hostname: str
    kind: str
    severity: str
    message: str = Field(validation_alias="sentence")
    data: Any
    source: str
    occurred_at: AwareDatetime
    created_at: AwareDatetime
