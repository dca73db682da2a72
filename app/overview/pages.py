"""The dashboard, a host's first page and the search, for people."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

from flask import Blueprint, render_template, request, url_for
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from markupsafe import Markup

from app.events.queries import recent_events
from app.kernel.access import current_actor, may
from app.kernel.charts import Cell, Chart, Series, build_chart, build_distribution, build_spark
from app.kernel.clock import now
from app.kernel.db import db
from app.kernel.edges import page
from app.kernel.htmx import render_part
from app.kernel.i18n import time_zone
from app.kernel.live_settings import live_settings
from app.metrics.models import FleetPoint, moment_of
from app.metrics.queries import newest_detail, series
from app.nodes.models import Node
from app.nodes.queries import node_by_id
from app.nodes.words import STATUS_NAMES, STATUS_STATES
from app.overview import queries

pages = Blueprint("overview", __name__)

TREND_HOURS = {6: _l("6 h"), 24: _l("24 h"), 168: _l("7 d")}
MOST_CARDS = 12
"""So few hosts are shown as cards, with their figures, instead of as cells of a map."""
VERSIONS_SHOWN = 6
STATE_WORDS = {"ok": _l("fine"), "warn": _l("high"), "bad": _l("very high"), "off": _l("offline")}
GAP_S = 900
NEW = timedelta(hours=3)
"""So young a host has nothing to show for a whole day."""
WITH_HOST = Markup("<b>{}</b> {}")


@page(pages, "/dashboard", permission="nodes.read")
def dashboard() -> str:
    session, asked = db.session(), _trend_hours()
    board = queries.dashboard(session, asked or 24)
    hours = asked or _usual_hours(board.resource_trend)
    fleet = queries.fleet_map(session)
    return render_part(
        "dashboard",
        "overview/_dashboard.html",
        "overview/dashboard.html",
        board=board,
        fleet=fleet,
        cells=[] if len(fleet.hosts) <= MOST_CARDS else _cells(fleet.hosts),
        address=url_for("overview.dashboard", hours=asked),
        trend=_trend(board.resource_trend, hours),
        trend_hours=[
            {"href": url_for("overview.dashboard", hours=one), "label": label, "current": one == hours}
            for one, label in TREND_HOURS.items()
        ],
        means=_means(board.resource_trend),
        statuses=_statuses(board.node_status_distribution),
        daemon_versions=_versions(board.daemon_version_distribution),
        agent_versions=_versions(board.agent_version_distribution, is_linked=False),
        events=feed(board.recent_events),
        troubles=queries.troubles(session),
        troubles_of_a_day=queries.troubles_of_a_day(session),
        refresh_s=int(live_settings().ui.refresh_interval),
    )


def _trend_hours() -> int | None:
    hours = request.args.get("hours", type=int)
    return hours if hours in TREND_HOURS else None


def _usual_hours(points: Sequence[FleetPoint]) -> int:
    """A day; while there is less than that to show, the shortest."""
    shortest = min(TREND_HOURS)
    is_new = not points or moment_of(points[0].ts) > now() - timedelta(hours=shortest)
    return shortest if is_new else 24


def _cells(hosts: Sequence[queries.Host]) -> list[Cell]:
    """Words are looked up once, not for each of thousands of hosts."""
    states = {state: str(word) for state, word in STATE_WORDS.items()}
    statuses = {status: str(name) for status, name in STATUS_NAMES.items()}
    cpu, memory, disk = "CPU", _("memory"), _("disk")

    def title(host: queries.Host, state: str) -> str:
        if state == "off":
            return f"{host.hostname} · {statuses.get(host.status, host.status)}"
        uses = ((cpu, host.cpu), (memory, host.memory), (disk, host.disk))
        shown = "".join(f" · {name} {use:.0f}%" for name, use in uses if use is not None)
        return f"{host.hostname}{shown} · {states[state]}"

    return [Cell(f"/nodes/{host.id}", title(host, host.state), host.state, host.quant) for host in hosts]


def _trend(points: Sequence[FleetPoint], hours: int) -> Chart:
    end = now()
    lines = ((_("CPU"), "cpu_usage"), (_("Memory"), "memory_usage"), (_("Disk"), "disk_usage"))
    drawn = [
        Series(name, [(point.ts / 1000, getattr(point, value)) for point in points], area=value == "cpu_usage")
        for name, value in lines
    ]
    start, label = end - timedelta(hours=hours), _("Mean use of all hosts")
    zone = ZoneInfo(time_zone())
    return build_chart(drawn, start, end, "percent", zone, label=label, height=300, gap_s=GAP_S)


def _means(points: Sequence[FleetPoint]) -> dict[str, Any] | None:
    """The newest means, if they are of now, with the CPU's way there."""
    if not points or moment_of(points[-1].ts) < now() - timedelta(minutes=20):
        return None
    spark = build_spark([point.cpu_usage for point in points[-72:]], low=0)
    newest = points[-1]
    return {"cpu": newest.cpu_usage, "memory": newest.memory_usage, "disk": newest.disk_usage, "spark": spark}


