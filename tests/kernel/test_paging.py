"""Lists: pages that neither overlap nor leave out, sorted by what may be sorted by."""

from collections.abc import Iterator

import pytest
from flask import Flask
from pydantic import Field, model_validator
from sqlalchemy import select
from werkzeug.datastructures import MultiDict

from app.kernel.db import db
from app.kernel.errors import BadParameter
from app.kernel.live_settings import ChangedSetting
from app.kernel.paging import ListQuery, Page, lenient_query, paginate, sort_keys

SORTABLE = {"key": ChangedSetting.key, "value": ChangedSetting.value}


class Query(ListQuery):
    keyword: str | None = Field(None, max_length=5)
    low: int = 0
    high: int = 9
    tags: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def check_together(self) -> "Query":
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


@pytest.fixture
def rows(app: Flask) -> Iterator[None]:
    """25 of them, of which many share a value."""
    with app.test_request_context("/"):
        db.session.add_all([ChangedSetting(key=f"k{number:02}", value=number % 3) for number in range(25)])
        db.session.commit()
        yield
        db.session.rollback()


def keys(query: ListQuery) -> list[str]:
    return [row.key for row in page(query).items]


def page(query: ListQuery, total: int | None = None) -> Page[ChangedSetting]:
    return paginate(db.session(), select(ChangedSetting), query, SORTABLE, "key", total)


@pytest.mark.usefixtures("rows")
def test_pages_neither_overlap_nor_leave_out_though_many_rows_sort_alike() -> None:
    for sort in ("value", "-value", "key", "-key", None):
        found = [key for number in range(1, 5) for key in keys(Query(page=number, page_size=7, sort=sort))]
        assert sorted(found) == [f"k{number:02}" for number in range(25)]
        assert len(set(found)) == 25


@pytest.mark.usefixtures("rows")
def test_a_list_is_sorted_up_or_down_and_by_a_unique_column_last() -> None:
    assert keys(Query(page_size=3, sort="-key")) == ["k24", "k23", "k22"]
    assert keys(Query(page_size=3)) == ["k00", "k01", "k02"]
    assert keys(Query(page_size=3, sort="-value")) == ["k02", "k05", "k08"]


@pytest.mark.usefixtures("rows")
def test_a_page_knows_how_many_there_are() -> None:
    shown = page(Query(page=2, page_size=10))
    assert (shown.total, shown.pages, shown.page, shown.page_size, shown.sort) == (25, 3, 2, 10, "key")
    beyond = page(Query(page=10**9, page_size=100))
    assert (beyond.items, beyond.total) == ([], 25)
    assert page(Query(), total=1000).total == 1000, "who knows it already need not have it counted"


@pytest.mark.usefixtures("rows")
def test_nothing_is_one_empty_page() -> None:
    empty = paginate(db.session(), select(ChangedSetting).filter_by(key="x"), Query(), SORTABLE, "key")
    assert (empty.items, empty.total, empty.pages) == ([], 0, 1)


@pytest.mark.usefixtures("rows")
def test_links_to_other_pages_carry_what_was_asked() -> None:
    assert page(Query(page=2, keyword="a", tags=["x"])).query == {"keyword": "a", "tags": ["x"]}


@pytest.mark.parametrize("sort", ["colour", "--key", "key,value", "-", "KEY", "key desc"])
def test_what_cannot_be_sorted_by_is_refused_with_what_can(sqlite_app: Flask, sort: str) -> None:
    with sqlite_app.test_request_context("/"), pytest.raises(BadParameter) as caught:
        sort_keys(sort, SORTABLE, "key")
    assert caught.value.errors == [{"field": "sort", "message": "One of: key, value"}]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("page=2&keyword=abc&tags=x&tags=y", Query(page=2, keyword="abc", tags=["x", "y"])),
        ("page=x&keyword=abc", Query(keyword="abc")),
        ("page=0&page_size=1000&keyword=toolong", Query()),
        ("page=&keyword=", Query()),
        ("page=2&page=3", Query(page=3)),
        ("colour=red&format=csv", Query()),
        ("low=5&high=3&page=2", Query()),
        ("low=x&high=3", Query(high=3)),
        ("low=12&page=x", Query()),
    ],
)
def test_what_is_wrong_in_the_address_of_a_page_is_left_out(arguments: str, expected: Query) -> None:
    pairs = [pair.split("=") for pair in arguments.split("&")]
    assert lenient_query(Query, MultiDict([(name, value) for name, value in pairs])) == expected
