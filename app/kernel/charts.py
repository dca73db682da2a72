"""Geometry of charts: series in, positions and words out; `templates/_ui/chart.html` draws them as SVG.

Knows nothing of features, requests or databases. Horizontal positions are percentages and vertical ones pixels, so a
chart takes any width without its lettering being scaled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from typing import Literal
from zoneinfo import ZoneInfo

Unit = Literal["percent", "bytes", "bytes_per_s", "count", "number", "seconds"]
Instant = datetime | float
Point = tuple[float, float]

WIDTH = 1000
"""Units across a plot; the drawing is stretched to the width it gets."""

MAX_POINTS = 600

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_COUNT_UNITS = ("", "k", "M", "G", "T", "P", "E")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_TIME_STEPS = tuple(
    [n * _MINUTE for n in (1, 2, 5, 10, 15, 30)]
    + [n * _HOUR for n in (1, 2, 3, 6, 12)]
    + [n * _DAY for n in (1, 2, 7, 14, 28)]
)


@dataclass(frozen=True, slots=True)
class Series:
    """One line: instants (aware datetimes or unix seconds, ascending) with values; None is a gap."""

    name: str
    points: Sequence[tuple[Instant, float | None]]
    area: bool = False
    slot: int = 0
    """Colour 1–6; 0 takes the next one."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A level that matters, drawn as a dashed line."""

    value: float
    label: str
    state: str = "warn"


@dataclass(frozen=True, slots=True)
class YTick:
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class XTick:
    x: float
    label: str
    anchor: str
    major: bool
    """The first moment of a day, where the label is the date."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """What one series looks like, and its figures in words."""

    name: str
    slot: int
    line: str
    area: str
    low: str
    mean: str
    high: str
    last: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart ready to be drawn; `height` is the plot's, the axis stands below it."""

    label: str
    height: int
    gutter: int
    drawings: tuple[Drawing, ...]
    y_ticks: tuple[YTick, ...]
    x_wide: tuple[XTick, ...]
    x_narrow: tuple[XTick, ...]
    thresholds: tuple[tuple[float, Threshold], ...]
    start: datetime
    end: datetime
    data: str
    """JSON for the cross-hair read-out in `static/app.js`."""
    is_empty: bool


@dataclass(frozen=True, slots=True)
class Spark:
    """A line without axes, for a tile or a table row."""

    width: int
    height: int
    line: str
    area: str


@dataclass(frozen=True, slots=True)
class Share:
    """One part of a distribution; x and width are percentages of the whole bar."""

    label: str
    count: int
    state: str
    href: str | None
    x: float
    width: float
    percent: str


