"""Every change to groups, smart groups and the views that people save."""

from flask_babel import gettext as _
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.audit.actions import record
from app.kernel.access import Actor, authorize
from app.kernel.clock import now
from app.kernel.errors import BadParameter, Conflict, FieldError
from app.nodes.group_queries import group_by_id, smart_group_by_id
from app.nodes.models import Node, NodeGroup, SavedView, SmartGroup
from app.nodes.schemas import GroupIn, GroupUpdate, SmartGroupIn
from app.nodes.selecting import is_below, selected

DEEPEST_GROUP = 8
LONGEST_PATH = 512
MOST_VIEWS = 50


def create_group(session: Session, actor: Actor, values: GroupIn) -> NodeGroup:
    authorize(actor, "groups.edit")
    path = _path(session, values.name, values.parent_id, None)
    group = NodeGroup(**values.model_dump(), path=path)
    session.add(group)
    session.flush()
    record(session, actor, "group.create", "group", group.id, after=values.model_dump() | {"path": path})
    return group


def update_group(session: Session, actor: Actor, group_id: int, values: GroupUpdate) -> NodeGroup:
    """Change what was given. A group that is renamed or moved takes its subtree along."""
    authorize(actor, "groups.edit")
    group = group_by_id(session, group_id)
    given = values.model_dump(exclude_unset=True)
    given = {name: value for name, value in given.items() if value is not None or name in ("parent_id", "description")}
    before = {name: getattr(group, name) for name in (*given, "path")}
    name, parent_id = given.get("name", group.name), given.get("parent_id", group.parent_id)
    old, path = group.path, _path(session, name, parent_id, group)
    for field, value in given.items():
        setattr(group, field, value)
    group.path, group.updated_at = path, now()
    if old != path:
        for child in session.scalars(select(NodeGroup).where(is_below(old))).all():
            child.path = _checked_path(path + child.path[len(old) :])
    session.flush()
    record(session, actor, "group.update", "group", group.id, before, {name: getattr(group, name) for name in before})
    return group


def delete_group(session: Session, actor: Actor, group_id: int) -> None:
    authorize(actor, "groups.delete")
    group = group_by_id(session, group_id)
    if session.scalar(select(func.count()).select_from(NodeGroup).where(NodeGroup.parent_id == group.id)):
        raise Conflict(_("This group has groups below it. Move or delete them first."))
    if session.scalar(select(func.count()).select_from(Node).where(Node.group_id == group.id)):
        raise Conflict(_("There are nodes in this group. Move them first."))
    record(session, actor, "group.delete", "group", group.id, before={"path": group.path})
    session.delete(group)
    session.flush()


def _path(session: Session, name: str, parent_id: int | None, group: NodeGroup | None) -> str:
    """Where a group stands. Refuses circles, towers and two of a name at one place."""
    parent = None if parent_id is None else session.get(NodeGroup, parent_id)
    if parent_id is not None and parent is None:
        raise BadParameter(errors=[FieldError("parent_id", _("There is no such group."))])
    if group is not None and parent is not None and f"{parent.path}/".startswith(f"{group.path}/"):
        raise Conflict(errors=[FieldError("parent_id", _("A group cannot stand below itself."))])
    path = _checked_path(f"{parent.path}/{name}" if parent else name)
    other = session.scalar(select(NodeGroup.id).where(NodeGroup.path == path))
    if other is not None and (group is None or other != group.id):
        raise Conflict(errors=[FieldError("name", _("There is a group of this name already."))])
    return path


def _checked_path(path: str) -> str:
    if path.count("/") >= DEEPEST_GROUP or len(path) > LONGEST_PATH:
        raise BadParameter(errors=[FieldError("parent_id", _("Groups can be nested eight levels deep."))])
    return path


def save_smart_group(session: Session, actor: Actor, values: SmartGroupIn, group_id: int | None = None) -> SmartGroup:
    authorize(actor, "groups.edit")
    selected(values.selector)
    taken = session.scalar(select(SmartGroup).where(SmartGroup.name == values.name))
    if taken is not None and taken.id != group_id:
        raise Conflict(errors=[FieldError("name", _("There is a group of this name already."))])
    group = SmartGroup() if group_id is None else smart_group_by_id(session, group_id)
    group.name, group.selector, group.description = values.name, values.selector, values.description
    group.updated_at = now()
    session.add(group)
    session.flush()
    record(session, actor, "smart_group.save", "smart_group", group.id, after=values.model_dump())
    return group


def delete_smart_group(session: Session, actor: Actor, group_id: int) -> None:
    authorize(actor, "groups.delete")
    group = smart_group_by_id(session, group_id)
    before = {"name": group.name, "selector": group.selector}
    record(session, actor, "smart_group.delete", "smart_group", group.id, before=before)
    session.delete(group)
    session.flush()


def save_view(session: Session, actor: Actor, name: str, query: str) -> SavedView:
    """A view is one person's own; saving under the same name replaces it."""
    authorize(actor, "self.manage")
    mine = select(SavedView).where(SavedView.user_id == actor.user_id)
    view = session.scalar(mine.where(SavedView.name == name))
    if view is None:
        if len(session.scalars(mine).all()) >= MOST_VIEWS:
            raise Conflict(errors=[FieldError("name", _("At most %(count)s views can be kept.", count=MOST_VIEWS))])
        view = SavedView(user_id=actor.user_id, name=name)
    view.query = query
    session.add(view)
    session.flush()
    return view


def forget_view(session: Session, actor: Actor, view_id: int) -> None:
    authorize(actor, "self.manage")
    session.execute(delete(SavedView).where(SavedView.id == view_id, SavedView.user_id == actor.user_id))
