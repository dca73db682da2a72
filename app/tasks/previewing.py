"""What a definition comes to, shown before anything is saved or begun: its very hosts, and its next times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from babel.dates import format_datetime
from flask_babel import get_locale
from flask_babel import gettext as _
from sqlalchemy.orm import Session

from app.commands.shares import check_window, window_of
from app.kernel.clock import now
from app.tasks import queries
from app.tasks.cron import is_cron, is_zone, next_times
from app.tasks.form_contents import WHOLE_NUMBER
from app.tasks.form_targets import read_target
from app.tasks.models import Task
from app.tasks.queries import PreviewedNode

SHOWN = 300
TIMES = 5


@dataclass(frozen=True)
class Hosts:
    """The hosts that are meant now, and how many of them would not begin at once."""

    total: int = 0
    offline: int = 0
    maintenance: int = 0
    queued: int = 0
    """Could begin, but more than `max_parallel` would."""
    at_once: int = 0
    items: Sequence[PreviewedNode] = ()
    more: int = 0
    problem: str | None = None


def hosts_of(session: Session, task: Task) -> Hosts:
    found = queries.preview(session, task)
    items: list[PreviewedNode] = found["items"]
    ready = sum(item.waiting_for is None for item in items)
    at_once = min(ready, window_of(task.max_parallel, len(items)))
    maintenance = sum(item.waiting_for == "node_maintenance" for item in items)
    waits_first = sorted(items, key=lambda item: item.waiting_for is None)[:SHOWN]
    shown = items if len(items) <= SHOWN else waits_first
    return Hosts(
        found["total"], found["offline"], maintenance, ready - at_once, at_once, shown, len(items) - len(shown)
    )


def typed_hosts(session: Session, typed: Mapping[str, Any]) -> Hosts | None:
    """Of a form that is being filled in. None while no target was said."""
    type_, value, errors = read_target(session, typed)
    if errors:
        is_empty = not value and not any(typed.get(name) for name in ("nodes", "groups", "tags", "labels", "selector"))
        return None if is_empty else Hosts(problem=errors[0]["message"])
    return hosts_of(session, Task(target_type=type_, target_value=value, max_parallel=_window(typed)))


def _window(typed: Mapping[str, Any]) -> int | str | None:
    """What is typed there, if it makes sense already."""
    text = str(typed.get("max_parallel") or "").strip()
    try:
        return check_window(int(text) if WHOLE_NUMBER.fullmatch(text) else text) if text else None
    except ValueError:
        return None


@dataclass(frozen=True)
class Times:
    """The next moments of a schedule, each as the schedule's own clock shows it."""

    zone: str = ""
    items: Sequence[tuple[datetime, str]] = ()
    problem: str | None = None


def times_of(expression: str, zone: str, count: int = TIMES) -> Times:
    shown = [
        (moment, format_datetime(moment, "EEE yyyy-MM-dd HH:mm", tzinfo=ZoneInfo(zone), locale=get_locale()))
        for moment in next_times(expression, zone, now(), count)
    ]
    return Times(zone, shown)


def typed_times(typed: Mapping[str, Any]) -> Times | None:
    expression, zone = str(typed.get("cron_expr") or "").strip(), str(typed.get("timezone") or "UTC").strip()
    if not expression or typed.get("when") == "manual":
        return None
    if not is_cron(expression):
        return Times(problem=_("Five fields of cron, or @hourly, @daily, @weekly, @monthly, @yearly, are expected."))
    if not is_zone(zone):
        return Times(problem=_("This is not the name of a time zone, such as Europe/Berlin."))
    return times_of(expression, zone)
