"""Roll-ups are what a slow computation in plain Python says, whatever the order and lateness in which points came."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from app.kernel.db import db, in_transaction
from app.metrics import actions, rolling
from app.metrics.models import (
    FIVE_MINUTES,
    FIVE_MINUTES_MS,
    HOUR_MS,
    HOURS,
    POINTS,
    FleetPoint,
    LateBucket,
    RollUpProgress,
    epoch_ms,
    moment_of,
)
from protocol.metrics import Point
from tests.conftest import wipe
from tests.metrics.builders import NOON, batch, count, make_node, point, roll_up_all, store, store_every_minute
from tests.metrics.reckoning import assert_rolled_up

pytestmark = pytest.mark.usefixtures("context")
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def progress() -> dict[int, int]:
    found = {row.step_ms: row.until for row in db.session.scalars(select(RollUpProgress))}
    db.session.rollback()
    return found


def five_minutes(node_id: int) -> dict[datetime, Any]:
    rows = db.session.execute(select(FIVE_MINUTES).where(FIVE_MINUTES.c.node_id == node_id)).all()
    db.session.rollback()
    return {moment_of(row.ts): row for row in rows}


percents = st.one_of(st.none(), st.floats(0, 100, width=32))
sizes = st.one_of(st.none(), st.integers(0, 2**50))
seconds = st.integers(0, 3 * 3600 - 1)


@st.composite
def deliveries(draw: st.DrawFn) -> list[tuple[int, int, Point]]:
    """(which host, at which second it arrives, point), in the order of arrival; some points come twice."""
    found = []
    for _ in range(draw(st.integers(1, 25))):
        host, measured = draw(st.integers(0, 2)), draw(seconds)
        # Most arrive within a minute, some much later.
        delay = draw(st.one_of(st.integers(0, 60), st.integers(0, 4 * 3600)))
        values = {"cpu_usage": draw(percents), "memory_used": draw(sizes), "load_avg_1": draw(percents)}
        found.append((host, measured + delay, point(NOON + timedelta(seconds=measured), **values)))
    found += draw(st.lists(st.sampled_from(found), max_size=4))
    return sorted(found, key=lambda one: one[1])


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    # Making a failing example smaller takes minutes of database work.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(delivered=deliveries(), every=st.sampled_from([300, 1800, 20000]))
def test_it_agrees_with_the_slow_way_however_points_arrive(
    app: Flask, delivered: list[tuple[int, int, Point]], every: int
):
    """Points arrive as time goes by, and the job runs now and then in between."""
    wipe()
    hosts = [make_node(f"h{n}") for n in range(3)]
    sent: dict[int, list[Point]] = {node_id: [] for node_id in hosts}
    next_run = 0
    for host, second, told in delivered:
        while next_run <= second:
            roll_up_all(NOON + timedelta(seconds=next_run))
            next_run += every
        store(hosts[host], batch(told), at=NOON + timedelta(seconds=second))
        sent[hosts[host]].append(told)
    roll_up_all(NOON + 8 * HOUR)
    assert count(LateBucket) == 0
    assert_rolled_up(sent, progress())
    assert progress() == {
        FIVE_MINUTES_MS: epoch_ms(NOON + 8 * HOUR) - FIVE_MINUTES_MS,
        HOUR_MS: epoch_ms(NOON + 7 * HOUR),
    }


def test_a_bucket_is_closed_three_minutes_after_its_end():
    node_id = make_node()
    store_every_minute(node_id, NOON, 5)
    roll_up_all(NOON + timedelta(minutes=7, seconds=59))
    assert five_minutes(node_id) == {}
    roll_up_all(NOON + timedelta(minutes=8))
    assert list(five_minutes(node_id)) == [NOON]


def test_edges_belong_to_the_bucket_that_begins():
    node_id = make_node()
    last = NOON + 5 * MINUTE - timedelta(milliseconds=1)
    store(node_id, batch(point(NOON), point(last), point(NOON + 5 * MINUTE)), at=NOON + 6 * MINUTE)
    roll_up_all(NOON + HOUR)
    assert {moment: row.points for moment, row in five_minutes(node_id).items()} == {NOON: 2, NOON + 5 * MINUTE: 1}


def test_buckets_know_nothing_of_summer_time():
    """On the night when Europe's clocks go back, every hour of UTC is one hour."""
    night = datetime(2026, 10, 25, 0, 0, tzinfo=UTC)
    node_id = make_node()
    store_every_minute(node_id, night, 240)
    roll_up_all(night + 6 * HOUR)
    rows = db.session.execute(select(HOURS.c.ts, HOURS.c.points)).all()
    assert [(moment_of(row.ts), row.points) for row in rows] == [(night + n * HOUR, 60) for n in range(4)]


