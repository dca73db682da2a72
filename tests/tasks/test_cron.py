"""Cron expressions: which are understood, and what they mean when clocks change."""

from datetime import UTC, datetime, timedelta

import pytest

from app.tasks.cron import MOST_COUNTED, due, is_cron, is_zone, next_time, next_times

BERLIN = "Europe/Berlin"


def utc(*given: int) -> datetime:
    return datetime(*given, tzinfo=UTC)  # type: ignore[misc]


@pytest.mark.parametrize(
    "expression",
    ["* * * * *", "*/5 0-6 * * MON-FRI", "0 0 1,15 * *", "0 0 L * *", "0 9 * * 5#2", "@hourly", "@daily", "@yearly"],
)
def test_understood(expression: str) -> None:
    assert is_cron(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "* * * *",
        "* * * * * *",
        "61 * * * *",
        "*/0 * * * *",
        "0 0 30 2 *",
        "R * * * *",
        "H * * * *",
        "@reboot",
        "a b c d e",
    ],
)
def test_not_understood(expression: str) -> None:
    assert not is_cron(expression)


def test_zones() -> None:
    assert is_zone(BERLIN)
    assert not any(map(is_zone, ["", "Nowhere/Land", "../etc/passwd", "/etc/passwd", "Berlin\0"]))


def test_the_hour_that_is_left_out_happens_at_its_end() -> None:
    found = next_times("30 2 * * *", BERLIN, utc(2027, 3, 27, 23), 2)
    assert found == [utc(2027, 3, 28, 1), utc(2027, 3, 29, 0, 30)]


def test_the_hour_that_comes_twice_counts_once_unless_every_hour_is_meant() -> None:
    evening = utc(2026, 10, 24, 22)
    assert next_times("30 2 * * *", BERLIN, evening, 2) == [utc(2026, 10, 25, 0, 30), utc(2026, 10, 26, 1, 30)]
    assert next_times("0 * * * *", BERLIN, evening, 4) == [utc(2026, 10, 24, 23) + timedelta(hours=n) for n in range(4)]


def test_nothing_is_due_twice_on_the_way() -> None:
    after = utc(2026, 10, 24, 22)
    for _ in range(5):
        found = next_time("*/20 2 * * *", BERLIN, after)
        assert found is not None
        assert found > after
        after = found
    assert after == utc(2026, 10, 26, 1, 20)


def test_what_came_due_meanwhile() -> None:
    first = utc(2026, 1, 1)
    assert due("@hourly", "UTC", first, first) == (first, 0)
    assert due("@hourly", "UTC", first, first + timedelta(hours=3, minutes=1)) == (first + timedelta(hours=3), 3)
    latest, earlier = due("* * * * *", "UTC", first, first + timedelta(days=300))
    assert (latest, earlier) == (first + timedelta(days=300, minutes=-1), MOST_COUNTED)
