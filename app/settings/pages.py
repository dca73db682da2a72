"""The settings page: what may change at run time, its meaning and what is allowed."""

import re
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, render_template, request, url_for
from flask_babel import gettext as _

from app.kernel.access import current_actor
from app.kernel.db import db
from app.kernel.edges import page, see_other
from app.kernel.errors import BadParameter, FieldError
from app.kernel.forms import Form
from app.settings import actions, queries
from app.shell import tell
from config import known_time_zones, parse_duration

pages = Blueprint("settings", __name__)
DURATIONS = ((86400, "d"), (3600, "h"), (60, "m"))
WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@page(pages, "/settings", permission="settings.read")
def show_settings() -> str:
    return _settings_page(Form({item.key: _as_text(item.value) for item in queries.runtime_settings(db.session())}))


@page(pages, "/settings", permission="settings.manage", methods=("POST",))
def change_settings() -> Any:
    session = db.session()
    shown = [item for item in queries.runtime_settings(session) if item.key in request.form]
    form: Form[Any] = Form({item.key: request.form[item.key].strip() for item in shown})
    typed = {item.key: _typed(form.values[item.key], item.value) for item in shown}
    changes = {
        item.key: None if typed[item.key] in ("", item.configured) else typed[item.key]
        for item in shown
        if typed[item.key] != item.value
    }
    try:
        actions.change_settings(session, current_actor(), changes)
    except BadParameter as error:
        session.rollback()
        form.add_errors([_worded(problem, typed) for problem in error.errors])
        return _settings_page(form), 422
    tell(_("The settings were saved. They apply at once."))
    return see_other(url_for("settings.show_settings"))


def _typed(text: str, present: Any) -> Any:
    """What was typed, as the kind of value that stands there now if it can be read as one. Empty stays empty."""
    try:
        if isinstance(present, bool):
            return WORDS.get(text.lower(), text)
        if isinstance(present, float):
            return parse_duration(text)
        return int(text) if isinstance(present, int) else text
    except ValueError:
        return text


def _as_text(value: Any) -> str:
    """As somebody would write it: true, 90s, 12h."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return next((f"{value / size:g}{unit}" for size, unit in DURATIONS if not value % size), f"{value:g}s")
    return str(value)


def _settings_page(form: Form[Any]) -> str:
    return render_template(
        "settings/settings.html",
        form=form,
        settings=queries.runtime_settings(db.session()),
        setting_help=_help,
        time_zones=known_time_zones(),
    )


def _help(item: queries.Shown) -> str:
    """What is allowed, and what applies when nobody changes it."""
    parts = []
    if item.allowed and not isinstance(item.value, bool):
        parts.append(_("Allowed: %(range)s.", range=_readable(item.allowed) if item.unit else item.allowed))
    if item.is_changed:
        parts.append(_("Configured: %(value)s; empty goes back to it.", value=_as_text(item.configured)))
    return " ".join(parts)


def _worded(problem: FieldError, typed: Mapping[str, Any]) -> FieldError:
    """A duration that could be read was too short or too long: say so in the words it is typed in."""
    is_duration = isinstance(typed.get(problem["field"]), float)
    return FieldError(problem["field"], _readable(problem["message"])) if is_duration else problem


def _readable(text: str) -> str:
    """Bounds that others give in seconds, as they are typed here."""
    return re.sub(r"\d[\d,]*(\.\d+)?", lambda number: _as_text(float(number[0].replace(",", ""))), text)