def test_doing_it_again_changes_nothing():
    node_id = make_node()
    store_every_minute(node_id, NOON, 120)
    roll_up_all(NOON + 3 * HOUR)
    tables = (FIVE_MINUTES, HOURS, FleetPoint.__table__)
    before = [db.session.execute(select(table)).all() for table in tables]
    in_transaction(db.session(), lambda: db.session.execute(delete(RollUpProgress)))
    assert roll_up_all(NOON + 3 * HOUR) > 0
    assert [db.session.execute(select(table)).all() for table in tables] == before


def test_it_has_nothing_to_do_twice():
    store_every_minute(make_node(), NOON, 30)
    assert roll_up_all(NOON + HOUR) > 0
    assert roll_up_all(NOON + HOUR) == 0


def test_it_catches_up_after_days_in_slices_that_are_bounded():
    node_id, start = make_node(), NOON - timedelta(days=3)
    sent = [point(start + n * 30 * MINUTE) for n in range(144)]
    for first in range(0, 144, 48):
        some = tuple(sent[first : first + 48])
        store(node_id, batch(*some), at=start + (first + 48) * 30 * MINUTE)
    in_transaction(db.session(), lambda: db.session.execute(delete(LateBucket)))
    slices = roll_up_all(NOON + HOUR)
    # 864 + 12 buckets of five minutes for one host at 800 a slice, and 72 of an hour at 200.
    assert slices == 3
    assert_rolled_up({node_id: sent}, progress())


def test_a_fleet_larger_than_a_slice_is_rolled_up_bucket_by_bucket(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rolling, "MOST_NODES", 3)
    hosts = [make_node(f"h{n}") for n in range(7)]
    sent = {
        node_id: [point(NOON + n * MINUTE, cpu_usage=float(node_id % 7 + n)) for n in range(12)] for node_id in hosts
    }
    for node_id, points in sent.items():
        store(node_id, batch(*points), at=NOON + 6 * MINUTE)
    assert roll_up_all(NOON + 13 * MINUTE) == 2 * 3
    assert_rolled_up(sent, progress())


def test_a_fleet_of_exactly_one_slice_ends_it_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rolling, "MOST_NODES", 3)
    hosts = [make_node(f"h{n}") for n in range(3)]
    for node_id in hosts:
        store(node_id, batch(point(NOON)))
    roll_up_all(NOON + 8 * MINUTE)
    assert db.session.scalar(select(FleetPoint.nodes)) == 3


def test_a_late_point_of_a_host_that_the_slice_has_passed_is_not_lost(monkeypatch: pytest.MonkeyPatch):
    """It comes after its host's turn and before the bucket is done with all hosts."""
    monkeypatch.setattr(rolling, "MOST_NODES", 1)
    first, second = make_node("a"), make_node("b")
    sent = {first: [point(NOON), point(NOON + MINUTE, cpu_usage=90.0)], second: [point(NOON)]}
    store(first, batch(sent[first][0]))
    store(second, batch(*sent[second]))
    in_transaction(db.session(), lambda: actions.roll_up(db.session(), NOON + 8 * MINUTE))
    assert db.session.scalar(select(RollUpProgress.node_id).where(RollUpProgress.step_ms == FIVE_MINUTES_MS)) == first
    db.session.rollback()
    store(first, batch(sent[first][1], name="late"), at=NOON + 8 * MINUTE)
    roll_up_all(NOON + 8 * MINUTE)
    assert_rolled_up(sent, progress())


