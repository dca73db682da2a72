"""Reading users, sessions and tokens."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from app.kernel.clock import now
from app.kernel.errors import NotFound
from app.kernel.live_settings import live_settings
from app.kernel.paging import Page, paginate, sort_keys
from app.people.models import AccessToken, User, UserSession
from app.people.schemas import SessionQuery, TokenQuery, UserQuery

USERS_SORTABLE = {
    "id": User.id,
    "username": User.username,
    "email": User.email,
    "role": User.role,
    "status": User.status,
    "last_login_at": User.last_login_at,
    "created_at": User.created_at,
    "updated_at": User.updated_at,
}
SESSIONS_SORTABLE = {
    "id": UserSession.id,
    "created_at": UserSession.created_at,
    "last_seen_at": UserSession.last_seen_at,
    "expires_at": UserSession.expires_at,
}
TOKENS_SORTABLE = {
    "id": AccessToken.id,
    "name": AccessToken.name,
    "expires_at": AccessToken.expires_at,
    "last_used_at": AccessToken.last_used_at,
    "created_at": AccessToken.created_at,
}


def users(session: Session, query: UserQuery) -> Page[User]:
    return paginate(session, _filtered(query), query, USERS_SORTABLE, "id")


def all_users(session: Session, query: UserQuery) -> Sequence[User]:
    """Every user whom the filters leave, in the order asked for."""
    return session.scalars(_filtered(query).order_by(*sort_keys(query.sort or "id", USERS_SORTABLE, "id"))).all()


def _filtered(query: UserQuery) -> Select[User]:
    statement = select(User)
    if query.keyword:
        columns = (User.username, User.email)
        statement = statement.where(or_(*(column.icontains(query.keyword, autoescape=True) for column in columns)))
    if query.role:
        statement = statement.where(User.role == query.role)
    if query.status:
        statement = statement.where(User.status == query.status)
    return statement


def user_by_id(session: Session, user_id: int) -> User:
    user = session.get(User, user_id)
    if user is None:
        raise NotFound
    return user


def user_by_name(session: Session, username: str) -> User | None:
    return session.scalar(select(User).where(User.username == username))


def open_sessions(session: Session, query: SessionQuery, user_id: int) -> Page[UserSession]:
    """Sessions that are still good: neither at their end nor, in a browser, idle for too long."""
    idle_since = now() - timedelta(seconds=live_settings().auth.session_idle)
    statement = select(UserSession).where(UserSession.user_id == user_id, UserSession.expires_at > now())
    statement = statement.where(or_(UserSession.kind != "web", UserSession.last_seen_at >= idle_since))
    return paginate(session, statement, query, SESSIONS_SORTABLE, "-id")


def tokens(session: Session, query: TokenQuery, user_id: int) -> Page[AccessToken]:
    return paginate(session, select(AccessToken).where(AccessToken.user_id == user_id), query, TOKENS_SORTABLE, "-id")


def token_by_id(session: Session, token_id: int) -> AccessToken:
    token = session.get(AccessToken, token_id)
    if token is None:
        raise NotFound
    return token
