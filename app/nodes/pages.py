"""The list of nodes for people: filters, views that they saved, and what is done to many at once."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode
from zoneinfo import ZoneInfo

from flask import Blueprint, Response, current_app, render_template, request, url_for
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from flask_babel.speaklater import LazyString
from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response as AnyResponse

from app.kernel.access import authorize, current_actor, may
from app.kernel.clock import now
from app.kernel.db import db
from app.kernel.edges import bad_field, page, see_other
from app.kernel.errors import BadParameter, FieldError
from app.kernel.exports import csv_response, json_response
from app.kernel.forms import Form, row_numbers
from app.kernel.htmx import render_part
from app.kernel.i18n import time_zone
from app.kernel.live_settings import live_settings
from app.kernel.paging import Column, Page, lenient_query
from app.nodes import actions, group_queries, grouping, queries
from app.nodes.frame import node_tabs
from app.nodes.models import Node
from app.nodes.schemas import BulkForm, MaintenanceForm, NodeBulk, NodeOut, NodeQuery, ViewForm
from app.nodes.words import FOR_TEMPLATES
from app.shell import tell

pages = Blueprint("nodes", __name__)
pages.record_once(lambda state: state.app.jinja_env.globals.update(FOR_TEMPLATES, node_tabs=node_tabs))

COLUMNS = (
    Column("hostname", _l("Host"), sortable=True),
    Column("status", _l("Status"), sortable=True),
    Column("agent_status", _l("Task agent"), sortable=True),
    Column("cpu_usage", _l("CPU"), sortable=True),
    Column("memory_usage", _l("Memory"), sortable=True),
    Column("disk_usage", _l("Disk"), sortable=True),
    Column("group", _l("Group")),
    Column("tags", _l("Tags and labels"), klass="wide"),
    Column("daemon_version", _l("Daemon"), sortable=True),
    Column("last_heartbeat", _l("Heartbeat"), sortable=True, numeric=True),
)
FIELDS = tuple(NodeOut.model_fields)
MOST_AT_ONCE = 10_000
EXAMPLES = (
    ("env=prod role in (web,db)", _l("labels: both must fit")),
    ("tag:legacy or version<1.4", _l("a tag, or an old Daemon")),
    ("group:prod/eu !has(canary)", _l("a group with what is below it, without a label")),
    ("node:web-* status=offline", _l("host names with * and ?")),
)
OTHER_ROOMS = {
    "run": ("task_form.new_task", "play", _l("Run a task")),
    "update": ("rollouts.new_rollout", "rollout", _l("Update")),
}
"""What rooms above do with the chosen nodes, once they are there: their page gets the nodes as its target."""
TITLES: Mapping[str, LazyString] = {
    "names": _l("Tags and labels"),
    "move": _l("Move to a group"),
    "maintenance": _l("Maintenance"),
    "delete": _l("Delete"),
}


@page(pages, "/nodes", permission="nodes.read")
def list_nodes() -> Any:
    session, query = db.session(), lenient_query(NodeQuery, request.args)
    if request.args.get("format") in ("csv", "json"):
        return _export(query)
    found, wrong = _nodes(query)
    return render_part(
        "nodes-table",
        "nodes/_nodes_table.html",
        "nodes/nodes.html",
        page=found,
        wrong=wrong,
        columns=COLUMNS,
        list_query=urlencode(found.query, doseq=True),
        counts=queries.status_counts(session),
        group_paths={group.id: group.path for group in group_queries.groups(session)},
        selector_examples=EXAMPLES,
        versions=queries.daemon_versions(session),
        views=group_queries.saved_views(session, current_actor().user_id or 0),
        bulk=_bulk_buttons(),
        refresh_s=int(live_settings().ui.refresh_interval),
    )


def _nodes(query: NodeQuery) -> tuple[Page[Node], dict[str, Any] | None]:
    """A page of the list. With a selector that cannot be read: an empty one, and what is wrong with it."""
    try:
        return queries.nodes(db.session(), query), None
    except BadParameter as error:
        if "column" not in (error.data or {}) and not any(one["field"] == "selector" for one in error.errors):
            return queries.nodes(db.session(), query.model_copy(update={"sort": None})), None
        shown = query.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"page"})
        column = (error.data or {}).get("column")
        wrong = {"text": query.selector, "column": column, "message": error.errors[0]["message"]}
        return Page([], 0, 1, query.page_size, "hostname", shown), wrong


def _export(query: NodeQuery) -> Response:
    rows = (
        NodeOut.model_validate(node).model_dump(mode="json") for node in queries.exported_nodes(db.session(), query)
    )
    if request.args["format"] == "json":
        return json_response("nodes", rows)
    return csv_response("nodes", FIELDS, rows)


def _bulk_buttons() -> list[dict[str, Any]] | None:
    actor = current_actor()
    if not may(actor, "nodes.edit"):
        return None
    buttons: list[dict[str, Any]] = [
        {"name": name, "label": label, "icon": icon}
        for name, (endpoint, icon, label) in OTHER_ROOMS.items()
        if endpoint in current_app.view_functions
    ]
    buttons += [
        {"name": "names", "label": _("Tag"), "icon": "tag"},
        {"name": "move", "label": _("Move"), "icon": "group"},
        {"name": "maintenance", "label": _("Maintenance"), "icon": "wrench"},
    ]
    if may(actor, "nodes.delete"):
        buttons.append({"name": "delete", "label": _("Delete"), "icon": "trash", "danger": True})
    return buttons


@page(pages, "/nodes/views", permission="self.manage", methods=("POST",))
def save_view() -> AnyResponse:
    form, shown = Form.received(ViewForm, request.form), _list_arguments(request.form.get("query", ""))
    query = urlencode(shown, doseq=True)
    view = form.submit(lambda values: grouping.save_view(db.session(), current_actor(), values.name, query))
    if view is None:
        tell(" ".join(message for messages in form.errors.values() for message in messages), "bad")
    else:
        tell(_("The view “%(name)s” was saved.", name=view.name))
    return see_other(url_for("nodes.list_nodes", **shown))


@page(pages, "/nodes/views/<id:view_id>/delete", permission="self.manage", methods=("POST",))
def forget_view(view_id: int) -> AnyResponse:
    grouping.forget_view(db.session(), current_actor(), view_id)
    tell(_("The view was deleted."))
    return see_other(url_for("nodes.list_nodes"))


def _list_query(text: str) -> NodeQuery:
    """The filters of a list as they stand in its address. Whatever else somebody put there is left out."""
    return lenient_query(NodeQuery, MultiDict(parse_qsl(text)))


def _list_arguments(text: str) -> dict[str, Any]:
    return _list_query(text).model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"page"})


def _list_address(text: str) -> str:
    return url_for("nodes.list_nodes", **_list_arguments(text))


@page(pages, "/nodes/bulk", permission="nodes.edit", methods=("POST",))
def choose_action() -> AnyResponse:
    """From the list's ticked rows to the page of the action, which asks for the rest. Nothing is changed yet."""
    ids = ",".join(map(str, row_numbers(request.form.getlist("ids"), MOST_AT_ONCE)))
    action, listed = request.form.get("action", ""), request.form.get("query", "")
    if not ids:
        tell(_("Tick some nodes first."), "warn")
        return see_other(_list_address(listed))
    if action in OTHER_ROOMS and OTHER_ROOMS[action][0] in current_app.view_functions:
        return see_other(url_for(OTHER_ROOMS[action][0], target_type="node", target_value=ids))
    if action not in TITLES:
        raise bad_field("action", _("There is no such action."))
    return see_other(url_for("nodes.prepare_change", action=action, ids=ids, query=listed))


