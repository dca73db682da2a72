"""What hosts say of their agents, taken in a check-in: state, measurements, dossiers of crashes; and what they get.

This is paid for by every check-in of every host. A list in which nothing changed costs one select and one insert.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from app.agents.models import MANAGER, POINTS, UNKNOWN, AgentCrash, NodeAgent
from app.nodes.models import Node
from protocol.checkin import AgentStatus
from protocol.checkin import Event as HostEvent
from protocol.codec import canonical
from protocol.times import to_datetime

CRASHED = "agent.crashed"
STEP_MS = 10_000
"""However often a host says it, its measurements are kept so often at most."""
CRASHES_OF_AGENT, CRASHES_OF_NODE = 20, 400
DOSSIER_CHARS, LINE_CHARS, MOST_ITEMS = 96 * 1024, 1000, 200
TOLD_OF_CRASH = ("agent", "exit_code", "signal", "pid", "restarts")
_INSERT_POINT = {
    "sqlite": "INSERT OR IGNORE INTO agent_points (node_id, ts, body) VALUES (?, ?, ?)",
    "mysql": "INSERT IGNORE INTO agent_points (node_id, ts, body) VALUES (%s, %s, %s)",
}


# Made once: every check-in asks it.
_KNOWN = (
    select(
        NodeAgent.id,
        NodeAgent.name,
        NodeAgent.source,
        NodeAgent.digest != "",
        NodeAgent.digest,
        NodeAgent.desired,
        NodeAgent.seq,
        NodeAgent.is_reported,
        NodeAgent.fingerprint,
        NodeAgent.status,
    )
    .where(NodeAgent.node_id == bindparam("node_id"))
    .order_by(NodeAgent.name)
)


class Known(NamedTuple):
    """As much of an agent's row as a check-in needs."""

    id: int
    name: str
    source: str
    is_defined_here: bool
    digest: str
    desired: str
    seq: int
    is_reported: bool
    fingerprint: str
    status: str


def known_agents(session: Session, node_id: int) -> list[Known]:
    """A host's agents without what is long."""
    return [Known._make(row) for row in session.execute(_KNOWN, {"node_id": node_id})]


def take_agents(
    session: Session, node: Node, known: Sequence[Known], told: Sequence[AgentStatus], at: datetime
) -> None:
    """A host's whole list of agents. It can only say something of itself, and only of the agents that it may have."""
    agents: dict[str, AgentStatus] = {}
    for agent in told:
        agents.setdefault(agent.name, agent)
    _keep_points(session, node.id, agents, at)
    rows = {row.name: row for row in known}
    changed = [
        _told(agent, rows[name], at) for name, agent in agents.items() if name in rows and _differs(agent, rows[name])
    ]
    if changed:
        session.execute(update(NodeAgent), changed)
    # What is said to be ours but is not is on its way out: it was deleted here, and the host will hear of that.
    new = [_first_told(node.id, agent, at) for name, agent in agents.items() if name not in rows]
    if new := [values for values in new if values["source"] != MANAGER]:
        session.execute(insert(NodeAgent), new)
    _let_go(session, [row for row in known if row.is_reported and row.name not in agents], at)


def _differs(agent: AgentStatus, row: Known) -> bool:
    return not row.is_reported or row.fingerprint != _fingerprint(agent)


def _fingerprint(agent: AgentStatus) -> str:
    """Of everything but what changes all the time: measurements, and when a check was made last."""
    health = [(check.kind, check.ok, check.detail) for check in agent.health]
    steady = (*agent._replace(cpu_usage=None, memory_usage=None, health=()), health)
    return hashlib.md5(repr(steady).encode(), usedforsecurity=False).hexdigest()


def _told(agent: AgentStatus, row: Known, at: datetime) -> dict[str, Any]:
    said = _said(agent, at) | {"id": row.id, "desired": row.desired if row.is_defined_here else agent.desired}
    if agent.status == row.status:
        del said["status_changed_at"]
    return said


def _first_told(node_id: int, agent: AgentStatus, at: datetime) -> dict[str, Any]:
    given = {"node_id": node_id, "name": agent.name, "desired": agent.desired, "seq": 0, "digest": "", "manifest": None}
    return _said(agent, at) | given | {"created_by": "", "created_at": at}


def _said(agent: AgentStatus, at: datetime) -> dict[str, Any]:
    return {
        "type": agent.type,
        "source": agent.source,
        "is_reported": True,
        "fingerprint": _fingerprint(agent),
        "status": agent.status,
        "status_changed_at": at,
        "version": agent.version,
        "pid": agent.pid,
        "start_time": None if agent.start_time is None else to_datetime(agent.start_time),
        "restart_count": agent.restart_count,
        "last_error": agent.last_error,
        "health": [check._asdict() for check in agent.health],
        "config_version": agent.config_version,
        "drifted": agent.drifted,
        "updated_at": at,
    }


