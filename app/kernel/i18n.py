"""Which language and time zone an answer is in, and how times and numbers are written in it."""

from datetime import datetime

from flask import Flask, g, has_request_context, request
from flask_babel import Babel, format_datetime, format_decimal, format_timedelta
from flask_babel import gettext as _
from markupsafe import Markup

from app.kernel.access import current_actor
from app.kernel.clock import now, rfc3339
from app.kernel.live_settings import live_settings

LANGUAGES = {"en": "English", "zh": "简体中文"}
CATALOGUES = {"en": "en", "zh": "zh_Hans"}
COOKIE = "ops_lang"


def language() -> str:
    """A page follows the switch, then the person's choice; the API and first visits follow Accept-Language."""
    if "language" not in g:
        g.language = _language()
    chosen: str = g.language
    return chosen


def _language() -> str:
    if not has_request_context():
        return "en"
    if not request.path.startswith("/api/"):
        for choice in (request.cookies.get(COOKIE), current_actor().locale):
            if choice in LANGUAGES:
                return choice
    return request.accept_languages.best_match(["en", "zh", "zh-CN", "zh-Hans"], "en")[:2]


def time_zone() -> str:
    return current_actor().timezone or live_settings().ui.timezone


def install(app: Flask) -> Babel:
    babel = Babel(
        app,
        default_locale="en",
        locale_selector=lambda: CATALOGUES[language()],
        timezone_selector=time_zone,
    )
    app.jinja_env.filters |= {
        "ago": ago,
        "datetime": exact,
        "number": lambda value: "–" if value is None else format_decimal(value),
        "filesize": file_size,
        "percent": lambda value: "–" if value is None else f"{format_decimal(round(value, 1))} %",
    }
    return babel


def exact(moment: datetime | None) -> str:
    return "–" if moment is None else format_datetime(moment, "yyyy-MM-dd HH:mm:ss zzz")


def ago(moment: datetime | None) -> Markup:
    """How long ago (or ahead), with the exact time in the title; the script keeps it ticking."""
    if moment is None:
        return Markup('<span class="faint">{}</span>').format(_("never"))
    delta = moment - now()
    seconds = abs(delta.total_seconds())
    text = (
        _("just now")
        if seconds < 2
        else format_timedelta(delta, granularity="second", threshold=1.2, add_direction=True)
    )
    return Markup('<time datetime="{}" title="{}" data-ago>{}</time>').format(rfc3339(moment), exact(moment), text)


def file_size(size_bytes: float | None) -> str:
    if size_bytes is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size_bytes) < 1024 or unit == "TiB":
            return f"{format_decimal(round(size_bytes, 1 if unit != 'B' else 0))} {unit}"
        size_bytes /= 1024
    raise AssertionError("unreachable")
