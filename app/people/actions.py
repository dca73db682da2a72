"""Every change to users, sessions and tokens."""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy import and_, delete, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.audit.actions import record
from app.kernel.access import Actor, Role, authorize, may
from app.kernel.clock import now
from app.kernel.context import ops
from app.kernel.db import reading
from app.kernel.errors import BadParameter, Conflict, FieldError, Forbidden, NotAuthenticated, NotFound, Refusal
from app.kernel.live_settings import live_settings
from app.kernel.logs import MASK
from app.people import attempts, passwords, tokens
from app.people.identity import TokenActor
from app.people.models import DISABLED, ENABLED, AccessToken, User, UserSession
from app.people.queries import token_by_id, user_by_id, user_by_name
from app.people.schemas import USERNAME, ProfileUpdate, Status, TokenCreate, UserCreate, UserUpdate

MOST_TOKENS = 100
AUDITED = ("username", "email", "phone", "role", "status", "must_change_password", "locale", "timezone")


class SignInFailed(NotAuthenticated):
    """One message for every cause, so that nobody learns which names exist."""

    message = _l("User name or password is wrong.")

    def __init__(self, username: str) -> None:
        super().__init__()
        reason = "wrong user name or password, or disabled"
        self.refusal = Refusal("auth.sign_in", "user", _shown_name(username), reason)


class WrongPassword(BadParameter):
    """The own password, asked for once more, was wrong."""

    def __init__(self, user_id: int) -> None:
        super().__init__(errors=[FieldError("current_password", _("This is not your present password."))])
        self.refusal = Refusal("auth.change_password", "user", str(user_id), "wrong present password")


def verified_user(session: Session, actor: Actor, username: str, password: str) -> User:
    """The user whose name and password these are, as he was when they were compared: detached from the session.

    Only reads, and leaves no transaction open while it hashes.
    """
    attempt = attempts.of_sign_in(actor, username, _shown_name(username))
    attempt.check()
    with reading():
        user = user_by_name(session, username)
        if user is not None:
            session.expunge(user)
        session.rollback()
    with passwords.turn() as matches:
        attempt.check()
        is_right = matches(user.password_hash if user else passwords.NOBODY, password)
        if not is_right or user is None or not user.is_enabled:
            attempt.has_failed()
            raise SignInFailed(username)
    attempt.has_succeeded()
    return user


def _shown_name(username: str) -> str:
    """For the log. What cannot be anybody's name may well be a password, typed into the wrong field."""
    return username if re.match(USERNAME, username) else MASK


def open_browser_session(session: Session, actor: Actor, user: User, password: str) -> str:
    """Sign a browser in. Answers the secret for its cookie."""
    secret = tokens.new_secret()
    lifetime = timedelta(seconds=live_settings().auth.session_ttl)
    _open(session, actor, user, password, UserSession(kind="web", token_hash=tokens.fingerprint(secret)), lifetime)
    return secret


def open_api_session(session: Session, actor: Actor, user: User, password: str) -> dict[str, Any]:
    """Sign a program in. Answers its access and refresh token."""
    access, refresh = tokens.new_secret(), tokens.new_secret()
    row = UserSession(kind="api", token_hash=tokens.fingerprint(access), refresh_hash=tokens.fingerprint(refresh))
    found = _open(session, actor, user, password, row, timedelta(seconds=live_settings().auth.jwt.refresh_ttl))
    return _token_pair(found, row.id, access, refresh)


def _open(session: Session, actor: Actor, verified: User, password: str, row: UserSession, lifetime: timedelta) -> User:
    """Open the session, unless the user was disabled or given another password since his own was compared."""
    known_hash = verified.password_hash
    user = session.get(User, verified.id, with_for_update=True, populate_existing=True)
    if user is None or not user.is_enabled or user.password_hash != known_hash:
        raise SignInFailed(verified.username)
    row.user_id, row.ip, row.user_agent = user.id, actor.ip[:45], actor.user_agent[:255]
    row.last_seen_at, row.expires_at = now(), now() + lifetime
    session.add(row)
    user.last_login_at, user.last_login_ip = now(), actor.ip[:45]
    if passwords.is_outdated(known_hash):
        user.password_hash = passwords.hash_password(password)
    session.flush()
    record(session, as_user(actor, user), "auth.sign_in", "user", user.id, after={"kind": row.kind})
    return user


