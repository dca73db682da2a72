"""Reading the audit log: pages of it however long it is, and all of it in a stream.

The log only grows, its rows never change and their numbers have no gaps. So a page without filters is found by its
numbers, what was counted once is never counted again, and a page far back is reached from whichever end is nearer.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from flask import current_app
from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session, defer

from app.audit.chain import GENESIS_HASH, Link, compact
from app.audit.models import AuditRow
from app.audit.schemas import AuditQuery
from app.kernel.paging import Page, sort_keys

SORTABLE = {
    "id": AuditRow.id,
    "sequence": AuditRow.id,
    "created_at": AuditRow.created_at,
    "username": AuditRow.username,
    "action": AuditRow.action,
    "status": AuditRow.status,
}
SHOWN_ONLY = (defer(AuditRow.canonical), defer(AuditRow.seal))
CHUNK = 250
FEW = 100
MOST_COUNTED = 200
SPELL_S = 0.005
PAUSE_S = 0.001

Item = TypeVar("Item")


class Counted(NamedTuple):
    """How many rows fit some filters, from the log's beginning to this link; and which, as long as they are few."""

    upto: Link
    total: int
    ids: tuple[int, ...] | None


NOTHING = Counted(Link(0, GENESIS_HASH), 0, ())


def audit_rows(session: Session, query: AuditQuery) -> Page[AuditRow]:
    """A page of the log."""
    counted = _counted(session, query, newest_row(session))
    ids = _ids_on_page(session, query, counted)
    found = {row.id: row for row in session.scalars(select(AuditRow).where(AuditRow.id.in_(ids)).options(*SHOWN_ONLY))}
    rows = [found[row_id] for row_id in ids if row_id in found]
    shown = query.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"page"})
    return Page(rows, counted.total, query.page, query.page_size, _sort(query)[0], shown)


def newest_row(session: Session) -> Link:
    """Where the log ends."""
    newest = session.execute(select(AuditRow.id, AuditRow.hash).order_by(AuditRow.id.desc()).limit(1)).first()
    return Link(*newest) if newest else NOTHING.upto


def exported_chunks(session: Session, query: AuditQuery, upto: int) -> Iterator[Sequence[AuditRow]]:
    """Everything up to this row that the filters leave, in the order asked for, a few rows in memory at a time."""
    names = _sort(query)
    statement = _filtered(session, query).where(AuditRow.id <= upto).order_by(*_keys(names)).limit(CHUNK)
    rows = session.scalars(statement).all()
    while rows:
        yield rows
        further = statement.where(_behind(rows[-1], names))
        for row in rows:
            session.expunge(row)
        rows = session.scalars(further).all()


def taking_turns(rows: Iterable[Item]) -> Iterator[Item]:
    """The same rows, with a short pause now and then.

    All requests of a process share one thread: without pauses, a download of minutes would let everybody else wait.
    """
    began = time.monotonic()
    for row in rows:
        yield row
        if time.monotonic() - began > SPELL_S:
            time.sleep(PAUSE_S)
            began = time.monotonic()


def hashes_before(session: Session, rows: Sequence[AuditRow]) -> list[str]:
    """For each row the hash of the one before it in the log."""
    wanted = [row.id - 1 for row in rows]
    links = session.execute(select(AuditRow.id, AuditRow.hash).where(AuditRow.id.in_(wanted)))
    found = {link.id: link.hash for link in links}
    return [found.get(sequence, GENESIS_HASH) for sequence in wanted]


def known_actions(session: Session) -> list[str]:
    """The actions that occur, for the filter. Later only what has come since is looked at."""
    upto, known = current_app.extensions.get("audit_actions", (NOTHING.upto, []))
    newest = newest_row(session)
    if upto == newest:
        return list(known)
    if upto.sequence and _is_in_log(session, upto):
        since = select(AuditRow.action).where(AuditRow.id > upto.sequence).distinct()
        known = sorted({*known, *session.scalars(since)})
    else:
        known = _all_actions(session)
    current_app.extensions["audit_actions"] = (newest, known)
    return list(known)


def _all_actions(session: Session) -> list[str]:
    """Steps through the index from one to the next instead of reading every row."""
    found: list[str] = []
    while True:
        above = select(func.min(AuditRow.action)).where(AuditRow.action > (found[-1] if found else ""))
        action = session.scalar(above)
        if action is None:
            return found
        found.append(action)


def filters_of(query: AuditQuery) -> dict[str, Any]:
    return query.model_dump(mode="json", exclude={"page", "page_size", "sort"}, exclude_none=True)


