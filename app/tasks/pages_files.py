"""Files for hosts, for people: bring one, see which tasks use which, delete those that nothing names."""

from http import HTTPStatus
from typing import Any

from flask import Blueprint, current_app, g, render_template, request, url_for
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_wtf.csrf import CSRFError, validate_csrf
from pydantic import BaseModel
from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response as AnyResponse
from wtforms import ValidationError

from app.kernel.access import current_actor
from app.kernel.db import db
from app.kernel.edges import page, see_other
from app.kernel.errors import BadParameter, Conflict
from app.kernel.forms import Form
from app.kernel.htmx import render_part
from app.kernel.paging import Column, Page, lenient_query
from app.shell import tell
from app.tasks import file_queries, files
from app.tasks.file_queries import SORTABLE, FileQuery
from app.tasks.receiving import FIELD, Received, receive

pages = Blueprint("task_files", __name__)

COLUMNS = (
    Column("name", _l("File"), sortable=True),
    Column("size", _l("Size"), sortable=True, numeric=True),
    Column("used_by", _l("Used by")),
    Column("sha256", "SHA-256", klass="wide"),
    Column("created_at", _l("Brought"), sortable=True, numeric=True),
    Column("", ""),
)


@page(pages, "/files", permission="tasks.read")
def list_files() -> Any:
    return _list_page(Form({FIELD: None}))


def _list_page(form: Form[BaseModel]) -> Any:
    session, query = db.session(), lenient_query(FileQuery, request.args)
    if query.sort is not None and query.sort.removeprefix("-") not in SORTABLE:
        query = query.model_copy(update={"sort": None})
    found = file_queries.files(session, query)
    items = file_queries.shown_files(session, found.items)
    return render_part(
        "files-table",
        "tasks/_files_table.html",
        "tasks/files.html",
        page=Page(items, found.total, found.page, found.page_size, found.sort, found.query),
        columns=COLUMNS,
        form=form,
        largest=files.largest_file(),
    )


@page(pages, "/files", permission="tasks.edit", methods=("POST",))
def upload_file() -> Any:
    """The protection against forged forms is our own here: Flask's would read the whole file into memory first."""
    try:
        received = _received()
        file = files.add_file(db.session(), current_actor(), received.name, received.incoming)
    except BadParameter as error:
        form: Form[BaseModel] = Form({FIELD: None})
        form.add_errors(error.errors)
        return _list_page(form), HTTPStatus.UNPROCESSABLE_ENTITY
    tell(_("%(name)s is here: tasks can put it on hosts.", name=file.name))
    return see_other(url_for("task_files.list_files"))


def _received() -> Received:
    """Also if the transaction has to be done again: a body comes only once."""
    if "received_file" not in g:
        g.received_file = receive(_check_form)
    found: Received = g.received_file
    return found


def _check_form(form: MultiDict[str, str]) -> None:
    if not current_app.config["WTF_CSRF_ENABLED"]:
        return
    try:
        validate_csrf(form.get("csrf_token") or request.headers.get("X-CSRFToken"))
    except ValidationError as error:
        raise CSRFError(str(error)) from None


@page(pages, "/files/<id:file_id>/delete", permission="tasks.edit")
def confirm_delete(file_id: int) -> str:
    file = file_queries.file_by_id(db.session(), file_id)
    used_by = file_queries.shown_files(db.session(), [file])[0]["used_by"]
    return render_template("tasks/file_delete.html", file=file, used_by=used_by, form=Form())


@page(pages, "/files/<id:file_id>/delete", permission="tasks.edit", methods=("POST",))
def delete_file(file_id: int) -> AnyResponse:
    name = file_queries.file_by_id(db.session(), file_id).name
    try:
        files.delete_file(db.session(), current_actor(), file_id)
    except Conflict as error:
        tell(str(error.message), "warn")
    else:
        tell(_("%(name)s was deleted.", name=name))
    return see_other(url_for("task_files.list_files"))
