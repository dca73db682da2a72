"""The jobs do their work in slices, with pauses, and stop in time."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from flask import Flask
from sqlalchemy import event

from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from app.metrics import actions, jobs
from app.metrics.models import FIVE_MINUTES, HOUR_MS, POINTS, RollUpProgress, epoch_ms
from app.worker import run_job
from tests.metrics.builders import batch, count, make_node, point, put, store


@pytest.fixture
def commits(context: Flask) -> Iterator[list[None]]:
    """One entry for each commit."""
    found: list[None] = []

    def note(_connection: object) -> None:
        found.append(None)

    event.listen(db.engine, "commit", note)
    yield found
    event.remove(db.engine, "commit", note)


@pytest.mark.usefixtures("context")
def test_a_worker_runs_them_as_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "LEAST_PAUSE_S", 0.0)
    at = now() - timedelta(hours=2)
    store(make_node(), batch(point(at)), at=at)
    for name in ("roll_up", "clean_up", "keep_partitions"):
        run_job(f"app.metrics.jobs.{name}")
    assert count(FIVE_MINUTES) == 1
    assert count(POINTS) == 1


def test_each_slice_is_a_transaction_of_its_own(commits: list[None], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "LEAST_PAUSE_S", 0.0)
    monkeypatch.setattr(actions, "POINTS_IN_SLICE", 60)
    at = now() - timedelta(hours=20)
    store(make_node(), batch(point(at)), at=at)
    commits.clear()
    jobs.roll_up()
    # Twelve buckets of five minutes fit into a slice, or one hour.
    assert len(commits) > 2 * 18


@pytest.mark.usefixtures("context")
def test_others_get_their_turn_between_slices(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr(jobs.time, "sleep", pauses.append)
    left = iter([True, True, False])
    monkeypatch.setattr(actions, "roll_up", lambda *_given: next(left))
    jobs.roll_up()
    assert len(pauses) == 2
    assert min(pauses) >= 0.06


@pytest.mark.usefixtures("context")
def test_it_ends_when_time_is_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "BUDGET_S", 0.0)
    monkeypatch.setattr(jobs, "LEAST_PAUSE_S", 0.0)
    slices = iter([True, AssertionError("it went on")])

    def roll_up(*_given: object) -> bool:
        found = next(slices)
        if isinstance(found, AssertionError):
            raise found
        return found

    monkeypatch.setattr(actions, "roll_up", roll_up)
    jobs.roll_up()


@pytest.mark.usefixtures("context")
def test_the_next_run_goes_on_where_the_last_one_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "BUDGET_S", -1.0)
    monkeypatch.setattr(actions, "POINTS_IN_SLICE", 60)
    at = now() - timedelta(hours=1)
    store(make_node(), batch(point(at)), at=at)
    for _ in range(5):
        jobs.roll_up()
    assert count(FIVE_MINUTES) == 1


@pytest.mark.usefixtures("context")
def test_a_clean_up_without_time_starts_with_what_is_left(monkeypatch: pytest.MonkeyPatch):
    if db.engine.dialect.name == "mysql":
        jobs.keep_partitions()
    monkeypatch.setattr(jobs, "BUDGET_S", -1.0)
    present = epoch_ms(now())
    put(POINTS, 1, [present])
    in_transaction(db.session(), lambda: db.session.add(RollUpProgress(step_ms=HOUR_MS, until=present)))
    jobs.clean_up()
    assert count(POINTS) == 1
