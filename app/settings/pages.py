"""The settings page: what may change at run time, its meaning and what is allowed."""

from typing import Any

from flask import Blueprint, render_template, request, url_for
from flask_babel import gettext as _

from app.kernel.access import current_actor
from app.kernel.db import db
from app.kernel.edges import page, see_other
from app.kernel.errors import BadParameter
from app.kernel.forms import Form
from app.settings import actions, queries
from app.shell import tell
from config import parse_duration

pages = Blueprint("settings", __name__)


@page(pages, "/settings", permission="settings.read")
def show_settings() -> str:
    return _settings_page(Form({item.key: item.value for item in queries.runtime_settings(db.session())}))


@page(pages, "/settings", permission="settings.manage", methods=("POST",))
def change_settings() -> Any:
    session = db.session()
    shown = queries.runtime_settings(session)
    form: Form[Any] = Form({item.key: request.form.get(item.key, "").strip() for item in shown})
    changes = {item.key: _typed(form.values[item.key], item) for item in shown if _differs(form.values[item.key], item)}
    try:
        actions.change_settings(session, current_actor(), changes)
    except BadParameter as error:
        session.rollback()
        form.add_errors(error.errors)
        return _settings_page(form), 422
    tell(_("The settings were saved. They apply at once."))
    return see_other(url_for("settings.show_settings"))


def _typed(text: str, item: queries.Shown) -> Any:
    """None, meaning what is configured, for an empty field and for the configured value itself."""
    return None if text == "" or _same(text, item.configured) else text


def _differs(text: str, item: queries.Shown) -> bool:
    return not _same(text, item.value)


def _same(text: str, value: Any) -> bool:
    if isinstance(value, float):
        try:
            return parse_duration(text) == value
        except ValueError:
            return False
    return text == str(value)


def _settings_page(form: Form[Any]) -> str:
    return render_template(
        "settings/settings.html", form=form, settings=queries.runtime_settings(db.session()), setting_help=_help
    )


def _help(item: queries.Shown) -> str:
    """What a setting means, what is allowed, and what applies when nobody changes it."""
    parts = [_(item.description)]
    if item.allowed:
        parts.append(_("Allowed: %(range)s.", range=item.allowed))
    if item.is_changed:
        parts.append(_("Configured: %(value)s; empty goes back to it.", value=item.configured))
    return " ".join(parts)
