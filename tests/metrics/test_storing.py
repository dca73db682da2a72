"""Points come in once, in any order, from within the retention; everything else is told."""

from datetime import timedelta

import pytest
from flask import Flask
from sqlalchemy import select

from app.kernel.db import db
from app.metrics.actions import store_batches
from app.metrics.details import unpack
from app.metrics.models import DETAILS, POINTS, LateBucket, epoch_ms
from tests.metrics.builders import CARD, DETAIL, NOON, batch, count, make_node, point, raw_times, store

pytestmark = pytest.mark.usefixtures("context")
MINUTE = timedelta(minutes=1)


def test_a_point_is_kept_as_it_was_measured():
    node_id = make_node()
    at = NOON + timedelta(milliseconds=123)
    stored = store(node_id, batch(point(at)), at=at)
    assert (stored.acked, stored.refused, stored.points_new, stored.points_known) == (("b1",), (), 1, 0)
    assert stored.newest == point(at)
    row = db.session.execute(select(POINTS)).one()
    assert row.ts == epoch_ms(at)
    assert row.node_id == node_id
    expected = point(at)._asdict()
    for name in POINTS.c.keys()[2:]:
        assert getattr(row, name) == pytest.approx(expected[name]), name


def test_what_could_not_be_read_stays_unknown():
    store(make_node(), batch(point(NOON, cpu_usage=None, memory_used=None, load_avg_1=None)))
    row = db.session.execute(select(POINTS)).one()
    assert (row.cpu_usage, row.memory_used, row.load_avg_1) == (None, None, None)


def test_the_same_batch_twice_is_one_set_of_rows():
    node_id = make_node()
    told = batch(*(point(NOON + n * MINUTE, detail=DETAIL) for n in range(3)))
    first = store(node_id, told, at=NOON + 3 * MINUTE)
    again = store(node_id, told, at=NOON + 4 * MINUTE)
    assert (first.points_new, first.points_known) == (3, 0)
    assert (again.points_new, again.points_known) == (0, 3)
    assert again.acked == first.acked == ("b1",)
    assert count(POINTS) == count(DETAILS) == 3


def test_a_point_that_comes_again_with_other_values_does_not_change_history():
    node_id = make_node()
    store(node_id, batch(point(NOON, cpu_usage=10.0)))
    stored = store(node_id, batch(point(NOON, cpu_usage=99.0), point(NOON + MINUTE), name="b2"))
    assert (stored.points_new, stored.points_known) == (1, 1)
    assert db.session.scalar(select(POINTS.c.cpu_usage).where(POINTS.c.ts == epoch_ms(NOON))) == 10.0


def test_points_come_in_any_order():
    node_id = make_node()
    store(node_id, batch(point(NOON + 2 * MINUTE), point(NOON)), at=NOON + 2 * MINUTE)
    stored = store(node_id, batch(point(NOON + MINUTE), point(NOON - MINUTE), name="b2"), at=NOON + 2 * MINUTE)
    assert raw_times(node_id) == [NOON + n * MINUTE for n in (-1, 0, 1, 2)]
    assert stored.newest == point(NOON + MINUTE)


def test_hosts_do_not_share_their_times():
    first, second = make_node("a"), make_node("b")
    store(first, batch(point(NOON)))
    assert store(second, batch(point(NOON))).points_new == 1


def test_a_batch_from_the_future_is_refused_and_one_of_tomorrow_is_not():
    node_id = make_node()
    future = batch(point(NOON + timedelta(days=1, milliseconds=1)), name="future")
    tomorrow = batch(point(NOON + timedelta(days=1)), name="tomorrow")
    stored = store(node_id, future, tomorrow)
    assert stored.acked == ("tomorrow",)
    assert stored.refused == (("future", "more than a day in the future"),)
    assert raw_times(node_id) == [NOON + timedelta(days=1)]


