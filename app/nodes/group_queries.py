"""Reading groups, smart groups and saved views."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.kernel.errors import BadParameter, NotFound
from app.kernel.paging import Page
from app.nodes.models import Node, NodeGroup, SavedView, SmartGroup
from app.nodes.schemas import GroupQuery
from app.nodes.selecting import members, selected


@dataclass(frozen=True)
class Branch:
    """A group in its tree, with how many members it has itself and with everything below it."""

    group: NodeGroup
    depth: int
    own: int
    total: int


def groups(session: Session) -> Sequence[NodeGroup]:
    """The whole tree, parents before children, as the operator sorted them."""
    rows = session.scalars(select(NodeGroup)).all()
    order = {row.id: (row.sort_order, row.name) for row in rows}
    parents = {row.id: row.parent_id for row in rows}

    def place(row: NodeGroup) -> list[tuple[int, str]]:
        places: list[tuple[int, str]] = []
        at: int | None = row.id
        while at is not None and len(places) < 64:
            places.append(order[at])
            at = parents.get(at)
        return places[::-1]

    return sorted(rows, key=place)


def group_tree(session: Session) -> list[Branch]:
    rows, own = groups(session), group_sizes(session)
    totals: dict[str, int] = {row.path: 0 for row in rows}
    for row in rows:
        steps = row.path.split("/")
        for depth in range(1, len(steps) + 1):
            above = "/".join(steps[:depth])
            totals[above] = totals.get(above, 0) + own.get(row.id, 0)
    return [Branch(row, row.path.count("/"), own.get(row.id, 0), totals[row.path]) for row in rows]


def groups_page(session: Session, query: GroupQuery) -> Page[Branch]:
    """A page of the tree. The tree is small, so it is read whole and cut here."""
    tree = [one for one in group_tree(session) if (query.keyword or "").lower() in one.group.path.lower()]
    keys: dict[str, Callable[[Branch], Any]] = {
        "name": lambda branch: (branch.group.name, branch.group.id),
        "id": lambda branch: branch.group.id,
        "node_count": lambda branch: (branch.total, branch.group.id),
    }
    wanted = query.sort or "tree"
    if wanted != "tree":
        tree.sort(key=keys[wanted.removeprefix("-")], reverse=wanted.startswith("-"))
    start = (query.page - 1) * query.page_size
    return Page(tree[start : start + query.page_size], len(tree), query.page, query.page_size, wanted)


def group_by_id(session: Session, group_id: int) -> NodeGroup:
    group = session.get(NodeGroup, group_id)
    if group is None:
        raise NotFound
    return group


def group_sizes(session: Session) -> dict[int, int]:
    """How many members each group itself has."""
    counted = select(Node.group_id, func.count()).where(Node.group_id.is_not(None), members()).group_by(Node.group_id)
    return {group_id: count for group_id, count in session.execute(counted).all() if group_id is not None}


def smart_groups(session: Session) -> Sequence[SmartGroup]:
    return session.scalars(select(SmartGroup).order_by(SmartGroup.name)).all()


def smart_group_by_id(session: Session, group_id: int) -> SmartGroup:
    group = session.get(SmartGroup, group_id)
    if group is None:
        raise NotFound
    return group


def saved_views(session: Session, user_id: int) -> Sequence[SavedView]:
    return session.scalars(select(SavedView).where(SavedView.user_id == user_id).order_by(SavedView.name)).all()


def selected_count(session: Session, selector: str) -> int | None:
    """How many members a saved selector names; None if it cannot be read (any more)."""
    try:
        condition = selected(selector)
    except BadParameter:
        return None
    return session.scalar(select(func.count()).select_from(Node).where(members(), condition)) or 0
