"""Settings that may change at run time: what administrators changed lies in a table over what was configured.

Every process sees a change within a second. The room `settings` owns the changing, the page and the API.
"""

import time
from typing import Any

from flask import current_app
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.kernel.clock import now
from app.kernel.context import ops
from app.kernel.db import Base, db, is_away, reading
from app.kernel.errors import DatabaseAway
from app.kernel.types import Json, Name, UtcDateTime
from config import Settings, known_settings

MAX_AGE_S = 1.0


class ChangedSetting(Base):
    """One setting's value as an administrator left it."""

    __tablename__ = "changed_settings"

    key: Mapped[str] = mapped_column(Name(128), primary_key=True)
    value: Mapped[Any] = mapped_column(Json)
    updated_at: Mapped[Any] = mapped_column(UtcDateTime, default=now, onupdate=now)


def live_settings() -> Settings:
    """The settings in force now. What the table says wins over file and environment, since it was said later.

    While the database is away, those that were in force last.
    """
    cached = current_app.extensions.get("live_settings")
    if cached is None or time.monotonic() - cached[0] > MAX_AGE_S:
        known = ops().settings if cached is None else cached[1]
        cached = current_app.extensions["live_settings"] = (time.monotonic(), _present_settings(db.session(), known))
    settings: Settings = cached[1]
    return settings


def _present_settings(session: Session, known: Settings) -> Settings:
    """Asked inside the transaction that is open, else in one that only reads and is over at once."""
    if session.in_transaction():
        return overlaid(ops().settings, changed_settings(session))
    try:
        with reading():
            return overlaid(ops().settings, changed_settings(session))
    except (DatabaseAway, SQLAlchemyError) as error:
        if not is_away(error):
            raise
        return known
    finally:
        session.rollback()


def changed_settings(session: Session) -> dict[str, Any]:
    return {row.key: row.value for row in session.execute(select(ChangedSetting.key, ChangedSetting.value))}


def forget_cached_settings() -> None:
    """After a change, so that whoever made it sees it at once."""
    current_app.extensions.pop("live_settings", None)


def overlaid(settings: Settings, changes: dict[str, Any]) -> Settings:
    """Settings with changes on top. A stored value that is no longer allowed (after an upgrade) is left out."""
    for key, value in changes.items():
        if is_allowed(settings, key, value):
            settings = with_value(settings, key, value)
    return settings


def is_allowed(settings: Settings, key: str, value: Any) -> bool:
    """Whether this may stand over what is configured."""
    if not any(item.key == key and item.is_runtime for item in known_settings()):
        return False
    try:
        with_value(settings, key, value)
    except ValidationError:
        return False
    return True


def with_value(settings: Settings, key: str, value: Any) -> Settings:
    """A checked copy with one value changed."""
    tree = settings.model_dump()
    *sections, name = key.split(".")
    branch = tree
    for section in sections:
        branch = branch[section]
    branch[name] = value
    return Settings.model_validate(tree)


def value_of(settings: Settings, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value
