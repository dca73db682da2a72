"""Schedules: cron expressions of five fields in a time zone, and the moments that they mean."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice, takewhile
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterBadDateError, croniter

ALIASES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
FIELDS = re.compile(r"(?:[0-9*/,\-? \tL#]|[A-Za-z]{3})+")
"""Numbers, names of months and days; none of the single letters by which croniter makes up times of its own."""
MOST_COUNTED = 500


class Due(NamedTuple):
    """What has come due: the latest time, and how many were before it. More than `MOST_COUNTED` are not counted."""

    latest: datetime
    earlier: int


def is_cron(expression: str) -> bool:
    """Five fields or one of `ALIASES`, and it comes to pass at least once."""
    if expression not in ALIASES and (len(expression.split()) != 5 or not FIELDS.fullmatch(expression)):
        return False
    if not croniter.is_valid(expression):
        return False
    return next_time(expression, "UTC", datetime(2024, 1, 1, tzinfo=UTC)) is not None


def is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return bool(name)


def times_after(expression: str, zone: str, after: datetime) -> Iterator[datetime]:
    """The moments after this one, in UTC.

    When clocks are set back, what is due at an hour of its own happens at the first of the two only; when they are set
    forward, what falls into the gap happens at its end.
    """
    has_own_hour = expression not in ALIASES[:1] and expression.split()[1:2] != ["*"]
    walk = croniter(expression, after.astimezone(ZoneInfo(zone)), max_years_between_matches=30)
    last = after
    while True:
        try:
            found: datetime = walk.get_next(datetime)
        except CroniterBadDateError:  # none within the years that are looked at
            return
        moment = found.astimezone(UTC)
        if moment <= last or (has_own_hour and moment.astimezone(ZoneInfo(zone)).fold):
            continue
        last = moment
        yield moment


def next_time(expression: str, zone: str, after: datetime) -> datetime | None:
    return next(times_after(expression, zone, after), None)


def next_times(expression: str, zone: str, after: datetime, count: int = 5) -> list[datetime]:
    return list(islice(times_after(expression, zone, after), count))


def due(expression: str, zone: str, first: datetime, until: datetime) -> Due:
    """Of `first`, which was due, and all that followed until now."""
    found = [
        first,
        *takewhile(lambda moment: moment <= until, islice(times_after(expression, zone, first), MOST_COUNTED)),
    ]
    if len(found) <= MOST_COUNTED:
        return Due(found[-1], len(found) - 1)
    latest: datetime = croniter(expression, until.astimezone(ZoneInfo(zone))).get_prev(datetime)
    return Due(max(found[-1], latest.astimezone(UTC)), len(found) - 1)