@page(pages, "/nodes/bulk/<action>", permission="nodes.edit")
def prepare_change(action: str) -> str:
    return _change_page(action, Form({"hours": 2}), _chosen(request.args))


@page(pages, "/nodes/bulk/<action>", permission="nodes.edit", methods=("POST",))
def change_nodes(action: str) -> Any:
    chosen = _chosen(request.form)
    form = Form.received(BulkForm, request.form)
    if action == "delete" and request.form.get("confirm", "").strip() != chosen.words:
        form.add_errors([FieldError("confirm", _("Please type %(name)s.", name=chosen.words))])
        form.value = None
    done = form.submit(lambda values: _change(action, values, chosen))
    if done is None:
        return _change_page(action, form, chosen), 422
    tell(ngettext("%(num)s node was changed.", "%(num)s nodes were changed.", done))
    return see_other(_list_address(chosen.query))


class _Chosen:
    """What a bulk page is about: the ticked nodes, or everything that a list's filters leave."""

    def __init__(self, ids: list[int], query: str, is_everything: bool) -> None:
        self.ids, self.query, self.is_everything = ids, query, is_everything
        self.shown = queries.nodes_by_ids(db.session(), ids[:12])

    @property
    def words(self) -> str:
        """What has to be typed before they are destroyed."""
        return self.shown[0].hostname if len(self.ids) == 1 and self.shown else str(len(self.ids))