@dataclass(frozen=True, slots=True)
class Distribution:
    total: int
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One node on the fleet map. state: ok, warn, bad, off; quant 0–4 is how dark an `ok` cell is."""

    href: str
    title: str
    state: str = "ok"
    quant: int = 0


def build_chart(
    series: Sequence[Series],
    start: datetime,
    end: datetime,
    unit: Unit = "count",
    tz: tzinfo = UTC,
    *,
    label: str = "",
    height: int = 200,
    thresholds: Sequence[Threshold] = (),
    y_max: float | None = None,
    max_points: int = MAX_POINTS,
    gap_s: float | None = None,
) -> Chart:
    """Lay out series between two moments. Points outside are cut off, values below 0 lower the floor of the scale.

    A hole longer than `gap_s` (default: 2.5 times the usual distance of points) breaks the line. `percent` charts show
    0–100 unless a value is higher.
    """
    t0, t1 = start.timestamp(), end.timestamp()
    if t1 <= t0:
        raise ValueError("a chart must end after it starts")
    runs = [_runs(_between(one.points, t0, t1), gap_s) for one in series]
    floor, ceiling, step = _scale(runs, thresholds, unit, y_max)
    limit = min(max_points, MAX_POINTS)
    drawings: list[Drawing] = []
    read_out: list[dict[str, object]] = []
    for number, (one, parts) in enumerate(zip(series, runs, strict=True)):
        slot = one.slot or number % 6 + 1
        thin = _thin_runs(parts, limit)
        drawings.append(_drawing(one, slot, parts, thin, (t0, t1, floor, ceiling), height, unit))
        read_out.append(_readable(one.name, slot, thin, t0))
    y_ticks = tuple(
        YTick(_y(value, floor, ceiling, height), format_value(value, unit, step))
        for value in _steps(floor, ceiling, step)
    )
    return Chart(
        label=label or ", ".join(one.name for one in series),
        height=height,
        gutter=max((_text_width(tick.label) for tick in y_ticks), default=0) + 10,
        drawings=tuple(drawings),
        y_ticks=y_ticks,
        x_wide=time_ticks(start, end, tz, 8),
        x_narrow=time_ticks(start, end, tz, 4),
        thresholds=tuple(
            (_y(one.value, floor, ceiling, height), one) for one in thresholds if floor <= one.value <= ceiling
        ),
        start=start,
        end=end,
        data=json.dumps(
            {
                "unit": unit,
                "from": t0,
                "to": t1,
                "tz": tz.key if isinstance(tz, ZoneInfo) else "UTC",
                "series": read_out,
            },
            separators=(",", ":"),
            ensure_ascii=False,
        ),
        is_empty=not any(parts for parts in runs),
    )


def build_spark(
    values: Sequence[float | None],
    *,
    width: int = 96,
    height: int = 32,
    low: float | None = None,
    high: float | None = None,
) -> Spark:
    """A small line over evenly spaced values. The scale is the values' own unless low or high pin it."""
    known = [value for value in values if value is not None]
    if not known:
        return Spark(width, height, "", "")
    floor = min(known) if low is None else low
    ceiling = max(known) if high is None else high
    if ceiling <= floor:
        floor, ceiling = floor - 1, floor + 1
    step = width / max(len(values) - 1, 1)
    runs: list[list[Point]] = [[]]
    for index, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((index * step, 1.5 + (height - 3) * (ceiling - value) / (ceiling - floor)))
    runs = [run for run in runs if run]
    return Spark(width, height, "".join(_path(run) for run in runs), "".join(_closed(run, height) for run in runs))


def build_distribution(parts: Iterable[tuple[str, int, str] | tuple[str, int, str, str | None]]) -> Distribution:
    """Parts (label, count, state or colour such as "s1", optional link) as one bar; empty parts stay in the legend."""
    given = [(part[0], part[1], part[2], part[3] if len(part) == 4 else None) for part in parts]
    total = sum(count for _, count, _, _ in given)
    shares: list[Share] = []
    at = 0.0
    for name, count, state, href in given:
        width = count * 100 / total if total else 0.0
        shares.append(Share(name, count, state, href, round(at, 3), round(width, 3), _percent_words(count, total)))
        at += width
    return Distribution(total, tuple(shares))


def time_ticks(start: datetime, end: datetime, tz: tzinfo, at_most: int) -> tuple[XTick, ...]:
    """Round local times between two moments; no more than `at_most`, and right across a change of the clocks."""
    t0, t1 = start.timestamp(), end.timestamp()
    span = t1 - t0
    step = (
        next((s for s in _TIME_STEPS if span / s <= at_most), None)
        or math.ceil(span / at_most / (28 * _DAY)) * 28 * _DAY
    )
    ticks: list[XTick] = []
    for moment in _round_moments(start.astimezone(tz), end, step):
        x = (moment.timestamp() - t0) * 100 / span
        midnight = moment.hour == 0 and moment.minute == 0
        text = moment.strftime("%m-%d") if midnight else moment.strftime("%H:%M")
        if midnight and span > 300 * _DAY:
            text = moment.strftime("%Y-%m-%d")
        ticks.append(
            XTick(round(x, 3), text, "start" if x < 3 else "end" if x > 97 else "middle", midnight and step < _DAY)
        )
    return tuple(ticks)


def format_value(value: float, unit: Unit, step: float | None = None) -> str:
    """A value in words. With a step (on an axis) it has just the digits that tell neighbours apart."""
    if unit == "percent":
        digits = _digits(step) if step is not None else (0 if abs(value) >= 99.95 or value == 0 else 1)
        return f"{value:.{digits}f}%"
    if unit in ("bytes", "bytes_per_s"):
        return _scaled(value, 1024, _BYTE_UNITS, step) + ("/s" if unit == "bytes_per_s" else "")
    if unit == "seconds":
        return _duration(value)
    if step is not None:
        return (
            _scaled(value, 1000, _COUNT_UNITS, step).strip() if abs(value) >= 10_000 else f"{value:,.{_digits(step)}f}"
        )
    return f"{value:,.0f}" if unit == "count" and float(value).is_integer() else f"{value:,.2f}"


