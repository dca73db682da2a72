"""The one form of a task: as it begins, filled from a task, from an address, or as somebody sent it.

It says the same as the API's body (`TaskIn`) in flat fields; `form_contents` and `form_targets` know the parts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from flask_babel import gettext as _
from pydantic import ValidationError
from sqlalchemy.orm import Session
from werkzeug.datastructures import MultiDict

from app.kernel.errors import BadParameter, FieldError
from app.kernel.forms import Form, row_numbers
from app.kernel.i18n import time_zone
from app.kernel.validation import field_errors
from app.tasks.contents import Value, check_parameters
from app.tasks.form_contents import (
    DEFAULTS,
    WHOLE_NUMBER,
    content_field,
    content_values,
    plain,
    read_content,
    read_pairs,
    show_pairs,
    show_scalar,
    typed_scalar,
)
from app.tasks.form_targets import FIELDS, MOST, read_target, target_values
from app.tasks.models import DISABLED, ENABLED, Task, TaskTemplate
from app.tasks.queries import template_by_id
from app.tasks.schemas import TaskIn

Row = TypeVar("Row", Task, TaskTemplate)
TEMPLATE = "template"
"""What the form calls a type that a template says."""
BY_HAND, BY_SCHEDULE = "manual", "schedule"
NUMBERS = ("timeout", "retry_count", "retry_interval", "not_after_s", "catch_up_s")
SHARES = ("max_parallel", "max_errors")
TEXTS = ("name", "description", "cron_expr", "timezone", *NUMBERS, *SHARES)
PARAMETER = "p_"
"""Stands before the name of a template's parameter."""


class TaskForm(Form[TaskIn]):
    """What is wrong is shown at the field where it was typed, whatever the API calls it."""

    def add_errors(self, errors: Sequence[FieldError]) -> None:
        super().add_errors([FieldError(self._shown_at(error["field"]), error["message"]) for error in errors])

    def _shown_at(self, name: str) -> str:
        head, _dot, rest = name.partition(".")
        type_ = self.values.get("type")
        if head == "content":
            return content_field(str(type_), rest)
        if head == "target_value":
            return FIELDS.get(self.values.get("target_type", ""), "target_type")
        if head == "parameters" and type_ == TEMPLATE:
            return PARAMETER + rest
        return "template_id" if head == "type" and type_ == TEMPLATE else head


def new_form() -> TaskForm:
    """With what most tasks have."""
    usual = {name: TaskIn.model_fields[name].default for name in NUMBERS}
    shown = {"target_type": "selector", "when": BY_HAND, "timezone": time_zone(), "enabled": True}
    return TaskForm(DEFAULTS | usual | shown)


def form_from(session: Session, given: MultiDict[str, str]) -> TaskForm:
    """A new task as an address proposes it: `copy`, `template`, `target_type` with `target_value`, `name`."""
    form = new_form()
    if task := _row(session, Task, given.get("copy")):
        form = form_of(session, task)
        form.values["name"] = _("Copy of %(name)s", name=task.name)[:128]
    elif template := _row(session, TaskTemplate, given.get(TEMPLATE)):
        form.values |= template_values(template) | {"name": template.name, "description": template.description}
    if given.get("target_type") in FIELDS:
        type_, text = given["target_type"], given.get("target_value", "")
        form.values |= target_values(session, type_, _target_of(type_, text))
    return form


def _row(session: Session, kind: type[Row], number: Any) -> Row | None:
    """The row that an address or a field names, if it does."""
    found = row_numbers([str(number or "")])
    return session.get(kind, found[0]) if found else None


def _target_of(type_: str, text: str) -> list[Any]:
    """An address's one word as the list that a task has."""
    if type_ == "selector":
        return [text] if text else []
    words = [word for word in text.split(",") if word]
    return row_numbers(words, MOST) if type_ in ("node", "group") else words


