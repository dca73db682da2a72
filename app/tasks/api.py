"""Tasks, their templates, runs ("executions") and records for programs."""

from typing import Any
from uuid import UUID

from app.kernel.access import current_actor
from app.kernel.api import ApiRoom, Listing
from app.kernel.clock import now
from app.kernel.db import db
from app.kernel.errors import Conflict, NotFound
from app.kernel.paging import Page
from app.tasks import actions, following, queries, running
from app.tasks.cron import next_times
from app.tasks.errors import NotInThisState, TaskNotFound
from app.tasks.library import LIBRARY
from app.tasks.models import API, Task, TaskRun, TaskTemplate
from app.tasks.schemas import (
    OutputOut,
    OutputQuery,
    ReadyTemplates,
    RecordQuery,
    RetryIn,
    RunOut,
    RunOutputOut,
    RunOutputQuery,
    RunQuery,
    RunStarted,
    ScheduleIn,
    ScheduleOut,
    TaskIn,
    TaskOut,
    TaskPreview,
    TaskQuery,
    TaskRunQuery,
    TaskUpdate,
    TemplateIn,
    TemplateOut,
    TemplateQuery,
)

api = ApiRoom("tasks", "Tasks and executions")


@api.get("/tasks", permission="tasks.read", summary="Tasks, newest first", query=TaskQuery, returns=Listing[TaskOut])
def list_tasks(query: TaskQuery) -> Page[Task]:
    return queries.tasks(db.session(), query)


@api.post(
    "/tasks",
    permission="tasks.edit",
    summary="A new task, of its own content or from a template",
    body=TaskIn,
    returns=TaskOut,
    status=201,
    errors=(NotFound,),
    is_idempotent=True,
)
def create_task(body: TaskIn) -> Task:
    return actions.create_task(db.session(), current_actor(), body)


@api.get("/tasks/<id:task_id>", permission="tasks.read", summary="One task", returns=TaskOut, errors=(TaskNotFound,))
def show_task(task_id: int) -> Task:
    return queries.task_by_id(db.session(), task_id)


@api.put(
    "/tasks/<id:task_id>",
    permission="tasks.edit",
    summary="Change a task; what is left out stays",
    body=TaskUpdate,
    returns=TaskOut,
    errors=(TaskNotFound,),
)
def update_task(task_id: int, body: TaskUpdate) -> Task:
    return actions.update_task(db.session(), current_actor(), task_id, body)


@api.delete(
    "/tasks/<id:task_id>",
    permission="tasks.delete",
    summary="Delete a task; its history stays",
    errors=(TaskNotFound, NotInThisState),
)
def delete_task(task_id: int) -> None:
    actions.delete_task(db.session(), current_actor(), task_id)


@api.post(
    "/tasks/<id:task_id>/execute",
    permission="tasks.run",
    summary="Run a task now",
    returns=RunStarted,
    status=202,
    errors=(TaskNotFound, NotInThisState),
    is_idempotent=True,
)
def execute_task(task_id: int) -> dict[str, Any]:
    return _started(running.execute_task(db.session(), current_actor(), task_id, API))


def _started(run: TaskRun) -> dict[str, Any]:
    return {"execution_id": run.fanout.uuid, "total_nodes": run.fanout.total}


@api.post(
    "/tasks/<id:task_id>/preview",
    permission="tasks.read",
    summary="The very hosts that a task would run on now",
    returns=TaskPreview,
    errors=(TaskNotFound,),
)
def preview_task(task_id: int) -> dict[str, Any]:
    return queries.preview(db.session(), queries.task_by_id(db.session(), task_id))


@api.post(
    "/tasks/schedule-preview",
    permission="tasks.read",
    summary="The next times that a cron expression means",
    body=ScheduleIn,
    returns=ScheduleOut,
)
def preview_schedule(body: ScheduleIn) -> dict[str, Any]:
    return {"times": next_times(body.cron_expr, body.timezone, now(), body.count)}


@api.get(
    "/tasks/<id:task_id>/executions",
    permission="tasks.read",
    summary="Runs of a task, newest first",
    query=TaskRunQuery,
    returns=Listing[RunOut],
    errors=(TaskNotFound,),
)
def list_task_runs(task_id: int, query: TaskRunQuery) -> dict[str, Any]:
    queries.task_by_id(db.session(), task_id)
    return _runs(RunQuery(task_id=task_id, **query.model_dump(exclude_unset=True)))


@api.get("/executions", permission="tasks.read", summary="Runs, newest first", query=RunQuery, returns=Listing[RunOut])
def list_runs(query: RunQuery) -> dict[str, Any]:
    return _runs(query)


def _runs(query: RunQuery) -> dict[str, Any]:
    found = queries.runs(db.session(), query)
    items = queries.shown_runs(db.session(), found.items)
    return {"total": found.total, "items": items, "page": found.page, "page_size": found.page_size}


@api.get(
    "/executions/<uuid:execution_id>",
    permission="tasks.read",
    summary="One run with its records",
    query=RecordQuery,
    returns=RunOut,
    errors=(NotFound,),
)
def show_run(execution_id: UUID, query: RecordQuery) -> dict[str, Any]:
    run = queries.run_by_uuid(db.session(), str(execution_id))
    return queries.shown_runs(db.session(), [run])[0] | {"records": queries.shown_records(db.session(), run, query)}


