"""Changing settings at run time."""

from collections.abc import Mapping
from typing import Any

from flask_babel import gettext as _
from pydantic import ValidationError
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.audit.actions import record
from app.kernel.access import Actor, authorize
from app.kernel.context import ops
from app.kernel.errors import BadParameter, FieldError
from app.kernel.live_settings import (
    ChangedSetting,
    changed_settings,
    forget_cached_settings,
    overlaid,
    value_of,
    with_value,
)
from app.kernel.validation import field_errors
from config import Known, Settings, known_settings

LIFETIMES = frozenset({"auth.session_idle", "auth.session_ttl"})


def change_settings(session: Session, actor: Actor, changes: Mapping[str, Any]) -> Settings:
    """Change the named ones, all or none. None as a value goes back to what is configured."""
    authorize(actor, "settings.manage")
    configured, stored = ops().settings, changed_settings(session)
    before = overlaid(configured, stored)
    kept = {key: value for key, value in stored.items() if key not in changes}
    after = _checked(overlaid(configured, kept), changes)
    for key in changes:
        _store(session, key, None if changes[key] is None else value_of(after, key))
    changed = [key for key in changes if value_of(before, key) != value_of(after, key)]
    if changed:
        was, becomes = ({key: value_of(tree, key) for key in changed} for tree in (before, after))
        record(session, actor, "settings.change", "settings", None, was, becomes)
    session.flush()
    event.listen(session, "after_commit", lambda _session: forget_cached_settings(), once=True)
    return after


def _checked(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """These settings with these changes. Raises BadParameter that names everything that is wrong with the changes."""
    known = {item.key: item for item in known_settings() if item.is_runtime}
    errors = []
    for key, value in changes.items():
        if key not in known:
            errors.append(FieldError(key, _("This setting cannot be changed here.")))
            continue
        if value is None:
            continue
        if problem := _kind_problem(known[key], value):
            errors.append(FieldError(key, problem))
            continue
        try:
            settings = with_value(settings, key, value)
        except ValidationError as error:
            errors += [FieldError(key, problem["message"]) for problem in field_errors(error)]
    if LIFETIMES & changes.keys() and settings.auth.session_idle > settings.auth.session_ttl:
        errors.append(FieldError("auth.session_idle", _("At most auth.session_ttl.")))
    if errors:
        raise BadParameter(errors=errors)
    return settings


def _kind_problem(item: Known, value: Any) -> str:
    """Files and the environment hold only text, so "5" may stand for 5 there. Here it may not."""
    kind = item.info.annotation
    if kind is bool and not isinstance(value, bool):
        return str(_("Yes or no is expected here."))
    if kind is int and not (isinstance(value, int) and not isinstance(value, bool)):
        return str(_("A whole number is expected here."))
    return ""


def _store(session: Session, key: str, value: Any) -> None:
    row = session.get(ChangedSetting, key)
    if value is None:
        if row is not None:
            session.delete(row)
    elif row is None:
        session.add(ChangedSetting(key=key, value=value))
    else:
        row.value = value
