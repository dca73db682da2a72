"""Tasks on bad days: clocks that change, schedulers and Managers that die, reports told twice, hosts that are away."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event, func, select, update

from app.commands.models import Command
from app.kernel.db import db
from app.nodes.models import OFFLINE, ONLINE
from app.people.models import User
from app.tasks.models import TaskOutput, TaskRun
from protocol.commands import Accept, Output, Start
from tests.commands.rig import Clock, Rig, now_text, result
from tests.factories import Api
from tests.tasks.test_schedules import due_at, events, go_to, make_task, runs, tick
from tests.tasks.test_tasks_api import made, shown, started

BERLIN = "Europe/Berlin"


def utc(*given: int) -> datetime:
    return datetime(*given, tzinfo=UTC)  # type: ignore[misc]


def set_clock(clock: Clock, moment: datetime) -> None:
    clock.advance(seconds=(moment - clock()).total_seconds())


# Clocks


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (utc(2027, 10, 30, 20), [utc(2027, 10, 31, 0, 30), utc(2027, 11, 1, 1, 30)]),
        (utc(2027, 3, 27, 20), [utc(2027, 3, 28, 1, 0), utc(2027, 3, 29, 0, 30)]),
    ],
    ids=["the hour that comes twice", "the hour that is left out"],
)
def test_a_daily_schedule_runs_once_on_the_day_the_clocks_change(
    rig: Rig, clock: Clock, start: datetime, expected: list[datetime]
) -> None:
    """Looked at every ten minutes of two days, as the scheduler does: not twice, not never."""
    set_clock(clock, start)
    node = rig.hosts(1)[0]
    task = make_task(rig, cron_expr="30 2 * * *", timezone=BERLIN, not_after_s=86_400)
    while due_at(rig, task) <= expected[-1]:
        set_clock(clock, due_at(rig, task))
        for _ in range(3):
            tick(rig)
            clock.advance(minutes=10)
        rig.run(node)
    assert runs(rig) == expected
    assert events(rig) == []


@pytest.mark.parametrize(
    ("start", "end", "hours"),
    [(utc(2027, 10, 30, 22), utc(2027, 10, 31, 23), 25), (utc(2027, 3, 27, 23), utc(2027, 3, 28, 22), 23)],
)
def test_an_hourly_schedule_runs_in_every_hour_that_there_is(
    rig: Rig, clock: Clock, start: datetime, end: datetime, hours: int
) -> None:
    set_clock(clock, start)
    node = rig.hosts(1)[0]
    task = make_task(rig, cron_expr="15 * * * *", timezone=BERLIN, not_after_s=86_400)
    while due_at(rig, task) < end:
        go_to(rig, clock, task)
        tick(rig)
        rig.run(node)
    assert len(set(runs(rig))) == len(runs(rig)) == hours
    assert events(rig) == []


# Schedulers


class KilledError(BaseException):
    """The process is gone; what it had open, the database undoes."""


@contextmanager
def killed_at(app: Flask, number: int) -> Iterator[list[int]]:
    """Dies at the statement of this number."""
    seen = [0]

    def count(*_given: object) -> None:
        seen[0] += 1
        if seen[0] == number:
            raise KilledError

    with app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", count)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", count)


def test_a_scheduler_killed_at_any_statement_of_the_due_minute_has_run_it_once(
    rig: Rig, clock: Clock, app: Flask
) -> None:
    node = rig.hosts(1)[0]
    task = make_task(rig, not_after_s=86_400)
    number, was_killed = 0, True
    while was_killed:
        number += 1
        due = go_to(rig, clock, task)
        before = len(runs(rig))
        was_killed = False
        with killed_at(app, number):
            try:
                tick(rig)
            except KilledError:
                was_killed = True
        clock.advance(seconds=20)  # it takes a while to start again
        tick(rig)
        tick(rig)
        assert runs(rig)[before:] == [due], f"killed at statement {number}"
        assert rig.run(node) == 1
    assert number > 10
    assert events(rig) == []


def test_down_for_the_due_moment_and_back_in_the_same_minute(rig: Rig, clock: Clock) -> None:
    rig.hosts(1)
    task = make_task(rig)
    due = go_to(rig, clock, task, seconds=45)
    tick(rig)
    assert (runs(rig), events(rig)) == ([due], [])


# Reports


def test_a_report_whose_answer_was_lost_is_told_again_and_counts_once(rig: Rig, cast: dict[str, Api]) -> None:
    nodes = rig.hosts(2)
    run = started(cast["oscar"], made(cast["oscar"], retry_count=1, retry_interval=0)["id"])
    order = rig.fetch(nodes[0])[0].id
    reports: list[Any] = [
        Accept(order, "accept", now_text()),
        Start(order, "start", now_text(), 1),
        Output(order, "output", 0, "stdout", 0, b"hello\n", False),
        result(order, "failed", exit_code=1),
    ]
    for _ in range(3):
        assert rig.report(nodes[0], *reports) == [True] * 4
    again = rig.fetch(nodes[0])
    assert len(again) == 1, "tried again once, not three times"
    rig.end(nodes[0], again[0].id)
    rig.run(nodes[1])
    found = shown(cast["vera"], f"/executions/{run}")
    assert (found["success"], found["failed"], found["status"]) == (2, 0, "success")
    with rig.app.app_context():
        assert db.session().scalar(select(func.count()).select_from(TaskOutput)) == 1


# Hosts that are away


def test_a_host_that_comes_back_in_time_runs_it(rig: Rig, cast: dict[str, Api], clock: Clock) -> None:
    node = rig.hosts(1, status=OFFLINE)[0]
    run = started(cast["oscar"], made(cast["oscar"], not_after_s=600)["id"])
    clock.advance(seconds=590)
    rig.sweep()
    assert rig.fetch(node) == []
    rig.set_node(node, status=ONLINE)
    rig.sweep()
    assert rig.run(node) == 1
    assert shown(cast["vera"], f"/executions/{run}")["status"] == "success"


def test_a_host_that_comes_back_too_late_never_gets_it(rig: Rig, cast: dict[str, Api], clock: Clock) -> None:
    node = rig.hosts(1, status=OFFLINE)[0]
    run = started(cast["oscar"], made(cast["oscar"], not_after_s=600)["id"])
    clock.advance(seconds=601)
    rig.set_node(node, status=ONLINE)
    rig.sweep()
    assert rig.fetch(node) == []
    found = shown(cast["vera"], f"/executions/{run}")
    assert (found["status"], found["records"][0]["status"], found["records"][0]["error_code"]) == (
        "failed", "expired", "not_delivered",
    )  # fmt: skip


def test_a_host_that_went_away_before_it_fetched_its_order_in_time(
    rig: Rig, cast: dict[str, Api], clock: Clock
) -> None:
    node = rig.hosts(1)[0]
    run = started(cast["oscar"], made(cast["oscar"], not_after_s=60)["id"])
    rig.set_node(node, status=OFFLINE)
    clock.advance(seconds=61)
    rig.set_node(node, status=ONLINE)
    assert rig.fetch(node) == [], "not even before the next sweep"
    rig.sweep()
    assert shown(cast["vera"], f"/executions/{run}")["records"][0]["error_code"] == "not_delivered"


# Rights


@pytest.mark.parametrize(("values", "why"), [({"role": "viewer"}, "role"), ({"status": "disabled"}, "account")])
def test_rights_taken_away_between_the_click_and_a_host_s_turn(
    rig: Rig, cast: dict[str, Api], values: dict[str, str], why: str
) -> None:
    nodes = rig.hosts(3)
    run = started(cast["oscar"], made(cast["oscar"], max_parallel=1)["id"])
    rig.do(lambda: db.session().execute(update(User).where(User.username == "oscar").values(values)))
    assert rig.run(nodes[0]) == 1, "it was his right when this host's turn came"
    assert [rig.fetch(node) for node in nodes[1:]] == [[], []]
    records = shown(cast["vera"], f"/executions/{run}")["records"]
    assert [record["status"] for record in records] == ["success", "failed", "failed"], why
    assert records[1]["error"] == "oscar may no longer do this"


# Very many hosts


def test_a_run_on_a_whole_fleet_takes_a_bounded_number_of_statements(
    rig: Rig, cast: dict[str, Api], app: Flask
) -> None:
    rig.hosts(5000)
    task = made(cast["oscar"])
    with killed_at(app, 0) as seen:
        run = started(cast["oscar"], task["id"])
    assert seen[0] < 120, "rows go in by the thousand"
    found = shown(cast["vera"], f"/executions/{run}")
    assert (found["total"], found["pending"], len(found["records"])) == (5000, 5000, 100)
    with rig.app.app_context():
        assert db.session().scalar(select(func.count()).select_from(Command)) == 5000
        assert db.session().scalar(select(func.count()).select_from(TaskRun)) == 1
