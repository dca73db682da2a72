"""Which hosts a task means: its target's type and value as a condition on the table of nodes."""

from collections.abc import Sequence
from typing import Any

from flask_babel import gettext as _
from sqlalchemy import ColumnElement, and_, or_, select, true
from sqlalchemy.orm import Session

from app.commands.fanouts import NewTarget
from app.kernel.errors import BadParameter, FieldError
from app.nodes.models import Node, NodeGroup, NodeLabel, NodeTag
from app.nodes.selecting import is_below, members, selected

Condition = ColumnElement[bool]


def targets_of(session: Session, type_: str, value: Sequence[Any]) -> list[NewTarget]:
    """The members of the fleet that are meant now, by host name. Raises BadParameter where it means nothing."""
    meant = select(Node.id, Node.hostname).where(members(), condition_of(session, type_, value))
    found = session.execute(meant.order_by(Node.hostname, Node.id))
    return [NewTarget(node_id, hostname=hostname) for node_id, hostname in found]


def condition_of(session: Session, type_: str, value: Sequence[Any]) -> Condition:
    """Raises BadParameter. Nothing at all is never "everything"."""
    if type_ == "all":
        if value:
            raise _refusal(_("Nothing is expected here for all nodes."))
        return true()
    if not value:
        raise _refusal(_("This is needed."))
    match type_:
        case "node":
            return Node.id.in_(_numbers(value))
        case "group":
            return _groups(session, value)
        case "tag":
            return Node.id.in_(select(NodeTag.node_id).where(NodeTag.tag.in_(_words(value))))
        case "label":
            return _labels(value)
        case _:
            return _selector(value)


def _refusal(message: str) -> BadParameter:
    return BadParameter(errors=[FieldError("target_value", message)])


def _numbers(value: Sequence[Any]) -> list[int]:
    if not all(isinstance(one, int) and 0 < one < 2**63 for one in value):
        raise _refusal(_("Numbers are expected here."))
    return list(value)


def _words(value: Sequence[Any]) -> list[str]:
    if not all(isinstance(one, str) and one for one in value):
        raise _refusal(_("Words are expected here."))
    return list(value)


def _groups(session: Session, value: Sequence[Any]) -> Condition:
    """With their subtrees."""
    wanted = set(_numbers(value))
    paths = {
        row.id: row.path
        for row in session.execute(select(NodeGroup.id, NodeGroup.path).where(NodeGroup.id.in_(wanted)))
    }
    if missing := wanted - paths.keys():
        raise _refusal(_("There is no such group: %(numbers)s", numbers=", ".join(map(str, sorted(missing)[:10]))))
    inside = [or_(NodeGroup.path == path, is_below(path)) for path in paths.values()]
    return and_(Node.group_id.is_not(None), Node.group_id.in_(select(NodeGroup.id).where(or_(*inside))))


def _labels(value: Sequence[Any]) -> Condition:
    """All of them."""
    conditions = []
    for word in _words(value):
        key, equals, wanted = word.partition("=")
        if not equals or not key:
            raise _refusal(_("%(word)s: key=value is expected.", word=word[:60]))
        found = select(NodeLabel.node_id).where(NodeLabel.key == key, NodeLabel.value == wanted)
        conditions.append(Node.id.in_(found))
    return and_(*conditions)


def _selector(value: Sequence[Any]) -> Condition:
    if len(value) != 1:
        raise _refusal(_("One selector is expected here."))
    return selected(_words(value)[0], "target_value")
