"""Reading agents: of one host, of the fleet, their newest measurements, configurations, crashes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Select, Text, func, or_, select, type_coerce
from sqlalchemy.orm import Session, contains_eager, joinedload

from app.agents.errors import AgentNotFound
from app.agents.models import (
    KEPT,
    POINTS,
    AgentConfig,
    AgentCrash,
    AgentSecret,
    NodeAgent,
)
from app.agents.schemas import AgentQuery, ConfigVersionsQuery
from app.events.models import Event
from app.kernel.clock import now
from app.kernel.paging import ListQuery, Page, paginate, sort_keys
from app.nodes.models import Node
from app.nodes.queries import node_by_id
from app.nodes.selecting import members, selected

RECENT = timedelta(minutes=15)
"""Three times the longest interval: what is older is not how things are now."""
CHUNK = 500
SORTABLE = {
    "id": NodeAgent.id,
    "name": NodeAgent.name,
    "type": NodeAgent.type,
    "status": NodeAgent.status,
    "hostname": Node.hostname,
    "version": NodeAgent.version,
    "restart_count": NodeAgent.restart_count,
    "start_time": NodeAgent.start_time,
    "updated_at": NodeAgent.updated_at,
}
Measured = tuple[float | None, int | None, Sequence[int]]
"""CPU, memory, and when each check was made."""


@dataclass(frozen=True)
class AgentNow:
    """An agent with what its host measured last. Everything that its row has can be asked of it."""

    agent: NodeAgent
    cpu_usage: float | None = None
    memory_usage: int | None = None
    checked: Sequence[int] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.agent, name)

    @property
    def health(self) -> list[dict[str, Any]]:
        """The checks, with the times at which they were made last: these come with the measurements."""
        found = [dict(check) for check in self.agent.health]
        if len(found) == len(self.checked):
            for check, at in zip(found, self.checked, strict=True):
                check["checked_at"] = datetime.fromtimestamp(at, UTC)
        return found

    @property
    def hostname(self) -> str:
        return self.agent.node.hostname

    @property
    def node_status(self) -> str:
        return self.agent.node.status


def agent_by_name(session: Session, node_id: int, name: str, *, is_locked: bool = False) -> NodeAgent:
    """Raises NodeNotFound or AgentNotFound. Locked, it stays as it is until the transaction ends."""
    statement = select(NodeAgent).where(NodeAgent.node_id == node_id, NodeAgent.name == name)
    if is_locked:
        statement = statement.with_for_update()
    agent = session.scalar(statement.execution_options(populate_existing=is_locked))
    if agent is None:
        node_by_id(session, node_id)
        raise AgentNotFound
    return agent


def agent_now(session: Session, node_id: int, name: str) -> AgentNow:
    return with_measurements(session, [agent_by_name(session, node_id, name)])[0]


def node_agents(session: Session, node_id: int) -> list[AgentNow]:
    """All agents of a host, by name. Raises NodeNotFound."""
    node_by_id(session, node_id)
    found = session.scalars(select(NodeAgent).where(NodeAgent.node_id == node_id).order_by(NodeAgent.name)).all()
    return with_measurements(session, found)


def task_agent(session: Session, node_id: int) -> AgentNow:
    """The agent that executes tasks. Raises AgentNotFound where there is none."""
    node_by_id(session, node_id)
    mine = select(NodeAgent).where(NodeAgent.node_id == node_id, NodeAgent.type == "task").order_by(NodeAgent.id)
    agent = session.scalar(mine.limit(1))
    if agent is None:
        raise AgentNotFound
    return with_measurements(session, [agent])[0]


def agents(session: Session, query: AgentQuery) -> Page[AgentNow]:
    """A page of all agents of the fleet."""
    found = paginate(session, _filtered(query), query, SORTABLE, "id" if query.sort else "name")
    return Page(
        with_measurements(session, found.items), found.total, found.page, found.page_size, found.sort, found.query
    )


def exported_agents(session: Session, query: AgentQuery) -> Iterator[AgentNow]:
    statement = _filtered(query).order_by(*sort_keys(query.sort or "name", SORTABLE, "id"))
    for some in session.scalars(statement.execution_options(yield_per=CHUNK)).partitions(CHUNK):
        yield from with_measurements(session, some)
        for row in some:
            session.expunge(row)


def chosen_agents(session: Session, query: AgentQuery) -> Sequence[NodeAgent]:
    """Everything that the filters of a list leave."""
    return session.scalars(_filtered(query).order_by(Node.hostname, NodeAgent.name, NodeAgent.id)).all()


def agents_of_nodes(session: Session, node_ids: Sequence[int], name: str | None, type_: str | None) -> list[NodeAgent]:
    """Those of these hosts that have this name or are of this type."""
    found: list[NodeAgent] = []
    for start in range(0, len(node_ids), CHUNK):
        some = select(NodeAgent).join(Node).where(members(), Node.id.in_(node_ids[start : start + CHUNK]))
        if name:
            some = some.where(NodeAgent.name == name)
        if type_:
            some = some.where(NodeAgent.type == type_)
        found += session.scalars(some.options(contains_eager(NodeAgent.node)))
    return sorted(found, key=lambda agent: (agent.node.hostname, agent.name, agent.id))


def agents_by_ids(session: Session, ids: Sequence[int]) -> list[NodeAgent]:
    """Those of them that there are, by host and name."""
    found: list[NodeAgent] = []
    for start in range(0, len(ids), CHUNK):
        some = select(NodeAgent).join(Node).where(members(), NodeAgent.id.in_(ids[start : start + CHUNK]))
        found += session.scalars(some.options(contains_eager(NodeAgent.node)))
    return sorted(found, key=lambda agent: (agent.node.hostname, agent.name, agent.id))


def _filtered(query: AgentQuery) -> Select[Any]:
    statement = select(NodeAgent).join(Node).where(members()).options(contains_eager(NodeAgent.node))
    for column, wanted in (
        (NodeAgent.name, query.name),
        (NodeAgent.type, query.type),
        (NodeAgent.status, query.status),
        (NodeAgent.source, query.source),
        (NodeAgent.drifted, query.drifted),
        (NodeAgent.node_id, query.node_id),
    ):
        if wanted is not None:
            statement = statement.where(column == wanted)
    if query.keyword:
        words = (NodeAgent.name, Node.hostname)
        statement = statement.where(or_(*(column.icontains(query.keyword, autoescape=True) for column in words)))
    if query.selector:
        statement = statement.where(selected(query.selector))
    return statement


def with_measurements(session: Session, found: Sequence[NodeAgent]) -> list[AgentNow]:
    newest = newest_points(session, sorted({agent.node_id for agent in found}))
    return [AgentNow(agent, *_measured(newest.get(agent.node_id, {}), agent.name)) for agent in found]


def _measured(body: Mapping[str, Any], name: str) -> Measured:
    cpu, memory, checked = body.get(name) or (None, None, ())
    return cpu, memory, checked


def newest_points(session: Session, node_ids: Sequence[int]) -> dict[int, Mapping[str, Any]]:
    """The newest measurements of these hosts' agents, without those that were silent of late."""
    since = epoch_ms(now() - RECENT)
    found: dict[int, Mapping[str, Any]] = {}
    for start in range(0, len(node_ids), CHUNK):
        some = node_ids[start : start + CHUNK]
        newest = (
            select(POINTS.c.node_id, func.max(POINTS.c.ts).label("ts"))
            .where(POINTS.c.node_id.in_(some), POINTS.c.ts >= since)
            .group_by(POINTS.c.node_id)
            .subquery()
        )
        rows = select(POINTS.c.node_id, POINTS.c.body).join(
            newest, (POINTS.c.node_id == newest.c.node_id) & (POINTS.c.ts == newest.c.ts)
        )
        found |= {row.node_id: row.body for row in session.execute(rows)}
    return found


