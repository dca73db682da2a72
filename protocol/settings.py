"""What the Manager decides for a host: intervals, limits, log level, agents. Versioned; the whole set each time."""

from __future__ import annotations

from typing import Any, NamedTuple

from protocol.fields import Fields
from protocol.limits import AGENTS, CHECKIN_MAX_S, CHECKIN_MIN_S, MIB, POLL_WAIT_S

LOG_LEVELS = ("debug", "info", "warning", "error")


class SpoolLimits(NamedTuple):
    """How much unacknowledged data a host keeps."""

    max_bytes: int
    max_age_s: int


class Settings(NamedTuple):
    """`version` 0 stands for the Daemon's own defaults, before the Manager said anything."""

    version: int
    heartbeat_interval_s: int
    metrics_interval_s: int
    poll_wait_s: int
    live_max_s: int
    renew_before_s: int
    log_level: str
    spool: SpoolLimits
    agents: tuple[dict[str, Any], ...]


DEFAULTS = Settings(
    version=0,
    heartbeat_interval_s=60,
    metrics_interval_s=60,
    poll_wait_s=POLL_WAIT_S,
    live_max_s=600,
    renew_before_s=30 * 86400,
    log_level="info",
    spool=SpoolLimits(max_bytes=64 * MIB, max_age_s=7 * 86400),
    agents=(),
)


def parse_settings(fields: Fields) -> Settings:
    """Read a set of settings; what is absent keeps its default, so that an older Manager still makes sense."""
    return Settings(
        version=fields.integer("version", 0),
        heartbeat_interval_s=_integer(fields, "heartbeat_interval_s", CHECKIN_MIN_S, CHECKIN_MAX_S),
        metrics_interval_s=_integer(fields, "metrics_interval_s", CHECKIN_MIN_S, CHECKIN_MAX_S),
        poll_wait_s=_integer(fields, "poll_wait_s", 1, POLL_WAIT_S),
        live_max_s=_integer(fields, "live_max_s", 0, 86400),
        renew_before_s=_integer(fields, "renew_before_s", 60, 366 * 86400),
        log_level=fields.choice("log_level", LOG_LEVELS) if fields.has("log_level") else DEFAULTS.log_level,
        spool=fields.inner_or_none("spool", _parse_spool) or DEFAULTS.spool,
        agents=fields.each("agents", AGENTS, _parse_agent),
    )


def _parse_spool(fields: Fields) -> SpoolLimits:
    return SpoolLimits(
        max_bytes=fields.integer("max_bytes", MIB, 16 * 1024 * MIB),
        max_age_s=fields.integer("max_age_s", 3600, 366 * 86400),
    )


def _parse_agent(fields: Fields) -> dict[str, Any]:
    """A manifest. Only its name is the wire's business; the supervisor reads the rest."""
    fields.text("name", 64)
    return fields.plain()


def _integer(fields: Fields, name: str, low: int, high: int) -> int:
    value = fields.integer_or_none(name, low, high)
    return int(getattr(DEFAULTS, name)) if value is None else value
