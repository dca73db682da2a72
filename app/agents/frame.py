"""What stands around every page about one agent: its tabs, and what may be done with it."""

from dataclasses import dataclass
from typing import Any

from flask import request, url_for
from flask_babel import lazy_gettext as _l
from flask_babel.speaklater import LazyString
from sqlalchemy.orm import Session

from app.agents.manifests import config_paths
from app.agents.queries import AgentNow, agent_now
from app.nodes.queries import node_by_id


@dataclass(frozen=True)
class Tab:
    """`endpoints` are the pages on which it counts as open, the first of them where it leads."""

    endpoints: tuple[str, ...]
    label: LazyString


TABS = (
    Tab(("agent.show_agent",), _l("Overview")),
    Tab(
        (
            "agent_config.show_config",
            "agent_config.edit_config",
            "agent_config.show_version",
            "agent_config.compare_config",
            "agent_config.spread_config",
        ),
        _l("Configuration"),
    ),
    Tab(("agent.show_logs",), _l("Logs")),
    Tab(("agent.show_manifest",), _l("Manifest")),
)


def frame_of(session: Session, node_id: int, name: str) -> dict[str, Any]:
    """For `agents/_agent.html`. Raises NodeNotFound or AgentNotFound."""
    found = agent_now(session, node_id, name)
    return {"node": node_by_id(session, node_id), "agent": found, "agent_tabs": agent_tabs(found)}


def agent_tabs(agent: AgentNow) -> list[dict[str, Any]]:
    return [
        {
            "href": url_for(tab.endpoints[0], node_id=agent.node_id, name=agent.name),
            "label": tab.label,
            "current": request.endpoint in tab.endpoints,
        }
        for tab in TABS
        if tab.endpoints[0] != "agent_config.show_config" or config_paths(agent.manifest)
    ]
