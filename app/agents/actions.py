"""What people do with agents: define, change, take away, start, stop, restart, reload; one or many at once."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from flask_babel import gettext as _
from sqlalchemy import update
from sqlalchemy.orm import Session

from app.agents import manifests
from app.agents.errors import ComesAlong, NotOurs
from app.agents.models import BUILTIN, MANAGER, RUNNING, STOPPED, NodeAgent
from app.agents.queries import agent_by_name, agents_by_ids, agents_of_nodes
from app.agents.schemas import Verb
from app.audit.actions import record
from app.commands.actions import issue
from app.commands.fanouts import NewTarget, Plan, start_fanout
from app.commands.models import Command, Fanout
from app.commands.payloads import stored_payloads
from app.kernel.access import Actor, authorize
from app.kernel.clock import now
from app.kernel.errors import BadParameter, Conflict, FieldError
from app.kernel.wake import CHECK_IN, wake_after_commit
from app.nodes.models import Node
from app.nodes.queries import chosen_nodes, node_by_id
from protocol.codec import canonical
from protocol.commands import Result
from protocol.limits import AGENTS
from protocol.states import SUCCEEDED

CONTROL_KINDS: Mapping[Verb, str] = {
    "start": "agent.start",
    "stop": "agent.stop",
    "restart": "agent.restart",
    "reload": "agent.reload",
}
DESIRED_BY: Mapping[Verb, str] = {"start": RUNNING, "restart": RUNNING, "stop": STOPPED}
"""What should be from then on. Reloading changes nothing about it."""
DESIRED_BY_KIND = {CONTROL_KINDS[verb]: desired for verb, desired in DESIRED_BY.items()}
PURPOSE_CONTROL = "agents.control"
DELIVERED_WITHIN = timedelta(minutes=15)
"""A click that reaches its host later would surprise. What should be reaches it all the same, as a setting."""
SLOWEST_STOP_S = 3600
READ_LOGS = "agent.logs"
LOGS_KEPT = timedelta(minutes=10)


def create_agent(session: Session, actor: Actor, node_id: int, given: Mapping[str, Any]) -> NodeAgent:
    """Have a host supervise a program. It hears of it at once if it is online."""
    authorize(actor, "agents.configure")
    node = node_by_id(session, node_id)
    if not node.is_member:
        raise Conflict(_("This node is not part of the fleet."))
    manifest = manifests.checked(given)
    mine = session.query(NodeAgent).filter_by(node_id=node_id)
    if mine.filter_by(name=manifest.name).count():
        raise Conflict(errors=[FieldError("name", _("This node has an agent of this name already."))])
    if mine.count() >= AGENTS:
        raise Conflict(_("A node has %(most)s agents at most.", most=AGENTS))
    at = now()
    agent = NodeAgent(
        node_id=node_id,
        name=manifest.name,
        type=manifest.type,
        source=MANAGER,
        manifest=dict(given),
        digest=_digest(given),
        desired=RUNNING if manifest.autostart else STOPPED,
        seq=_later(0, at),
        created_by=actor.username,
        created_at=at,
        updated_at=at,
    )
    session.add(agent)
    session.flush()
    wake_after_commit(session, node_id, CHECK_IN)
    record(session, actor, "agent.create", "agent", agent.id, after=_named(node, agent) | {"manifest": dict(given)})
    return agent


def update_agent(session: Session, actor: Actor, node_id: int, name: str, given: Mapping[str, Any]) -> NodeAgent:
    """Another manifest for the same agent. Raises NotOurs for one that the host declares."""
    authorize(actor, "agents.configure")
    agent = agent_by_name(session, node_id, name, is_locked=True)
    if not agent.is_ours:
        raise _not_ours(agent)
    manifest = manifests.checked(given, name)
    before = {"manifest": agent.manifest}
    agent.type, agent.manifest, agent.digest = manifest.type, dict(given), _digest(given)
    agent.updated_at = now()
    session.flush()
    wake_after_commit(session, node_id, CHECK_IN)
    record(session, actor, "agent.update", "agent", agent.id, before, {"manifest": dict(given)})
    return agent


def delete_agent(session: Session, actor: Actor, node_id: int, name: str) -> None:
    """The host stops it and forgets it. Raises NotOurs for one that the host declares."""
    authorize(actor, "agents.configure")
    agent = agent_by_name(session, node_id, name, is_locked=True)
    if agent.manifest is None:
        raise _not_ours(agent)
    before = _named(node_by_id(session, node_id), agent) | {"manifest": agent.manifest}
    if agent.is_ours:
        session.delete(agent)
    else:
        agent.manifest, agent.digest = None, ""
    session.flush()
    wake_after_commit(session, node_id, CHECK_IN)
    record(session, actor, "agent.delete", "agent", agent.id, before=before)


def control_agent(session: Session, actor: Actor, node_id: int, name: str, verb: Verb) -> Command:
    """Order it, and keep what should be: a host that is away finds it in its settings when it comes back."""
    authorize(actor, "agents.control")
    agent = agent_by_name(session, node_id, name, is_locked=True)
    node = node_by_id(session, node_id)
    if not node.is_member:
        raise Conflict(_("This node is not part of the fleet."))
    before = {"desired": agent.desired}
    if verb in DESIRED_BY:
        agent.desired, agent.seq = DESIRED_BY[verb], _later(agent.seq, now())
    payload = {"name": agent.name, "seq": agent.seq}
    command = issue(session, actor, node_id, CONTROL_KINDS[verb], payload, DELIVERED_WITHIN)
    after = _named(node, agent) | {"desired": agent.desired}
    record(session, actor, f"agent.{verb}", "agent", agent.id, before, after)
    return command


def control_agents(
    session: Session,
    actor: Actor,
    verb: Verb,
    chosen: Sequence[NodeAgent],
    max_parallel: int | str | None = None,
    max_errors: int | str | None = None,
    target: Mapping[str, Any] | None = None,
) -> Fanout:
    """The same for many, as one fan-out and one audit row. What should be changes agent by agent, as its turn comes."""
    authorize(actor, "agents.control")
    if not chosen:
        raise BadParameter(_("No agent fits."))
    seq = _later(max(agent.seq for agent in chosen), now())
    names = {agent.name for agent in chosen}
    plan = Plan(
        PURPOSE_CONTROL,
        CONTROL_KINDS[verb],
        {"name": next(iter(names)), "seq": seq} if len(names) == 1 else {"seq": seq},
        title=", ".join(sorted(names)[:5]),
        max_parallel=max_parallel,
        max_errors=max_errors,
        deliver_within_s=int(DELIVERED_WITHIN.total_seconds()),
        run_within_s=SLOWEST_STOP_S,
        waits_for_maintenance=False,
    )
    own = [
        NewTarget(agent.node_id, agent.name, None if len(names) == 1 else {"name": agent.name, "seq": seq})
        for agent in chosen
    ]
    fanout = start_fanout(session, actor, plan, own)
    said = {"action": verb, "batch": fanout.uuid, "total": len(chosen), "names": sorted(names)[:50]}
    said |= {"max_parallel": max_parallel, "max_errors": max_errors} | dict(target or {})
    record(session, actor, f"agent.bulk_{verb}", "agent", None, after=said)
    return fanout


def chosen_for_bulk(
    session: Session,
    selector: str | None,
    node_ids: Sequence[int] | None,
    name: str | None,
    type_: str | None,
) -> list[NodeAgent]:
    """The agents that a bulk action means. Raises BadParameter unless it says of which nodes, in one way."""
    if (selector is None) == (node_ids is None):
        raise BadParameter(errors=[FieldError("selector", _("Either a selector or node_ids is needed."))])
    nodes: Sequence[Node] = chosen_nodes(session, selector, node_ids)
    return agents_of_nodes(session, [node.id for node in nodes], name, type_)


def agents_with_ids(session: Session, ids: Sequence[int]) -> list[NodeAgent]:
    """For a page on which they were ticked; those that are gone meanwhile are left out."""
    return agents_by_ids(session, ids)


def note_desired(session: Session, command: Command, payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an order is about to change should be so from now on, unless somebody wanted otherwise after it was given.

    Done when the host gets the order: of many that take turns, the last may have to wait long for its own.
    """
    desired = DESIRED_BY_KIND.get(command.kind)
    if desired is not None:
        mine = (NodeAgent.node_id == command.node_id, NodeAgent.name == payload["name"], NodeAgent.seq < payload["seq"])
        session.execute(update(NodeAgent).where(*mine).values(desired=desired, seq=payload["seq"]))
    return payload


