"""What people do with tasks and templates: create, change, delete. Running them is `running`'s business."""

from typing import Any

from flask_babel import gettext as _
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from app.audit.actions import record
from app.commands.models import UNFINISHED, Fanout
from app.commands.payloads import payload_text
from app.kernel.access import Actor, authorize
from app.kernel.clock import now
from app.kernel.errors import BadParameter, Conflict, FieldError, NotFound
from app.tasks.contents import Parameter, check_content, check_definitions, check_parameters
from app.tasks.cron import next_time
from app.tasks.errors import NotInThisState
from app.tasks.file_queries import file_id_of
from app.tasks.files import with_file
from app.tasks.library import BY_KEY
from app.tasks.models import ENABLED, Task, TaskRun, TaskTemplate
from app.tasks.policy import check_root
from app.tasks.queries import task_by_id, template_by_id
from app.tasks.schemas import TaskIn, TaskUpdate, TemplateIn
from app.tasks.targeting import condition_of

AUDITED = ("name", "type", "target_type", "target_value", "cron_expr", "timezone", "status", "content")
PLAIN = (
    "name",
    "cron_expr",
    "timezone",
    "catch_up_s",
    "timeout",
    "retry_count",
    "retry_interval",
    "max_parallel",
    "max_errors",
    "not_after_s",
    "status",
    "description",
    "parameters",
    "target_type",
    "target_value",
)
HARMLESS = ("name", "description")
"""Whoever changes anything else is responsible for what the task does from then on."""


def create_task(session: Session, actor: Actor, values: TaskIn) -> Task:
    authorize(actor, "tasks.edit")
    task = Task(**{name: getattr(values, name) for name in PLAIN})
    task.created_by, task.created_by_id = actor.username, actor.user_id
    task.responsible, task.responsible_id = actor.username, actor.user_id
    if values.template_id is not None:
        if values.type is not None or values.content is not None:
            raise BadParameter(errors=[FieldError("content", _("The template says this already."))])
        template = template_by_id(session, values.template_id)
        task.template_id, task.type, task.content = template.id, template.type, template.content
        task.parameters = check_parameters(template.parameters, values.parameters)
    elif values.type is None or values.content is None:
        missing = [name for name in ("type", "content") if getattr(values, name) is None]
        raise BadParameter(errors=[FieldError(name, _("This is needed.")) for name in missing])
    else:
        task.type, task.content = values.type, check_content(values.type, values.content)
    check_root(actor, task.type, task.content)
    _check(session, task)
    session.add(task)
    session.flush()
    record(session, actor, "task.create", "task", task.id, after=_audited(task))
    return task


def update_task(session: Session, actor: Actor, task_id: int, values: TaskUpdate) -> Task:
    """What is left out stays. Runs that go on keep what they were begun with."""
    authorize(actor, "tasks.edit")
    task, given = task_by_id(session, task_id), values.model_fields_set
    before, did = _audited(task), _does(task)
    for name in given & set(PLAIN):
        setattr(task, name, getattr(values, name))
    if given & {"type", "content"}:
        task.type = values.type if "type" in given else task.type
        task.content = check_content(task.type, values.content if "content" in given else task.content)
        task.template_id = None
    elif "parameters" in given and task.template_id is not None:
        task.parameters = check_parameters(template_by_id(session, task.template_id).parameters, values.parameters)
    # Also if the content stayed: other parameters, hosts or times make something else of it.
    check_root(actor, task.type, task.content)
    _check(session, task)
    if _does(task) != did:
        task.responsible, task.responsible_id = actor.username, actor.user_id
    task.updated_at = now()
    session.flush()
    record(session, actor, "task.update", "task", task.id, before, _audited(task))
    return task


