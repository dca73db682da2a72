"""On SQLite old rows are deleted in slices: so many rows, so many hosts, and all of it in the end."""

from collections.abc import Iterator
from functools import partial

import pytest
from flask import Flask

from app.kernel.db import db, in_transaction
from app.metrics import actions
from app.metrics.models import DAY_MS, MINUTE_MS, POINTS
from tests.metrics.builders import count, put


@pytest.fixture(autouse=True)
def context(sqlite_app: Flask) -> Iterator[None]:
    with sqlite_app.app_context():
        yield


def forget(before_ms: int) -> list[int]:
    """All of it, slice by slice; answers how many rows each slice deleted."""
    session, deleted = db.session(), []
    place: int | None = 0
    while place is not None:
        before = count(POINTS)
        place = in_transaction(session, partial(actions.forget_old, session, POINTS, before_ms, place))
        deleted.append(before - count(POINTS))
    return deleted


def test_a_slice_deletes_a_bounded_number_of_rows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(actions, "ROWS_IN_SLICE", 100)
    for node_id in (1, 2, 3):
        put(POINTS, node_id, [day * DAY_MS + n * MINUTE_MS for day in range(3) for n in range(60)])
    deleted = forget(10 * DAY_MS)
    assert sum(deleted) == 540
    assert max(deleted) <= 100 + 60


def test_a_slice_looks_at_a_bounded_number_of_hosts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(actions, "NODES_IN_SLICE", 4)
    for node_id in range(1, 11):
        put(POINTS, node_id, [0, 5 * DAY_MS])
    assert forget(DAY_MS) == [4, 4, 2]
    assert count(POINTS) == 10


def test_hosts_that_were_deleted_are_forgotten_too():
    put(POINTS, 10**12, [0])
    forget(DAY_MS)
    assert count(POINTS) == 0


def test_the_first_moment_that_is_kept_is_kept():
    put(POINTS, 1, [DAY_MS - 1, DAY_MS, DAY_MS + 1])
    forget(DAY_MS)
    assert count(POINTS) == 2