def as_user(actor: Actor, user: User) -> Actor:
    """The same caller, now that he is known to be this user."""
    known = Actor("user", user.id, user.username, Role(user.role), locale=user.locale, timezone=user.timezone)
    return known.at(actor.ip, actor.user_agent, actor.request_id)


def _token_pair(user: User, session_id: int, access: str, refresh: str) -> dict[str, Any]:
    limits, keys = live_settings().auth.jwt, ops().keys

    def signed(key: bytes, use: str, jti: str, lifetime_s: float) -> str:
        claims, expires_at = tokens.Claims(jti, user.id, session_id), now() + timedelta(seconds=lifetime_s)
        return tokens.sign(key, use, claims, user.role, expires_at)

    return {
        "access_token": signed(keys.jwt_access, "access", access, limits.access_ttl),
        "refresh_token": signed(keys.jwt_refresh, "refresh", refresh, limits.refresh_ttl),
        "expires_in": int(limits.access_ttl),
        "user": user,
    }


def refresh_api_session(session: Session, actor: Actor, token: str) -> dict[str, Any] | None:
    """New tokens for a refresh token, which is spent thereby. None for a spent one: its session is ended.

    Whoever sends a spent one, or the other who spent it, has a copy, and nobody can tell who. Both lose the session.
    """
    claims = tokens.read(ops().keys.jwt_refresh, "refresh", token)
    row = session.get(UserSession, claims.session_id, with_for_update=True) if claims else None
    if row is None or claims is None or row.refresh_hash is None or row.user_id != claims.user_id:
        raise NotAuthenticated
    if row.expires_at <= now() or not row.user.is_enabled:
        raise NotAuthenticated
    known = as_user(actor, row.user)
    if row.refresh_hash != tokens.fingerprint(claims.jti):
        reason = "a spent refresh token was used again; the session was ended"
        record(session, known, "auth.refresh", "user", row.user_id, error_message=reason)
        session.delete(row)
        return None
    access, refresh = tokens.new_secret(), tokens.new_secret()
    row.token_hash, row.refresh_hash = tokens.fingerprint(access), tokens.fingerprint(refresh)
    row.last_seen_at, row.expires_at = now(), now() + timedelta(seconds=live_settings().auth.jwt.refresh_ttl)
    record(session, known, "auth.refresh", "user", row.user_id)
    session.flush()
    return _token_pair(row.user, row.id, access, refresh)


def sign_out(session: Session, actor: Actor) -> None:
    """End the session that asks. A personal access token has none; it is revoked instead."""
    if actor.session_id is not None:
        session.execute(delete(UserSession).where(UserSession.id == actor.session_id))
        record(session, actor, "auth.sign_out", "user", actor.user_id)


def end_session(session: Session, actor: Actor, session_id: int) -> None:
    """End a session, for instance on a lost laptop. One's own; an administrator may end everybody's."""
    authorize(actor, "self.manage")
    row = session.get(UserSession, session_id)
    if row is None or (row.user_id != actor.user_id and not may(actor, "users.manage")):
        raise NotFound
    record(session, actor, "auth.end_session", "session", session_id, before={"user_id": row.user_id, "kind": row.kind})
    session.delete(row)
    session.flush()


def create_user(session: Session, actor: Actor, values: UserCreate) -> User:
    authorize(actor, "users.manage")
    password_hash = passwords.hash_password(values.password)  # before the first statement, so that nobody waits for it
    passwords.check_new_password(values.password, values.username)
    _check_unused(session, values.username, values.email, None)
    user = User(**values.model_dump(exclude={"password"}), password_hash=password_hash)
    session.add(user)
    _flush_unique(session, values.username, values.email, None)
    record(session, actor, "user.create", "user", user.id, after=_audited(user))
    return user


