"""Runs of tasks: begun by people, programs and schedules; cancelled, tried again; and what their hosts write."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from flask_babel import gettext as _
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.audit.actions import record
from app.commands import fanouts
from app.commands.fanouts import Plan
from app.commands.hooks import Purpose, Settled
from app.commands.models import Command, Fanout
from app.events.actions import note
from app.kernel.access import Actor, Role, authorize
from app.kernel.clock import now, rfc3339
from app.kernel.errors import BadParameter, Conflict, FieldError
from app.kernel.wake import tell_after_commit
from app.people.models import User
from app.tasks.actions import is_running
from app.tasks.cron import due, next_time
from app.tasks.errors import NotInThisState
from app.tasks.files import order_file
from app.tasks.models import ENABLED, SCHEDULE, Task, TaskFile, TaskRun
from app.tasks.policy import check_root, refuse
from app.tasks.queries import run_by_uuid, task_by_id
from app.tasks.taking import record_topic, run_topic
from app.tasks.targeting import targets_of

KIND, CANCEL_KIND, NAME = "task.run", "task.cancel", "task"
TOLD_AT_ONCE = 100
PUNCTUAL = timedelta(seconds=60)
"""How late a due time may be taken up without being missed: a restart in the due minute must not lose it."""


def execute_task(session: Session, actor: Actor, task_id: int, triggered_by: str) -> TaskRun:
    """Begin a run on all hosts that the task means now. Raises NotInThisState for a task that is switched off."""
    authorize(actor, "tasks.run")
    task = task_by_id(session, task_id)
    if task.status != ENABLED:
        raise NotInThisState(_("This task is switched off."))
    check_root(actor, task.type, task.content)
    run = _begin(session, actor, task, triggered_by)
    after = {"execution_id": run.fanout.uuid, "total": run.fanout.total}
    record(session, actor, "task.execute", "task", task.id, after=after)
    return run


def _begin(
    session: Session, actor: Actor, task: Task, triggered_by: str, scheduled_for: datetime | None = None
) -> TaskRun:
    targets = targets_of(session, task.target_type, task.target_value)
    if not targets:
        raise BadParameter(errors=[FieldError("target_value", _("No host fits."))])
    plan = Plan(
        NAME,
        KIND,
        _payload(task) | order_file(session, task.type, task.content),
        title=task.name,
        max_parallel=task.max_parallel,
        max_errors=task.max_errors,
        deliver_within_s=task.not_after_s,
        run_within_s=task.timeout,
        retries=task.retry_count,
        retry_interval_s=task.retry_interval,
    )
    fanout = fanouts.start_fanout(session, actor, plan, targets)
    return _note_run(session, fanout, task.id, task.name, triggered_by, task.file_id, scheduled_for)


def _note_run(
    session: Session,
    fanout: Fanout,
    task_id: int | None,
    task_name: str,
    triggered_by: str,
    file_id: int | None,
    scheduled_for: datetime | None = None,
) -> TaskRun:
    run = TaskRun(
        fanout=fanout,
        task_id=task_id,
        task_name=task_name,
        triggered_by=triggered_by,
        file_id=file_id,
        scheduled_for=scheduled_for,
    )
    session.add(run)
    session.flush()
    return run


def _payload(task: Task) -> dict[str, Any]:
    """The body of the task agent's `execute`, to which the Daemon adds the command's id and deadline."""
    return {"type": task.type, "content": task.content, "parameters": task.parameters, "timeout": task.timeout}


def cancel_run(session: Session, actor: Actor, uuid: str) -> TaskRun:
    run = run_by_uuid(session, uuid)
    try:
        fanouts.cancel_fanout(session, actor, run.fanout_id)
    except Conflict as error:
        raise NotInThisState(error.message) from None
    return run


def cancel_record(session: Session, actor: Actor, uuid: str, record_id: int) -> TaskRun:
    run = run_by_uuid(session, uuid)
    try:
        fanouts.cancel_targets(session, actor, run.fanout_id, [record_id])
    except Conflict as error:
        raise NotInThisState(error.message) from None
    return run


def retry_run(session: Session, actor: Actor, uuid: str, only: str, triggered_by: str) -> TaskRun:
    """Once more on the hosts that failed, as a run of its own, with what the first one was begun with."""
    run = run_by_uuid(session, uuid)
    if run.file_id is not None and session.get(TaskFile, run.file_id) is None:
        raise NotInThisState(_("The file of this run was deleted."))
    try:
        again = fanouts.retry_failed(session, actor, run.fanout_id)
    except Conflict as error:
        raise NotInThisState(error.message) from None
    after = {"execution_id": again.uuid, "repeats": uuid, "only": only}
    record(session, actor, "task.retry", "task", run.task_id, after=after)
    return _note_run(session, again, run.task_id, run.task_name, triggered_by, run.file_id)


def tell_of_settled(session: Session, fanout: Fanout, settled: Sequence[Settled]) -> None:
    """Whoever holds a request about the run or one of its records looks again; for very many, only about the run."""
    records = [record_topic(one.target_id) for one in settled] if len(settled) <= TOLD_AT_ONCE else []
    tell_after_commit(session, run_topic(fanout.id), *records)


def cancel_order(_session: Session, _fanout: Fanout, command: Command) -> tuple[str, Mapping[str, Any]]:
    return CANCEL_KIND, {"command": command.uuid}


PURPOSE = Purpose(NAME, "tasks.run", refuse=refuse, cancel_order=cancel_order, on_settled=tell_of_settled)


def due_tasks(session: Session, at: datetime) -> list[int]:
    found = select(Task.id).where(Task.status == ENABLED, Task.next_run_at <= at).order_by(Task.next_run_at, Task.id)
    return list(session.scalars(found.limit(200)))


def run_due_task(session: Session, task_id: int) -> TaskRun | None:
    """Take up a task's due time, if nobody else has: of two schedulers, one moves `next_run_at` and so has it."""
    task, at = session.get(Task, task_id, populate_existing=True), now()
    if task is None or task.next_run_at is None or task.cron_expr is None or task.next_run_at > at:
        return None
    claimed = task.next_run_at
    mine = (Task.id == task.id, Task.next_run_at == claimed, Task.status == ENABLED)
    moved = update(Task).where(*mine).values(next_run_at=next_time(task.cron_expr, task.timezone, at))
    if session.execute(moved.execution_options(synchronize_session=False)).rowcount != 1:  # type: ignore[attr-defined]
        return None
    latest, missed = due(task.cron_expr, task.timezone, claimed, at)
    is_missed = at - latest > max(PUNCTUAL, timedelta(seconds=task.catch_up_s))
    if missed or is_missed:
        count = missed + is_missed
        _note(session, task, "task.run_missed", f"{count} runs of {task.name} were missed", latest, missed=count)
    if is_missed:
        return None
    if is_running(session, task.id):
        _note(session, task, "task.run_skipped", f"{task.name} was skipped: the run before still goes on", latest)
        return None
    try:
        return _begin(session, _scheduler(session, task), task, SCHEDULE, latest)
    except BadParameter as error:
        why = error.errors[0]["message"] if error.errors else str(error.message)
        _note(session, task, "task.run_skipped", f"{task.name} was skipped: {why}", latest, no_host=why)
        return None


def _scheduler(session: Session, task: Task) -> Actor:
    """Who changed the task last answers for what its schedule does: with today's rights, looked at by the engine."""
    user = None if task.responsible_id is None else session.get(User, task.responsible_id)
    role = Role(user.role) if user is not None else None
    return Actor("schedule", task.responsible_id, task.responsible, role)


def _note(session: Session, task: Task, kind: str, text: str, scheduled_for: datetime, **more: object) -> None:
    data = {"task_id": task.id, "task": task.name, "scheduled_for": rfc3339(scheduled_for)} | more
    note(session, kind, text, severity="warning", data=data)
