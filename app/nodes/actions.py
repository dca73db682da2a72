"""Every change that people make to nodes: names, groups, maintenance, approval, revocation, deletion."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from flask_babel import gettext as _
from sqlalchemy import delete, exists, or_, select, update
from sqlalchemy.orm import Session

from app.audit.actions import record
from app.events.actions import note
from app.kernel.access import Actor, authorize
from app.kernel.clock import now, rfc3339
from app.kernel.errors import BadParameter, Conflict, FieldError
from app.kernel.wake import REVOKED as WAKE_REVOKED
from app.kernel.wake import wake_after_commit
from app.nodes.enrolment import add_node
from app.nodes.errors import NodeExists
from app.nodes.models import (
    OFFLINE,
    PENDING,
    REJECTED,
    REVOKED,
    UNKNOWN,
    Node,
    NodeCertificate,
    NodeGroup,
    NodeLabel,
    NodeTag,
    Revocation,
)
from app.nodes.queries import CHUNK, chosen_nodes, hostname_is_taken, node_by_id
from app.nodes.schemas import NodeBulk, NodeCreate, NodeUpdate

LONGEST_MAINTENANCE = timedelta(days=366)
BULK_PERMISSIONS = {
    "delete": "nodes.delete",
    "approve": "enrollment.manage",
    "reject": "enrollment.manage",
    "revoke": "enrollment.manage",
}
Value = TypeVar("Value")


def create_node(session: Session, actor: Actor, values: NodeCreate) -> tuple[Node, str]:
    """A node before its host, with the token that lets exactly this host in. The secret is told only here."""
    authorize(actor, "enrollment.manage")
    if hostname_is_taken(session, values.hostname):
        raise NodeExists(errors=[FieldError("hostname", _("There is a node of this name already."))])
    return add_node(session, actor, values)


def update_node(session: Session, actor: Actor, node_id: int, values: NodeUpdate) -> Node:
    authorize(actor, "nodes.edit")
    node = node_by_id(session, node_id)
    before = _names(node)
    given = values.model_fields_set
    if "group_id" in given:
        node.group_id = _existing_group(session, values.group_id)
    if values.tags is not None:
        _set_tags(node, values.tags)
    if values.labels is not None:
        _set_labels(node, values.labels)
    if "description" in given:
        node.description = values.description
    node.updated_at = now()
    session.flush()
    session.refresh(node, ["group"])
    record(session, actor, "node.update", "node", node.id, before, _names(node))
    return node


def delete_node(session: Session, actor: Actor, node_id: int) -> None:
    """The node, its certificates and its names are gone; its Daemon is turned away from now on."""
    authorize(actor, "nodes.delete")
    node = node_by_id(session, node_id)
    before = {"hostname": node.hostname, "uuid": node.uuid} | _names(node)
    _delete(session, actor, [node])
    record(session, actor, "node.delete", "node", node_id, before=before)


def revoke_node(session: Session, actor: Actor, node_id: int) -> Node:
    """Turn a host away for good: at its next request, and within a second on a poll that is held."""
    authorize(actor, "enrollment.manage")
    node = node_by_id(session, node_id)
    if node.status == REVOKED:
        raise Conflict(_("This node was revoked already."))
    before = {"status": node.status}
    _revoke(session, actor, [node])
    record(session, actor, "node.revoke", "node", node.id, before, {"status": REVOKED})
    return node


def approve_nodes(session: Session, actor: Actor, node_ids: Sequence[int]) -> list[int]:
    """Let waiting machines in. Their Daemons ask every few seconds and get their certificates then."""
    return _decide(session, actor, node_ids, UNKNOWN, "approve", "approved")


def reject_nodes(session: Session, actor: Actor, node_ids: Sequence[int]) -> list[int]:
    return _decide(session, actor, node_ids, REJECTED, "reject", "rejected")


def _decide(session: Session, actor: Actor, node_ids: Sequence[int], status: str, action: str, word: str) -> list[int]:
    """About those that (still) wait; the others are left as they are. Answers whom it was about."""
    authorize(actor, "enrollment.manage")
    decided = []
    for node in chosen_nodes(session, None, node_ids):
        guarded = update(Node).where(Node.id == node.id, Node.status == PENDING)
        changed = session.execute(guarded.values(status=status, status_changed_at=now(), updated_at=now()))
        if changed.rowcount:  # type: ignore[attr-defined]
            decided.append(node.id)
            _note(session, node, f"node.{word}", f"{word} by {actor.username}", {"by": actor.username})
    if decided:
        record(session, actor, f"node.{action}", "node", None, after={"node_ids": decided})
    return decided


def begin_maintenance(session: Session, actor: Actor, node_id: int, until: datetime, reason: str | None) -> Node:
    authorize(actor, "nodes.edit")
    node = node_by_id(session, node_id)
    _begin_maintenance(session, node, _moment_ahead(until), reason)
    after = {"until": rfc3339(until), "reason": reason}
    record(session, actor, "node.maintenance", "node", node.id, after=after)
    return node


def end_maintenance(session: Session, actor: Actor, node_id: int) -> Node:
    authorize(actor, "nodes.edit")
    node = node_by_id(session, node_id)
    if node.maintenance_until is not None:
        _end_maintenance(session, node)
        record(session, actor, "node.end_maintenance", "node", node.id)
    return node


def change_nodes(session: Session, actor: Actor, values: NodeBulk) -> list[int]:
    """One action on many, all or none, as one audit row. Answers the ids of the nodes that it touched."""
    authorize(actor, BULK_PERMISSIONS.get(values.action, "nodes.edit"))
    if (values.selector is None) == (values.node_ids is None):
        raise BadParameter(errors=[FieldError("selector", _("Either a selector or node_ids is needed."))])
    if values.action in ("approve", "reject"):
        if values.node_ids is None:
            raise BadParameter(errors=[FieldError("node_ids", _("What waits for approval is chosen by number."))])
        return (approve_nodes if values.action == "approve" else reject_nodes)(session, actor, values.node_ids)
    act = _bulk_action(session, actor, values)
    nodes = chosen_nodes(session, values.selector, values.node_ids)
    touched = [node.id for node in nodes]
    act(nodes)
    session.flush()
    said = values.model_dump(mode="json", exclude_none=True, exclude={"node_ids"}) | {"node_ids": touched}
    record(session, actor, f"node.bulk_{values.action}", "node", None, after=said)
    return touched


def _bulk_action(session: Session, actor: Actor, values: NodeBulk) -> Callable[[Sequence[Node]], None]:
    """What is done to the nodes. Raises BadParameter first if the action lacks what it needs."""
    match values.action:
        case "delete":
            return lambda nodes: _delete(session, actor, nodes)
        case "revoke":
            return lambda nodes: _revoke(session, actor, [node for node in nodes if node.status != REVOKED])
        case "maintenance":
            until = _moment_ahead(_needed("until", values.until))
            return _each(lambda node: _begin_maintenance(session, node, until, values.reason))
        case "end_maintenance":
            return _each(lambda node: _end_maintenance(session, node))
        case "move":
            if "group_id" not in values.model_fields_set:
                raise BadParameter(errors=[FieldError("group_id", _("This is needed."))])
            group_id = _existing_group(session, values.group_id)
            return _each(lambda node: setattr(node, "group_id", group_id))
        case "label":
            labels = _needed("labels", values.labels)
            return _each(lambda node: _set_labels(node, node.labels | labels))
        case "untag":
            gone = set(_needed("tags", values.tags))
            return _each(lambda node: _set_tags(node, [tag for tag in node.tags if tag not in gone]))
        case _:
            tags = _needed("tags", values.tags)
            return _each(lambda node: _set_tags(node, [*node.tags, *tags]))


def _each(change: Callable[[Node], None]) -> Callable[[Sequence[Node]], None]:
    def run(nodes: Sequence[Node]) -> None:
        for node in nodes:
            change(node)
            node.updated_at = now()

    return run


def _needed(name: str, value: Value | None) -> Value:
    if not value:
        raise BadParameter(errors=[FieldError(name, _("This is needed."))])
    return value


def _revoke(session: Session, actor: Actor, nodes: Sequence[Node]) -> None:
    _revoke_certificates(session, nodes)
    for node in nodes:
        node.status, node.status_changed_at, node.updated_at = REVOKED, now(), now()
        _note(session, node, "node.revoked", f"revoked by {actor.username}", {"by": actor.username})


def _delete(session: Session, actor: Actor, nodes: Sequence[Node]) -> None:
    _revoke_certificates(session, nodes)
    for node in nodes:
        data = {"node_id": node.id, "by": actor.username}
        note(session, "node.deleted", f"deleted by {actor.username}", hostname=node.hostname, data=data)
    session.flush()
    for ids in _chunks([node.id for node in nodes]):
        session.execute(delete(Node).where(Node.id.in_(ids)), execution_options={"synchronize_session": False})
    for node in nodes:
        session.expunge(node)


def _revoke_certificates(session: Session, nodes: Sequence[Node]) -> None:
    """Closes the door in the database, then tells the gateways; they look for themselves every second as well."""
    for ids in _chunks([node.id for node in nodes]):
        mine = NodeCertificate.node_id.in_(ids)
        is_known = exists().where(Revocation.fingerprint == NodeCertificate.fingerprint)
        found = session.execute(select(NodeCertificate.fingerprint, NodeCertificate.node_id).where(mine, ~is_known))
        session.add_all(Revocation(fingerprint=fingerprint, node_id=node_id) for fingerprint, node_id in found.all())
        session.execute(update(NodeCertificate).where(mine).values(state="revoked"))
    for node in nodes:
        wake_after_commit(session, node.id, WAKE_REVOKED)


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))


def _note(session: Session, node: Node, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
    note(session, kind, message, node_id=node.id, hostname=node.hostname, data=data)


def note_lost_connections(session: Session, lost: Mapping[int, datetime]) -> None:
    """A hint until the next sign of life; whether a node is offline is for its heartbeat to say."""
    for node_id, at in lost.items():
        is_quiet = or_(Node.last_heartbeat.is_(None), Node.last_heartbeat < at)
        session.execute(update(Node).where(Node.id == node_id, is_quiet).values(connection_lost_at=at))


def mark_silent_nodes(session: Session, timeout_s: float, heard_since: datetime) -> int:
    """Nodes that should have checked in by now are offline. Our own absence (before `heard_since`) is not held
    against them. Guarded by the state, so that a check-in that comes at this moment wins."""
    deadline = now()
    due = select(Node.id, Node.hostname, Node.last_heartbeat, Node.heartbeat_interval_s).where(
        Node.status == "online", Node.last_heartbeat < deadline - timedelta(seconds=timeout_s)
    )
    marked = 0
    for node_id, hostname, last, interval_s in session.execute(due).all():
        patience = timedelta(seconds=max(timeout_s, 1.5 * interval_s))
        if last is None or max(last, heard_since) >= deadline - patience:
            continue
        guarded = update(Node).where(Node.id == node_id, Node.status == "online", Node.last_heartbeat == last)
        changed = session.execute(guarded.values(status=OFFLINE, status_changed_at=deadline))
        if changed.rowcount:  # type: ignore[attr-defined]
            marked += 1
            data = {"last_heartbeat": rfc3339(last)}
            message = f"nothing heard since {rfc3339(last)}"
            note(session, "node.offline", message, node_id=node_id, hostname=hostname, severity="warning", data=data)
    return marked


def _moment_ahead(until: datetime) -> datetime:
    if not now() < until <= now() + LONGEST_MAINTENANCE:
        raise BadParameter(errors=[FieldError("until", _("A time within the next year is expected."))])
    return until


def _begin_maintenance(session: Session, node: Node, until: datetime, reason: str | None) -> None:
    node.maintenance_until, node.maintenance_reason, node.updated_at = until, reason, now()
    message = f"maintenance until {rfc3339(until)}" + (f": {reason}" if reason else "")
    _note(session, node, "node.maintenance", message, {"until": rfc3339(until), "reason": reason})


def _end_maintenance(session: Session, node: Node) -> None:
    if node.maintenance_until is not None:
        node.maintenance_until = node.maintenance_reason = None
        node.updated_at = now()
        _note(session, node, "node.maintenance_ended", "maintenance ended")


def _existing_group(session: Session, group_id: int | None) -> int | None:
    if group_id is not None and session.get(NodeGroup, group_id) is None:
        raise BadParameter(errors=[FieldError("group_id", _("There is no such group."))])
    return group_id


def _set_tags(node: Node, tags: Sequence[str]) -> None:
    wanted = dict.fromkeys(tags)
    if len(wanted) > 64:
        raise BadParameter(errors=[FieldError("tags", _("At most 64 tags are allowed."))])
    kept = [row for row in node.tag_rows if row.tag in wanted]
    present = {row.tag for row in kept}
    node.tag_rows = kept + [NodeTag(tag=tag) for tag in wanted if tag not in present]


def _set_labels(node: Node, labels: Mapping[str, str]) -> None:
    if len(labels) > 64:
        raise BadParameter(errors=[FieldError("labels", _("At most 64 labels are allowed."))])
    kept = [row for row in node.label_rows if row.key in labels]
    for row in kept:
        row.value = labels[row.key]
    present = {row.key for row in kept}
    node.label_rows = kept + [NodeLabel(key=key, value=value) for key, value in labels.items() if key not in present]


def _names(node: Node) -> dict[str, Any]:
    return {
        "group_id": node.group_id,
        "tags": sorted(node.tags),
        "labels": dict(sorted(node.labels.items())),
        "description": node.description,
    }