def _between(points: Sequence[tuple[Instant, float | None]], t0: float, t1: float) -> list[tuple[float, float | None]]:
    """Plain numbers only, in range; what is not finite counts as missing."""
    plain: list[tuple[float, float | None]] = []
    for instant, value in points:
        t = instant if isinstance(instant, (int, float)) else instant.timestamp()
        if t0 <= t <= t1:
            plain.append((t, value if value is not None and math.isfinite(value) else None))
    return plain


def _runs(points: Sequence[tuple[float, float | None]], gap_s: float | None) -> list[list[Point]]:
    """Stretches without a hole."""
    limit = gap_s if gap_s is not None else _usual_distance(points) * 2.5
    runs: list[list[Point]] = []
    last: float | None = None
    for t, value in points:
        if value is None:
            last = None
            continue
        if last is None or t - last > limit:
            runs.append([])
        runs[-1].append((t, value))
        last = t
    return runs


def _usual_distance(points: Sequence[tuple[float, float | None]]) -> float:
    distances = sorted(b - a for (a, _), (b, _) in pairwise(points) if b > a)
    return distances[len(distances) // 2] if distances else math.inf


def _thin_runs(runs: list[list[Point]], limit: int) -> list[list[Point]]:
    """Share `limit` points among the stretches by their length; many short stretches lose whole neighbours last."""
    total = sum(len(run) for run in runs)
    if total <= limit:
        return runs
    thin = [_thin(run, max(2, limit * len(run) // total)) for run in runs]
    count = sum(len(run) for run in thin)
    return thin if count <= limit else thin[:: math.ceil(count / limit)]


def _thin(run: list[Point], limit: int) -> list[Point]:
    """At most `limit` points, keeping the ends and, of each bucket between, its lowest and highest: no peak is lost."""
    if len(run) <= limit:
        return run
    buckets = (limit - 2) // 2
    if buckets < 1:
        return [run[0], run[-1]]
    inner = run[1:-1]
    kept: list[Point] = [run[0]]
    for number in range(buckets):
        bucket = inner[number * len(inner) // buckets : (number + 1) * len(inner) // buckets]
        if bucket:
            low = min(bucket, key=_value_of)
            high = max(bucket, key=_value_of)
            kept.extend(sorted({low, high}))
    kept.append(run[-1])
    return kept


def _value_of(point: Point) -> float:
    return point[1]


def _scale(
    runs: Sequence[list[list[Point]]], thresholds: Sequence[Threshold], unit: Unit, y_max: float | None
) -> tuple[float, float, float]:
    """Floor, ceiling and step of the value axis, so that every value fits and the labels are round."""
    values = [value for parts in runs for run in parts for _, value in run]
    low = min([0.0, *values])
    high = max([*values, *(one.value for one in thresholds)], default=0.0)
    if unit == "percent":
        high = max(high, 100.0) if y_max is None else y_max
    elif y_max is not None:
        high = max(high, y_max)
    if high <= low:
        high = low + (1024.0 if unit in ("bytes", "bytes_per_s") else 1.0)
    step = _nice_step(high - low, unit)
    return math.floor(low / step) * step, math.ceil(high / step - 1e-9) * step, step


def _nice_step(span: float, unit: Unit) -> float:
    """A round step that cuts the span into about four."""
    raw = span / 4
    if unit in ("bytes", "bytes_per_s"):
        return max(2.0 ** math.ceil(math.log2(raw)), 1.0)
    power = 10.0 ** math.floor(math.log10(raw))
    multiples = (1, 2, 2.5, 5, 10) if power >= 10 or unit != "count" else (1, 2, 5, 10)
    step = next(n * power for n in multiples if n * power >= raw * 0.999)
    return max(step, 1.0) if unit == "count" else step


def _steps(floor: float, ceiling: float, step: float) -> list[float]:
    return [floor + n * step for n in range(round((ceiling - floor) / step) + 1)]


def _y(value: float, floor: float, ceiling: float, height: int) -> float:
    return round(height * (ceiling - value) / (ceiling - floor), 1)


def _drawing(
    one: Series,
    slot: int,
    parts: list[list[Point]],
    thin: list[list[Point]],
    window: tuple[float, float, float, float],
    height: int,
    unit: Unit,
) -> Drawing:
    t0, t1, floor, ceiling = window
    across = WIDTH / (t1 - t0)
    down = height / (ceiling - floor)
    placed = [[((t - t0) * across, (ceiling - value) * down) for t, value in run] for run in thin]
    values = [value for run in parts for _, value in run]
    words = (
        [format_value(v, unit) for v in (min(values), sum(values) / len(values), max(values), values[-1])]
        if values
        else ["–"] * 4
    )
    ground = min(ceiling, max(floor, 0.0))
    return Drawing(
        one.name,
        slot,
        "".join(_path(run) for run in placed),
        "".join(_closed(run, (ceiling - ground) * down) for run in placed) if one.area else "",
        *words,
    )


def _readable(name: str, slot: int, runs: list[list[Point]], t0: float) -> dict[str, object]:
    """Offsets in seconds and values of what is drawn."""
    points = [point for run in runs for point in run]
    return {
        "name": name,
        "slot": slot,
        "t": [round(t - t0) for t, _ in points],
        "v": [float(f"{value:.6g}") for _, value in points],
    }


def _path(run: Sequence[Point]) -> str:
    """Relative steps in tenths of a unit. A lone point becomes a line of no length, which round caps make a dot."""
    px, py = round(run[0][0] * 10), round(run[0][1] * 10)
    parts = [f"M{px / 10:g} {py / 10:g}"]
    if len(run) == 1:
        return parts[0] + "h0"
    parts.append("l")
    for x, y in run[1:]:
        nx, ny = round(x * 10), round(y * 10)
        parts.append(f"{(nx - px) / 10:g} {(ny - py) / 10:g} ")
        px, py = nx, ny
    return "".join(parts).rstrip()


def _closed(run: Sequence[Point], ground: float) -> str:
    """The same line, closed along the ground."""
    if len(run) < 2:
        return ""
    return f"{_path(run)}V{ground:g}H{round(run[0][0] * 10) / 10:g}z"


def _round_moments(first: datetime, end: datetime, step: int) -> Iterator[datetime]:
    """Aware local moments on multiples of step: of the local day for hours, of a fixed Monday for days."""
    wall = first.replace(tzinfo=None)
    if step >= _DAY:
        midnight = wall.replace(hour=0, minute=0, second=0, microsecond=0)
        days = (midnight.toordinal() - 1) % (step // _DAY)
        wall = midnight - timedelta(days=days)
    else:
        day = wall.replace(hour=0, minute=0, second=0, microsecond=0)
        wall = day + timedelta(seconds=(wall - day).total_seconds() // step * step)
    last = first.timestamp()
    while True:
        local = wall.replace(tzinfo=first.tzinfo)
        t = local.timestamp()
        if t > end.timestamp():
            return
        # A wall time that the clocks skip maps onto one that exists; only the latter is a round moment.
        exists = datetime.fromtimestamp(t, first.tzinfo).replace(tzinfo=None) == wall
        if t >= last and exists:
            yield local
            last = t + 1
        wall += timedelta(seconds=step)


def _digits(step: float) -> int:
    """Decimals needed to write multiples of a step."""
    return next((n for n in range(6) if abs(round(step, n) - step) < step * 1e-6), 6)


def _scaled(value: float, base: int, units: tuple[str, ...], step: float | None) -> str:
    size = abs(value)
    rank = min(int(math.log(size, base) + 1e-9), len(units) - 1) if size >= 1 else 0
    shown = value / base**rank
    usual = 0 if rank == 0 or abs(shown) >= 99.95 else 1
    digits = usual if step is None else min(_digits(step / base**rank), 3)
    return f"{shown:,.{digits}f} {units[rank]}"


def _duration(value: float) -> str:
    size = abs(value)
    if size == 0:
        return "0 s"
    if size < 1:
        return f"{value * 1000:.3g} ms"
    for unit, seconds in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if size >= seconds:
            return f"{value / seconds:.3g} {unit}"
    return f"{value:.3g} s"


def _percent_words(count: int, total: int) -> str:
    """Never 0 % for something and never 100 % for nearly all."""
    if not total or not count:
        return "0%"
    share = count * 100 / total
    if share < 0.1:
        return "<0.1%"
    if share > 99.9 and count < total:
        return ">99.9%"
    return f"{share:.1f}%".replace(".0%", "%")


def _text_width(text: str) -> int:
    """Pixels a label takes at 11 px in a wide font, to reserve the gutter for it."""
    return math.ceil(sum(10.5 if letter in "%M" else 4 if letter in " .,/" else 7.1 for letter in text))
