"""The tree of groups and the smart groups, for people."""

from typing import Any

from flask import Blueprint, render_template, request, url_for
from flask_babel import gettext as _
from werkzeug.wrappers import Response as AnyResponse

from app.kernel.access import current_actor
from app.kernel.db import db
from app.kernel.edges import page, see_other
from app.kernel.forms import Form
from app.kernel.paging import lenient_query
from app.nodes import group_queries, grouping
from app.nodes.models import NodeGroup, SmartGroup
from app.nodes.schemas import GroupIn, GroupUpdate, NodeQuery, SmartGroupIn
from app.shell import tell

pages = Blueprint("groups", __name__)


@page(pages, "/groups", permission="nodes.read")
def list_groups() -> str:
    session = db.session()
    smart = [
        (group, group_queries.selected_count(session, group.selector)) for group in group_queries.smart_groups(session)
    ]
    return render_template("nodes/groups.html", tree=group_queries.group_tree(session), smart=smart)


@page(pages, "/groups/new", permission="groups.edit")
def new_group() -> str:
    return _group_page(None, Form({"parent_id": request.args.get("parent_id", type=int), "sort_order": 0}))


@page(pages, "/groups/new", permission="groups.edit", methods=("POST",))
def create_group() -> Any:
    form = Form.received(GroupIn, request.form)
    group = form.submit(lambda values: grouping.create_group(db.session(), current_actor(), values))
    if group is None:
        return _group_page(None, form), 422
    tell(_("The group %(name)s was made.", name=group.path))
    return see_other(url_for("groups.list_groups"))


@page(pages, "/groups/<id:group_id>/edit", permission="groups.edit")
def edit_group(group_id: int) -> str:
    group = group_queries.group_by_id(db.session(), group_id)
    return _group_page(group, Form({name: getattr(group, name) for name in GroupIn.model_fields}))


@page(pages, "/groups/<id:group_id>/edit", permission="groups.edit", methods=("POST",))
def update_group(group_id: int) -> Any:
    form = Form.received(GroupIn, request.form)
    saved = form.submit(
        lambda values: grouping.update_group(
            db.session(), current_actor(), group_id, GroupUpdate(**values.model_dump())
        )
    )
    if saved is None:
        return _group_page(group_queries.group_by_id(db.session(), group_id), form), 422
    tell(_("The group %(name)s was saved.", name=saved.path))
    return see_other(url_for("groups.list_groups"))


def _group_page(group: NodeGroup | None, form: Form[Any]) -> str:
    """A group cannot be put below itself, so its own subtree is not offered."""
    own = f"{group.path}/" if group else None
    tree = group_queries.groups(db.session())
    parents = [(one.id, one.path) for one in tree if own is None or not f"{one.path}/".startswith(own)]
    return render_template("nodes/group.html", group=group, form=form, parents=parents)


@page(pages, "/groups/<id:group_id>/delete", permission="groups.delete")
def confirm_delete_group(group_id: int) -> str:
    group = group_queries.group_by_id(db.session(), group_id)
    return render_template("nodes/group_delete.html", name=group.path, action=request.path, form=Form())


@page(pages, "/groups/<id:group_id>/delete", permission="groups.delete", methods=("POST",))
def delete_group(group_id: int) -> Any:
    name = group_queries.group_by_id(db.session(), group_id).path
    return _deleted(name, lambda: grouping.delete_group(db.session(), current_actor(), group_id))


def _deleted(name: str, act: Any) -> Any:
    form = Form[Any]()
    form.value = True

    def delete(_value: Any) -> bool:
        act()
        return True

    if form.submit(delete) is None:
        return render_template("nodes/group_delete.html", name=name, action=request.path, form=form), 422
    tell(_("The group %(name)s was deleted.", name=name))
    return see_other(url_for("groups.list_groups"))


@page(pages, "/groups/smart/new", permission="groups.edit")
def new_smart_group() -> str:
    return _smart_page(None, Form({"selector": lenient_query(NodeQuery, request.args).selector}))


@page(pages, "/groups/smart/new", permission="groups.edit", methods=("POST",))
def create_smart_group() -> Any:
    return _save_smart(None)


@page(pages, "/groups/smart/<id:group_id>/edit", permission="groups.edit")
def edit_smart_group(group_id: int) -> str:
    group = group_queries.smart_group_by_id(db.session(), group_id)
    return _smart_page(group, Form({name: getattr(group, name) for name in SmartGroupIn.model_fields}))


@page(pages, "/groups/smart/<id:group_id>/edit", permission="groups.edit", methods=("POST",))
def update_smart_group(group_id: int) -> Any:
    return _save_smart(group_queries.smart_group_by_id(db.session(), group_id))


def _save_smart(group: SmartGroup | None) -> AnyResponse | tuple[str, int]:
    form = Form.received(SmartGroupIn, request.form)
    group_id = group.id if group else None
    saved = form.submit(lambda values: grouping.save_smart_group(db.session(), current_actor(), values, group_id))
    if saved is None:
        return _smart_page(group_queries.smart_group_by_id(db.session(), group_id) if group_id else None, form), 422
    tell(_("The smart group %(name)s was saved.", name=saved.name))
    return see_other(url_for("groups.list_groups"))


def _smart_page(group: SmartGroup | None, form: Form[Any]) -> str:
    return render_template("nodes/smart_group.html", group=group, form=form)


@page(pages, "/groups/smart/<id:group_id>/delete", permission="groups.delete")
def confirm_delete_smart_group(group_id: int) -> str:
    group = group_queries.smart_group_by_id(db.session(), group_id)
    return render_template("nodes/group_delete.html", name=group.name, action=request.path, form=Form())


@page(pages, "/groups/smart/<id:group_id>/delete", permission="groups.delete", methods=("POST",))
def delete_smart_group(group_id: int) -> Any:
    name = group_queries.smart_group_by_id(db.session(), group_id).name
    return _deleted(name, lambda: grouping.delete_smart_group(db.session(), current_actor(), group_id))
