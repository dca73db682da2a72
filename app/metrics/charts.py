"""The charts of one host, and which time they show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from flask_babel import gettext as _
from sqlalchemy.orm import Session

from app.kernel.charts import Chart, Series, Unit, build_chart
from app.kernel.clock import now
from app.kernel.i18n import time_zone
from app.metrics import queries
from app.metrics.details import Parts
from app.metrics.models import moment_of
from app.metrics.queries import RAW, History
from app.nodes.models import Node
from protocol.metrics import DiskIo

SPANS: Mapping[str, timedelta] = {
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "90d": timedelta(days=90),
}
USUAL_SPAN = "1h"
SHORTEST, LONGEST = timedelta(minutes=1), timedelta(days=732)
CHARTED = (
    "cpu_usage",
    "memory_usage",
    "swap_used",
    "disk_usage",
    "network_rx",
    "network_tx",
    "load_avg_1",
    "load_avg_5",
    "load_avg_15",
    "process_count",
    "tcp_connections",
)
DETAILS_SHOWN = 360
MOUNTS_SHOWN = 5
GAP = 2.5
"""So many times the usual distance between two points is a hole."""

Points = list[tuple[float, float | None]]


@dataclass(frozen=True)
class Window:
    """The time that charts show. `span` names one that ends now; it is empty for one that somebody chose freely."""

    start: datetime
    end: datetime
    span: str = ""


def latest(span: str) -> Window:
    """The window of this name that ends now; an unknown name counts as the usual one."""
    name, end = span if span in SPANS else USUAL_SPAN, now()
    return Window(end - SPANS[name], end, name)


def between(start: str, end: str, zone: tzinfo) -> Window | None:
    """What somebody typed, in his own time zone; None if it is not a stretch of time that can be shown."""
    try:
        first, final = (_moment(text, zone) for text in (start, end))
    except (ValueError, OverflowError):
        return None
    is_known = moment_of(0) <= first and final <= now() + LONGEST
    return Window(first, final) if is_known and SHORTEST <= final - first <= LONGEST else None


def _moment(text: str, zone: tzinfo) -> datetime:
    """In UTC, since two moments of one zone are subtracted as if its clocks were never changed."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)).astimezone(UTC)


def readers_zone() -> tzinfo:
    return ZoneInfo(time_zone())


def charted(session: Session, node_id: int, window: Window) -> History:
    """What the charts show of a host."""
    return queries.series(session, node_id, window.start, window.end, values=CHARTED, maxima=("cpu_usage",))


def node_charts(session: Session, node: Node, window: Window, history: History | None = None) -> list[Chart]:
    """CPU, memory, network, load, disk space, disk traffic, processes: in this order, each named by its label."""
    history = history or charted(session, node.id, window)
    parts = queries.details(session, node.id, window.start, window.end, DETAILS_SHOWN)
    interval_s = _interval_s(node, history)
    step_s = max(interval_s, (window.end - window.start).total_seconds() / DETAILS_SHOWN)
    line = _Lines(history, window)

    def chart(label: str, unit: Unit, lines: Sequence[Series], gap_s: float = interval_s * GAP) -> Chart:
        shown = [one for one in lines if one.points]
        return build_chart(shown, window.start, window.end, unit, readers_zone(), label=label, height=160, gap_s=gap_s)

    return [
        chart(_("CPU"), "percent", _cpu(line)),
        chart(_("Memory"), "percent", _memory(node, line)),
        chart(_("Network"), "bytes_per_s", _network(line)),
        chart(_("Load"), "number", _load(line)),
        chart(_("Disk space"), "percent", _disk_space(parts, line), step_s * GAP),
        chart(_("Disk traffic"), "bytes_per_s", _disk_traffic(parts), step_s * GAP),
        chart(_("Processes and connections"), "count", _counts(line)),
    ]


class _Lines:
    """Makes lines of a history; means stand in the middle of their buckets."""

    def __init__(self, history: History, window: Window) -> None:
        self._history = history
        self.has_maxima = history.step_ms != RAW
        end_s = window.end.timestamp()
        self._times = [min(ts / 1000 + history.step_ms / 2000, end_s) for ts in history.times]

    def __call__(self, name: str, value: str, *, area: bool = False, scale: float = 1) -> Series:
        return self._line(name, self._history.values[value], area, scale)

    def maximum(self, name: str, value: str) -> Series:
        return self._line(name, self._history.maxima[value], False, 1)

    def _line(self, name: str, values: Sequence[float | None], area: bool, scale: float) -> Series:
        scaled = values if scale == 1 else [None if value is None else value * scale for value in values]
        return Series(name, list(zip(self._times, scaled, strict=True)), area=area)


def _interval_s(node: Node, history: History) -> float:
    """The usual distance of points: the bucket's length, or what the host was told or did."""
    if history.step_ms != RAW:
        return history.step_ms / 1000
    distances = sorted(b - a for a, b in zip(history.times, history.times[1:], strict=False))
    usual_s = distances[len(distances) // 2] / 1000 if len(distances) >= 4 else 0
    return max(usual_s, node.heartbeat_interval_s)


def _cpu(line: _Lines) -> list[Series]:
    if not line.has_maxima:
        return [line(_("CPU"), "cpu_usage", area=True)]
    return [line(_("mean"), "cpu_usage", area=True), line.maximum(_("highest"), "cpu_usage")]


def _memory(node: Node, line: _Lines) -> list[Series]:
    swap = [line(_("swap"), "swap_used", scale=100 / node.swap_total)] if node.swap_total else []
    return [line(_("memory"), "memory_usage", area=True), *swap]


def _network(line: _Lines) -> list[Series]:
    return [line(_("received"), "network_rx", area=True), line(_("sent"), "network_tx", area=True)]


def _load(line: _Lines) -> list[Series]:
    return [line(_("1 min"), "load_avg_1"), line(_("5 min"), "load_avg_5"), line(_("15 min"), "load_avg_15")]


def _counts(line: _Lines) -> list[Series]:
    return [line(_("processes"), "process_count"), line(_("TCP connections"), "tcp_connections")]


def _disk_space(parts: Sequence[Parts], line: _Lines) -> list[Series]:
    return [line(_("all disks"), "disk_usage", area=True), *_mounts(parts)]


def _disk_traffic(parts: Sequence[Parts]) -> list[Series]:
    return [
        Series(_("read"), _disk_rates(parts, lambda disk: disk.read_rate), area=True),
        Series(_("written"), _disk_rates(parts, lambda disk: disk.write_rate), area=True),
    ]


def _mounts(parts: Sequence[Parts]) -> list[Series]:
    """The largest mounts of the newest point, as far back as they were known. One alone is all disks already."""
    mounts = parts[-1].detail.mounts or () if parts else ()
    if len(mounts) < 2:
        return []
    largest = sorted(mounts, key=lambda mount: -mount.total)[:MOUNTS_SHOWN]
    lines: dict[str, Points] = {mount.mount: [] for mount in largest}
    for one in parts:
        for mount in one.detail.mounts or ():
            if mount.mount in lines:
                lines[mount.mount].append((one.ts / 1000, mount.usage))
    return [Series(name, points) for name, points in lines.items()]


def _disk_rates(parts: Sequence[Parts], rate_of: Callable[[DiskIo], float | None]) -> Points:
    """Bytes a second over all disks."""
    points: Points = []
    for one in parts:
        rates = [rate for disk in one.detail.disk_io or () if (rate := rate_of(disk)) is not None]
        points.append((one.ts / 1000, sum(rates) if rates else None))
    return points