def points(
    session: Session, node_id: int, name: str, start: datetime, end: datetime
) -> list[tuple[float, float | None, int | None]]:
    """One agent's measurements in the order of time: epoch seconds, CPU, memory."""
    mine = select(POINTS.c.ts, POINTS.c.body).where(
        POINTS.c.node_id == node_id, POINTS.c.ts >= epoch_ms(start), POINTS.c.ts <= epoch_ms(end)
    )
    found = []
    for ts, body in session.execute(mine.order_by(POINTS.c.ts)):
        if name in body:
            found.append((ts / 1000, body[name][0], body[name][1]))
    return found


def epoch_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def status_counts(session: Session) -> dict[str, int]:
    """How many agents of the fleet's members there are of each status."""
    counted = select(NodeAgent.status, func.count()).join(Node).where(members()).group_by(NodeAgent.status)
    return {status: count for status, count in session.execute(counted)}  # noqa: C416  rows are no pairs to mypy


def names_and_types(session: Session, most: int = 200) -> tuple[Sequence[str], Sequence[str]]:
    """For filters."""
    names = select(NodeAgent.name).distinct().order_by(NodeAgent.name).limit(most)
    types = select(NodeAgent.type).distinct().order_by(NodeAgent.type).limit(most)
    return session.scalars(names).all(), session.scalars(types).all()