def _chosen(given: MultiDict[str, str]) -> _Chosen:
    listed = given.get("query", "")
    if given.get("everything"):
        ids = queries.matching_ids(db.session(), _list_query(listed))
    else:
        wanted = row_numbers(given.get("ids", "").split(","), MOST_AT_ONCE)
        ids = [node.id for node in queries.nodes_by_ids(db.session(), wanted)]
    if not 0 < len(ids) <= MOST_AT_ONCE:
        raise BadParameter(_("Between 1 and %(most)s nodes can be changed at once.", most=MOST_AT_ONCE))
    return _Chosen(ids, listed, bool(given.get("everything")))


def _change_page(action: str, form: Form[Any], chosen: _Chosen) -> str:
    if action not in TITLES:
        raise bad_field("action", _("There is no such action."))
    if action == "delete":
        authorize(current_actor(), "nodes.delete")
    session = db.session()
    others = 0 if chosen.is_everything else len(queries.matching_ids(session, _list_query(chosen.query)))
    return render_template(
        "nodes/change.html",
        action=action,
        title=TITLES[action],
        form=form,
        chosen=chosen,
        listed=others if others > len(chosen.ids) else 0,
        group_choices=[(group.id, group.path) for group in group_queries.groups(session)],
        known_tags=queries.all_tags(session) if action == "names" else (),
    )


def _change(action: str, values: BulkForm, chosen: _Chosen) -> int:
    steps = _steps(action, values)
    if not steps:
        raise BadParameter(errors=[FieldError("tags", _("Nothing was filled in."))])
    for step in steps:
        actions.change_nodes(db.session(), current_actor(), NodeBulk(**step, node_ids=chosen.ids))
    return len(chosen.ids)


def _steps(action: str, values: BulkForm) -> list[dict[str, Any]]:
    match action:
        case "names":
            wanted = {
                "tag": ("tags", values.tags),
                "untag": ("tags", values.untags),
                "label": ("labels", values.labels),
            }
            return [{"action": step, field: given} for step, (field, given) in wanted.items() if given]
        case "move":
            return [{"action": "move", "group_id": values.group_id}]
        case "maintenance":
            if request.form.get("end"):
                return [{"action": "end_maintenance"}]
            return [{"action": "maintenance", "until": maintenance_end(values), "reason": values.reason}]
        case "delete":
            return [{"action": "delete"}]
        case _:
            raise bad_field("action", _("There is no such action."))


def maintenance_end(values: MaintenanceForm) -> Any:
    """The moment that a form means; a time without a zone is on the clock of whoever typed it."""
    if values.until is not None:
        until = values.until
        return until if until.tzinfo is not None else until.replace(tzinfo=ZoneInfo(time_zone()))
    if values.hours is None:
        raise bad_field("until", _("This is needed."))
    return now() + timedelta(hours=values.hours)
