"""Reading nodes, those who wait, and tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flask_babel import gettext as _
from sqlalchemy import ColumnElement, Select, Text, and_, func, not_, or_, select, type_coerce
from sqlalchemy.orm import Session, selectinload

from app.kernel.clock import now
from app.kernel.errors import BadParameter, FieldError, NotFound
from app.kernel.paging import Page, paginate, sort_keys
from app.nodes.errors import NodeNotFound
from app.nodes.models import (
    MEMBERS,
    ONLINE,
    PENDING,
    EnrollmentToken,
    Enrolment,
    Node,
    NodeCertificate,
    NodeGroup,
    NodeLabel,
    NodeTag,
)
from app.nodes.schemas import NodeQuery, TokenQuery
from app.nodes.selecting import is_below, members, selected

WITH_NAMES = (selectinload(Node.tag_rows), selectinload(Node.label_rows), selectinload(Node.group))
SORTABLE = {
    "id": Node.id,
    "hostname": Node.hostname,
    "ip": Node.ip,
    "status": Node.status,
    "group_id": Node.group_id,
    "agent_status": Node.agent_status,
    "agent_version": Node.agent_version,
    "cpu_usage": Node.last_cpu_usage,
    "memory_usage": Node.last_memory_usage,
    "disk_usage": Node.last_disk_usage,
    "daemon_version": Node.daemon_version_key,
    "last_heartbeat": Node.last_heartbeat,
    "created_at": Node.created_at,
    "updated_at": Node.updated_at,
}
TOKENS_SORTABLE = {
    "id": EnrollmentToken.id,
    "name": EnrollmentToken.name,
    "uses": EnrollmentToken.uses,
    "expires_at": EnrollmentToken.expires_at,
    "created_at": EnrollmentToken.created_at,
}
CHUNK = 500
Condition = ColumnElement[bool]


def node_by_id(session: Session, node_id: int) -> Node:
    node = session.get(Node, node_id, options=WITH_NAMES)
    if node is None:
        raise NodeNotFound
    return node


def nodes(session: Session, query: NodeQuery) -> Page[Node]:
    """A page of the list. Numbers are sorted first and only those of the page are read whole: rows are wide.

    What has to look at every row anyway does it once, and is counted on the way.
    """
    sort = query.sort or "hostname"
    start = (query.page - 1) * query.page_size
    ids = _filtered(session, query).with_only_columns(Node.id).order_by(*sort_keys(sort, SORTABLE, "id"))
    if query.keyword or query.selector or query.tags:
        found = session.scalars(ids).all()
        total, shown = len(found), found[start : start + query.page_size]
    else:
        total = session.scalar(select(func.count()).select_from(ids.order_by(None).subquery())) or 0
        shown = session.scalars(ids.limit(query.page_size).offset(start)).all()
    place = {node_id: number for number, node_id in enumerate(shown)}
    rows = sorted(nodes_by_ids(session, shown), key=lambda node: place[node.id])
    asked = query.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"page"})
    return Page(rows, total, query.page, query.page_size, sort, asked)


def exported_nodes(session: Session, query: NodeQuery) -> Iterator[Node]:
    """Everything that the filters leave, in chunks."""
    statement = _filtered(session, query).options(*WITH_NAMES)
    statement = statement.order_by(*sort_keys(query.sort or "hostname", SORTABLE, "id"))
    yield from session.scalars(statement.execution_options(yield_per=CHUNK))


def matching_ids(session: Session, query: NodeQuery) -> list[int]:
    """Every node of a list, not only those on the page that is shown."""
    return list(session.scalars(_filtered(session, query).with_only_columns(Node.id).order_by(Node.id)))


def _filtered(session: Session, query: NodeQuery) -> Select[Node]:
    """Without a status asked for, what waits for approval or was turned away is not part of the list."""
    statement = select(Node)
    statement = statement.where(Node.status == query.status) if query.status else statement.where(members())
    if query.keyword:
        statement = statement.where(mentions(query.keyword))
    if query.group_id:
        statement = statement.where(_is_in_subtree(session, query.group_id))
    for tag in query.tags or ():
        statement = statement.where(Node.id.in_(select(NodeTag.node_id).where(NodeTag.tag == tag)))
    if query.selector:
        statement = statement.where(selected(query.selector))
    if query.version:
        statement = statement.where(Node.daemon_version == query.version)
    if query.maintenance is not None:
        is_in = and_(Node.maintenance_until.is_not(None), Node.maintenance_until > now())
        statement = statement.where(is_in if query.maintenance else not_(is_in))
    return statement


def _is_in_subtree(session: Session, group_id: int) -> Condition:
    path = session.scalar(select(NodeGroup.path).where(NodeGroup.id == group_id))
    if path is None:
        return Node.group_id == group_id
    return Node.group_id.in_(select(NodeGroup.id).where(or_(NodeGroup.id == group_id, is_below(path))))


def mentions(keyword: str) -> Condition:
    """Whether host name, an address, a tag or a label holds these letters; `key=value` asks for just this label."""
    key, equals, value = keyword.partition("=")
    label: Condition = NodeLabel.value.icontains(keyword, autoescape=True)
    if equals:
        label = and_(NodeLabel.key == key.strip(), NodeLabel.value.istartswith(value.strip(), autoescape=True))
    columns = (Node.hostname, Node.ip, type_coerce(Node.ips, Text))
    return or_(
        *(column.icontains(keyword, autoescape=True) for column in columns),
        Node.id.in_(select(NodeTag.node_id).where(NodeTag.tag.icontains(keyword, autoescape=True))),
        Node.id.in_(select(NodeLabel.node_id).where(label)),
    )


def nodes_by_ids(session: Session, node_ids: Sequence[int]) -> Sequence[Node]:
    """Those of them that there are, by host name. In chunks: no statement takes parameters without end."""
    found: list[Node] = []
    wanted = list(dict.fromkeys(node_ids))
    for start in range(0, len(wanted), CHUNK):
        statement = select(Node).where(Node.id.in_(wanted[start : start + CHUNK])).options(*WITH_NAMES)
        found += session.scalars(statement)
    return sorted(found, key=lambda node: (node.hostname, node.id))


def chosen_nodes(session: Session, selector: str | None, node_ids: Sequence[int] | None) -> Sequence[Node]:
    """The nodes of a bulk action: those named, all of which must exist, or the members that a selector finds."""
    if node_ids is not None:
        found = nodes_by_ids(session, node_ids)
        missing = set(node_ids) - {node.id for node in found}
        if missing:
            named = ", ".join(map(str, sorted(missing)[:10]))
            raise NodeNotFound(errors=[FieldError("node_ids", _("There is no such node: %(numbers)s", numbers=named))])
        return found
    if not selector:
        raise BadParameter(errors=[FieldError("selector", _("This is needed."))])
    statement = select(Node).where(members(), selected(selector)).options(*WITH_NAMES)
    return session.scalars(statement.order_by(Node.hostname, Node.id)).all()


@dataclass(frozen=True)
class Preview:
    """The hosts that a selector names right now, and how many of them could not be reached at once."""

    items: Sequence[Mapping[str, object]]

    @property
    def total(self) -> int:
        return len(self.items)

    @property
    def online(self) -> int:
        return sum(item["status"] == ONLINE for item in self.items)

    @property
    def offline(self) -> int:
        return self.total - self.online

    @property
    def maintenance(self) -> int:
        return sum(bool(item["maintenance"]) for item in self.items)


def preview(session: Session, selector: str) -> Preview:
    at = now()
    columns = (Node.id, Node.hostname, Node.ip, Node.status, Node.maintenance_until)
    statement = select(*columns).where(members(), selected(selector)).order_by(Node.hostname, Node.id)
    return Preview(
        [
            {"id": id_, "hostname": name, "ip": ip, "status": status, "maintenance": until is not None and until > at}
            for id_, name, ip, status, until in session.execute(statement)
        ]
    )


def status_counts(session: Session) -> dict[str, int]:
    rows = session.execute(select(Node.status, func.count()).group_by(Node.status)).all()
    return dict(rows)


def waiting_nodes(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Node).where(Node.status == PENDING)) or 0


@dataclass(frozen=True)
class Waiting:
    """A machine that asks to be let in."""

    node: Node
    enrolment: Enrolment
    origin: Node | None
    token_name: str | None


def approval_queue(session: Session, limit: int = 1000) -> list[Waiting]:
    statement = (
        select(Node, Enrolment, EnrollmentToken.name)
        .join(Enrolment, Enrolment.node_id == Node.id)
        .outerjoin(EnrollmentToken, EnrollmentToken.id == Enrolment.token_id)
        .where(Node.status == PENDING)
        .options(*WITH_NAMES)
        .order_by(Enrolment.created_at)
        .limit(limit)
    )
    rows = session.execute(statement).all()
    origin_ids = [enrolment.origin_node_id for _node, enrolment, _name in rows if enrolment.origin_node_id]
    origins = {node.id: node for node in nodes_by_ids(session, origin_ids)}
    return [
        Waiting(node, enrolment, origins.get(enrolment.origin_node_id or 0), token_name)
        for node, enrolment, token_name in rows
    ]


def certificates(session: Session, node_id: int) -> Sequence[NodeCertificate]:
    statement = select(NodeCertificate).where(NodeCertificate.node_id == node_id)
    return session.scalars(statement.order_by(NodeCertificate.id.desc()).limit(20)).all()


def enrollment_tokens(session: Session, query: TokenQuery) -> Page[EnrollmentToken]:
    statement = select(EnrollmentToken)
    if query.keyword:
        statement = statement.where(EnrollmentToken.name.icontains(query.keyword, autoescape=True))
    return paginate(session, statement, query, TOKENS_SORTABLE, "-id")


def token_by_id(session: Session, token_id: int) -> EnrollmentToken:
    token = session.get(EnrollmentToken, token_id)
    if token is None:
        raise NotFound
    return token


def daemon_versions(session: Session) -> list[str]:
    """Versions that members run, newest first."""
    statement = select(Node.daemon_version, func.max(Node.daemon_version_key))
    statement = statement.where(members(), Node.daemon_version != "").group_by(Node.daemon_version)
    rows = session.execute(statement).all()
    return [version for version, _key in sorted(rows, key=lambda row: row[1], reverse=True)]


def all_tags(session: Session, limit: int = 500) -> Sequence[str]:
    return session.scalars(select(NodeTag.tag).distinct().order_by(NodeTag.tag).limit(limit)).all()


def hostname_is_taken(session: Session, hostname: str) -> bool:
    """Whether somebody who is in the fleet, or waits at its door, has this name already."""
    statement = select(Node.id).where(Node.hostname == hostname, Node.status.in_((PENDING, *MEMBERS)))
    return session.scalar(statement.limit(1)) is not None


def latest_enrolment(session: Session, node_id: int) -> Enrolment | None:
    statement = select(Enrolment).where(Enrolment.node_id == node_id).order_by(Enrolment.id.desc())
    return session.scalar(statement.limit(1))
