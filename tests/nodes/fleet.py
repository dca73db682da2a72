"""Nodes and groups as tests need them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from app.kernel.db import db, in_transaction
from app.nodes.models import ONLINE, PENDING, Enrolment, Node, NodeCertificate, NodeGroup, NodeLabel, NodeTag
from app.nodes.versions import sortable_version

LATER = datetime(2999, 1, 1, tzinfo=UTC)


def make_group(path: str) -> int:
    """A group with those above it. Needs an application context, as all of these do."""
    session = db.session()

    def make() -> int:
        above, _slash, name = path.rpartition("/")
        found = session.query(NodeGroup).filter_by(path=path).one_or_none()
        if found is None:
            found = NodeGroup(name=name, path=path, parent_id=make_group(above) if above else None)
            session.add(found)
            session.flush()
        return found.id

    return in_transaction(session, make)


def make_node(
    hostname: str = "web-1",
    *,
    tags: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    group: str | None = None,
    version: str = "",
    **values: Any,
) -> int:
    """A host of the fleet, committed; answers its number."""
    session = db.session()
    group_id = make_group(group) if group else None
    given = {"uuid": str(uuid4()), "status": ONLINE, "daemon_version": version} | values
    node = Node(hostname=hostname, group_id=group_id, daemon_version_key=sortable_version(version) or "", **given)
    node.tag_rows = [NodeTag(tag=tag) for tag in tags]
    node.label_rows = [NodeLabel(key=key, value=value) for key, value in (labels or {}).items()]

    def make() -> int:
        session.add(node)
        session.flush()
        return node.id

    return in_transaction(session, make)


def make_waiting(hostname: str = "new-1", kind: str = "token", **values: Any) -> int:
    """A host that asks to be let in."""
    node_id, session = make_node(hostname, status=PENDING), db.session()
    given = {"ip": "203.0.113.9", "csr_pem": ""} | values
    wish = Enrolment(node_id=node_id, kind=kind, key_hash=uuid4().hex, ticket_hash=uuid4().hex, **given)
    in_transaction(session, lambda: session.add(wish))
    return node_id


def make_certificate(node_id: int, fingerprint: str) -> None:
    session = db.session()
    row = NodeCertificate(
        node_id=node_id, fingerprint=fingerprint, key_hash=uuid4().hex, state="current", pem="", not_after=LATER
    )
    in_transaction(session, lambda: session.add(row))


def node(node_id: int) -> Node | None:
    db.session.rollback()
    return db.session.get(Node, node_id)


def tags_of(node_id: int) -> list[str]:
    db.session.rollback()
    return sorted(row.tag for row in db.session.query(NodeTag).filter_by(node_id=node_id))


def labels_of(node_id: int) -> dict[str, str]:
    db.session.rollback()
    return {row.key: row.value for row in db.session.query(NodeLabel).filter_by(node_id=node_id)}
