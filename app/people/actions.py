"""Every change to users, sessions and tokens."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy import delete, or_
from sqlalchemy.orm import Session

from app.audit.actions import record
from app.kernel import ratelimit
from app.kernel.access import Actor, Role, authorize, may
from app.kernel.clock import now
from app.kernel.context import ops
from app.kernel.db import reading
from app.kernel.errors import (
    BadParameter,
    Conflict,
    FieldError,
    Forbidden,
    NotAuthenticated,
    NotFound,
    Refusal,
    TooManyRequests,
)
from app.kernel.live_settings import live_settings
from app.people import passwords, tokens
from app.people.models import DISABLED, AccessToken, User, UserSession
from app.people.queries import other_enabled_admins, token_by_id, user_by_id, user_by_name
from app.people.schemas import ProfileForm, TokenCreate, UserCreate, UserUpdate

ACCOUNT_WINDOW_S = 300
ADDRESS_WINDOW_S = 900
MOST_TOKENS = 100
AUDITED = ("username", "email", "phone", "role", "status", "must_change_password", "locale", "timezone")


class SignInFailed(NotAuthenticated):
    """One message for every cause, so that nobody learns which names exist."""

    message = _l("User name or password is wrong.")

    def __init__(self, username: str) -> None:
        super().__init__()
        self.refusal = Refusal("auth.sign_in", "user", username[:64], "wrong user name or password, or disabled")


def verified_user(session: Session, actor: Actor, username: str, password: str) -> User:
    """The user whose name and password these are. Only reads, and leaves no transaction open while it hashes."""
    account, address = f"sign-in:{tokens.fingerprint(username)}:{actor.ip}", f"sign-in-address:{actor.ip}"
    limits = live_settings().auth
    _refuse_when_spent(account, ACCOUNT_WINDOW_S, limits.attempts_per_account, username)
    _refuse_when_spent(address, ADDRESS_WINDOW_S, limits.attempts_per_address, username)
    with reading():
        user = user_by_name(session, username)
        known_hash = user.password_hash if user else passwords.NOBODY
        is_enabled = user is not None and user.is_enabled
        session.rollback()
    if not passwords.matches(known_hash, password) or user is None or not is_enabled:
        ratelimit.count(account, ACCOUNT_WINDOW_S)
        ratelimit.count(address, ADDRESS_WINDOW_S)
        raise SignInFailed(username)
    ratelimit.forget(account)
    return user


def _refuse_when_spent(counter: str, window_s: int, limit: int, username: str) -> None:
    usage = ratelimit.count(counter, window_s, by=0)
    if usage.count >= limit:
        error = TooManyRequests(_("Too many failed sign-ins. Please wait a little."), retry_after_s=usage.resets_in_s)
        error.refusal = Refusal("auth.sign_in", "user", username[:64], "too many failed attempts")
        raise error


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
    _open(session, actor, user, password, row, timedelta(seconds=live_settings().auth.jwt.refresh_ttl))
    return _token_pair(user, access, refresh)


def _open(session: Session, actor: Actor, user: User, password: str, row: UserSession, lifetime: timedelta) -> None:
    if not user.is_enabled:
        raise SignInFailed(user.username)
    row.user_id, row.ip, row.user_agent = user.id, actor.ip[:45], actor.user_agent[:255]
    row.expires_at = now() + lifetime
    session.add(row)
    user.last_login_at, user.last_login_ip = now(), actor.ip[:45]
    if passwords.is_outdated(user.password_hash):
        user.password_hash = passwords.hash_password(password)
    record(session, as_user(actor, user), "auth.sign_in", "user", user.id, after={"kind": row.kind})
    session.flush()


def as_user(actor: Actor, user: User) -> Actor:
    """The same caller, now that he is known to be this user."""
    known = Actor("user", user.id, user.username, Role(user.role), locale=user.locale, timezone=user.timezone)
    return known.at(actor.ip, actor.user_agent, actor.request_id)


def _token_pair(user: User, access: str, refresh: str) -> dict[str, Any]:
    limits, keys = live_settings().auth.jwt, ops().keys
    access_ends = now() + timedelta(seconds=limits.access_ttl)
    refresh_ends = now() + timedelta(seconds=limits.refresh_ttl)
    return {
        "access_token": tokens.sign(keys.jwt_access, "access", user.id, user.role, access, access_ends),
        "refresh_token": tokens.sign(keys.jwt_refresh, "refresh", user.id, user.role, refresh, refresh_ends),
        "expires_in": int(limits.access_ttl),
        "user": user,
    }


def refresh_api_session(session: Session, actor: Actor, row: UserSession) -> dict[str, Any]:
    """New tokens for a session; the old ones end here. The caller has found the row by its refresh token."""
    access, refresh = tokens.new_secret(), tokens.new_secret()
    row.token_hash, row.spent_refresh_hash = tokens.fingerprint(access), row.refresh_hash
    row.refresh_hash = tokens.fingerprint(refresh)
    row.last_seen_at, row.expires_at = now(), now() + timedelta(seconds=live_settings().auth.jwt.refresh_ttl)
    record(session, as_user(actor, row.user), "auth.refresh", "user", row.user_id)
    session.flush()
    return _token_pair(row.user, access, refresh)


def end_stolen_session(session: Session, actor: Actor, row: UserSession) -> None:
    """A refresh token was used twice: somebody has a copy, and nobody can tell who. Both lose the session."""
    reason = "a spent refresh token was used again; the session was ended"
    record(session, as_user(actor, row.user), "auth.refresh", "user", row.user_id, error_message=reason)
    session.delete(row)
    session.flush()


def sign_out(session: Session, actor: Actor) -> None:
    session.execute(delete(UserSession).where(UserSession.id == actor.session_id))
    record(session, actor, "auth.sign_out", "user", actor.user_id)


def end_session(session: Session, actor: Actor, session_id: int) -> None:
    """End one of one's own sessions, for instance on a lost laptop."""
    authorize(actor, "self.manage")
    session.execute(delete(UserSession).where(UserSession.id == session_id, UserSession.user_id == actor.user_id))
    record(session, actor, "auth.end_session", "session", session_id)


