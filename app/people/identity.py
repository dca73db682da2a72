"""Finding out who sent a request: a browser by its cookie, a program by its bearer token.

Every request asks the database, so what was ended there is over with the next one.
"""

from datetime import datetime, timedelta

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
    if row is None or row[0].last_seen_at < now() - timedelta(seconds=live_settings().auth.session_idle):
        return visitor
    return _known(session, visitor, *row)


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


def _known(session: Session, visitor: Actor, row: UserSession, user: User) -> Actor:
    actor = _actor("user", visitor, user, None, row.id)
    if row.last_seen_at < now() - SEEN_EVERY:
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
    actor = _actor("token", visitor, user, frozenset(token.scopes), None)
    if token.last_used_at is None or token.last_used_at < now() - SEEN_EVERY:
        _note_use(session, AccessToken, token.id, {"last_used_at": now(), "last_used_ip": visitor.ip[:45]})
    return actor


def _is_past(moment: datetime | None) -> bool:
    return moment is not None and moment <= now()


def _actor(kind: str, visitor: Actor, user: User, scopes: frozenset[str] | None, session_id: int | None) -> Actor:
    return Actor(
        kind,
        user.id,
        user.username,
        Role(user.role),
        scopes,
        session_id,
        user.must_change_password,
        user.locale,
        user.timezone,
        visitor.ip,
        visitor.user_agent,
        visitor.request_id,
    )


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
