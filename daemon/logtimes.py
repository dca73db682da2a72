"""When a line of some log says it was written. Knows the forms that servers write; anything else has no time."""

from __future__ import annotations

import calendar
import re
import time

# Looked for in the beginning of a line only: it may be megabytes long.
HEAD_CHARS = 400

_ISO = re.compile(
    r"(?P<y>\d{4})[-/](?P<mo>\d\d)[-/](?P<d>\d\d)[T ](?P<h>\d\d):(?P<mi>\d\d):(?P<s>\d\d)(?P<f>[.,]\d{1,9})?"
    r" ?(?P<zone>Z|[+-]\d\d:?\d\d)?"
)
_COMMON = re.compile(
    r"(?P<d>\d\d)/(?P<mon>[A-Z][a-z]{2})/(?P<y>\d{4}):(?P<h>\d\d):(?P<mi>\d\d):(?P<s>\d\d) (?P<zone>[+-]\d{4})"
)
_SYSLOG = re.compile(r"(?:<\d{1,3}>)?(?P<mon>[A-Z][a-z]{2}) [ ]?(?P<d>\d{1,2}) (?P<h>\d\d):(?P<mi>\d\d):(?P<s>\d\d)")
_REDIS = re.compile(
    r"(?P<d>\d\d) (?P<mon>[A-Z][a-z]{2}) (?P<y>\d{4}) (?P<h>\d\d):(?P<mi>\d\d):(?P<s>\d\d)(?P<f>\.\d{1,6})?"
)
_EPOCH = re.compile(r"\"?(?:ts|time|timestamp)\"?[:=]\"?(?P<epoch>1\d{9}(?:\.\d{1,9})?)\b")
_MONTHS = {name: number for number, name in enumerate(calendar.month_abbr) if name}
_MOST = (12, 31, 23, 59, 60)
_DAY_S = 86400.0


def time_of(line: str, now: float) -> float | None:
    """Seconds since 1970. A form without a zone is in the host's, one without a year lies in the last twelve months."""
    head = line[:HEAD_CHARS]
    found = _ISO.search(head) or _COMMON.search(head) or _REDIS.search(head) or _SYSLOG.match(head)
    if found is None:
        plain = _EPOCH.search(head)
        return None if plain is None else float(plain.group("epoch"))
    parts = found.groupdict()
    month = int(parts["mo"]) if parts.get("mo") else _MONTHS.get(parts.get("mon") or "", 0)
    year = int(parts["y"]) if parts.get("y") else time.localtime(now).tm_year
    rest = (month, int(parts["d"]), int(parts["h"]), int(parts["mi"]), int(parts["s"]))
    if month < 1 or year < 1970 or any(value > most for value, most in zip(rest, _MOST)):
        return None
    fraction = float("0." + parts["f"][1:]) if parts.get("f") else 0.0
    stamp = _seconds(year, rest, parts.get("zone"))
    if stamp is not None and not parts.get("y") and stamp > now + _DAY_S:
        stamp = _seconds(year - 1, rest, None)
    return None if stamp is None else stamp + fraction


def _seconds(year: int, rest: tuple[int, int, int, int, int], zone: str | None) -> float | None:
    fields = (year, *rest, 0, 0, -1)
    try:
        if zone is None:
            return time.mktime(fields)
        stamp = calendar.timegm(fields)
    except (OverflowError, ValueError):
        return None
    if zone == "Z":
        return float(stamp)
    digits = zone[1:].replace(":", "")
    away = int(digits[:2]) * 3600 + int(digits[2:]) * 60
    return float(stamp - away if zone[0] == "+" else stamp + away)
