"""Templates of tasks for people: the ready ones to have a copy of, one's own, and the form that makes them."""

from typing import Any

from flask import Blueprint, Response, render_template, request, url_for
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from werkzeug.wrappers import Response as AnyResponse

from app.kernel.access import current_actor
from app.kernel.db import db
from app.kernel.edges import page, see_other
from app.kernel.errors import Conflict, FieldError, NotFound
from app.kernel.exports import csv_response, json_response
from app.kernel.forms import Form, row_numbers
from app.kernel.htmx import render_part
from app.kernel.paging import Column, lenient_query
from app.shell import tell
from app.tasks import actions, definition_queries, queries
from app.tasks.form_templates import (
    TemplateForm,
    new_template_form,
    template_form_of,
    template_received,
    with_row,
    without_row,
)
from app.tasks.library import BY_KEY, LIBRARY
from app.tasks.models import TaskTemplate
from app.tasks.pages_edit import file_choices
from app.tasks.schemas import TemplateIn, TemplateOut, TemplateQuery

pages = Blueprint("task_templates", __name__)

COLUMNS = (
    Column("name", _l("Template"), sortable=True),
    Column("type", _l("Type")),
    Column("parameters", _l("Asks for")),
    Column("updated_at", _l("Changed"), sortable=True, numeric=True),
    Column("", ""),
)
FIELDS = tuple(TemplateOut.model_fields)
ADD, REMOVE = "add", "remove:"


@page(pages, "/tasks/templates", permission="tasks.read")
def list_templates() -> Any:
    session, query = db.session(), lenient_query(TemplateQuery, request.args)
    if query.sort is not None and query.sort.removeprefix("-") not in queries.TEMPLATES_SORTABLE:
        query = query.model_copy(update={"sort": None})
    if (wanted := request.args.get("format")) in ("csv", "json"):
        return _export(query, wanted)
    return render_part(
        "templates-table",
        "tasks/_templates_table.html",
        "tasks/templates.html",
        page=queries.templates(session, query),
        columns=COLUMNS,
        library=LIBRARY,
        copies=definition_queries.templates_by_name(session, [str(ready.name) for ready in LIBRARY]),
    )


def _export(query: TemplateQuery, wanted: str) -> Response:
    rows = (
        TemplateOut.model_validate(template).model_dump(mode="json")
        for template in definition_queries.exported_templates(db.session(), query)
    )
    return csv_response("templates", FIELDS, rows) if wanted == "csv" else json_response("templates", rows)


@page(pages, "/tasks/templates/library/<key>", permission="tasks.read")
def show_ready(key: str) -> str:
    if key not in BY_KEY:
        raise NotFound
    ready = BY_KEY[key]
    copies = definition_queries.templates_by_name(db.session(), [str(ready.name)])
    return render_template("tasks/template_ready.html", ready=ready, copy_id=copies.get(str(ready.name)))


@page(pages, "/tasks/templates/library/<key>", permission="tasks.edit", methods=("POST",))
def copy_ready(key: str) -> AnyResponse:
    session = db.session()
    try:
        template = actions.copy_ready_template(session, current_actor(), key)
    except Conflict:
        name = str(BY_KEY[key].name)
        tell(_("There is a template called %(name)s already.", name=name), "warn")
        there = definition_queries.templates_by_name(session, [name])[name]
        return see_other(url_for("task_templates.show_template", template_id=there))
    tell(_("%(name)s is yours now: use it as it is, or change it first.", name=template.name))
    return see_other(url_for("task_templates.show_template", template_id=template.id))


@page(pages, "/tasks/templates/<id:template_id>", permission="tasks.read")
def show_template(template_id: int) -> str:
    session = db.session()
    template = queries.template_by_id(session, template_id)
    count = definition_queries.tasks_made_from(session, template_id)
    return render_template("tasks/template.html", template=template, task_count=count)


@page(pages, "/tasks/templates/new", permission="tasks.edit")
def new_template() -> str:
    found = row_numbers([request.args.get("copy", "")])
    if found and (template := db.session().get(TaskTemplate, found[0])):
        form = template_form_of(template)
        form.values["name"] = _("Copy of %(name)s", name=template.name)[:128]
        return _form_page(form, None)
    return _form_page(new_template_form(), None)


@page(pages, "/tasks/templates/new", permission="tasks.edit", methods=("POST",))
def create_template() -> Any:
    return _submitted(None)


@page(pages, "/tasks/templates/<id:template_id>/edit", permission="tasks.edit")
def edit_template(template_id: int) -> str:
    template = queries.template_by_id(db.session(), template_id)
    return _form_page(template_form_of(template), template)


@page(pages, "/tasks/templates/<id:template_id>/edit", permission="tasks.edit", methods=("POST",))
def update_template(template_id: int) -> Any:
    return _submitted(queries.template_by_id(db.session(), template_id).id)


def _submitted(template_id: int | None) -> Any:
    session, step = db.session(), request.form.get("step", "")
    form = template_received(request.form)

    def template() -> TaskTemplate | None:
        """As the database has it: what the form wanted of it may have been undone."""
        return None if template_id is None else queries.template_by_id(session, template_id)

    if step == ADD or step.startswith(REMOVE):
        form.errors = {}
        gone = row_numbers([step.removeprefix(REMOVE)])
        return _form_page(with_row(form) if step == ADD else without_row(form, gone[0] - 1 if gone else -1), template())

    def save(values: TemplateIn) -> TaskTemplate:
        if template_id is None:
            return actions.create_template(session, current_actor(), values)
        return actions.update_template(session, current_actor(), template_id, values)

    saved = form.submit(save)
    if saved is None:
        return _form_page(form, template()), 422
    tell(_("The template %(name)s was saved.", name=saved.name))
    return see_other(url_for("task_templates.show_template", template_id=saved.id))


def _form_page(form: TemplateForm, template: TaskTemplate | None) -> str:
    return render_template(
        "tasks/template_edit.html",
        form=form,
        template=template,
        action=request.path,
        files=file_choices(db.session()),
        asks_for_user=False,
    )


@page(pages, "/tasks/templates/<id:template_id>/delete", permission="tasks.delete")
def confirm_delete_template(template_id: int) -> str:
    return _delete_page(queries.template_by_id(db.session(), template_id), Form())


@page(pages, "/tasks/templates/<id:template_id>/delete", permission="tasks.delete", methods=("POST",))
def delete_template(template_id: int) -> Any:
    template, form = queries.template_by_id(db.session(), template_id), Form[Any]()
    name = template.name
    if request.form.get("confirm", "").strip() != name:
        form.add_errors([FieldError("confirm", _("Please type %(name)s.", name=name))])
        return _delete_page(template, form), 422
    actions.delete_template(db.session(), current_actor(), template_id)
    tell(_("%(name)s was deleted.", name=name))
    return see_other(url_for("task_templates.list_templates"))


def _delete_page(template: TaskTemplate, form: Form[Any]) -> str:
    count = definition_queries.tasks_made_from(db.session(), template.id)
    return render_template("tasks/template_delete.html", template=template, form=form, task_count=count)