def form_of(session: Session, task: Task) -> TaskForm:
    form = new_form()
    form.values |= {name: getattr(task, name) for name in TEXTS if name not in ("cron_expr", "timezone")}
    form.values |= {"type": task.type, "enabled": task.status == ENABLED}
    form.values |= content_values(task.type, task.content) | target_values(session, task.target_type, task.target_value)
    if task.cron_expr is not None:
        form.values |= {"when": BY_SCHEDULE, "cron_expr": task.cron_expr, "timezone": task.timezone}
    if task.template_id is not None:
        form.values |= template_values(template_by_id(session, task.template_id), task.parameters)
    else:
        form.values["parameters"] = show_pairs(task.parameters)
    return form


def template_values(template: TaskTemplate, given: Mapping[str, Value] | None = None) -> dict[str, Any]:
    """The fields of a task that comes from a template: its parameters, each with its value or default."""
    values: dict[str, Any] = {"type": TEMPLATE, "template_id": template.id}
    for asked in template.parameters:
        value = asked.get("default") if given is None else given.get(asked["name"])
        if value is not None:
            values[PARAMETER + asked["name"]] = value if isinstance(value, bool) else show_scalar(value)
    return values


def received(session: Session, data: MultiDict[str, str], before: Task | None = None) -> TaskForm:
    """What was sent, with all that is wrong in it at once. `before`: the task that is changed."""
    form = TaskForm(data.to_dict() | {name: data.getlist(name) for name in ("groups", "tags")})
    typed, errors = form.values, []
    given: dict[str, Any] = {name: typed[name] for name in TEXTS if str(typed.get(name, "")).strip()}
    given["status"] = ENABLED if typed.get("enabled") else DISABLED
    given |= {name: int(given[name]) for name in SHARES if WHOLE_NUMBER.fullmatch(str(given.get(name, "")).strip())}
    if typed.get("when") != BY_SCHEDULE:
        given.pop("cron_expr", None)
    elif "cron_expr" not in given:
        errors.append(FieldError("cron_expr", _("This is needed.")))
    if typed.get("type") == TEMPLATE:
        content, wrong = _from_template(session, form, before)
    else:
        content, wrong = _of_its_own(typed, before)
    target_type, target_value, wrong_target = read_target(session, typed)
    given |= content | {"target_type": target_type, "target_value": target_value}
    try:
        form.value = TaskIn.model_validate(given)
    except ValidationError as error:
        errors += field_errors(error)
    form.add_errors(errors + wrong + wrong_target)
    if form.errors:
        form.value = None
    return form


def _of_its_own(typed: Mapping[str, Any], before: Task | None) -> tuple[dict[str, Any], list[FieldError]]:
    type_ = str(typed.get("type", ""))
    content, errors = read_content(type_, typed)
    parameters: Mapping[str, Value] = {}
    try:
        parameters = read_pairs(plain(typed.get("parameters")))
    except ValueError as error:
        errors.append(FieldError("parameters", str(error)))
    known = {} if before is None else {name: show_scalar(value) for name, value in before.parameters.items()}
    if before is not None and dict(parameters) == known:
        parameters = before.parameters  # untouched, so they keep their types
    return {} if errors else {"type": type_, "content": content, "parameters": parameters}, errors


def _from_template(session: Session, form: TaskForm, before: Task | None) -> tuple[dict[str, Any], list[FieldError]]:
    template = template_of(session, form, before)
    if template is None:
        return {}, [FieldError("template_id", _("This is needed."))]
    parameters: dict[str, Value] = {}
    for asked in template.parameters:
        name, type_ = asked["name"], asked.get("type", "string")
        text = plain(form.values.get(PARAMETER + name))
        if type_ == "boolean":
            parameters[name] = form.values[PARAMETER + name] = bool(text)
        elif text.strip():
            parameters[name] = typed_scalar(type_, text)
    content = {"template_id": template.id, "parameters": parameters}
    # The default stood in the field: whoever took it out of one that is needed is told so.
    asked_for = [one | {"default": None} for one in template.parameters]
    try:
        check_parameters(asked_for, parameters)
    except BadParameter as error:
        return content, list(error.errors)
    return content, []


def template_of(session: Session, form: TaskForm, before: Task | None) -> TaskTemplate | None:
    """The template that a form speaks of. A task that has one keeps it."""
    number = before.template_id if before is not None else form.values.get("template_id")
    return _row(session, TaskTemplate, number)