def _counted(session: Session, query: AuditQuery, newest: Link) -> Counted:
    """Only what has come since the same was counted last is counted now."""
    filters = filters_of(query)
    if not filters:
        return Counted(newest, newest.sequence, None)
    cache: OrderedDict[str, Counted] = current_app.extensions.setdefault("audit_counts", OrderedDict())
    key = compact(filters)
    known = cache.get(key, NOTHING)
    if known.upto != newest:
        known = _recounted(session, query, known if _is_in_log(session, known.upto) else NOTHING, newest)
    cache[key] = known
    cache.move_to_end(key)
    while len(cache) > MOST_COUNTED:
        cache.popitem(last=False)
    return known


def _recounted(session: Session, query: AuditQuery, known: Counted, newest: Link) -> Counted:
    newer = _filtered(session, query).where(AuditRow.id <= newest.sequence)
    if known.upto.sequence:
        newer = newer.where(AuditRow.id > known.upto.sequence)
    more = session.scalar(newer.with_only_columns(func.count())) or 0
    total, ids = known.total + more, known.ids
    if ids is not None and more:
        found = newer.with_only_columns(AuditRow.id).order_by(AuditRow.id)
        ids = (*ids, *session.scalars(found)) if total <= FEW else None
    return Counted(newest, total, ids)


def _is_in_log(session: Session, link: Link) -> bool:
    """Whether the log is still the one that was counted: hashes of two logs never agree."""
    return session.scalar(select(AuditRow.hash).where(AuditRow.id == link.sequence)) == link.hash


def _ids_on_page(session: Session, query: AuditQuery, counted: Counted) -> Sequence[int]:
    """The numbers of a page's rows. Indexes hold numbers, so rows that only have to be passed over are never read."""
    names, first = _sort(query), (query.page - 1) * query.page_size
    size = min(query.page_size, counted.total - first)
    if size <= 0:
        return []
    if names == ["-id"] and not filters_of(query):
        newest = counted.total - first
        return range(newest, newest - size, -1)
    statement = _filtered(session, query).with_only_columns(AuditRow.id)
    if counted.ids is not None:
        statement = select(AuditRow.id).where(AuditRow.id.in_(counted.ids))
    last = counted.total - first - size
    if first <= last:
        return session.scalars(statement.order_by(*_keys(names)).limit(size).offset(first)).all()
    backwards = [name.removeprefix("-") if name.startswith("-") else f"-{name}" for name in names]
    return session.scalars(statement.order_by(*_keys(backwards)).limit(size).offset(last)).all()[::-1]


def _sort(query: AuditQuery) -> list[str]:
    """The sort keys' names. The row's number comes last and in the same direction, as it does in the indexes.

    Rows of some period are found by their time, so that is also their order: newest first, as without a period.
    """
    sort = query.sort or ("-created_at" if query.start or query.end else "-id")
    sort_keys(sort, SORTABLE, "id")
    return list(dict.fromkeys((sort, "-id" if sort.startswith("-") else "id")))


def _keys(names: Sequence[str]) -> list[ColumnElement[Any]]:
    return [SORTABLE[n.removeprefix("-")].desc() if n.startswith("-") else SORTABLE[n].asc() for n in names]


def _behind(row: AuditRow, names: Sequence[str]) -> ColumnElement[bool]:
    """Whatever comes after this row in this order."""
    name, is_descending = names[0].removeprefix("-"), names[0].startswith("-")
    beyond = AuditRow.id < row.id if is_descending else AuditRow.id > row.id
    if name in ("id", "sequence"):
        return beyond
    column, value = SORTABLE[name], getattr(row, name)
    return or_(column < value if is_descending else column > value, (column == value) & beyond)


def _filtered(session: Session, query: AuditQuery) -> Select[AuditRow]:
    statement = select(AuditRow)
    exact: dict[str, Any] = {
        name: getattr(query, name)
        for name in ("username", "user_id", "action", "resource_type", "resource_id", "status")
        if getattr(query, name) is not None
    }
    statement = statement.filter_by(**exact) if exact else statement
    if query.start:
        statement = statement.where(AuditRow.created_at >= query.start)
    if query.end:
        statement = statement.where(AuditRow.created_at < query.end)
    if query.keyword:
        statement = statement.where(_mentions(session, query.keyword))
    return statement


def _mentions(session: Session, keyword: str) -> ColumnElement[bool]:
    """Large and small letters are the same here, on every database: SQLite's LIKE knows no difference anyway."""
    columns: list[Any] = [
        AuditRow.username, AuditRow.action, AuditRow.resource_type, AuditRow.resource_id, AuditRow.ip,
    ]  # fmt: skip
    if session.get_bind().dialect.name == "mysql":
        columns = [column.collate("utf8mb4_general_ci") for column in columns]
    return or_(*(column.contains(keyword, autoescape=True) for column in columns))
