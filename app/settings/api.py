"""Run-time settings for programs."""

from typing import Any

from app.kernel.access import current_actor
from app.kernel.api import ApiRoom
from app.kernel.db import db
from app.settings import actions, queries
from app.settings.schemas import SettingsChange, SettingsOut

api = ApiRoom("settings", "Settings")


@api.get(
    "/system/settings", permission="settings.read", summary="Settings that may change at run time", returns=SettingsOut
)
def show_settings() -> dict[str, Any]:
    return {"items": queries.runtime_settings(db.session())}


@api.put(
    "/system/settings",
    permission="settings.manage",
    summary="Change settings, all or none",
    body=SettingsChange,
    returns=SettingsOut,
)
def change_settings(body: SettingsChange) -> dict[str, Any]:
    session = db.session()
    actions.change_settings(session, current_actor(), body.values)
    return {"items": queries.runtime_settings(session)}
