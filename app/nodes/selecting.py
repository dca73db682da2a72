"""What a selector means: its tree as a condition on the table of nodes, and the hosts that it names."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, false, func, not_, or_, select, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Boolean

from app.kernel.selectors import And, Comparison, Everything, Has, Match, Not, Or, Tree, parse, refusal
from app.nodes.models import OUTSIDERS, Node, NodeGroup, NodeLabel, NodeTag
from app.nodes.versions import sortable_version

FACTS = {"status": Node.status, "os": Node.os, "arch": Node.arch}
Condition = ColumnElement[bool]
Text = InstrumentedAttribute[str]


def selected(text: str, field: str = "selector") -> Condition:
    """The condition for a selector. Raises BadParameter where it cannot be read."""
    return _Meaning(field).of(parse(text, field))


def members() -> Condition:
    """Nodes that belong to the fleet: what waits for approval or was turned away can be no target.

    Said by who does not: nearly all do, and an index of statuses would only keep the database from using a better one.
    """
    return Node.status.not_in(OUTSIDERS)


def target_nodes(session: Session, text: str) -> Sequence[Node]:
    """The members that a selector names, by host name. Who chooses a target calls this."""
    return session.scalars(select(Node).where(members(), selected(text)).order_by(Node.hostname, Node.id)).all()


def is_below(path: str) -> Condition:
    """Groups under the one at `path`. A range, so that an index serves it; `0` is what comes after `/`."""
    return and_(NodeGroup.path > f"{path}/", NodeGroup.path < f"{path}0")


class _Glob(FunctionElement[bool]):
    """`*` and `?`, with case, on every database: SQLite's LIKE would take `web` and `WEB` for the same."""

    type = Boolean()
    name = "glob"
    inherit_cache = True


@compiles(_Glob)
def _compile_like(element: _Glob, compiler: Any, **options: Any) -> str:
    column, like, _glob = element.clauses
    return f"{compiler.process(column, **options)} LIKE {compiler.process(like, **options)} ESCAPE '|'"


@compiles(_Glob, "sqlite")
def _compile_glob(element: _Glob, compiler: Any, **options: Any) -> str:
    column, _like, glob = element.clauses
    return f"{compiler.process(column, **options)} GLOB {compiler.process(glob, **options)}"


def matches(column: Text, pattern: str) -> Condition:
    """Whether a column fits a pattern of `*` (anything, also nothing) and `?` (one character)."""
    if "*" not in pattern and "?" not in pattern:
        return column == pattern
    like = pattern
    for special in "|%_":
        like = like.replace(special, f"|{special}")
    return _Glob(column, like.replace("*", "%").replace("?", "_"), pattern.replace("[", "[[]"))


class _Meaning:
    """Walks a tree; knows the field that a complaint is about."""

    def __init__(self, field: str) -> None:
        self._field = field

    def of(self, tree: Tree) -> Condition:
        match tree:
            case Everything():
                return true()
            case And(parts):
                return and_(*map(self.of, parts))
            case Or(parts):
                return or_(*map(self.of, parts))
            case Not(inner):
                return not_(self.of(inner))
            case Has(key):
                return _labelled(NodeLabel.key == key)
            case Match(kind, pattern):
                return _match(kind, pattern)
            case Comparison(key="version"):
                return self._version(tree)
            case Comparison(key, operator, values):
                return _comparison(key, operator, values)

    def _version(self, tree: Comparison) -> Condition:
        """By SemVer order, which `daemon_version_key` has as text. A node without a version is in no comparison."""
        key, wanted = Node.daemon_version_key, []
        for value, column in zip(tree.values, tree.columns, strict=True):
            sortable = sortable_version(value)
            if sortable is None:
                raise refusal(self._field, column, "1.4, 1.4.2, 1.5.0-rc.1 …")
            wanted.append(sortable)
        known = func.length(key) > 0
        match tree.operator:
            case "=" | "in":
                return key.in_(wanted)
            case "!=" | "notin":
                return and_(known, key.not_in(wanted))
            case "<":
                return and_(known, key < wanted[0])
            case "<=":
                return and_(known, key <= wanted[0])
            case ">":
                return key > wanted[0]
            case _:
                return key >= wanted[0]


def _match(kind: str, pattern: str) -> Condition:
    if kind == "node":
        return matches(Node.hostname, pattern)
    if kind == "tag":
        return Node.id.in_(select(NodeTag.node_id).where(matches(NodeTag.tag, pattern)))
    path = pattern.strip("/")
    if not path:
        return false()
    is_plain = "*" not in path and "?" not in path
    below = is_below(path) if is_plain else matches(NodeGroup.path, f"{path}/*")
    inside = select(NodeGroup.id).where(or_(matches(NodeGroup.path, path), below))
    return and_(Node.group_id.is_not(None), Node.group_id.in_(inside))


def _comparison(key: str, operator: str, values: tuple[str, ...]) -> Condition:
    found: Condition
    if key in FACTS:
        found = FACTS[key].in_(values)
    else:
        found = _labelled(NodeLabel.key == key, NodeLabel.value.in_(values))
    return not_(found) if operator in ("!=", "notin") else found


def _labelled(*conditions: Condition) -> Condition:
    return Node.id.in_(select(NodeLabel.node_id).where(*conditions))