def create_user(session: Session, actor: Actor, values: UserCreate) -> User:
    authorize(actor, "users.manage")
    _check_unused(session, values.username, values.email, None)
    passwords.check_new_password(values.password, values.username)
    user = User(**values.model_dump(exclude={"password"}), password_hash=passwords.hash_password(values.password))
    session.add(user)
    session.flush()
    record(session, actor, "user.create", "user", user.id, after=_audited(user))
    return user


def update_user(session: Session, actor: Actor, user_id: int, values: UserUpdate) -> User:
    """Change what was given. Disabling somebody, or giving him a new password, ends his sessions."""
    authorize(actor, "users.manage")
    user = user_by_id(session, user_id)
    given = values.model_dump(exclude_unset=True, exclude={"password"})
    changes = {name: value for name, value in given.items() if value is not None or name in ("email", "phone")}
    _check_unused(session, None, changes.get("email"), user.id)
    if changes.get("role", Role.ADMIN) != Role.ADMIN or changes.get("status") == DISABLED:
        _keep_an_admin(session, user)
    before = _audited(user)
    for name, value in changes.items():
        setattr(user, name, value)
    if values.password is not None:
        passwords.check_new_password(values.password, user.username)
        user.password_hash = passwords.hash_password(values.password)
    if values.password is not None or not user.is_enabled:
        _end_sessions(session, user.id)
    session.flush()
    after = _audited(user) | ({"password": "changed"} if values.password is not None else {})
    record(session, actor, "user.update", "user", user.id, before, after)
    return user


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
    user = user_by_id(session, user_id)
    if user.id == actor.user_id:
        raise Conflict(_("You cannot delete yourself."))
    _keep_an_admin(session, user)
    record(session, actor, "user.delete", "user", user.id, before=_audited(user))
    session.delete(user)
    session.flush()


def change_own_password(session: Session, actor: Actor, current: str, new: str) -> None:
    """Everything else that was signed in as this user is signed out; this session stays."""
    authorize(actor, "self.manage")
    user = user_by_id(session, actor.user_id or 0)
    counter = f"own-password:{user.id}"
    _refuse_when_spent(counter, ACCOUNT_WINDOW_S, live_settings().auth.attempts_per_account, user.username)
    if not passwords.matches(user.password_hash, current):
        ratelimit.count(counter, ACCOUNT_WINDOW_S)
        raise BadParameter(errors=[FieldError("current_password", _("This is not your present password."))])
    if current == new:
        raise BadParameter(errors=[FieldError("new_password", _("The new password is the old one."))])
    passwords.check_new_password(new, user.username, "new_password")
    user.password_hash, user.must_change_password = passwords.hash_password(new), False
    _end_sessions(session, user.id, except_id=actor.session_id)
    record(session, actor, "auth.change_password", "user", user.id)
    session.flush()


def update_profile(session: Session, actor: Actor, values: ProfileForm) -> User:
    authorize(actor, "self.manage")
    user = user_by_id(session, actor.user_id or 0)
    _check_unused(session, None, values.email, user.id)
    before = _audited(user)
    for name, value in values.model_dump().items():
        setattr(user, name, value)
    session.flush()
    record(session, actor, "user.update_profile", "user", user.id, before, _audited(user))
    return user


def choose_language(session: Session, actor: Actor, locale: str) -> None:
    """Remember the language switch for somebody's next browser. A preference, not worth an audit row."""
    user_by_id(session, actor.user_id or 0).locale = locale


def create_token(session: Session, actor: Actor, values: TokenCreate) -> tuple[AccessToken, str]:
    """A token for oneself, never with more rights than the caller has right now. Its secret is told once."""
    authorize(actor, "self.manage")
    if values.expires_at is not None and values.expires_at <= now():
        raise BadParameter(errors=[FieldError("expires_at", _("This lies in the past."))])
    if actor.scopes is not None and not set(values.scopes) <= actor.scopes:
        raise Forbidden("self.manage", _("A token cannot make one that may do more than itself."))
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


def _keep_an_admin(session: Session, user: User) -> None:
    if user.role == Role.ADMIN and user.is_enabled and not other_enabled_admins(session, user):
        raise Conflict(_("This is the last administrator who can sign in."))


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
