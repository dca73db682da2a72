"""Pages about one node that need nothing from higher rooms: names, maintenance, timeline, identity, the end."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flask import Blueprint, render_template, request, url_for
from flask_babel import gettext as _
from werkzeug.wrappers import Response as AnyResponse

from app.events import pages as events_pages
from app.events import queries as events
from app.events.schemas import NodeEventQuery
from app.kernel.access import current_actor
from app.kernel.db import db
from app.kernel.edges import page, see_other
from app.kernel.errors import FieldError
from app.kernel.forms import Form
from app.kernel.htmx import fragment_of
from app.kernel.live_settings import live_settings
from app.kernel.paging import lenient_query
from app.nodes import actions, group_queries, queries
from app.nodes.models import EnrollmentToken, Node
from app.nodes.pages import maintenance_end
from app.nodes.schemas import MaintenanceForm, NodeForm, NodeUpdate
from app.shell import tell

pages = Blueprint("node", __name__)


def _node(node_id: int) -> Node:
    return queries.node_by_id(db.session(), node_id)


def _home(node_id: int) -> str:
    return f"/nodes/{node_id}"


@page(pages, "/nodes/<id:node_id>/edit", permission="nodes.edit")
def edit(node_id: int) -> str:
    node = _node(node_id)
    values = {"group_id": node.group_id, "tags": node.tags, "description": node.description}
    return _edit_page(node, Form(values | {"labels": label_lines(node.labels)}))


@page(pages, "/nodes/<id:node_id>/edit", permission="nodes.edit", methods=("POST",))
def save(node_id: int) -> Any:
    form = Form.received(NodeForm, request.form)
    saved = form.submit(
        lambda values: actions.update_node(db.session(), current_actor(), node_id, NodeUpdate(**values.model_dump()))
    )
    if saved is None:
        return _edit_page(_node(node_id), form), 422
    tell(_("%(name)s was saved.", name=saved.hostname))
    return see_other(_home(node_id))


def _edit_page(node: Node, form: Form[Any]) -> str:
    session = db.session()
    groups = [(group.id, group.path) for group in group_queries.groups(session)]
    return render_template(
        "nodes/edit.html", node=node, form=form, group_choices=groups, known_tags=queries.all_tags(session)
    )


def label_lines(labels: Mapping[str, str]) -> str:
    return "\n".join(f"{key}={value}" for key, value in labels.items())


@page(pages, "/nodes/<id:node_id>/maintenance", permission="nodes.edit")
def maintenance(node_id: int) -> str:
    node = _node(node_id)
    return render_template(
        "nodes/maintenance.html", node=node, form=Form({"hours": 2, "reason": node.maintenance_reason})
    )


@page(pages, "/nodes/<id:node_id>/maintenance", permission="nodes.edit", methods=("POST",))
def begin_maintenance(node_id: int) -> Any:
    form = Form.received(MaintenanceForm, request.form)
    begun = form.submit(
        lambda values: actions.begin_maintenance(
            db.session(), current_actor(), node_id, maintenance_end(values), values.reason
        )
    )
    if begun is None:
        return render_template("nodes/maintenance.html", node=_node(node_id), form=form), 422
    tell(_("%(name)s is in maintenance.", name=begun.hostname))
    return see_other(_home(node_id))


@page(pages, "/nodes/<id:node_id>/maintenance/end", permission="nodes.edit", methods=("POST",))
def end_maintenance(node_id: int) -> AnyResponse:
    node = actions.end_maintenance(db.session(), current_actor(), node_id)
    tell(_("Maintenance of %(name)s has ended.", name=node.hostname))
    return see_other(_home(node_id))


@page(pages, "/nodes/<id:node_id>/events", permission="events.read")
def list_events(node_id: int) -> str:
    session, node = db.session(), _node(node_id)
    found = events.events(session, lenient_query(NodeEventQuery, request.args).of_node(node_id))
    asked = {name: value for name, value in found.query.items() if name != "node_id"}
    context = {
        "page": replace(found, query=asked),
        "columns": [column for column in events_pages.COLUMNS if column.key != "hostname"],
        "base": url_for("node.list_events", node_id=node_id),
        "spans": events_pages.SPANS,
        "kinds": events.known_kinds(session),
        "of_node": True,
        "refresh_s": int(live_settings().ui.refresh_interval),
    }
    if fragment_of("events-table"):
        return render_template("events/_events_table.html", **context)
    return render_template("nodes/events.html", node=node, **context)


@page(pages, "/nodes/<id:node_id>/identity", permission="nodes.read")
def show_identity(node_id: int) -> str:
    session, node = db.session(), _node(node_id)
    enrolment = queries.latest_enrolment(session, node_id)
    return render_template(
        "nodes/identity.html",
        node=node,
        certificates=queries.certificates(session, node_id),
        enrolment=enrolment,
        token=session.get(EnrollmentToken, enrolment.token_id) if enrolment and enrolment.token_id else None,
        origin=session.get(Node, enrolment.origin_node_id) if enrolment and enrolment.origin_node_id else None,
    )


@page(pages, "/nodes/<id:node_id>/revoke", permission="enrollment.manage")
def confirm_revoke(node_id: int) -> str:
    return render_template("nodes/revoke.html", node=_node(node_id), form=Form())


@page(pages, "/nodes/<id:node_id>/revoke", permission="enrollment.manage", methods=("POST",))
def revoke(node_id: int) -> Any:
    node = _node(node_id)
    form = _typed(node)
    if form.submit(lambda _values: actions.revoke_node(db.session(), current_actor(), node_id)) is None:
        return render_template("nodes/revoke.html", node=_node(node_id), form=form), 422
    tell(_("%(name)s was revoked.", name=node.hostname))
    return see_other(_home(node_id))


@page(pages, "/nodes/<id:node_id>/delete", permission="nodes.delete")
def confirm_delete(node_id: int) -> str:
    return render_template("nodes/delete.html", node=_node(node_id), form=Form())


@page(pages, "/nodes/<id:node_id>/delete", permission="nodes.delete", methods=("POST",))
def delete(node_id: int) -> Any:
    node = _node(node_id)
    name, form = node.hostname, _typed(node)
    if form.errors:
        return render_template("nodes/delete.html", node=node, form=form), 422
    actions.delete_node(db.session(), current_actor(), node_id)
    tell(_("%(name)s was deleted.", name=name))
    return see_other(url_for("nodes.list_nodes"))


def _typed(node: Node) -> Form[Any]:
    """The form of a page that destroys something: the host's name has to be typed."""
    form = Form[Any]()
    if request.form.get("confirm", "").strip() == node.hostname:
        form.value = True
    else:
        form.add_errors([FieldError("confirm", _("Please type %(name)s.", name=node.hostname))])
    return form
