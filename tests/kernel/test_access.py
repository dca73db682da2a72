"""Who may do what: one matrix, one question, and no answer that nobody decided on."""

import pytest
from flask import Flask

from app.kernel.access import ADMINS, EVERYBODY, MATRIX, OPERATORS, PUBLIC, SIGNED_IN, Actor, Role, authorize, may
from app.kernel.errors import Forbidden, NotAuthenticated

ADMIN, OPERATOR, VIEWER = (Actor("user", 1, "somebody", role) for role in Role)
STRANGER = Actor()


def test_roles_stand_above_each_other() -> None:
    """Whatever a viewer may do an operator may, and whatever an operator may do an administrator may."""
    assert {frozenset(roles) for roles in MATRIX.values()} <= {ADMINS, OPERATORS, EVERYBODY}


@pytest.mark.parametrize("permission", sorted(MATRIX))
def test_the_matrix_is_what_authorize_says(permission: str) -> None:
    for actor in (ADMIN, OPERATOR, VIEWER):
        assert may(actor, permission) == (actor.role in MATRIX[permission])
    assert not may(STRANGER, permission)
    with pytest.raises(NotAuthenticated):
        authorize(STRANGER, permission)


@pytest.mark.parametrize(
    ("permission", "roles"),
    [
        ("users.read", "a"), ("users.manage", "a"), ("tokens.manage", "a"), ("audit.read", "a"),
        ("settings.read", "a"), ("settings.manage", "a"), ("metrics.read", "aov"), ("self.manage", "aov"),
        ("nodes.read", "aov"), ("nodes.edit", "ao"), ("nodes.delete", "a"),
    ],
)  # fmt: skip
def test_the_matrix_is_the_one_of_the_specification(permission: str, roles: str) -> None:
    if permission in MATRIX:
        assert {role.value[0] for role in MATRIX[permission]} == set(roles)


def test_what_is_public_needs_nobody() -> None:
    assert may(STRANGER, PUBLIC)
    authorize(STRANGER, PUBLIC)


def test_an_unknown_permission_is_a_mistake_and_never_a_yes() -> None:
    for actor in (ADMIN, STRANGER, Actor.system()):
        with pytest.raises(KeyError):
            may(actor, "users.destroy")
        with pytest.raises(KeyError):
            authorize(actor, "users.destroy")


def test_a_refusal_says_what_is_to_be_audited(sqlite_app: Flask) -> None:
    with sqlite_app.test_request_context("/"), pytest.raises(Forbidden) as caught:
        authorize(VIEWER, "users.manage")
    assert caught.value.refusal is not None
    assert caught.value.refusal.resource_id == "users.manage"


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        ({"*"}, {"users.read", "users.manage", "audit.read", "settings.read"}),
        ({"*.read"}, {"users.read", "audit.read", "settings.read"}),
        ({"users.*"}, {"users.read", "users.manage"}),
        ({"users.read"}, {"users.read"}),
        ({"users.read", "audit.*"}, {"users.read", "audit.read"}),
        (set(), set()),
        ({"user"}, set()),
        ({"users"}, set()),
        ({"users.rea?"}, {"users.read"}),
    ],
)
def test_a_token_may_do_what_its_scopes_say(scopes: set[str], allowed: set[str]) -> None:
    token = Actor("token", 1, "somebody", Role.ADMIN, frozenset(scopes))
    asked = ("users.read", "users.manage", "audit.read", "settings.read")
    assert {permission for permission in asked if may(token, permission)} == allowed
    assert may(token, SIGNED_IN), "to ask who one is needs no scope"


def test_scopes_never_widen_a_role() -> None:
    token = Actor("token", 1, "somebody", Role.VIEWER, frozenset({"*", "users.manage"}))
    assert not may(token, "users.manage")


def test_the_systems_own_jobs_may_everything_and_say_who_they_are() -> None:
    actor = Actor.system("scheduler")
    assert all(may(actor, permission) for permission in MATRIX)
    assert (actor.kind, actor.username, actor.user_id) == ("system", "scheduler", None)
    assert actor.at("192.0.2.1", "curl", "r-1").request_id == "r-1"