def test_a_batch_from_before_the_retention_is_refused_and_one_of_its_first_moment_is_not():
    node_id = make_node()
    past = batch(point(NOON - timedelta(days=30, milliseconds=1)), name="past")
    edge = batch(point(NOON - timedelta(days=30)), name="edge")
    stored = store(node_id, past, edge)
    assert stored.acked == ("edge",)
    assert stored.refused == (("past", "older than the retention"),)
    assert raw_times(node_id) == [NOON - timedelta(days=30)]


def test_a_batch_across_the_edge_is_taken_without_what_lies_outside():
    node_id = make_node()
    stored = store(node_id, batch(point(NOON - timedelta(days=31)), point(NOON), point(NOON + timedelta(days=2))))
    assert stored.acked == ("b1",)
    assert (stored.points_new, stored.points_refused) == (1, 2)
    assert stored.newest == point(NOON)


def test_refused_batches_alone_leave_nothing():
    stored = store(make_node(), batch(point(NOON + timedelta(days=9))))
    assert stored.newest is None
    assert count(POINTS) == count(LateBucket) == 0


def test_nothing_at_all_is_fine():
    stored = store(make_node())
    assert (stored.acked, stored.newest, stored.points_new) == ((), None, 0)


def test_the_parts_behind_a_point_come_back_whole():
    told = DETAIL._replace(gpu=(CARD,), missing=("tcp",))
    store(make_node(), batch(point(NOON, detail=told)))
    row = db.session.execute(select(DETAILS.c.ts, DETAILS.c.body)).one()
    parts = unpack(row.ts, row.body)
    assert parts.detail == told
    assert parts.totals.memory_available == 8 * 2**30
    assert parts.moment == NOON
    assert parts.booted_at == NOON - timedelta(days=1)


def test_large_parts_are_packed_and_small_ones_left_alone():
    node_id = make_node()
    small = DETAIL._replace(cores=None, mounts=None, interfaces=None, disk_io=None)
    large = DETAIL._replace(cores=tuple(float(n % 100) for n in range(1024)))
    store(node_id, batch(point(NOON, detail=small), point(NOON + MINUTE, detail=large)), at=NOON + MINUTE)
    rows = db.session.execute(select(DETAILS.c.ts, DETAILS.c.body).order_by(DETAILS.c.ts)).all()
    assert rows[0].body.startswith(b"[")
    assert len(rows[1].body) < 2000
    assert [unpack(*row).detail for row in rows] == [small, large]


def test_parts_that_would_be_forgotten_at_once_are_not_kept():
    node_id = make_node()
    store(node_id, batch(point(NOON - timedelta(days=8), detail=DETAIL), point(NOON, detail=DETAIL)))
    assert (count(POINTS), count(DETAILS)) == (2, 1)


def test_a_point_in_time_leaves_no_mark_and_a_late_one_marks_its_hour():
    node_id = make_node()
    # The bucket of 11:55 ends at 12:00 and is rolled up at 12:03; two minutes after its end counts as late.
    store(node_id, batch(point(NOON - MINUTE)), at=NOON + timedelta(seconds=119))
    assert count(LateBucket) == 0
    store(node_id, batch(point(NOON - 2 * MINUTE)), at=NOON + timedelta(seconds=120))
    assert [(row.node_id, row.hour) for row in db.session.scalars(select(LateBucket))] == [
        (node_id, epoch_ms(NOON - timedelta(hours=1)))
    ]


def test_each_hour_of_a_backlog_is_marked_once_and_a_repetition_not_at_all():
    node_id = make_node()
    backlog = batch(*(point(NOON - n * 10 * MINUTE) for n in range(1, 13)))
    store(node_id, backlog)
    store(node_id, backlog)
    hours = sorted(row.hour for row in db.session.scalars(select(LateBucket)))
    assert hours == [epoch_ms(NOON - timedelta(hours=2)), epoch_ms(NOON - timedelta(hours=1))]


def test_the_caller_commits(app: Flask):
    node_id, session = make_node(), db.session()
    store_batches(session, node_id, (batch(point(NOON, detail=DETAIL)),), NOON)
    session.rollback()
    assert count(POINTS) == count(DETAILS) == 0
