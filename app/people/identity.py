"""Finding out who sent a request: a browser by its cookie, a program by its bearer token.

Every request asks the database, so what was ended there is over with the next one.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flask import request
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.kernel.access import Actor, Role
from app.kernel.clock import now
from app.kernel.context import ops
from app.kernel.db import in_transaction, is_away, reading
from app.kernel.edges import is_for_programs
from app.kernel.errors import DatabaseAway
from app.kernel.live_settings import live_settings
from app.people import tokens
from app.people.models import ENABLED, AccessToken, User, UserSession

COOKIE = "ops_session"
SEEN_EVERY = timedelta(seconds=60)
LONGEST_BEARER = 4096


@dataclass(frozen=True, slots=True)
class TokenActor(Actor):
    """Somebody's program, known by a personal access token. It ends with the token, and so does what it makes."""

    token_expires_at: datetime | None = None


def identify(session: Session, visitor: Actor) -> Actor:
    """The signed-in actor behind this request, or the anonymous visitor. What programs call never looks at cookies."""
    with reading():
        try:
            if is_for_programs(request.path):
                return _by_bearer(session, visitor)
            return _by_cookie(session, visitor)
        finally:
            session.rollback()


def bearer() -> str:
    scheme, _space, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and len(token) <= LONGEST_BEARER else ""


def _by_cookie(session: Session, visitor: Actor) -> Actor:
    secret = request.cookies.get(COOKIE, "")
    row = _session_row(session, secret, "web") if secret else None
    idle = timedelta(seconds=live_settings().auth.session_idle)
    if row is None or row[0].last_seen_at < now() - idle:
        return visitor
    return _known(session, visitor, *row, note_after=min(SEEN_EVERY, idle / 10))


def _by_bearer(session: Session, visitor: Actor) -> Actor:
    token = bearer()
    if token.startswith(tokens.PAT_PREFIX):
        return _by_access_token(session, visitor, token)
    claims = tokens.read(ops().keys.jwt_access, "access", token) if token else None
    row = _session_row(session, claims.jti, "api") if claims else None
    if row is None or claims is None or row[1].id != claims.user_id:
        return visitor
    return _known(session, visitor, *row)


def _session_row(session: Session, secret: str, kind: str) -> tuple[UserSession, User] | None:
    statement = select(UserSession, User).join(User, UserSession.user_id == User.id)
    found = session.execute(
        statement.where(
            UserSession.token_hash == tokens.fingerprint(secret),
            UserSession.kind == kind,
            UserSession.expires_at > now(),
            User.status == ENABLED,
        )
    ).first()
    return None if found is None else (found[0], found[1])


def _known(session: Session, visitor: Actor, row: UserSession, user: User, note_after: timedelta = SEEN_EVERY) -> Actor:
    actor = Actor(kind="user", session_id=row.id, **_shared(visitor, user))
    if row.last_seen_at < now() - note_after:
        _note_use(session, UserSession, row.id, {"last_seen_at": now()})
    return actor


def _by_access_token(session: Session, visitor: Actor, secret: str) -> Actor:
    statement = select(AccessToken, User).join(User, AccessToken.user_id == User.id)
    found = session.execute(
        statement.where(AccessToken.token_hash == tokens.fingerprint(secret), User.status == ENABLED)
    ).first()
    if found is None or _is_past(found[0].expires_at):
        return visitor
    token, user = found
    actor = TokenActor(
        kind="token",
        scopes=frozenset(token.scopes),
        token_expires_at=token.expires_at,
        **_shared(visitor, user),
    )
    if token.last_used_at is None or token.last_used_at < now() - SEEN_EVERY:
        _note_use(session, AccessToken, token.id, {"last_used_at": now(), "last_used_ip": visitor.ip[:45]})
    return actor


def _is_past(moment: datetime | None) -> bool:
    return moment is not None and moment <= now()


def _shared(visitor: Actor, user: User) -> dict[str, Any]:
    """What every actor has who is a user: his own, and where the request comes from."""
    return {
        "user_id": user.id,
        "username": user.username,
        "role": Role(user.role),
        "must_change_password": user.must_change_password,
        "locale": user.locale,
        "timezone": user.timezone,
        "ip": visitor.ip,
        "user_agent": visitor.user_agent,
        "request_id": visitor.request_id,
    }


def _note_use(session: Session, table: type[UserSession | AccessToken], row_id: int, values: dict[str, object]) -> None:
    """When something was last used, once a minute. Not worth failing a request for."""
    session.rollback()
    try:
        with reading(False):
            in_transaction(session, lambda: session.execute(update(table).where(table.id == row_id).values(**values)))
    except DatabaseAway:
        return
    except Exception as error:
        if not is_away(error):
            raise
