"""Reading the audit log."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from app.audit.models import AuditHead, AuditRow
from app.audit.schemas import AuditQuery
from app.kernel.paging import Page, paginate, sort_keys

SORTABLE = {
    "id": AuditRow.id,
    "sequence": AuditRow.id,
    "created_at": AuditRow.created_at,
    "username": AuditRow.username,
    "action": AuditRow.action,
    "status": AuditRow.status,
}
CHUNK = 1000
MOST_EXPORTED = 1_000_000


def audit_rows(session: Session, query: AuditQuery) -> Page[AuditRow]:
    """A page of the log. Without filters the head knows how many rows there are: nothing has to be counted."""
    statement = _filtered(query)
    total = session.scalar(select(AuditHead.sequence)) if statement.whereclause is None else None
    return paginate(session, statement, query, SORTABLE, "-id", total)


def exported_rows(session: Session, query: AuditQuery) -> Iterator[AuditRow]:
    """Everything that the filters leave, in the order asked for, without holding it all in memory."""
    order = sort_keys(query.sort or "-id", SORTABLE, "-id")
    statement = _filtered(query).order_by(*order).limit(MOST_EXPORTED)
    for row in session.scalars(statement.execution_options(yield_per=CHUNK)):
        yield row
        session.expunge(row)


def known_actions(session: Session) -> list[str]:
    """The actions that occur, for the filter. Walks the index from one to the next instead of reading every row."""
    found: list[str] = []
    while True:
        above = select(func.min(AuditRow.action)).where(AuditRow.action > (found[-1] if found else ""))
        action = session.scalar(above)
        if action is None:
            return found
        found.append(action)


def _filtered(query: AuditQuery) -> Select[AuditRow]:
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
        words = (AuditRow.username, AuditRow.action, AuditRow.resource_type, AuditRow.resource_id, AuditRow.ip)
        statement = statement.where(or_(*(column.contains(query.keyword, autoescape=True) for column in words)))
    return statement