def crashes(session: Session, node_id: int, name: str, most: int = 20) -> Sequence[AgentCrash]:
    """The dossiers of one agent, newest first."""
    mine = select(AgentCrash).where(AgentCrash.node_id == node_id, AgentCrash.name == name)
    return session.scalars(mine.order_by(AgentCrash.id.desc()).limit(most)).all()


def agent_events(session: Session, node_id: int, name: str, most: int) -> Sequence[Event]:
    """What happened to one agent, newest first."""
    named = type_coerce(Event.data, Text).contains(f'"agent":{json.dumps(name)}', autoescape=True)
    mine = select(Event).where(Event.node_id == node_id, Event.kind.startswith("agent."), named)
    return session.scalars(mine.order_by(Event.id.desc()).limit(most)).all()


def configs(session: Session, agent_id: int, query: ListQuery | None = None) -> Page[AgentConfig]:
    """Versions of an agent's configuration, newest first."""
    mine = select(AgentConfig).where(AgentConfig.agent_id == agent_id).options(joinedload(AgentConfig.text))
    return paginate(session, mine, query or ConfigVersionsQuery(), {"version": AgentConfig.version}, "-version")


def config_by_version(session: Session, agent_id: int, version: int) -> AgentConfig | None:
    mine = select(AgentConfig).where(AgentConfig.agent_id == agent_id, AgentConfig.version == version)
    return session.scalar(mine.options(joinedload(AgentConfig.text)))


def newest_config(session: Session, agent_id: int) -> AgentConfig | None:
    mine = select(AgentConfig).where(AgentConfig.agent_id == agent_id).options(joinedload(AgentConfig.text))
    return session.scalar(mine.order_by(AgentConfig.version.desc()).limit(1))


def healthy_configs(session: Session, agent_id: int, most: int) -> Sequence[AgentConfig]:
    """Versions that proved themselves, newest first."""
    mine = select(AgentConfig).where(AgentConfig.agent_id == agent_id, AgentConfig.state == KEPT)
    mine = mine.options(joinedload(AgentConfig.text)).order_by(AgentConfig.version.desc())
    return session.scalars(mine.limit(most)).all()


def config_on_host(session: Session, agent: NodeAgent) -> AgentConfig | None:
    """The version that should lie on the host: the one it names, else the newest that proved itself."""
    if agent.config_version is not None:
        return config_by_version(session, agent.id, agent.config_version)
    return next(iter(healthy_configs(session, agent.id, 1)), None)


def secret_names(session: Session, agent_id: int) -> list[str]:
    mine = select(AgentSecret.name).where(AgentSecret.agent_id == agent_id).order_by(AgentSecret.name)
    return list(session.scalars(mine))
