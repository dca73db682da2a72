"""What the dashboard and the search show, put together from the rooms below."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

from sqlalchemy import Row, and_, case, func, or_, select
from sqlalchemy.orm import Session

from app.agents.models import NodeAgent
from app.agents.queries import status_counts as agent_counts
from app.events.models import Event
from app.events.queries import recent_events, recent_troubles
from app.kernel.clock import now
from app.metrics.models import FleetPoint
from app.metrics.queries import fleet_trend
from app.nodes.models import MEMBERS, OFFLINE, ONLINE, PENDING, Node, NodeGroup
from app.nodes.queries import WITH_NAMES, mentions, status_counts
from app.nodes.selecting import members
from app.nodes.words import HIGH, VERY_HIGH
from app.people.models import User
from app.tasks.models import Task

EVENTS_SHOWN = 10
MOST_CELLS = 2000
"""More hosts than this are more than anybody can see: the map then shows those that need somebody."""
FOUND_SHOWN = 20
USES = (Node.last_cpu_usage, Node.last_memory_usage, Node.last_disk_usage)


@dataclass(frozen=True)
class Dashboard:
    """The fleet in numbers, at one moment."""

    node_status_distribution: Mapping[str, int]
    daemon_version_distribution: Mapping[str, int]
    agent_version_distribution: Mapping[str, int]
    agent_statuses: Mapping[str, int]
    resource_trend: Sequence[FleetPoint]
    recent_events: Sequence[Event]
    generated_at: datetime
    active_alerts: int = 0
    recent_alerts: Sequence[object] = field(default_factory=tuple)

    @property
    def total_nodes(self) -> int:
        return sum(self.node_status_distribution.get(status, 0) for status in MEMBERS)

    @property
    def online_nodes(self) -> int:
        return self.node_status_distribution.get(ONLINE, 0)

    @property
    def offline_nodes(self) -> int:
        return self.node_status_distribution.get(OFFLINE, 0)

    @property
    def waiting_nodes(self) -> int:
        return self.node_status_distribution.get(PENDING, 0)

    @property
    def online_rate(self) -> float:
        return round(self.online_nodes * 100 / self.total_nodes, 1) if self.total_nodes else 0.0

    @cached_property
    def agents(self) -> dict[str, int]:
        """Of those that were heard of; one that tries again and again is in error."""
        count = self.agent_statuses.get
        known = sum(number for status, number in self.agent_statuses.items() if status != "unknown")
        in_error = count("error", 0) + count("backoff", 0)
        return {"running": count("running", 0), "stopped": count("stopped", 0), "error": in_error, "total": known}


def dashboard(session: Session, trend_hours: int = 24) -> Dashboard:
    columns = (Node.daemon_version, Node.agent_version)
    daemons, agents = Counter[str](), Counter[str]()
    counted = select(*columns, func.count()).where(members()).group_by(*columns)
    for daemon_version, agent_version, count in session.execute(counted):
        daemons[daemon_version or "unknown"] += count
        if agent_version:
            agents[agent_version] += count
    return Dashboard(
        node_status_distribution=status_counts(session),
        daemon_version_distribution=dict(daemons.most_common()),
        agent_version_distribution=dict(agents.most_common()),
        agent_statuses=agent_counts(session),
        resource_trend=fleet_trend(session, trend_hours),
        recent_events=recent_events(session, EVENTS_SHOWN),
        generated_at=now(),
    )


def troubles(session: Session) -> Sequence[Event]:
    return recent_troubles(session, EVENTS_SHOWN)


def troubles_of_a_day(session: Session) -> dict[str, int]:
    """How many warnings and worse the last 24 hours brought."""
    since = now() - timedelta(hours=24)
    counted = select(Event.severity, func.count()).where(Event.created_at >= since).group_by(Event.severity)
    return {severity: count for severity, count in session.execute(counted) if severity != "info"}


@dataclass(frozen=True)
class Host:
    """A node as the map of the fleet shows it."""

    id: int
    hostname: str
    status: str
    cpu: float | None
    memory: float | None
    disk: float | None
    is_in_maintenance: bool

    @property
    def state(self) -> str:
        if self.status != ONLINE:
            return "off"
        worst = max((use for use in (self.cpu, self.memory, self.disk) if use is not None), default=0.0)
        return "bad" if worst >= VERY_HIGH else "warn" if worst >= HIGH else "ok"

    @property
    def quant(self) -> int:
        return min(4, int((self.cpu or 0) / 20))


@dataclass(frozen=True)
class FleetMap:
    hosts: Sequence[Host]
    states: Mapping[str, int]
    """How many of the whole fleet are ok, warn, bad, off."""

    @property
    def total(self) -> int:
        return sum(self.states.values())


def fleet_map(session: Session) -> FleetMap:
    """All hosts by name; of very many those that need somebody, and then the busiest."""
    state = case(
        (Node.status != ONLINE, "off"),
        (or_(*(use >= VERY_HIGH for use in USES)), "bad"),
        (or_(*(use >= HIGH for use in USES)), "warn"),
        else_="ok",
    )
    counted = select(state.label("state"), func.count()).where(members()).group_by("state")
    states = {name: count for name, count in session.execute(counted).all()}  # noqa: C416  rows are no pairs to mypy
    columns = (Node.id, Node.hostname, Node.status, *USES, Node.maintenance_until)
    statement = select(*columns).where(members())
    if sum(states.values()) > MOST_CELLS:
        urgency = case((Node.status != ONLINE, 1), (or_(*(use >= HIGH for use in USES)), 0), else_=2)
        statement = statement.order_by(urgency, Node.last_cpu_usage.desc(), Node.id).limit(MOST_CELLS)
    at = now()
    hosts = [
        Host(id_, name, status, cpu, memory, disk, until is not None and until > at)
        for id_, name, status, cpu, memory, disk, until in session.execute(statement)
    ]
    return FleetMap(sorted(hosts, key=lambda host: (host.hostname, host.id)), states)


@dataclass(frozen=True)
class Found:
    """What a search brought, each kind cut at `FOUND_SHOWN`; `more_nodes` says that there are others."""

    nodes: Sequence[Node] = ()
    groups: Sequence[NodeGroup] = ()
    users: Sequence[User] = ()
    agents: Sequence[Row[str, int]] = ()
    """Names, and on how many hosts there is one."""
    tasks: Sequence[Task] = ()
    more_nodes: bool = False

    @property
    def total(self) -> int:
        return sum(map(len, (self.nodes, self.groups, self.users, self.agents, self.tasks)))


def search(session: Session, text: str, *, with_users: bool) -> Found:
    """Nodes by name, address, tag or label (also those who wait or were turned away), agents, tasks, groups, users."""
    if not text:
        return Found()
    is_exact = case(
        (Node.hostname == text, 0), (Node.ip == text, 0), (Node.hostname.istartswith(text, autoescape=True), 1), else_=2
    )
    nodes = select(Node).where(or_(mentions(text), and_(Node.uuid == text))).options(*WITH_NAMES)
    found = session.scalars(nodes.order_by(is_exact, Node.hostname, Node.id).limit(FOUND_SHOWN + 1)).all()
    groups = select(NodeGroup).where(NodeGroup.path.icontains(text, autoescape=True)).order_by(NodeGroup.path)
    users = select(User).where(
        or_(User.username.icontains(text, autoescape=True), User.email.icontains(text, autoescape=True))
    )
    agents = select(NodeAgent.name, func.count()).where(NodeAgent.name.icontains(text, autoescape=True))
    tasks = select(Task).where(Task.name.icontains(text, autoescape=True)).order_by(Task.name, Task.id)
    return Found(
        nodes=found[:FOUND_SHOWN],
        agents=session.execute(agents.group_by(NodeAgent.name).order_by(NodeAgent.name).limit(FOUND_SHOWN)).all(),
        tasks=session.scalars(tasks.limit(FOUND_SHOWN)).all(),
        groups=session.scalars(groups.limit(FOUND_SHOWN)).all(),
        users=session.scalars(users.order_by(User.username).limit(FOUND_SHOWN)).all() if with_users else (),
        more_nodes=len(found) > FOUND_SHOWN,
    )
