"""Schedules: due once and not twice, skipped while the run before goes on, missed while nobody was there."""

import threading
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select

from app.commands.models import Command, Fanout
from app.events.models import Event
from app.kernel.access import Actor, Role
from app.kernel.db import db
from app.people.models import User
from app.tasks import actions, running
from app.tasks.jobs import run_due_tasks
from app.tasks.models import Task, TaskRun
from app.tasks.schemas import TaskIn, TaskUpdate
from tests.commands.rig import SYSTEM, Clock, Rig
from tests.factories import make_user

SCRIPT = {"script": "true"}


def make_task(rig: Rig, actor: Actor = SYSTEM, **values: Any) -> int:
    given = {"name": "t", "type": "script", "content": SCRIPT, "target_type": "all", "cron_expr": "*/10 * * * *"}
    return rig.do(lambda: actions.create_task(db.session(), actor, TaskIn(**(given | values))).id)


def tick(rig: Rig) -> None:
    with rig.app.app_context():
        run_due_tasks()
        db.session.remove()


def runs(rig: Rig) -> list[datetime | None]:
    with rig.app.app_context():
        return list(db.session().scalars(select(TaskRun.scheduled_for).order_by(TaskRun.id)))


def events(rig: Rig) -> list[str]:
    with rig.app.app_context():
        return list(db.session().scalars(select(Event.kind).where(Event.kind.like("task.%")).order_by(Event.id)))


def due_at(rig: Rig, task: int) -> datetime:
    with rig.app.app_context():
        found = db.session().scalar(select(Task.next_run_at).where(Task.id == task))
        assert found is not None
        return found


def go_to(rig: Rig, clock: Clock, task: int, **later: float) -> datetime:
    due = due_at(rig, task)
    clock.advance(seconds=(due - clock()).total_seconds())
    clock.advance(**({"seconds": 1} | later))
    return due


def test_it_runs_when_it_is_due_and_only_then(rig: Rig, clock: Clock) -> None:
    node = rig.hosts(1)[0]
    task = make_task(rig)
    tick(rig)
    assert runs(rig) == []
    due = go_to(rig, clock, task)
    tick(rig)
    tick(rig)
    assert runs(rig) == [due]
    assert due_at(rig, task) == due + timedelta(minutes=10)
    assert rig.run(node) == 1
    later = go_to(rig, clock, task)
    tick(rig)
    assert runs(rig) == [due, later]
    assert events(rig) == []


def test_a_task_that_is_switched_off_is_never_due(rig: Rig, clock: Clock) -> None:
    rig.hosts(1)
    task = make_task(rig)
    go_to(rig, clock, task)
    rig.do(lambda: db.session().execute(Task.__table__.update().values(status="disabled")))
    tick(rig)
    assert runs(rig) == []


def test_two_schedulers_at_the_same_moment_run_it_once(rig: Rig, clock: Clock) -> None:
    rig.hosts(1)
    task = make_task(rig)
    due = go_to(rig, clock, task)
    gate, errors = threading.Barrier(4), list[BaseException]()

    def schedule() -> None:
        gate.wait()
        try:
            rig.do(partial(_run_due, task))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors.append(error)

    threads = [threading.Thread(target=schedule) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert runs(rig) == [due]
    assert len(rig.commands(Command.kind == "task.run")) == 1


def _run_due(task: int) -> None:
    running.run_due_task(db.session(), task)


def test_while_the_run_before_goes_on_the_next_is_skipped_and_recorded(rig: Rig, clock: Clock) -> None:
    node = rig.hosts(1)[0]
    task = make_task(rig, not_after_s=10_000)
    first = go_to(rig, clock, task)
    tick(rig)
    go_to(rig, clock, task)
    tick(rig)
    assert (runs(rig), events(rig)) == ([first], ["task.run_skipped"])
    rig.run(node)
    third = go_to(rig, clock, task)
    tick(rig)
    assert runs(rig) == [first, third]


@pytest.mark.parametrize(
    ("late_s", "catch_up_s", "has_run"), [(30, 0, True), (90, 0, False), (90, 120, True), (500, 120, False)]
)
def test_what_was_missed_is_recorded_and_the_latest_runs_if_it_is_not_too_late(
    rig: Rig, clock: Clock, late_s: int, catch_up_s: int, has_run: bool
) -> None:
    rig.hosts(1)
    task = make_task(rig, catch_up_s=catch_up_s)
    due = go_to(rig, clock, task, minutes=50, seconds=late_s)
    tick(rig)
    latest = due + timedelta(minutes=50)
    assert runs(rig) == ([latest] if has_run else [])
    assert events(rig) == ["task.run_missed"]
    assert due_at(rig, task) == latest + timedelta(minutes=10)


def test_a_schedule_without_any_host_says_so(rig: Rig, clock: Clock) -> None:
    task = make_task(rig)
    go_to(rig, clock, task)
    tick(rig)
    assert (runs(rig), events(rig)) == ([], ["task.run_skipped"])


def test_a_schedule_has_the_rights_of_whoever_made_it_as_they_are_today(rig: Rig, clock: Clock) -> None:
    nodes = rig.hosts(2)
    user_id = rig.do(lambda: make_user("oscar", "operator").id)
    task = make_task(rig, Actor("user", user_id, "oscar", Role.OPERATOR))
    rig.do(lambda: db.session().execute(User.__table__.update().values(status="disabled")))
    go_to(rig, clock, task)
    tick(rig)
    assert len(runs(rig)) == 1
    assert [rig.fetch(node) for node in nodes] == [[], []]


def test_a_schedule_has_the_rights_of_whoever_changed_last_what_it_does(rig: Rig, clock: Clock) -> None:
    node = rig.hosts(1)[0]
    alice, oscar = (
        Actor("user", rig.do(partial(_person, name, role)), name, role)
        for name, role in (("alice", Role.ADMIN), ("oscar", Role.OPERATOR))
    )
    task = make_task(rig, alice)

    def save(actor: Actor, **values: Any) -> None:
        rig.do(lambda: actions.update_task(db.session(), actor, task, TaskUpdate(**values)).id)

    def answers() -> list[str | None]:
        go_to(rig, clock, task)
        tick(rig)
        rig.run(node)
        with rig.app.app_context():
            return list(db.session().scalars(select(Fanout.created_by).order_by(Fanout.id)))

    save(oscar, name="another name", cron_expr="*/10 * * * *")
    assert answers() == ["alice"]
    save(oscar, parameters={"PATH": "/"})
    assert answers() == ["alice", "oscar"]
    save(alice, target_type="node", target_value=[node])
    assert answers() == ["alice", "oscar", "alice"]


def _person(name: str, role: Role) -> int:
    return make_user(name, role.value).id


def test_one_broken_task_does_not_hold_up_the_others(rig: Rig, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    rig.hosts(1)
    broken, good = make_task(rig), make_task(rig)
    rig.do(lambda: db.session().execute(Task.__table__.update().where(Task.id == broken).values(timezone="No/Where")))
    go_to(rig, clock, good)
    tick(rig)
    assert len(runs(rig)) == 1
    assert f"task {broken} could not be run" in caplog.text
