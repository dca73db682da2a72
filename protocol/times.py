"""Times on the wire: RFC 3339, UTC, `Z`, at most six digits of fraction."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

_SHAPE = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?Z", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def to_datetime(text: str) -> datetime:
    """An aware UTC datetime; ValueError for anything else, leap seconds and years outside 1970–9999 included."""
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise ValueError("must be a time such as 2026-01-31T08:15:00Z")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    if year < 1970:
        raise ValueError("must not lie before 1970")
    micro = int((match.group(7) or "0").ljust(6, "0"))
    return datetime(year, month, day, hour, minute, second, micro, tzinfo=timezone.utc)


def to_epoch(text: str) -> float:
    """Seconds since 1970; ValueError as `to_datetime`."""
    return (to_datetime(text) - _EPOCH).total_seconds()


def to_text(epoch_s: float, digits: int = 3) -> str:
    """A time from seconds since 1970, cut (not rounded) to `digits` of fraction; out of range is clamped."""
    micros = int(min(max(epoch_s, 0.0), 253402300799.0) * 1_000_000)
    moment = _EPOCH + timedelta(microseconds=micros)
    whole = moment.strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{moment.microsecond:06d}"[: len(whole) + 1 + digits] + "Z" if digits else whole + "Z"
