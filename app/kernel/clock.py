"""The time, in one place, so that tests can set it."""

from datetime import UTC, datetime


def now() -> datetime:
    """The present in UTC, with its zone."""
    return datetime.now(UTC)


def rfc3339(moment: datetime) -> str:
    """How every time leaves the Manager: UTC with `Z`; fractions only where there are any."""
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
    return text.replace("+00:00", "Z")