def update_user(session: Session, actor: Actor, user_id: int, values: UserUpdate) -> User:
    """Change what was given. Disabling somebody, or giving him a new password, ends his sessions."""
    authorize(actor, "users.manage")
    password_hash = None if values.password is None else passwords.hash_password(values.password)
    user, other_admins = _locked(session, user_id)
    given = values.model_dump(exclude_unset=True, exclude={"password"})
    changes = {name: value for name, value in given.items() if value is not None or name in ("email", "phone")}
    _check_unused(session, None, changes.get("email"), user.id)
    if changes.get("role", Role.ADMIN) != Role.ADMIN or changes.get("status") == DISABLED:
        _keep_an_admin(user, other_admins)
    before = _audited(user)
    for name, value in changes.items():
        setattr(user, name, value)
    if values.password is not None and password_hash is not None:
        passwords.check_new_password(values.password, user.username)
        user.password_hash = password_hash
    _flush_unique(session, None, user.email, user.id)
    if password_hash is not None or not user.is_enabled:
        _end_sessions(session, user.id)
    after = _audited(user) | ({"password": "changed"} if password_hash is not None else {})
    if before != after:
        record(session, actor, "user.update", "user", user.id, before, after)
    return user


def set_status(session: Session, actor: Actor, user_ids: Sequence[int], status: Status) -> None:
    """Enable or disable several users, all or none. Each has a row of his own in the log, so that it is found there."""
    for user_id in sorted(set(user_ids)):
        update_user(session, actor, user_id, UserUpdate(status=status))


def reset_password(session: Session, actor: Actor, user_id: int) -> str:
    """A new random password, to be told to the user, who has to choose his own at the next sign-in."""
    password = passwords.generated_password()
    update_user(session, actor, user_id, UserUpdate(password=password, must_change_password=True))
    return password


def restore_admin(session: Session, actor: Actor, user: User, password: str) -> None:
    """From the Manager's own command line, for those who locked themselves out."""
    changes = UserUpdate(role="admin", status="enabled", password=password)
    update_user(session, actor, user.id, changes)


def delete_user(session: Session, actor: Actor, user_id: int) -> None:
    authorize(actor, "users.manage")
    user, other_admins = _locked(session, user_id)
    if user.id == actor.user_id:
        raise Conflict(_("You cannot delete yourself."))
    _keep_an_admin(user, other_admins)
    record(session, actor, "user.delete", "user", user.id, before=_audited(user))
    session.delete(user)
    session.flush()


def verified_self(session: Session, actor: Actor, current: str) -> User:
    """The caller, who has just given his own password once more; as `verified_user` does it."""
    authorize(actor, "self.manage")
    attempt = attempts.of_own_password(actor)
    attempt.check()
    with reading():
        user = user_by_id(session, actor.user_id or 0)
        session.expunge(user)
        session.rollback()
    with passwords.turn() as matches:
        attempt.check()
        if not matches(user.password_hash, current):
            attempt.has_failed()
            raise WrongPassword(user.id)
    attempt.has_succeeded()
    return user


def change_own_password(session: Session, actor: Actor, verified: User, current: str, new: str) -> None:
    """Everything else that was signed in as this user is signed out; this session stays."""
    password_hash = passwords.hash_password(new)
    if current == new:
        raise BadParameter(errors=[FieldError("new_password", _("The new password is the old one."))])
    passwords.check_new_password(new, verified.username, "new_password")
    user = session.get(User, verified.id, with_for_update=True, populate_existing=True)
    if user is None or user.password_hash != verified.password_hash:
        raise Conflict(_("Your password has just been changed by somebody else."))
    user.password_hash, user.must_change_password = password_hash, False
    _end_sessions(session, user.id, except_id=actor.session_id)
    record(session, actor, "auth.change_password", "user", user.id)
    session.flush()


def update_profile(session: Session, actor: Actor, values: ProfileUpdate) -> User:
    """Change what was given of one's own."""
    authorize(actor, "self.manage")
    user = user_by_id(session, actor.user_id or 0)
    _check_unused(session, None, values.email, user.id)
    before = _audited(user)
    for name, value in values.model_dump(exclude_unset=True).items():
        setattr(user, name, value)
    _flush_unique(session, None, user.email, user.id)
    after = _audited(user)
    if before != after:
        record(session, actor, "user.update_profile", "user", user.id, before, after)
    return user


def choose_language(session: Session, actor: Actor, locale: str) -> None:
    """Remember the language switch for somebody's next browser. A preference, not worth an audit row."""
    user_by_id(session, actor.user_id or 0).locale = locale


