"""The settings that may change at run time, each with its value, its default and what is allowed."""

from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.kernel.context import ops
from app.kernel.live_settings import changed_settings, is_allowed, overlaid, value_of
from config import Duration, allowed_values, known_settings


class Shown(NamedTuple):
    key: str
    value: Any
    configured: Any
    is_changed: bool
    allowed: str
    description: str
    unit: str

    @property
    def section(self) -> str:
        return self.key.partition(".")[0]


def runtime_settings(session: Session) -> list[Shown]:
    configured, stored = ops().settings, changed_settings(session)
    effective = overlaid(configured, stored)
    seconds = Duration.__metadata__[0]  # type: ignore[attr-defined]
    return [
        Shown(
            item.key,
            value_of(effective, item.key),
            value_of(configured, item.key),
            item.key in stored and is_allowed(configured, item.key, stored[item.key]),
            allowed_values(item),
            item.info.description or "",
            "s" if seconds in item.info.metadata else "",
        )
        for item in known_settings()
        if item.is_runtime
    ]