def _statuses(counts: Mapping[str, int]) -> Any:
    return build_distribution(
        [
            (str(name), counts[status], STATUS_STATES.get(status, "idle"), url_for("nodes.list_nodes", status=status))
            for status, name in STATUS_NAMES.items()
            if counts.get(status)
        ]
    )


def _versions(counts: Mapping[str, int], *, is_linked: bool = True) -> Any:
    """The most common ones, and the rest in one."""
    shown = list(counts.items())[:VERSIONS_SHOWN]
    rest = sum(counts.values()) - sum(count for _version, count in shown)
    parts: list[tuple[str, int, str, str | None]] = []
    for number, (version, count) in enumerate(shown, 1):
        is_known = version != "unknown"
        href = url_for("nodes.list_nodes", version=version) if is_linked and is_known else None
        parts.append((version if is_known else _("not known"), count, f"s{number}" if is_known else "idle", href))
    if rest:
        parts.append((_("others"), rest, "idle", None))
    return build_distribution(parts)


def feed(events: Sequence[Any], *, with_host: bool = True) -> list[dict[str, Any]]:
    """Events as a feed shows them. Hosts that are gone have no page any more, so those have no link."""
    return [
        {
            "state": event.state,
            "at": event.occurred_at,
            "text": WITH_HOST.format(event.hostname, event.sentence)
            if with_host and event.hostname
            else event.sentence,
            "detail": event.remark,
            "href": f"/nodes/{event.node_id}" if with_host and event.node_id else None,
        }
        for event in events
    ]


@page(pages, "/nodes/<id:node_id>", permission="nodes.read")
def show_node(node_id: int) -> str:
    session = db.session()
    node = node_by_id(session, node_id)
    hours = 1 if now() - node.created_at < NEW else 24
    return render_part(
        "node-overview",
        "overview/_node.html",
        "overview/node.html",
        node=node,
        parts=newest_detail(session, node_id) if may(current_actor(), "metrics.read") else None,
        hours=hours,
        chart=_node_chart(node, hours),
        events=feed(recent_events(session, 8, node_id), with_host=False),
        refresh_s=int(live_settings().ui.refresh_interval),
    )


def _node_chart(node: Node, hours: int) -> Chart:
    end = now()
    start = end - timedelta(hours=hours)
    history = series(db.session(), node.id, start, end, "raw" if hours == 1 else "5m")
    lines = ((_("CPU"), "cpu_usage"), (_("Memory"), "memory_usage"), (_("Disk"), "disk_usage"))
    drawn = [
        Series(
            name,
            [(ts / 1000, value) for ts, value in zip(history.times, history.values[key], strict=True)],
            area=key == "cpu_usage",
        )
        for name, key in lines
    ]
    label, zone = _("CPU, memory and disk of %(name)s", name=node.hostname), ZoneInfo(time_zone())
    return build_chart(drawn, start, end, "percent", zone, label=label, height=180, gap_s=GAP_S)


@page(pages, "/search", permission="nodes.read")
def search() -> str:
    text = request.args.get("q", "").strip()[:100]
    with_users = may(current_actor(), "users.read")
    return render_template(
        "overview/search.html", text=text, found=queries.search(db.session(), text, with_users=with_users)
    )
