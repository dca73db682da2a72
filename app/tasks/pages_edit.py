"""A task's form for people: new, changed, saved and run at once. What it comes to is shown while it is filled in."""

from collections.abc import Callable
from typing import Any

from flask import Blueprint, make_response, render_template, request, url_for
from flask_babel import gettext as _
from flask_babel import ngettext
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.agents.pages import TYPED_ABOVE
from app.kernel.access import Role, current_actor
from app.kernel.db import db
from app.kernel.edges import page, see_other
from app.kernel.errors import FieldError, Forbidden
from app.kernel.forms import OVERALL
from app.kernel.htmx import fragment_of
from app.kernel.live_settings import live_settings
from app.nodes import group_queries
from app.nodes.queries import all_tags
from app.shell import tell
from app.tasks import actions, definition_queries, queries, running
from app.tasks.forms import TEMPLATE, TaskForm, form_from, form_of, received, template_of, template_values
from app.tasks.models import MANUAL, Task, TaskFile
from app.tasks.previewing import hosts_of, typed_hosts, typed_times
from app.tasks.schemas import TaskIn, TaskUpdate
from config import known_time_zones

pages = Blueprint("task_form", __name__)

FRAGMENTS = {"hosts": "tasks/_hosts.html", "times": "tasks/_times.html", "parameters": "tasks/_parameters.html"}
"""What a step of the form shows: also the part of the page that htmx asks for."""
FILES_SHOWN = 200


@page(pages, "/tasks/new", permission="tasks.edit")
def new_task() -> str:
    return _form_page(form_from(db.session(), request.args), None)


@page(pages, "/tasks/new", permission="tasks.edit", methods=("POST",))
def create_task() -> Any:
    return _submitted(None, _create)


def _create(values: TaskIn) -> tuple[Task, str]:
    session, actor = db.session(), current_actor()
    return _begun(actions.create_task(session, actor, values))


@page(pages, "/tasks/<id:task_id>/edit", permission="tasks.edit")
def edit_task(task_id: int) -> str:
    session = db.session()
    task = queries.task_by_id(session, task_id)
    return _form_page(form_of(session, task), task)


@page(pages, "/tasks/<id:task_id>/edit", permission="tasks.edit", methods=("POST",))
def update_task(task_id: int) -> Any:
    def save(values: TaskIn) -> tuple[Task, str]:
        # A template's content was taken when the task was made, and stays until somebody writes another one.
        left_out = {"template_id"} | ({"type", "content"} if values.template_id is not None else set())
        change = TaskUpdate.model_validate(values.model_dump(exclude=left_out))
        return _begun(actions.update_task(db.session(), current_actor(), task_id, change))

    return _submitted(queries.task_by_id(db.session(), task_id), save)


def _begun(task: Task) -> tuple[Task, str]:
    """Run it if the button says so; where its hosts are many, the next page asks for their number first."""
    session = db.session()
    if request.form.get("step") != "run":
        return task, url_for("tasks.show_task", task_id=task.id)
    if hosts_of(session, task).total > TYPED_ABOVE:
        return task, url_for("tasks.confirm_execute", task_id=task.id)
    run = running.execute_task(session, current_actor(), task.id, MANUAL)
    tell(ngettext("It runs on %(num)s host.", "It runs on %(num)s hosts.", run.fanout.total))
    return task, url_for("runs.show_run", execution_id=run.fanout.uuid)


def _submitted(before: Task | None, save: Callable[[TaskIn], tuple[Task, str]]) -> Any:
    session, step = db.session(), request.form.get("step", "")
    form = received(session, request.form, before)
    if step in FRAGMENTS:
        return _shown(step, form, before)
    task_id = before.id if before is not None else None
    try:
        saved = form.submit(save)
    except Forbidden as error:
        if error.refusal is None or error.refusal.resource_id != "tasks.root":
            raise
        session.rollback()
        form.add_errors([FieldError(_root_field(form), str(error.message))])
        error.response = make_response(_form_page(form, _again(task_id)), error.status)
        raise
    if saved is None:
        return _form_page(form, _again(task_id)), 422
    task, address = saved
    tell(_("%(name)s was saved.", name=task.name))
    return see_other(address)


def _again(task_id: int | None) -> Task | None:
    """The task as the database has it: what the form wanted of it was undone."""
    return None if task_id is None else queries.task_by_id(db.session(), task_id)


def _root_field(form: TaskForm) -> str:
    return "user" if form.values.get("type") == "script" else OVERALL


def _shown(step: str, form: TaskForm, before: Task | None) -> str:
    """Nothing is saved yet, so nothing is complained about: a part of the page, or all of it without JavaScript."""
    session = db.session()
    form.errors = {}
    if step == "parameters" and (template := template_of(session, form, before)) is not None:
        form.values = template_values(template) | {name: value for name, value in form.values.items() if value != ""}
        form.values["type"] = TEMPLATE
    if not fragment_of(step):
        return _form_page(form, before)
    return render_template(FRAGMENTS[step], **_parts(session, form, before))


def _parts(session: Session, form: TaskForm, before: Task | None) -> dict[str, Any]:
    return {
        "form": form,
        "task": before,
        "hosts": typed_hosts(session, form.values),
        "times": typed_times(form.values),
        "template": template_of(session, form, before) if form.values.get("type") == TEMPLATE else None,
    }


def _form_page(form: TaskForm, before: Task | None) -> str:
    session, actor = db.session(), current_actor()
    tags = sorted({*all_tags(session), *(form.values.get("tags") or [])})
    return render_template(
        "tasks/new.html" if before is None else "tasks/edit.html",
        **_parts(session, form, before),
        action=request.path,
        templates=definition_queries.template_choices(session),
        groups=group_queries.group_tree(session),
        tags=tags,
        files=file_choices(session),
        time_zones=known_time_zones(),
        asks_for_user=actor.role is not Role.ADMIN and live_settings().tasks.root_requires_admin,
    )


def file_choices(session: Session) -> list[tuple[int, str]]:
    """The newest files that somebody brought here."""
    newest = select(TaskFile.id, TaskFile.name, TaskFile.created_by).order_by(TaskFile.id.desc()).limit(FILES_SHOWN)
    return [(id_, f"{name} · {by}" if by else name) for id_, name, by in session.execute(newest)]
