"""What the Manager decides for a host, with a version that changes exactly when the content does."""

import hashlib
from typing import Any

from app.kernel.live_settings import live_settings
from protocol.codec import canonical
from protocol.settings import DEFAULTS, Settings


def settings_for(agents: tuple[dict[str, Any], ...] = ()) -> Settings:
    """The settings of one host. The version is made of the content, so that every process gives the same one."""
    live = live_settings()
    interval = int(live.node.heartbeat_interval)
    wanted = DEFAULTS._replace(
        heartbeat_interval_s=interval,
        metrics_interval_s=interval,
        renew_before_s=int(min(live.node.certificate_renew_before, live.node.certificate_life * 2 / 3)),
        agents=agents,
    )
    digest = hashlib.sha256(canonical(wanted).encode()).digest()
    return wanted._replace(version=int.from_bytes(digest[:6], "big") + 1)
