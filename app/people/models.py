"""Tables of people: users, the sessions they are signed in with, and the access tokens of their programs."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.kernel.access import Role
from app.kernel.clock import now
from app.kernel.db import Base
from app.kernel.types import BigId, Json, Name, UtcDateTime

ENABLED, DISABLED = "enabled", "disabled"


class User(Base):
    """Somebody who may sign in."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    username: Mapped[str] = mapped_column(Name(64), unique=True)
    password_hash: Mapped[str] = mapped_column(Name(255))
    email: Mapped[str | None] = mapped_column(Name(128), unique=True)
    phone: Mapped[str | None] = mapped_column(Name(20))
    role: Mapped[str] = mapped_column(Name(16), default=Role.VIEWER.value, index=True)
    status: Mapped[str] = mapped_column(Name(16), default=ENABLED, index=True)
    must_change_password: Mapped[bool] = mapped_column(default=False)
    locale: Mapped[str | None] = mapped_column(Name(8))
    timezone: Mapped[str | None] = mapped_column(Name(64))
    last_login_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_login_ip: Mapped[str | None] = mapped_column(Name(45))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, onupdate=now)

    @property
    def is_enabled(self) -> bool:
        return self.status == ENABLED


class UserSession(Base):
    """A sign-in that is still good: of a browser (cookie) or of a program (access and refresh token).

    Only hashes are kept. Whoever can sign tokens but has no row here is nobody.
    """

    __tablename__ = "user_sessions"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(Name(8))
    token_hash: Mapped[str] = mapped_column(Name(64), unique=True)
    refresh_hash: Mapped[str | None] = mapped_column(Name(64), unique=True)
    spent_refresh_hash: Mapped[str | None] = mapped_column(Name(64), index=True)
    ip: Mapped[str] = mapped_column(Name(45))
    user_agent: Mapped[str] = mapped_column(Name(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)

    user: Mapped[User] = relationship()


class AccessToken(Base):
    """A personal access token: shown once, kept as a hash, good for its scopes until it expires or is revoked."""

    __tablename__ = "access_tokens"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(Name(64))
    prefix: Mapped[str] = mapped_column(Name(16))
    token_hash: Mapped[str] = mapped_column(Name(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(Json)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_ip: Mapped[str | None] = mapped_column(Name(45))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    user: Mapped[User] = relationship()
