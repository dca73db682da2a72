"""The charts of one agent, and of the minutes before it crashed."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel.speaklater import LazyString

from app.kernel.charts import Chart, Series, Threshold, build_chart
from app.kernel.i18n import time_zone

SPANS: Mapping[str, tuple[timedelta, LazyString]] = {
    "1h": (timedelta(hours=1), _l("1 h")),
    "6h": (timedelta(hours=6), _l("6 h")),
    "24h": (timedelta(hours=24), _l("24 h")),
    "7d": (timedelta(days=7), _l("7 d")),
}
USUAL_SPAN = "1h"
POINTS_SHOWN = 400
GAP = 2.5
Points = Sequence[tuple[float, float | None, int | None]]


def resource_charts(
    points: Points, start: datetime, end: datetime, interval_s: float, limits: Mapping[str, object]
) -> list[Chart]:
    """CPU and memory, with the limits at which the host would do something."""
    shown = _thinned(points)
    step_s = max(interval_s, (end - start).total_seconds() / POINTS_SHOWN)
    zone = ZoneInfo(time_zone())
    cpu = [(at, value) for at, value, _memory in shown]
    memory = [(at, value) for at, _cpu, value in shown]
    return [
        build_chart(
            [Series(_("CPU"), cpu, area=True)] if cpu else [],
            start,
            end,
            "percent",
            zone,
            label=_("CPU, percent of a core"),
            thresholds=_threshold(limits.get("cpu_percent", 50), cpu),
            height=160,
            y_max=_ceiling(cpu),
            gap_s=step_s * GAP,
        ),
        build_chart(
            [Series(_("Memory"), memory, area=True)] if memory else [],
            start,
            end,
            "bytes",
            zone,
            label=_("Memory"),
            thresholds=_threshold(limits.get("memory_bytes"), memory),
            height=160,
            gap_s=step_s * GAP,
        ),
    ]


def _ceiling(cpu: Sequence[tuple[float, float | None]]) -> float:
    """So that an agent that uses a percent of a core, or several cores, does not draw a flat line."""
    highest = max((value for _at, value in cpu if value is not None), default=0.0)
    return next((step for step in (5, 10, 25, 50, 100) if highest <= step), highest)


def _threshold(limit: object, points: Sequence[tuple[float, float | None]]) -> list[Threshold]:
    """A limit is drawn once the values come near it; else it would press them to the bottom."""
    highest = max((value for _at, value in points if value is not None), default=0.0)
    if not isinstance(limit, int | float) or isinstance(limit, bool) or highest < limit / 4:
        return []
    return [Threshold(float(limit), _("limit"), "bad")]


def _thinned(points: Points) -> Points:
    """Of very many points the highest of each stretch: peaks are what one looks for."""
    if len(points) <= POINTS_SHOWN:
        return points
    size = -(-len(points) // POINTS_SHOWN)
    found = []
    for first in range(0, len(points), size):
        some = points[first : first + size]
        cpu = max((value for _at, value, _memory in some if value is not None), default=None)
        memory = max((value for _at, _cpu, value in some if value is not None), default=None)
        found.append((some[0][0], cpu, memory))
    return found


def dossier_charts(dossier: Mapping[str, object], ended_at: datetime) -> list[Chart]:
    """What it used before it ended, as its host measured it."""
    curve, zone = _curve(dossier.get("curve"), ended_at.timestamp()), ZoneInfo(time_zone())
    if len(curve) < 2:
        return []
    start, end = (datetime.fromtimestamp(curve[place][0], zone) for place in (0, -1))
    if end <= start:
        return []
    return [
        build_chart(
            [Series(_("CPU"), [(at, value) for at, value, _memory in curve], area=True)],
            start,
            end,
            "percent",
            zone,
            label=_("CPU before"),
            height=90,
            y_max=_ceiling([(at, value) for at, value, _memory in curve]),
        ),
        build_chart(
            [Series(_("Memory"), [(at, value) for at, _cpu, value in curve], area=True)],
            start,
            end,
            "bytes",
            zone,
            label=_("Memory before"),
            height=90,
        ),
    ]


def _curve(told: object, ended_s: float) -> Points:
    """Points as hosts tell them: seconds before the end, percent of a core, bytes. What makes no sense is left out."""
    found = []
    for point in told if isinstance(told, list) else ():
        if isinstance(point, list) and len(point) == 3 and all(_is_number(value) for value in point):
            before_s, cpu, memory = point
            if before_s is not None and -86400 < before_s <= 0:
                found.append((ended_s + before_s, cpu, memory))
    return sorted(found)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
