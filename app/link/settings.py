"""What the Manager decides for a host, with a version that changes exactly when the content does."""

import hashlib
from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.agents import reporting as agents
from app.kernel.live_settings import live_settings
from protocol.codec import canonical
from protocol.settings import DEFAULTS, Settings


def settings_for(known: Sequence[agents.Known] = ()) -> Settings:
    """The settings of a host with these agents, but for the agents themselves: `with_agents` puts them in.

    The version is made of the content, so that every process gives the same one. For that it is enough to know which
    manifests there are, so that a check-in which changes nothing need not read them.
    """
    live = live_settings()
    interval = int(live.node.heartbeat_interval)
    wanted = DEFAULTS._replace(
        heartbeat_interval_s=interval,
        metrics_interval_s=interval,
        renew_before_s=int(min(live.node.certificate_renew_before, live.node.certificate_life * 2 / 3)),
    )
    digest = hashlib.sha256(canonical([wanted, agents.wanted(known)]).encode()).digest()
    return wanted._replace(version=int.from_bytes(digest[:6], "big") + 1)


def with_agents(session: Session, node_id: int, settings: Settings) -> Settings:
    return settings._replace(agents=agents.entries(session, node_id))


def first_settings(session: Session, node_id: int) -> Settings:
    """What a host gets with its certificate; it may have been told to have agents before it came."""
    return with_agents(session, node_id, settings_for(agents.known_agents(session, node_id)))