@api.post(
    "/executions/<uuid:execution_id>/cancel",
    permission="tasks.run",
    summary="Cancel a run: what no host has yet at once, the rest on the hosts",
    returns=RunOut,
    errors=(NotFound, NotInThisState),
)
def cancel_run(execution_id: UUID) -> dict[str, Any]:
    run = running.cancel_run(db.session(), current_actor(), str(execution_id))
    return queries.shown_runs(db.session(), [run])[0]


@api.post(
    "/executions/<uuid:execution_id>/retry",
    permission="tasks.run",
    summary="Run again on the hosts that failed",
    body=RetryIn,
    returns=RunStarted,
    status=202,
    errors=(NotFound, NotInThisState),
    is_idempotent=True,
)
def retry_run(execution_id: UUID, body: RetryIn) -> dict[str, Any]:
    return _started(running.retry_run(db.session(), current_actor(), str(execution_id), body.only, API))


@api.post(
    "/executions/<uuid:execution_id>/records/<id:record_id>/cancel",
    permission="tasks.run",
    summary="Cancel a run on one host",
    returns=RunOut,
    errors=(NotFound, NotInThisState),
)
def cancel_record(execution_id: UUID, record_id: int) -> dict[str, Any]:
    run = queries.run_by_uuid(db.session(), str(execution_id))
    queries.record_view(db.session(), run, record_id)
    running.cancel_record(db.session(), current_actor(), str(execution_id), record_id)
    return queries.shown_runs(db.session(), [run])[0]


@api.get(
    "/executions/<uuid:execution_id>/records/<id:record_id>/output",
    permission="tasks.read",
    summary="What a record's program wrote, from an offset on; waits for it if asked to",
    query=OutputQuery,
    returns=OutputOut,
    errors=(NotFound,),
)
def show_output(execution_id: UUID, record_id: int, query: OutputQuery) -> dict[str, Any]:
    asked = query.stream, query.offset, query.attempt, query.wait_s
    return following.record_output(str(execution_id), record_id, *asked)


@api.get(
    "/executions/<uuid:execution_id>/output",
    permission="tasks.read",
    summary="What all hosts of a run wrote, in the order in which it came",
    query=RunOutputQuery,
    returns=RunOutputOut,
    errors=(NotFound,),
)
def show_run_output(execution_id: UUID, query: RunOutputQuery) -> dict[str, Any]:
    return following.run_output(str(execution_id), query.after or "", query.wait_s, query.record_id, query.newest)


@api.get(
    "/task-templates",
    permission="tasks.read",
    summary="Templates by name",
    query=TemplateQuery,
    returns=Listing[TemplateOut],
)
def list_templates(query: TemplateQuery) -> Page[TaskTemplate]:
    return queries.templates(db.session(), query)


@api.get(
    "/task-templates/library",
    permission="tasks.read",
    summary="Ready templates that come with the product",
    returns=ReadyTemplates,
)
def list_ready_templates() -> dict[str, Any]:
    names = ("key", "type", "content", "parameters")
    return {
        "items": [
            {name: getattr(ready, name) for name in names}
            | {"name": str(ready.name), "description": str(ready.description)}
            for ready in LIBRARY
        ]
    }


@api.post(
    "/task-templates/library/<key>",
    permission="tasks.edit",
    summary="Have a copy of a ready template, to be changed and used",
    returns=TemplateOut,
    status=201,
    errors=(NotFound, Conflict),
    is_idempotent=True,
)
def copy_ready_template(key: str) -> TaskTemplate:
    return actions.copy_ready_template(db.session(), current_actor(), key)


@api.post(
    "/task-templates",
    permission="tasks.edit",
    summary="A new template with typed parameters",
    body=TemplateIn,
    returns=TemplateOut,
    status=201,
    errors=(Conflict,),
    is_idempotent=True,
)
def create_template(body: TemplateIn) -> TaskTemplate:
    return actions.create_template(db.session(), current_actor(), body)


@api.get(
    "/task-templates/<id:template_id>",
    permission="tasks.read",
    summary="One template",
    returns=TemplateOut,
    errors=(NotFound,),
)
def show_template(template_id: int) -> TaskTemplate:
    return queries.template_by_id(db.session(), template_id)


@api.put(
    "/task-templates/<id:template_id>",
    permission="tasks.edit",
    summary="Change a template; tasks made from it keep what it said",
    body=TemplateIn,
    returns=TemplateOut,
    errors=(NotFound, Conflict),
)
def update_template(template_id: int, body: TemplateIn) -> TaskTemplate:
    return actions.update_template(db.session(), current_actor(), template_id, body)


@api.delete(
    "/task-templates/<id:template_id>",
    permission="tasks.delete",
    summary="Delete a template; tasks made from it stay",
    errors=(NotFound,),
)
def delete_template(template_id: int) -> None:
    actions.delete_template(db.session(), current_actor(), template_id)
