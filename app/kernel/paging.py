"""Lists: what may be asked of one (`ListQuery`), how it is cut into pages, and the columns a table shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Generic, TypeVar

from flask_babel import gettext as _
from flask_babel.speaklater import LazyString
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session
from werkzeug.datastructures import MultiDict

from app.kernel.errors import BadParameter, FieldError

Item = TypeVar("Item")
Query = TypeVar("Query", bound="ListQuery")
Sortable = Mapping[str, ColumnElement[Any] | Any]
MAX_PAGE, MAX_ROW = 10**9, 2**63 - 1


def row_number(text: str) -> int:
    """For `args.get`: a row's number. Raises ValueError for what no database could hold."""
    if not 0 < (number := int(text)) <= MAX_ROW:
        raise ValueError(text)
    return number


class ListQuery(BaseModel):
    """What every list understands. Rooms add their filters to it."""

    model_config = ConfigDict(extra="forbid")

    page: int = Field(1, ge=1, le=MAX_PAGE)
    page_size: int = Field(20, ge=1, le=100)
    sort: str | None = Field(
        None, min_length=1, max_length=64, description="A field's name; with `-` in front: descending."
    )


@dataclass(frozen=True)
class Page(Generic[Item]):
    """One page of a list, with what is needed to link to the others."""

    items: Sequence[Item]
    total: int
    page: int
    page_size: int
    sort: str
    query: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pages(self) -> int:
        return max(1, ceil(self.total / self.page_size))


@dataclass(frozen=True)
class Column:
    """A column of a table and of its exports."""

    key: str
    label: str | LazyString
    sortable: bool = False
    numeric: bool = False
    klass: str = ""


def paginate(
    session: Session,
    statement: Select[Item],
    query: ListQuery,
    sortable: Sortable,
    default_sort: str,
    total: int | None = None,
) -> Page[Item]:
    """Count, sort and cut. The last sort key is always a unique one, so that pages never overlap."""
    sort = query.sort or default_sort
    if total is None:
        total = session.scalar(select(func.count()).select_from(statement.order_by(None).subquery())) or 0
    ordered = statement.order_by(*sort_keys(sort, sortable, default_sort))
    items = session.scalars(ordered.limit(query.page_size).offset((query.page - 1) * query.page_size)).all()
    shown = query.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"page"})
    return Page(items, total, query.page, query.page_size, sort, shown)


def sort_keys(sort: str, sortable: Sortable, default_sort: str) -> list[ColumnElement[Any]]:
    keys = []
    for name in dict.fromkeys((sort, default_sort)):
        column = sortable.get(name.removeprefix("-"))
        if column is None:
            allowed = ", ".join(sorted(sortable))
            raise BadParameter(errors=[FieldError("sort", _("One of: %(names)s", names=allowed))])
        keys.append(column.desc() if name.startswith("-") else column.asc())
    return keys


def lenient_query(schema: type[Query], arguments: MultiDict[str, str]) -> Query:
    """A page's query: what is wrong or unknown in an address somebody typed is left out rather than refused."""
    given: dict[str, Any] = {}
    for name in schema.model_fields:
        if values := [value for value in arguments.getlist(name) if value != ""]:
            given[name] = values if "list" in str(schema.model_fields[name].annotation) else values[-1]
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        wrong = {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}
    try:
        return schema.model_validate({name: value for name, value in given.items() if name not in wrong})
    except ValidationError:  # what is left is right field by field, but not together
        return schema.model_validate({})
