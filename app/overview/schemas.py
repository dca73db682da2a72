"""What the dashboard tells programs."""

from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, Field, computed_field

from app.events.schemas import EventOut
from app.kernel.api import Out
from app.metrics.models import moment_of


class AgentsOut(Out):
    running: int
    stopped: int
    error: int
    total: int


class TrendPointOut(Out):
    """Means over all hosts that were measured in these five minutes."""

    ts: int = Field(exclude=True)
    nodes: int
    cpu_usage: float | None
    memory_usage: float | None
    disk_usage: float | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def timestamp(self) -> AwareDatetime:
        moment: datetime = moment_of(self.ts)
        return moment


class DashboardOut(Out):
    total_nodes: int
    online_nodes: int
    offline_nodes: int
    online_rate: float
    agents: AgentsOut
    active_alerts: int
    node_status_distribution: dict[str, int]
    daemon_version_distribution: dict[str, int]
    agent_version_distribution: dict[str, int]
    resource_trend: list[TrendPointOut]
    recent_alerts: list[Any]
    recent_events: list[EventOut]
    generated_at: AwareDatetime
