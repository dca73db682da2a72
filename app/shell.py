"""What every page shows around its content: navigation, who is signed in, theme, messages; addresses of assets."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Flask, current_app, flash, get_flashed_messages, request, url_for
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from flask_babel.speaklater import LazyString
from sqlalchemy.orm import Session

from app import __version__
from app.kernel.access import Actor, current_actor, may
from app.kernel.db import db
from app.kernel.i18n import language

THEMES = ("auto", "light", "dark")
THEME_COOKIE = "ops_theme"


@dataclass(frozen=True)
class Entry:
    """A line of the navigation, shown once its page exists and to those who may open it."""

    endpoint: str
    label: LazyString
    icon: str
    permission: str
    shortcut: str = ""
    also: tuple[str, ...] = ()
    """Where else it is open: addresses that begin in another way."""


@dataclass(frozen=True)
class Section:
    title: LazyString | str
    entries: tuple[Entry, ...] = field(default_factory=tuple)


NAVIGATION = (
    Section(
        _l("Fleet"),
        (
            Entry("overview.dashboard", _l("Overview"), "home", "nodes.read", "g o"),
            Entry("nodes.list_nodes", _l("Nodes"), "node", "nodes.read", "g n"),
            Entry("groups.list_groups", _l("Groups"), "group", "nodes.read", "g g"),
            Entry("enrolment.list_tokens", _l("Enrolment"), "key", "enrollment.manage", "g j"),
            Entry("agents.list_agents", _l("Agents"), "agent", "agents.read", "g a"),
        ),
    ),
    Section(
        _l("Work"),
        (
            Entry("tasks.list_tasks", _l("Tasks"), "task", "tasks.read", "g t", ("/executions",)),
            Entry("packages.list_versions", _l("Versions"), "version", "versions.read", "g v"),
            Entry("rollouts.list_rollouts", _l("Rollouts"), "rollout", "rollouts.read", "g r"),
            Entry("services.list_services", _l("Services"), "service", "services.read"),
        ),
    ),
    Section(
        _l("Watch"),
        (
            Entry("alerts.list_alerts", _l("Alerts"), "alert", "alerts.read", "g l"),
            Entry("events.list_events", _l("Events"), "event", "events.read", "g e"),
            Entry("audit.list_audit_logs", _l("Audit"), "audit", "audit.read", "g u"),
        ),
    ),
    Section(
        _l("System"),
        (
            Entry("people.list_users", _l("Users"), "users", "users.read", "g p"),
            Entry("settings.show_settings", _l("Settings"), "settings", "settings.read", "g s"),
            Entry("system.documentation", _l("API"), "file", "signed_in"),
            Entry("system_development.styleguide", _l("Style page"), "eye", "signed_in"),
        ),
    ),
)


def install(app: Flask, counts: Mapping[str, Callable[[Session], int]] | None = None) -> None:
    """`counts`: what stands beside an entry of the navigation when it is not 0, by the entry's endpoint."""
    app.extensions["navigation_counts"] = counts or {}
    hashes: dict[str, str] = {}

    def asset(path: str) -> str:
        """The address of a static file, with its content's hash, so that browsers may keep it for ever."""
        if path not in hashes or app.debug:
            hashes[path] = hashlib.sha256((Path(app.static_folder or "") / path).read_bytes()).hexdigest()[:12]
        return url_for("static", filename=path, v=hashes[path])

    app.jinja_env.globals["asset"] = asset
    app.jinja_env.filters["pair"] = lambda word: (word, word)
    app.context_processor(_context)


def tell(text: str, level: str = "ok") -> None:
    """A message on the next page this person sees."""
    flash(text, level)


def home_endpoint() -> str:
    """The first page of the navigation that this person may open."""
    for section in navigation():
        for item in section["items"]:
            return str(item["endpoint"])
    return "people.profile"


def navigation() -> list[dict[str, Any]]:
    actor = current_actor()
    sections = [{"title": section.title, "items": _items(section, actor)} for section in NAVIGATION]
    return [section for section in sections if section["items"]]


def _items(section: Section, actor: Actor) -> list[dict[str, Any]]:
    return [
        {
            "endpoint": entry.endpoint,
            "href": url_for(entry.endpoint),
            "label": entry.label,
            "icon": entry.icon,
            "shortcut": entry.shortcut,
            "current": any(f"{request.path}/".startswith(f"{at}/") for at in (url_for(entry.endpoint), *entry.also)),
            "count": _count(entry.endpoint),
        }
        for entry in section.entries
        if entry.endpoint in current_app.view_functions and may(actor, entry.permission)
    ]


def _count(endpoint: str) -> int:
    """Counted only in a transaction that is open anyway: the page about a database that is away must not ask it."""
    count, session = current_app.extensions["navigation_counts"].get(endpoint), db.session()
    return int(count(session)) if count is not None and session.in_transaction() else 0


def theme() -> str:
    chosen = request.cookies.get(THEME_COOKIE, "auto")
    return chosen if chosen in THEMES else "auto"


def _context() -> dict[str, Any]:
    actor = current_actor()
    messages: list[tuple[str, str]] = get_flashed_messages(with_categories=True)  # type: ignore[assignment]
    return {
        "nav": navigation() if actor.is_signed_in else [],
        "me": actor if actor.is_signed_in else None,
        "locale": language(),
        "theme": theme(),
        "version": __version__,
        "search_enabled": "overview.search" in current_app.view_functions,
        "toasts": [{"level": level, "text": text} for level, text in messages],
        "may": lambda permission: may(actor, permission),
        "ngettext": ngettext,
    }
