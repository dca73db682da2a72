"""What states are called, for lists, badges and filters alike; and from where on a use counts as high."""

from collections.abc import Mapping

from flask_babel import lazy_gettext as _l
from flask_babel.speaklater import LazyString

STATUS_NAMES: Mapping[str, LazyString] = {
    "online": _l("online"),
    "offline": _l("offline"),
    "unknown": _l("not heard yet"),
    "pending": _l("waiting for approval"),
    "rejected": _l("rejected"),
    "revoked": _l("revoked"),
}
STATUS_STATES = {"online": "ok", "offline": "bad", "pending": "warn"}
AGENT_STATUS_NAMES: Mapping[str, LazyString] = {
    "running": _l("running"),
    "starting": _l("starting"),
    "stopping": _l("stopping"),
    "stopped": _l("stopped"),
    "backoff": _l("restarting"),
    "error": _l("error"),
    "unknown": _l("unknown"),
}
AGENT_STATUS_STATES = {"running": "ok", "starting": "run", "stopping": "run", "backoff": "warn", "error": "bad"}
HIGH, VERY_HIGH = 85, 95
"""Percent of CPU, memory or disk, in lists and on the map of the fleet."""
FOR_TEMPLATES = {
    "STATUS_NAMES": STATUS_NAMES,
    "STATUS_STATES": STATUS_STATES,
    "AGENT_STATUS_NAMES": AGENT_STATUS_NAMES,
    "AGENT_STATUS_STATES": AGENT_STATUS_STATES,
    "HIGH": HIGH,
    "VERY_HIGH": VERY_HIGH,
}
