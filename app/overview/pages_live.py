"""Live mode of one host: a page that watches it, and the samples that its script asks for as they come."""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from flask import Blueprint, Response, make_response, render_template, request, url_for
from flask_babel import gettext as _
from redis.exceptions import RedisError

from app.kernel.charts import Chart, Series, Unit, build_chart
from app.kernel.clock import now
from app.kernel.db import db
from app.kernel.edges import page
from app.kernel.i18n import time_zone
from app.link import live
from app.nodes.models import ONLINE, Node
from app.nodes.queries import node_by_id

pages = Blueprint("live", __name__)

SHOWN_S = 60
HELD_S = 10.0
STEP_S = 0.2
RELOADED_S = 2
LINES: Sequence[tuple[str, Unit, tuple[str, ...]]] = (
    ("cpu", "percent", ("cpu_usage",)),
    ("memory", "percent", ("memory_usage",)),
    ("disk", "bytes_per_s", ("disk_read", "disk_write")),
    ("network", "bytes_per_s", ("network_rx", "network_tx")),
)


@page(pages, "/nodes/<id:node_id>/live", permission="metrics.read")
def show_live(node_id: int) -> Response:
    """With a script it follows the samples; without one it sends itself to the address that reloads by itself."""
    node = node_by_id(db.session(), node_id)
    reload_s = min(request.args.get("reload", 0, type=int), 60)
    samples, is_away = _watched(node)
    html = render_template(
        "overview/live.html",
        node=node,
        charts=_charts(samples),
        live_keys={name: keys for name, _unit, keys in LINES},
        last=samples[-1]["number"] if samples else 0,
        is_away=is_away,
        is_plain="reload" in request.args,
        reload_s=reload_s,
        reload_href=url_for("live.show_live", node_id=node_id, reload=RELOADED_S),
        stop_href=url_for("live.show_live", node_id=node_id, reload=0),
    )
    response = make_response(html)
    if reload_s > 0:
        response.headers["Refresh"] = str(reload_s)
    return response


@page(pages, "/nodes/<id:node_id>/live/samples", permission="metrics.read")
def list_samples(node_id: int) -> dict[str, Any]:
    """What came after `after`. If nothing did, the answer waits for it a while; the database is let go of before."""
    node = node_by_id(db.session(), node_id)
    is_online = node.status == ONLINE
    db.session.remove()
    after = max(0, request.args.get("after", 0, type=int))
    deadline = time.monotonic() + HELD_S
    live.watch(node_id)
    while not (samples := _samples_after(node_id, after)) and is_online and time.monotonic() < deadline:
        time.sleep(STEP_S)
    return {"samples": samples, "last": samples[-1]["number"] if samples else after, "online": is_online}


def _samples_after(node_id: int, number: int) -> list[dict[str, Any]]:
    """Numbers that are lower than what the page knows were counted anew, after Redis was wiped: then all are new."""
    samples = live.samples_after(node_id, 0)
    if samples and samples[-1]["number"] < number:
        return samples
    return [sample for sample in samples if sample["number"] > number]


def _watched(node: Node) -> tuple[list[dict[str, Any]], bool]:
    """Have the host send samples, and what it sent in the last minute. Redis may be away: then there are none."""
    try:
        if node.status == ONLINE:
            live.watch(node.id)
        return live.samples_after(node.id, 0)[-SHOWN_S:], False
    except RedisError:
        return [], True


def _charts(samples: Sequence[dict[str, Any]]) -> list[tuple[str, str, Chart]]:
    """Name, title and drawing of each; the last minute, whatever of it there is."""
    end = now()
    titles = {"cpu": _("CPU"), "memory": _("Memory"), "disk": _("Disk traffic"), "network": _("Network")}
    words = {
        "cpu_usage": _("CPU"),
        "memory_usage": _("Memory"),
        "disk_read": _("read"),
        "disk_write": _("written"),
        "network_rx": _("received"),
        "network_tx": _("sent"),
    }
    times = [datetime.fromisoformat(sample["timestamp"]).timestamp() for sample in samples]
    if times:
        end = datetime.fromtimestamp(max(times), end.tzinfo)
    made = []
    for name, unit, keys in LINES:
        drawn = [
            Series(words[key], [(at, sample.get(key)) for at, sample in zip(times, samples, strict=True)], area=True)
            for key in keys
        ]
        chart = build_chart(
            drawn,
            end - timedelta(seconds=SHOWN_S),
            end,
            unit,
            ZoneInfo(time_zone()),
            label=titles[name],
            height=150,
            gap_s=5,
        )
        made.append((name, titles[name], chart))
    return made