def take_control_result(session: Session, command: Command, result: Result) -> None:
    """What the host says came of an order, shown before its next check-in tells the same."""
    told = result.data if isinstance(result.data, dict) else {}
    status, pid, name = told.get("status"), told.get("pid"), payload_of(session, command)["name"]
    agent = session.query(NodeAgent).filter_by(node_id=command.node_id, name=name).one_or_none()
    if agent is None:
        return
    # So that whatever the host tells next is taken, even if it is what it told last.
    agent.fingerprint, agent.updated_at = "", now()
    if isinstance(status, str) and status in (RUNNING, STOPPED) and result.status == SUCCEEDED:
        if agent.status != status:
            agent.status, agent.status_changed_at = status, now()
        agent.pid = pid if type(pid) is int and 0 < pid < 2**31 else None
        agent.last_error = None if status == RUNNING else agent.last_error
    elif result.error:
        agent.last_error = result.error[:1000]
    session.flush()


def forget_read_logs(session: Session) -> None:
    """Log lines that somebody was shown: they belong to the host and are not kept here."""
    old = now() - LOGS_KEPT
    shown = update(Command).where(Command.kind == READ_LOGS, Command.result.is_not(None), Command.issued_at < old)
    session.execute(shown.values(result=None).execution_options(synchronize_session=False))


def payload_of(session: Session, command: Command) -> dict[str, Any]:
    """What was stored of an order, wherever that is."""
    stored: dict[str, Any] = json.loads(stored_payloads(session, [command])[command.id])
    return stored


def _not_ours(agent: NodeAgent) -> NotOurs:
    return ComesAlong() if agent.source == BUILTIN else NotOurs()


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(dict(manifest)).encode()).hexdigest()


def _later(seq: int, at: datetime) -> int:
    """By the clock, so that it also grows over an agent's deletion and a restored backup."""
    return max(seq + 1, int(at.timestamp() * 1000))


def _named(node: Node, agent: NodeAgent) -> dict[str, Any]:
    return {"node_id": node.id, "hostname": node.hostname, "name": agent.name}
