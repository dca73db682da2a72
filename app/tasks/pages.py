"""Tasks for people: the list, one task, its switch and its end, and running it once its hosts were shown."""

from dataclasses import replace
from json import dumps
from typing import Any

from flask import Blueprint, Response, render_template, request, url_for
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from werkzeug.wrappers import Response as AnyResponse

from app.agents.pages import TYPED_ABOVE
from app.kernel.access import current_actor
from app.kernel.db import db
from app.kernel.edges import page, see_other
from app.kernel.errors import BadParameter, FieldError
from app.kernel.exports import csv_response, json_response
from app.kernel.forms import OVERALL, Form
from app.kernel.htmx import render_part
from app.kernel.live_settings import live_settings
from app.kernel.paging import Column, Page, lenient_query
from app.shell import tell
from app.tasks import actions, definition_queries, queries, running, words
from app.tasks.errors import NotInThisState
from app.tasks.models import ENABLED, MANUAL, Task
from app.tasks.previewing import Hosts, hosts_of, times_of
from app.tasks.schemas import RunQuery, TaskOut, TaskQuery, TaskStatus, TaskUpdate
from app.tasks.showing import target_words

pages = Blueprint("tasks", __name__)
pages.record_once(lambda state: state.app.jinja_env.globals.update(words.FOR_TEMPLATES, task_json=_json))


def _json(value: Any) -> str:
    """To be read by people; what Jinja's own filter makes is for scripts."""
    return dumps(value, ensure_ascii=False, indent=2)


COLUMNS = (
    Column("name", _l("Task"), sortable=True),
    Column("type", _l("Type"), sortable=True),
    Column("target", _l("Where it runs")),
    Column("next_run_at", _l("When"), sortable=True),
    Column("status", _l("Status"), sortable=True),
    Column("last_run", _l("Last run")),
    Column("", ""),
)
FIELDS = tuple(TaskOut.model_fields)
RUNS_SHOWN = 5


@page(pages, "/tasks", permission="tasks.read")
def list_tasks() -> Any:
    session, query = db.session(), lenient_query(TaskQuery, request.args)
    if query.sort is not None and query.sort.removeprefix("-") not in queries.TASKS_SORTABLE:
        query = query.model_copy(update={"sort": None})
    if (wanted := request.args.get("format")) in ("csv", "json"):
        return _export(query, wanted)
    found = _with_words(queries.tasks(session, query))
    return render_part(
        "tasks-table",
        "tasks/_tasks_table.html",
        "tasks/tasks.html",
        page=found,
        columns=COLUMNS,
        targets={task.id: target_words(session, task.target_type, task.target_value) for task in found.items},
        runs=definition_queries.newest_runs(session, [task.id for task in found.items]),
        refresh_s=int(live_settings().ui.refresh_interval),
    )


def _with_words(found: Page[Task]) -> Page[Task]:
    """A filter that is "no" is one too: as text it is seen by the list's chips and choices."""
    shown = {name: str(value).lower() if isinstance(value, bool) else value for name, value in found.query.items()}
    return replace(found, query=shown)


def _export(query: TaskQuery, wanted: str) -> Response:
    rows = (
        TaskOut.model_validate(task).model_dump(mode="json")
        for task in definition_queries.exported_tasks(db.session(), query)
    )
    return csv_response("tasks", FIELDS, rows) if wanted == "csv" else json_response("tasks", rows)


@page(pages, "/tasks/<id:task_id>", permission="tasks.read")
def show_task(task_id: int) -> str:
    session = db.session()
    task = queries.task_by_id(session, task_id)
    runs = queries.runs(session, RunQuery(task_id=task_id, page_size=RUNS_SHOWN))
    is_due = task.cron_expr is not None and task.status == ENABLED
    hosts = _hosts(task)
    return render_template(
        "tasks/task.html",
        task=task,
        template=None if task.template_id is None else queries.template_by_id(session, task.template_id),
        target=target_words(session, task.target_type, task.target_value, most=20),
        hosts=hosts,
        typed=hosts.total > TYPED_ABOVE,
        times=times_of(task.cron_expr, task.timezone) if is_due and task.cron_expr else None,
        runs=queries.shown_runs(session, runs.items),
        runs_total=runs.total,
        is_running=actions.is_running(session, task_id),
    )


