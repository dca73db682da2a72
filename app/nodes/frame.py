"""The tabs of a node's pages. Each belongs to some room, which extends `nodes/_node.html` and fills its block `tab`."""

from dataclasses import dataclass
from typing import Any

from flask import current_app, request, url_for
from flask_babel import lazy_gettext as _l
from flask_babel.speaklater import LazyString

from app.kernel.access import current_actor, may
from app.nodes.models import Node


@dataclass(frozen=True)
class Tab:
    """Shown once its page exists, and to those who may open it."""

    endpoint: str
    label: LazyString
    permission: str


TABS = (
    Tab("overview.show_node", _l("Overview"), "nodes.read"),
    Tab("agents.list_node_agents", _l("Agents"), "agents.read"),
    Tab("metrics.show_node_metrics", _l("Metrics"), "metrics.read"),
    Tab("live.show_live", _l("Live"), "metrics.read"),
    Tab("records.list_node_records", _l("Tasks"), "tasks.read"),
    Tab("node.list_events", _l("Events"), "events.read"),
    Tab("node.show_identity", _l("Identity"), "nodes.read"),
)


def node_tabs(node: Node) -> list[dict[str, Any]]:
    """For `nodes/_node.html`, so that a page which extends it needs nothing but `node`."""
    actor = current_actor()
    return [
        {
            "href": url_for(tab.endpoint, node_id=node.id),
            "label": tab.label,
            "current": request.endpoint == tab.endpoint,
        }
        for tab in TABS
        if tab.endpoint in current_app.view_functions and may(actor, tab.permission)
    ]
