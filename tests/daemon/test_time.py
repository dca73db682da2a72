"""Clocks that are wrong, jump, or are not known yet; and how long to wait before the next try."""

import random
from pathlib import Path

import pytest

from daemon.backoff import LEAST_S, MOST_S, Backoff
from daemon.clock import Anchor, Clock
from daemon.measure import Logbook
from daemon.spool import Spool
from protocol.metrics import Point
from protocol.settings import SpoolLimits
from protocol.times import to_epoch
from tests.daemon.faults import FixedClocks

YEAR = 365 * 86400.0
TRUE = 1_700_000_000.0


def point(stamp: str) -> Point:
    nothing = dict.fromkeys(Point._fields)
    return Point(**{**nothing, "timestamp": stamp})


def logbook(tmp_path: Path, system: FixedClocks, clock: Clock) -> tuple[Logbook, Spool]:
    spool = Spool(system, str(tmp_path / "spool"), SpoolLimits(1 << 20, 3600))
    return Logbook(system, spool, clock), spool


@pytest.mark.parametrize("error", [-YEAR, YEAR, 10.0])
def test_a_wrong_clock_is_overruled_by_the_manager_s(error: float) -> None:
    system = FixedClocks(TRUE + error)
    clock = Clock(system, "boot")
    assert clock.best_now() == TRUE + error
    assert clock.manager_now() is None
    clock.learn(TRUE)
    system.forward(100)
    assert clock.best_now() == TRUE + 100
    assert clock.offset_ms() == int(-error * 1000)
    system.wall_s -= 5 * YEAR
    assert clock.manager_now() == clock.best_now() == TRUE + 100


def test_a_good_clock_is_trusted() -> None:
    system = FixedClocks(TRUE + 1.5)
    clock = Clock(system, "boot")
    clock.learn(TRUE)
    assert clock.best_now() == TRUE + 1.5


@pytest.mark.parametrize("error", [-YEAR, YEAR])
def test_points_from_before_the_first_answer_are_put_right(tmp_path: Path, error: float) -> None:
    system = FixedClocks(TRUE + error)
    clock = Clock(system, "boot")
    book, spool = logbook(tmp_path, system, clock)
    book.add_point(point(clock.text()))
    system.forward(60)
    book.add_point(point(clock.text()))
    system.forward(60)
    clock.learn(TRUE + 120)
    system.forward(60)
    clock.learn(TRUE + 180.4)
    book.add_point(point(clock.text()))
    batches, _, senseless = book.read(spool.take(1 << 20, 10))
    stamps = [to_epoch(batch.points[0].timestamp) for batch in batches]
    assert stamps == [TRUE, TRUE + 60, pytest.approx(TRUE + 180.4)]
    assert senseless == []
    # Whatever is learned later, a point keeps the stamp it was sent with.
    clock.learn(TRUE + 185)
    assert [to_epoch(batch.points[0].timestamp) for batch in book.read(spool.take(1 << 20, 10))[0]] == stamps


def test_a_stamp_in_the_manager_s_time_is_final(tmp_path: Path) -> None:
    system = FixedClocks(TRUE)
    clock = Clock(system, "boot")
    book, spool = logbook(tmp_path, system, clock)
    clock.learn(TRUE - 3600)
    system.forward(60)
    clock.learn(TRUE + 60)
    book.add_point(point(clock.text()))
    assert to_epoch(book.read(spool.take(1 << 20, 10))[0][0].points[0].timestamp) == TRUE + 60


def test_points_of_another_boot_cannot_be_put_right(tmp_path: Path) -> None:
    system = FixedClocks(TRUE - YEAR)
    book, spool = logbook(tmp_path, system, Clock(system, "first boot"))
    book.add_point(point(Clock(system, "first boot").text()))
    later = Clock(system, "second boot", first=Anchor(TRUE, 5.0))
    again = Logbook(system, spool, later)
    batches = again.read(spool.take(1 << 20, 10))[0]
    assert to_epoch(batches[0].points[0].timestamp) == TRUE - YEAR


def test_nothing_is_too_old_while_the_time_is_not_known(tmp_path: Path) -> None:
    system = FixedClocks(TRUE)
    clock = Clock(system, "boot")
    book, spool = logbook(tmp_path, system, clock)
    book.add_point(point(clock.text()))
    system.wall_s += YEAR
    book.expire(3600)
    assert spool.pending() == 1
    system.boottime_s += 3000
    clock.learn(TRUE + 3000)
    book.expire(3600)
    assert spool.pending() == 1
    system.boottime_s += 1000
    book.expire(3600)
    assert spool.pending() == 0
    assert spool.losses().records == 1


def test_a_record_that_makes_no_sense_is_told_apart(tmp_path: Path) -> None:
    system = FixedClocks(TRUE)
    clock = Clock(system, "boot")
    book, spool = logbook(tmp_path, system, clock)
    spool.append(1, b"{}")
    spool.append(9, b"not json")
    book.add_event("daemon.started", "info", "hello", {"a": 1})
    items = spool.take(1 << 20, 10)
    batches, events, senseless = book.read(items)
    assert (batches, [event.kind for event in events]) == ([], ["daemon.started"])
    assert senseless == [items[0].id, items[1].id]


def test_delays_grow_to_a_minute_and_fill_their_whole_range() -> None:
    widest = []
    for failures in range(10):
        draws = []
        for seed in range(300):
            backoff = Backoff(random.Random(seed))
            for _ in range(failures):
                backoff.delay()
            draws.append(backoff.delay())
        reach = min(MOST_S, 2.0**failures)
        assert min(draws) >= LEAST_S
        assert max(draws) <= reach
        assert max(draws) > reach * 0.95
        assert min(draws) < max(LEAST_S, reach * 0.05) + 1e-9
        widest.append(max(draws))
    assert widest[-1] > 55


def test_a_success_starts_again() -> None:
    backoff = Backoff(random.Random(1))
    for _ in range(8):
        backoff.delay()
    backoff.success()
    assert backoff.delay() <= 1.0


@pytest.mark.parametrize("after", [0.0, 7.0, 3600.0])
def test_retry_after_is_never_undercut(after: float) -> None:
    backoff = Backoff()
    for _ in range(50):
        assert after <= backoff.delay(after) <= after * 1.1