def test_late_points_change_the_fleets_mean_too():
    first, second = make_node("a"), make_node("b")
    store(first, batch(point(NOON, cpu_usage=10.0)))
    roll_up_all(NOON + HOUR)
    assert db.session.execute(select(FleetPoint.nodes, FleetPoint.cpu_usage)).one() == (1, 10.0)
    store(second, batch(point(NOON, cpu_usage=30.0)), at=NOON + HOUR)
    roll_up_all(NOON + HOUR)
    assert db.session.execute(select(FleetPoint.nodes, FleetPoint.cpu_usage)).one() == (2, 20.0)


def test_a_backlog_of_days_is_rolled_up_after_it_came():
    node_id, start = make_node(), NOON - timedelta(days=2)
    store(make_node("steady"), batch(point(start)), at=start)
    roll_up_all(NOON)
    sent = [point(start + n * 10 * MINUTE, cpu_usage=float(n % 100)) for n in range(288)]
    for first in range(0, 288, 96):
        store(node_id, batch(*sent[first : first + 96]), at=NOON)
    roll_up_all(NOON)
    found = {moment: row.cpu_usage for moment, row in five_minutes(node_id).items()}
    assert found == {start + n * 10 * MINUTE: float(n % 100) for n in range(288)}


def test_a_bucket_whose_raw_points_are_gone_keeps_what_it_knew():
    """Somebody shortened the retention and prolonged it again; then a late point comes for a time long rolled up."""
    node_id = make_node()
    store_every_minute(node_id, NOON, 60, cpu_usage=40.0)
    roll_up_all(NOON + 2 * HOUR)
    in_transaction(db.session(), lambda: db.session.execute(delete(POINTS)))
    store(node_id, batch(point(NOON + timedelta(seconds=30), cpu_usage=0.0)), at=NOON + 2 * HOUR)
    roll_up_all(NOON + 2 * HOUR)
    row = five_minutes(node_id)[NOON]
    assert (row.points, row.cpu_usage) == (5, 40.0)
    assert db.session.execute(select(HOURS.c.points, HOURS.c.cpu_usage)).one() == (60, 40.0)


def test_points_of_a_host_that_was_deleted_harm_nobody():
    store(make_node(), batch(point(NOON)))
    store(4711, batch(point(NOON)))
    store(4711, batch(point(NOON - HOUR)))
    roll_up_all(NOON + HOUR)
    assert db.session.scalar(select(FleetPoint.nodes).where(FleetPoint.ts == epoch_ms(NOON))) == 1
    assert count(LateBucket) == 0


def test_marks_of_hosts_with_the_same_stretch_are_done_together():
    late = {(1, 0), (1, HOUR_MS), (2, 0), (2, HOUR_MS), (3, HOUR_MS), (1, 5 * HOUR_MS)}
    assert actions._stretches(late) == {
        (0, 2 * HOUR_MS): [1, 2],
        (5 * HOUR_MS, 6 * HOUR_MS): [1],
        (HOUR_MS, 2 * HOUR_MS): [3],
    }


def test_more_marks_than_a_slice_takes_are_all_done(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(actions, "MARKS_IN_SLICE", 2)
    node_id = make_node()
    roll_up_all(NOON)
    sent = [point(NOON - n * HOUR) for n in range(1, 8)]
    store(node_id, batch(*sent))
    roll_up_all(NOON)
    assert count(LateBucket) == 0
    assert_rolled_up({node_id: sent}, progress())


def test_without_any_point_it_begins_now():
    make_node()
    assert roll_up_all(NOON) == 0
    assert progress() == {FIVE_MINUTES_MS: epoch_ms(NOON) - FIVE_MINUTES_MS, HOUR_MS: epoch_ms(NOON) - HOUR_MS}


def test_two_workers_take_turns(app: Flask):
    """The second one finds the bucket done, whichever comes first."""
    store_every_minute(make_node(), NOON, 10)
    slices = [roll_up_all(NOON + 20 * MINUTE), roll_up_all(NOON + 20 * MINUTE)]
    assert slices[1] == 0
    assert slices[0] > 0
