"""Who asks (`Actor`), what roles may do (`MATRIX`), and the one question `authorize` that all edges and actions put."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, Self

from flask import g

from app.kernel.errors import Forbidden, NotAuthenticated


class Role(StrEnum):
    ADMIN = "admin"
    OPERATOR = "operator"
    VIEWER = "viewer"


PUBLIC: Final = "public"
"""A route that needs no sign-in says so with this word; saying nothing is an error."""

SIGNED_IN: Final = "signed_in"
"""What everybody who is signed in may do, whatever his token's scopes: ask who he is, sign out."""

EVERYBODY = frozenset(Role)
OPERATORS = frozenset({Role.ADMIN, Role.OPERATOR})
ADMINS = frozenset({Role.ADMIN})

MATRIX: Mapping[str, frozenset[Role]] = {
    SIGNED_IN: EVERYBODY,
    "self.manage": EVERYBODY,
    "nodes.read": EVERYBODY,
    "nodes.edit": OPERATORS,
    "nodes.delete": ADMINS,
    "groups.edit": OPERATORS,
    "groups.delete": ADMINS,
    "enrollment.manage": ADMINS,
    "events.read": EVERYBODY,
    "commands.read": EVERYBODY,
    "commands.control": OPERATORS,
    "tasks.read": EVERYBODY,
    "tasks.edit": OPERATORS,
    "tasks.run": OPERATORS,
    "tasks.delete": ADMINS,
    "agents.read": EVERYBODY,
    "agents.control": OPERATORS,
    "agents.configure": OPERATORS,
    "users.read": ADMINS,
    "users.manage": ADMINS,
    "tokens.manage": ADMINS,
    "audit.read": ADMINS,
    "metrics.read": EVERYBODY,
    "settings.read": ADMINS,
    "settings.manage": ADMINS,
}
"""Spec §7, a line for each permission. Rooms that come later add their lines here, where all stand side by side."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, and from where. Made at an edge; nothing below an edge reads the request."""

    kind: str = "anonymous"
    user_id: int | None = None
    username: str = ""
    role: Role | None = None
    scopes: frozenset[str] | None = None
    session_id: int | None = None
    must_change_password: bool = False
    locale: str | None = None
    timezone: str | None = None
    ip: str = ""
    user_agent: str = ""
    request_id: str = ""

    @property
    def is_signed_in(self) -> bool:
        return self.role is not None

    @classmethod
    def system(cls, name: str = "system") -> Self:
        """A job or command of our own, with every right."""
        return cls(kind="system", username=name, role=Role.ADMIN)

    def at(self, ip: str, user_agent: str, request_id: str) -> Self:
        return replace(self, ip=ip, user_agent=user_agent, request_id=request_id)


def may(actor: Actor, permission: str) -> bool:
    """Whether `authorize` would let it pass; for pages that hide what cannot be done."""
    if permission == PUBLIC:
        return True
    allowed = MATRIX[permission]
    if actor.role is None or actor.role not in allowed:
        return False
    return (
        actor.scopes is None or permission == SIGNED_IN or any(fnmatchcase(permission, scope) for scope in actor.scopes)
    )


def authorize(actor: Actor, permission: str) -> None:
    """Raise unless this actor may do this. An unknown permission is a KeyError: a mistake of ours, never a yes."""
    if may(actor, permission):
        return
    if not actor.is_signed_in:
        raise NotAuthenticated
    raise Forbidden(permission)


def current_actor() -> Actor:
    """Whoever the edge found out is asking."""
    actor: Actor = g.get("actor") or Actor()
    return actor
