"""The page of one host's measurements, and every host's newest values for Prometheus."""

from datetime import timedelta

from flask import Blueprint, Response, request, url_for
from flask_babel import lazy_gettext as _l
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from app.kernel.access import PUBLIC, current_actor
from app.kernel.clock import now
from app.kernel.db import db
from app.kernel.edges import page
from app.kernel.htmx import render_part
from app.kernel.live_settings import live_settings
from app.metrics import queries
from app.metrics.charts import SPANS, Window, between, charted, latest, node_charts, readers_zone
from app.metrics.prometheus import authorize_scrape, exposition
from app.metrics.queries import Resolution
from app.nodes.models import Node
from app.nodes.queries import node_by_id

pages = Blueprint("metrics", __name__)

SPAN_NAMES = {
    "1h": _l("1 h"),
    "6h": _l("6 h"),
    "24h": _l("24 h"),
    "7d": _l("7 d"),
    "30d": _l("30 d"),
    "90d": _l("90 d"),
}
RESOLUTION_NAMES: dict[Resolution, object] = {
    "raw": _l("every measurement"),
    "5m": _l("means over five minutes"),
    "1h": _l("means over an hour"),
}
TYPED = "%Y-%m-%dT%H:%M"
"""As fields of the kind `datetime-local` write it."""


@page(pages, "/nodes/<id:node_id>/metrics", permission="metrics.read")
def show_node_metrics(node_id: int) -> str:
    session = db.session()
    node = node_by_id(session, node_id)
    window, is_understood = _asked_window()
    history, kept_days = charted(session, node.id, window), live_settings().metrics.detail_retention_days
    return render_part(
        "node-metrics",
        "metrics/_node_metrics.html",
        "metrics/node_metrics.html",
        node=node,
        window=window,
        is_understood=is_understood,
        spans=_spans(node, window),
        custom=_custom(node, window),
        address=url_for("metrics.show_node_metrics", node_id=node.id, range=window.span),
        refresh_s=int(live_settings().ui.refresh_interval) if window.span else None,
        is_new=node.last_metrics_at is None and not history.times,
        resolution=RESOLUTION_NAMES[history.resolution],
        lacks_parts=window.start < now() - timedelta(days=kept_days + 1),
        parts_kept_days=kept_days,
        charts=node_charts(session, node, window, history),
        parts=queries.newest_detail(session, node.id),
    )


def _asked_window() -> tuple[Window, bool]:
    """What the address asks for, else the usual; and whether it was understood."""
    start, end = request.args.get("start", ""), request.args.get("end", "")
    if not start and not end:
        return latest(request.args.get("range", "")), True
    chosen = between(start, end, readers_zone())
    return chosen or latest(""), chosen is not None


def _spans(node: Node, window: Window) -> list[dict[str, object]]:
    return [
        {
            "href": url_for("metrics.show_node_metrics", node_id=node.id, range=span),
            "label": SPAN_NAMES[span],
            "current": span == window.span,
        }
        for span in SPANS
    ]


def _custom(node: Node, window: Window) -> dict[str, str]:
    zone = readers_zone()
    return {
        "action": url_for("metrics.show_node_metrics", node_id=node.id),
        "start": window.start.astimezone(zone).strftime(TYPED),
        "end": window.end.astimezone(zone).strftime(TYPED),
    }


@page(pages, "/metrics/nodes", permission=PUBLIC)
def show_nodes_for_prometheus() -> Response:
    """From allowed addresses, or with the token of somebody who may read it."""
    authorize_scrape(current_actor())
    nodes = queries.nodes_metrics_for_prometheus(db.session())
    return Response(exposition(nodes), content_type=CONTENT_TYPE_PLAIN_0_0_4)