def _check(session: Session, task: Task) -> None:
    """What concerns several fields; and when it runs next."""
    condition_of(session, task.target_type, task.target_value)
    task.content, task.file_id = with_file(session, task.type, task.content), file_id_of(task.type, task.content)
    if not task.template_id:
        for name in task.parameters:
            if not name.replace("_", "a").isalnum() or not name[:1].isalpha() or not name.isascii():
                raise BadParameter(errors=[FieldError(f"parameters.{name}", _("Letters, digits and _ are expected."))])
    payload_text({"content": task.content, "parameters": task.parameters})
    is_scheduled = task.status == ENABLED and task.cron_expr is not None
    task.next_run_at = next_time(task.cron_expr, task.timezone, now()) if is_scheduled and task.cron_expr else None


def delete_task(session: Session, actor: Actor, task_id: int) -> None:
    """Its history stays. Raises NotInThisState while a run goes on."""
    authorize(actor, "tasks.delete")
    task = task_by_id(session, task_id)
    if is_running(session, task.id):
        raise NotInThisState(_("It still runs. Cancel the run first."))
    record(session, actor, "task.delete", "task", task.id, before=_audited(task))
    session.delete(task)
    session.flush()


def is_running(session: Session, task_id: int) -> bool:
    open_runs = select(TaskRun.id).join(Fanout, Fanout.id == TaskRun.fanout_id)
    found = open_runs.where(TaskRun.task_id == task_id, Fanout.state.in_(UNFINISHED))
    return bool(session.scalar(select(exists(found))))


def _audited(task: Task) -> dict[str, Any]:
    return {name: getattr(task, name) for name in AUDITED}


def _does(task: Task) -> dict[str, Any]:
    return {name: getattr(task, name) for name in (*PLAIN, "type", "content") if name not in HARMLESS}


def create_template(session: Session, actor: Actor, values: TemplateIn) -> TaskTemplate:
    authorize(actor, "tasks.edit")
    template = TaskTemplate(created_by=actor.username)
    _fill(session, template, values)
    session.add(template)
    session.flush()
    record(session, actor, "task_template.create", "task_template", template.id, after={"name": template.name})
    return template


def copy_ready_template(session: Session, actor: Actor, key: str) -> TaskTemplate:
    """One of the library becomes a template that people may change. Raises NotFound, or Conflict if there is one."""
    if key not in BY_KEY:
        raise NotFound
    ready = BY_KEY[key]
    shown = {"name": str(ready.name), "description": str(ready.description), "type": ready.type}
    asked = [Parameter.model_validate(one) for one in ready.parameters]
    values = TemplateIn.model_validate(shown | {"content": ready.content, "parameters": asked})
    return create_template(session, actor, values)


def update_template(session: Session, actor: Actor, template_id: int, values: TemplateIn) -> TaskTemplate:
    """Tasks that were made from it keep what it said then."""
    authorize(actor, "tasks.edit")
    template = template_by_id(session, template_id)
    before = {"name": template.name, "content": template.content}
    _fill(session, template, values)
    template.updated_at = now()
    session.flush()
    after = {"name": template.name, "content": template.content}
    record(session, actor, "task_template.update", "task_template", template.id, before, after)
    return template


def _fill(session: Session, template: TaskTemplate, values: TemplateIn) -> None:
    others = select(TaskTemplate.id).where(TaskTemplate.name == values.name, TaskTemplate.id != (template.id or 0))
    if session.scalar(others) is not None:
        raise Conflict(errors=[FieldError("name", _("There is a template of this name already."))])
    check_definitions(values.parameters)
    template.name, template.description, template.type = values.name, values.description, values.type
    template.content = with_file(session, values.type, check_content(values.type, values.content))
    template.parameters = [parameter.model_dump() for parameter in values.parameters]


def delete_template(session: Session, actor: Actor, template_id: int) -> None:
    authorize(actor, "tasks.delete")
    template = template_by_id(session, template_id)
    record(session, actor, "task_template.delete", "task_template", template.id, before={"name": template.name})
    session.delete(template)
    session.flush()
