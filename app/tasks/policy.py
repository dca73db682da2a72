"""Who may have what run as root: `tasks.root_requires_admin`, asked when a task is saved, begun and handed out."""

from collections.abc import Mapping, Sequence
from json import loads
from typing import Any

from flask_babel import gettext as _
from sqlalchemy.orm import Session

from app.commands.hooks import Turn
from app.commands.models import Fanout
from app.kernel.access import Actor, Role
from app.kernel.errors import Forbidden
from app.kernel.live_settings import live_settings
from app.people.models import User

ROOT = (None, "root", "0")


def runs_as_root(type_: str, content: Mapping[str, Any]) -> bool:
    """Only scripts name a user; everything else is done by the agent itself."""
    return type_ != "script" or content.get("user") in ROOT


def check_root(actor: Actor, type_: str, content: Mapping[str, Any]) -> None:
    """Raises Forbidden for an operator's task that would run as root, where that is not allowed."""
    if actor.role is not Role.ADMIN and is_for_admins(type_, content):
        raise Forbidden("tasks.root", _("Only administrators may run this as root. Name another user."))


def is_for_admins(type_: str, content: Mapping[str, Any]) -> bool:
    return live_settings().tasks.root_requires_admin and runs_as_root(type_, content)


def refuse(session: Session, fanout: Fanout, turns: Sequence[Turn]) -> Mapping[int, str]:
    """The same at every dispatch: the setting or the role may have changed meanwhile."""
    if fanout.created_by_id is None or not live_settings().tasks.root_requires_admin:
        return {}
    user = session.get(User, fanout.created_by_id)
    payload = loads(fanout.payload)
    if (user is not None and user.role == Role.ADMIN) or not runs_as_root(payload["type"], payload["content"]):
        return {}
    return dict.fromkeys([turn.target_id for turn in turns], f"{fanout.created_by} may not run this as root")