def _hosts(task: Task) -> Any:
    """Groups may have gone since the task was saved: then it says so instead of showing hosts."""
    try:
        return hosts_of(db.session(), task)
    except BadParameter as error:
        return Hosts(problem=error.errors[0]["message"] if error.errors else str(error.message))


@page(pages, "/tasks/<id:task_id>/execute", permission="tasks.run")
def confirm_execute(task_id: int) -> str:
    return _execute_page(queries.task_by_id(db.session(), task_id), Form())


@page(pages, "/tasks/<id:task_id>/execute", permission="tasks.run", methods=("POST",))
def execute_task(task_id: int) -> Any:
    """Few hosts run at once; how many they are has to be typed where they are many."""
    session, form = db.session(), Form[Any]()
    task = queries.task_by_id(session, task_id)
    hosts = _hosts(task)
    form.value = hosts.total
    if hosts.total > TYPED_ABOVE and request.form.get("confirm", "").strip() != str(hosts.total):
        if not request.form.get("asked"):
            return see_other(url_for("tasks.confirm_execute", task_id=task_id))
        form.add_errors([FieldError("confirm", _("Please type %(name)s.", name=hosts.total))])
        form.value = None
    try:
        run = form.submit(lambda _hosts: running.execute_task(session, current_actor(), task_id, MANUAL))
    except NotInThisState as error:
        form.add_errors([FieldError(OVERALL, str(error.message))])
        run = None
    if run is None:
        return _execute_page(queries.task_by_id(session, task_id), form), 422
    tell(ngettext("It runs on %(num)s host.", "It runs on %(num)s hosts.", run.fanout.total))
    return see_other(url_for("runs.show_run", execution_id=run.fanout.uuid))


def _execute_page(task: Task, form: Form[Any]) -> str:
    hosts = _hosts(task)
    return render_template(
        "tasks/execute.html",
        task=task,
        form=form,
        hosts=hosts,
        target=target_words(db.session(), task.target_type, task.target_value, most=20),
        typed=str(hosts.total) if hosts.total > TYPED_ABOVE else None,
    )


@page(pages, "/tasks/<id:task_id>/switch", permission="tasks.edit", methods=("POST",))
def switch_task(task_id: int) -> AnyResponse:
    wanted: TaskStatus = "enabled" if request.form.get("on") else "disabled"
    task = actions.update_task(db.session(), current_actor(), task_id, TaskUpdate(status=wanted))
    if wanted == ENABLED:
        tell(_("%(name)s is switched on.", name=task.name))
    else:
        tell(_("%(name)s is switched off: it runs neither by its schedule nor by hand.", name=task.name))
    return see_other(url_for("tasks.show_task", task_id=task_id))


@page(pages, "/tasks/<id:task_id>/delete", permission="tasks.delete")
def confirm_delete(task_id: int) -> str:
    return render_template("tasks/delete.html", task=queries.task_by_id(db.session(), task_id), form=Form())


@page(pages, "/tasks/<id:task_id>/delete", permission="tasks.delete", methods=("POST",))
def delete_task(task_id: int) -> Any:
    task, form = queries.task_by_id(db.session(), task_id), Form[Any]()
    name = task.name
    if request.form.get("confirm", "").strip() != name:
        form.add_errors([FieldError("confirm", _("Please type %(name)s.", name=name))])
        return render_template("tasks/delete.html", task=task, form=form), 422
    try:
        actions.delete_task(db.session(), current_actor(), task_id)
    except NotInThisState as error:
        form.add_errors([FieldError(OVERALL, str(error.message))])
        return render_template("tasks/delete.html", task=task, form=form), 422
    tell(_("%(name)s was deleted.", name=name))
    return see_other(url_for("tasks.list_tasks"))