def create_token(session: Session, actor: Actor, values: TokenCreate) -> tuple[AccessToken, str]:
    """A token for oneself, never with more rights than the caller has right now. Its secret is told once."""
    authorize(actor, "self.manage")
    if actor.must_change_password:
        raise Forbidden("self.manage", _("Change your password first."))
    if values.expires_at is not None and values.expires_at <= now():
        raise BadParameter(errors=[FieldError("expires_at", _("This lies in the past."))])
    if isinstance(actor, TokenActor) and not _is_within(values, actor):
        raise Forbidden("self.manage", _("A token cannot make one that may do more, or lives longer, than itself."))
    if session.query(AccessToken).filter_by(user_id=actor.user_id).count() >= MOST_TOKENS:
        raise Conflict(_("You have too many tokens. Please revoke some first."))
    secret = tokens.PAT_PREFIX + tokens.new_secret()
    token = AccessToken(
        user_id=actor.user_id, prefix=secret[:12], token_hash=tokens.fingerprint(secret), **values.model_dump()
    )
    session.add(token)
    session.flush()
    record(session, actor, "token.create", "token", token.id, after={"name": token.name, "scopes": token.scopes})
    return token, secret


def _is_within(values: TokenCreate, actor: TokenActor) -> bool:
    ends = actor.token_expires_at
    if ends is not None and (values.expires_at is None or values.expires_at > ends):
        return False
    return all(tokens.covers(actor.scopes or (), scope) for scope in values.scopes)


def revoke_token(session: Session, actor: Actor, token_id: int) -> None:
    """One's own; somebody else's only by an administrator, and to everybody else it does not exist."""
    authorize(actor, "self.manage")
    token = token_by_id(session, token_id)
    if token.user_id != actor.user_id and not may(actor, "tokens.manage"):
        raise NotFound
    record(session, actor, "token.revoke", "token", token.id, before={"name": token.name, "user_id": token.user_id})
    session.delete(token)
    session.flush()


def forget_expired_sessions(session: Session) -> None:
    session.execute(delete(UserSession).where(UserSession.expires_at < now()))


def _end_sessions(session: Session, user_id: int, except_id: int | None = None) -> None:
    statement = delete(UserSession).where(UserSession.user_id == user_id)
    session.execute(statement if except_id is None else statement.where(UserSession.id != except_id))


def _locked(session: Session, user_id: int) -> tuple[User, int]:
    """A user, and how many others are administrators who can sign in.

    All of them are locked, in one order: of two administrators who remove each other at once, one has to wait and is
    then the last.
    """
    admins = and_(User.role == Role.ADMIN.value, User.status == ENABLED)
    statement = select(User).where(or_(User.id == user_id, admins)).order_by(User.id).with_for_update()
    rows = session.scalars(statement.execution_options(populate_existing=True)).all()
    user = next((row for row in rows if row.id == user_id), None)
    if user is None:
        raise NotFound
    return user, len(rows) - 1


def _keep_an_admin(user: User, other_admins: int) -> None:
    if user.role == Role.ADMIN and user.is_enabled and not other_admins:
        raise Conflict(_("This is the last administrator who can sign in."))


def _flush_unique(session: Session, username: str | None, email: str | None, own_id: int | None) -> None:
    """Write, and if somebody took the name or address in this very moment, say so as if he had come long before."""
    try:
        session.flush()
    except IntegrityError:
        session.rollback()
        _check_unused(session, username, email, own_id)
        raise


def _check_unused(session: Session, username: str | None, email: str | None, own_id: int | None) -> None:
    """Names and addresses that are taken. The unique indexes decide races; this says it in words."""
    columns = [User.username == username] if username else []
    columns += [User.email == email] if email else []
    if not columns:
        return
    taken: Sequence[User] = session.query(User).filter(or_(*columns), User.id != (own_id or 0)).all()
    errors = (
        [FieldError("username", _("This user name is taken."))] if any(u.username == username for u in taken) else []
    )
    errors += (
        [FieldError("email", _("This address belongs to another user."))]
        if any(u.email == email for u in taken if email)
        else []
    )
    if errors:
        raise Conflict(errors=errors)


def _audited(user: User) -> dict[str, Any]:
    return {name: getattr(user, name) for name in AUDITED}
