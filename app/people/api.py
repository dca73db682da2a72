"""Signing in, users and tokens for programs."""

from typing import Any

from flask import Response

from app.kernel.access import MATRIX, PUBLIC, SIGNED_IN, authorize, current_actor, may
from app.kernel.api import ApiRoom, Listing
from app.kernel.db import db
from app.kernel.envelope import failure
from app.kernel.errors import Conflict, NotAuthenticated, NotFound, TooManyRequests
from app.kernel.paging import Page
from app.people import actions, queries
from app.people.models import AccessToken, User, UserSession
from app.people.schemas import (
    MeOut,
    NewTokenOut,
    PasswordChange,
    ProfileUpdate,
    Refresh,
    SessionOut,
    SessionQuery,
    SignIn,
    TokenCreate,
    TokenOut,
    TokenQuery,
    TokensOut,
    UserCreate,
    UserOut,
    UserQuery,
    UserUpdate,
)

api = ApiRoom("people", "Sign-in, users and tokens")


@api.post(
    "/auth/login", permission=PUBLIC, summary="Sign in", body=SignIn, returns=TokensOut, errors=(NotAuthenticated,)
)
def login(body: SignIn) -> dict[str, Any]:
    actor, session = current_actor(), db.session()
    user = actions.verified_user(session, actor, body.username, body.password)
    return actions.open_api_session(session, actor, user, body.password)


@api.post(
    "/auth/refresh",
    permission=PUBLIC,
    summary="New tokens for a refresh token, which is spent thereby",
    body=Refresh,
    returns=TokensOut,
    errors=(NotAuthenticated,),
)
def refresh(body: Refresh) -> dict[str, Any] | Response:
    renewed = actions.refresh_api_session(db.session(), current_actor(), body.refresh_token)
    return failure(NotAuthenticated()) if renewed is None else renewed


@api.post("/auth/logout", permission=SIGNED_IN, summary="Sign out: end this session")
def logout() -> None:
    actions.sign_out(db.session(), current_actor())


@api.get("/auth/me", permission=SIGNED_IN, summary="Who am I, and what may I do", returns=MeOut)
def me() -> dict[str, Any]:
    return _shown_me(queries.user_by_id(db.session(), current_actor().user_id or 0))


@api.put(
    "/auth/me",
    permission="self.manage",
    summary="Change the own profile; what is left out stays",
    body=ProfileUpdate,
    returns=MeOut,
    errors=(Conflict,),
)
def update_profile(body: ProfileUpdate) -> dict[str, Any]:
    return _shown_me(actions.update_profile(db.session(), current_actor(), body))


def _shown_me(user: User) -> dict[str, Any]:
    actor = current_actor()
    permissions = sorted(name for name in MATRIX if name != SIGNED_IN and may(actor, name))
    own = {"locale": user.locale, "timezone": user.timezone, "permissions": permissions}
    return UserOut.model_validate(user).model_dump() | own


@api.post(
    "/auth/password",
    permission="self.manage",
    summary="Change the own password",
    body=PasswordChange,
    errors=(TooManyRequests, Conflict),
)
def change_password(body: PasswordChange) -> None:
    session, actor = db.session(), current_actor()
    user = actions.verified_self(session, actor, body.current_password)
    actions.change_own_password(session, actor, user, body.current_password, body.new_password)


@api.get(
    "/auth/sessions",
    permission="self.manage",
    summary="Where one is signed in",
    query=SessionQuery,
    returns=Listing[SessionOut],
)
def list_sessions(query: SessionQuery) -> Page[UserSession]:
    return queries.open_sessions(db.session(), query, _whose(query.user_id, "users.read"))


@api.delete("/auth/sessions/<id:session_id>", permission="self.manage", summary="End a session", errors=(NotFound,))
def end_session(session_id: int) -> None:
    actions.end_session(db.session(), current_actor(), session_id)


@api.get("/auth/tokens", permission="self.manage", summary="Access tokens", query=TokenQuery, returns=Listing[TokenOut])
def list_tokens(query: TokenQuery) -> Page[AccessToken]:
    return queries.tokens(db.session(), query, _whose(query.user_id, "tokens.manage"))


def _whose(user_id: int | None, permission: str) -> int:
    """Whose things a list is about: one's own, or with this permission somebody else's."""
    actor = current_actor()
    if user_id not in (None, actor.user_id):
        authorize(actor, permission)
    return user_id or actor.user_id or 0


@api.post(
    "/auth/tokens",
    permission="self.manage",
    summary="A new access token; its secret is in this answer only",
    body=TokenCreate,
    returns=NewTokenOut,
    status=201,
    errors=(Conflict,),
    is_idempotent=True,
)
def create_token(body: TokenCreate) -> dict[str, Any]:
    token, secret = actions.create_token(db.session(), current_actor(), body)
    return TokenOut.model_validate(token).model_dump() | {"token": secret}


@api.delete(
    "/auth/tokens/<id:token_id>", permission="self.manage", summary="Revoke an access token", errors=(NotFound,)
)
def revoke_token(token_id: int) -> None:
    actions.revoke_token(db.session(), current_actor(), token_id)


@api.get("/system/users", permission="users.read", summary="Users", query=UserQuery, returns=Listing[UserOut])
def list_users(query: UserQuery) -> Page[User]:
    return queries.users(db.session(), query)


@api.post(
    "/system/users",
    permission="users.manage",
    summary="A new user",
    body=UserCreate,
    returns=UserOut,
    status=201,
    errors=(Conflict,),
    is_idempotent=True,
)
def create_user(body: UserCreate) -> User:
    return actions.create_user(db.session(), current_actor(), body)


@api.get("/system/users/<id:user_id>", permission="users.read", summary="One user", returns=UserOut)
def show_user(user_id: int) -> User:
    return queries.user_by_id(db.session(), user_id)


@api.put(
    "/system/users/<id:user_id>",
    permission="users.manage",
    summary="Change a user; what is left out stays",
    body=UserUpdate,
    returns=UserOut,
    errors=(Conflict,),
)
def update_user(user_id: int, body: UserUpdate) -> User:
    return actions.update_user(db.session(), current_actor(), user_id, body)


@api.delete("/system/users/<id:user_id>", permission="users.manage", summary="Delete a user", errors=(Conflict,))
def delete_user(user_id: int) -> None:
    actions.delete_user(db.session(), current_actor(), user_id)