def _let_go(session: Session, gone: Sequence[Known], at: datetime) -> None:
    """What a host no longer has is forgotten, unless it is us who want it there."""
    if lost := [row.id for row in gone if not row.is_defined_here]:
        session.execute(delete(NodeAgent).where(NodeAgent.id.in_(lost)))
    if missing := [row.id for row in gone if row.is_defined_here]:
        session.execute(
            update(NodeAgent)
            .where(NodeAgent.id.in_(missing))
            .values(is_reported=False, fingerprint="", status=UNKNOWN, status_changed_at=at, pid=None, updated_at=at)
        )


def _keep_points(session: Session, node_id: int, agents: Mapping[str, AgentStatus], at: datetime) -> None:
    """CPU, memory and the times of the last checks of all agents, in one row."""
    body = {
        name: [
            agent.cpu_usage,
            agent.memory_usage,
            [int(to_datetime(one.checked_at).timestamp()) for one in agent.health],
        ]
        for name, agent in agents.items()
        if agent.cpu_usage is not None or agent.memory_usage is not None or agent.health
    }
    if body:
        connection = session.connection()
        ts = int(at.timestamp() * 1000) // STEP_MS * STEP_MS
        row = (node_id, ts, json.dumps(body, separators=(",", ":"), sort_keys=True))
        connection.exec_driver_sql(_INSERT_POINT[connection.dialect.name], row)


def wanted(known: Sequence[Known]) -> tuple[tuple[str, str, int, str], ...]:
    """What a host is to have of us, short: settings are new when this is."""
    return tuple((row.name, row.desired, row.seq, row.digest) for row in known if row.is_defined_here)


def entries(session: Session, node_id: int) -> tuple[dict[str, Any], ...]:
    """The same as the host's settings hold it."""
    columns = (NodeAgent.name, NodeAgent.desired, NodeAgent.seq, NodeAgent.manifest)
    ours = select(*columns).where(NodeAgent.node_id == node_id, NodeAgent.digest != "").order_by(NodeAgent.name)
    return tuple(
        {
            "name": name,
            "desired": desired,
            "seq": seq,
            "source": MANAGER,
            "manifest": manifest,
        }
        for name, desired, seq, manifest in session.execute(ours)
    )


def take_crash(session: Session, node: Node, event: HostEvent, at: datetime) -> dict[str, Any] | None:
    """Keep a dossier where it can be found by its agent; answers what the timeline needs of it."""
    data = event.data or {}
    name = data.get("agent")
    if not isinstance(name, str) or not 0 < len(name) <= 64:
        return None
    session.add(
        AgentCrash(
            node_id=node.id,
            name=name,
            host_event_id=event.id,
            message=event.message,
            exit_code=_number(data.get("exit_code")),
            signal=_number(data.get("signal")),
            dossier=_cut(data),
            occurred_at=min(to_datetime(event.timestamp), at),
        )
    )
    session.flush()
    _forget_beyond(session, CRASHES_OF_AGENT, node_id=node.id, name=name)
    _forget_beyond(session, CRASHES_OF_NODE, node_id=node.id)
    return {key: data[key] for key in TOLD_OF_CRASH if isinstance(data.get(key), str | int)}


def _number(value: object) -> int | None:
    return value if type(value) is int and abs(value) < 2**32 else None


def _cut(data: Mapping[str, Any]) -> dict[str, Any]:
    """A dossier within bounds: long lines and lists are cut first, then what is still too long is left out."""
    kept: dict[str, Any] = _shortened(dict(data))
    for name in sorted(kept, key=lambda name: -len(canonical(kept[name]))):
        if len(canonical(kept)) <= DOSSIER_CHARS:
            break
        del kept[name]
    return kept


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return value[:LINE_CHARS]
    if isinstance(value, list):
        return [_shortened(item) for item in value[-MOST_ITEMS:]]
    if isinstance(value, dict):
        return {name: _shortened(value[name]) for name in list(value)[:MOST_ITEMS]}
    return value


def _forget_beyond(session: Session, most: int, **of: Any) -> None:
    mine = [getattr(AgentCrash, column) == value for column, value in of.items()]
    beyond = select(AgentCrash.id).where(*mine).order_by(AgentCrash.id.desc()).offset(most).limit(1)
    if (newest := session.scalar(beyond)) is not None:
        session.execute(delete(AgentCrash).where(*mine, AgentCrash.id <= newest))


def forget_crashes(session: Session, before: datetime) -> None:
    session.execute(delete(AgentCrash).where(AgentCrash.created_at < before))


def forget_points(session: Session, before_ms: int, after_node: int, most: int) -> int | None:
    """Forget old measurements of the next `most` hosts; answers after which host to go on, None at the end."""
    following = select(POINTS.c.node_id).where(POINTS.c.node_id > after_node).order_by(POINTS.c.node_id).limit(1)
    node_id = after_node
    for _ in range(most):
        found = session.scalar(following.where(POINTS.c.node_id > node_id))
        if found is None:
            return None
        node_id = found
        session.execute(delete(POINTS).where(POINTS.c.node_id == node_id, POINTS.c.ts < before_ms))
    return node_id
