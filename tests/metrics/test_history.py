"""One host's history: the right resolution, whole to the newest point, with its holes."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, update

from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from app.metrics.models import FIVE_MINUTES_MS, HOUR_MS, VALUES, RollUpProgress, epoch_ms, moment_of
from app.metrics.queries import (
    RAW,
    details,
    fitting_step,
    fleet_trend,
    newest_detail,
    newest_points,
    nodes_metrics_for_prometheus,
    series,
)
from app.nodes.models import OFFLINE, PENDING
from tests.metrics.builders import (
    DETAIL,
    NOON,
    batch,
    make_node,
    point,
    roll_up_all,
    store,
    store_every_minute,
)

pytestmark = pytest.mark.usefixtures("context")
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def moments(times: list[int]) -> list[datetime]:
    return [moment_of(ts) for ts in times]


def at_noon_plus(*minutes: int) -> list[datetime]:
    return [NOON + n * MINUTE for n in minutes]


@pytest.mark.parametrize(
    ("age", "span", "step_ms"),
    [
        (HOUR, HOUR, RAW),
        (26 * HOUR, 26 * HOUR, RAW),
        (27 * HOUR, 27 * HOUR, FIVE_MINUTES_MS),
        (29 * DAY, HOUR, RAW),
        (31 * DAY, HOUR, FIVE_MINUTES_MS),
        (8 * DAY, 8 * DAY, FIVE_MINUTES_MS),
        (9 * DAY, 9 * DAY, HOUR_MS),
        (91 * DAY, HOUR, HOUR_MS),
        (90 * DAY, 90 * DAY, HOUR_MS),
    ],
)
def test_the_resolution_fits_the_length_and_the_age(age: timedelta, span: timedelta, step_ms: int):
    start = now() - age + timedelta(seconds=5)
    assert fitting_step(epoch_ms(start), epoch_ms(start + span - timedelta(seconds=5))) == step_ms


def test_raw_points_come_in_order_with_both_ends():
    node_id = make_node()
    store(node_id, batch(point(NOON + 2 * MINUTE), point(NOON), point(NOON + MINUTE)), at=NOON + 2 * MINUTE)
    store(make_node("other"), batch(point(NOON)))
    history = series(db.session(), node_id, NOON, NOON + 2 * MINUTE, "raw")
    assert moments(history.times) == at_noon_plus(0, 1, 2)
    assert history.values["cpu_usage"] == (12.5, 12.5, 12.5)
    assert history.maxima == {}
    assert moments(series(db.session(), node_id, NOON + MINUTE, NOON + MINUTE, "raw").times) == at_noon_plus(1)


def test_nothing_is_an_empty_history():
    for resolution in ("raw", "5m", "1h"):
        history = series(db.session(), make_node(resolution), NOON, NOON + HOUR, resolution)
        assert list(history.times) == []
        assert set(history.values) == set(VALUES)
        assert history.resolution == resolution


def test_the_newest_points_complete_what_is_not_rolled_up_yet():
    node_id = make_node()
    store_every_minute(node_id, NOON, 18)
    roll_up_all(NOON + 13 * MINUTE)
    history = series(db.session(), node_id, NOON, NOON + HOUR, "5m")
    assert moments(history.times) == at_noon_plus(0, 5, 10, 15)
    hours = series(db.session(), node_id, NOON, NOON + HOUR, "1h")
    assert moments(hours.times) == at_noon_plus(0)


def test_it_is_whole_before_anything_was_ever_rolled_up():
    node_id = make_node()
    store_every_minute(node_id, NOON, 11)
    assert moments(series(db.session(), node_id, NOON, NOON + HOUR, "5m").times) == at_noon_plus(0, 5, 10)


@pytest.mark.parametrize("rolled_up_at", [NOON, NOON + 2 * HOUR])
def test_means_and_maxima_are_the_same_from_raw_points_and_from_roll_ups(rolled_up_at: datetime):
    node_id = make_node()
    told = [point(NOON + n * MINUTE, cpu_usage=float(n), memory_used=2**40 + n, load_avg_1=None) for n in range(5)]
    store(node_id, batch(*told), at=NOON + 5 * MINUTE)
    roll_up_all(rolled_up_at)
    history = series(db.session(), node_id, NOON, NOON + HOUR, "5m")
    assert list(history.values["cpu_usage"]) == [2.0]
    assert list(history.maxima["cpu_usage"]) == [4.0]
    assert list(history.values["memory_used"]) == [2**40 + 2]
    assert {type(history.values[name][0]) for name in ("cpu_usage", "memory_used", "process_count")} == {float}
    assert list(history.maxima["memory_used"]) == [2**40 + 4]
    assert list(history.values["load_avg_1"]) == list(history.maxima["load_avg_1"]) == [None]


def test_the_bucket_that_holds_the_beginning_belongs_to_it():
    node_id = make_node()
    store_every_minute(node_id, NOON, 15)
    roll_up_all(NOON + HOUR)
    history = series(db.session(), node_id, NOON + 7 * MINUTE, NOON + 9 * MINUTE, "5m")
    assert moments(history.times) == at_noon_plus(5)


def test_no_bucket_comes_twice_when_the_roll_up_has_to_start_again():
    node_id, session = make_node(), db.session()
    store_every_minute(node_id, NOON, 20)
    roll_up_all(NOON + HOUR)
    back = update(RollUpProgress).values(until=epoch_ms(NOON + 5 * MINUTE))
    in_transaction(session, lambda: session.execute(back))
    assert moments(series(session, node_id, NOON, NOON + HOUR, "5m").times) == at_noon_plus(0, 5, 10, 15)


def test_a_hole_stays_a_hole():
    node_id = make_node()
    store_every_minute(node_id, NOON, 5)
    store_every_minute(node_id, NOON + 20 * MINUTE, 5)
    roll_up_all(NOON + HOUR)
    assert moments(series(db.session(), node_id, NOON, NOON + HOUR, "5m").times) == at_noon_plus(0, 20)


@pytest.mark.parametrize("resolution", ["raw", "5m", "1h"])
@pytest.mark.parametrize("rolled_up_at", [NOON - DAY, NOON + 90 * MINUTE, NOON + DAY])
def test_one_more_than_the_most_is_answered(resolution: str, rolled_up_at: datetime):
    node_id = make_node()
    store_every_minute(node_id, NOON - 3 * HOUR, 360)
    roll_up_all(rolled_up_at)
    assert len(series(db.session(), node_id, NOON - DAY, NOON + DAY, resolution, most=2).times) == 3


def test_ninety_days_are_read_by_one_query_from_the_hours():
    node_id = make_node()
    present = now()
    for day in range(89, 0, -1):
        store(node_id, batch(point(present - day * DAY)), at=present - day * DAY)
    roll_up_all(present)
    asked: list[str] = []

    def note(*given: Any) -> None:
        asked.append(given[2])

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        history = series(db.session(), node_id, present - 90 * DAY, present - HOUR * 4)
    finally:
        event.remove(db.engine, "before_cursor_execute", note)
    assert history.resolution == "1h"
    assert len(history.times) == 89
    assert ["metric_1h" in statement for statement in asked if "metric_" in statement] == [True]


def test_newest_points_are_the_latest_of_each_host_unless_old():
    present = now()
    first, second, silent = make_node("a"), make_node("b"), make_node("c")
    store(first, batch(point(present - 2 * MINUTE, cpu_usage=1.0), point(present - MINUTE, cpu_usage=2.0)), at=present)
    store(second, batch(point(present - 14 * MINUTE, cpu_usage=3.0)), at=present)
    store(silent, batch(point(present - 16 * MINUTE)), at=present)
    found = newest_points(db.session(), [first, second, silent])
    assert {node_id: row.cpu_usage for node_id, row in found.items()} == {first: 2.0, second: 3.0}
    assert newest_points(db.session(), []) == {}


def test_the_newest_detail_is_that_of_the_latest_point_that_has_one():
    node_id = make_node()
    assert newest_detail(db.session(), node_id) is None
    one, two = DETAIL._replace(missing=("a",)), DETAIL._replace(missing=("b",))
    store(
        node_id,
        batch(point(NOON, detail=one), point(NOON + MINUTE, detail=two), point(NOON + 2 * MINUTE)),
        at=NOON + 2 * MINUTE,
    )
    newest = newest_detail(db.session(), node_id)
    assert newest is not None
    assert (newest.moment, newest.detail) == (NOON + MINUTE, two)


def test_details_are_all_or_spread_evenly():
    node_id = make_node()
    store_every_minute(node_id, NOON, 60, detail=DETAIL)
    session, end = db.session(), NOON + HOUR
    assert len(details(session, node_id, NOON, end)) == 60
    assert len(details(session, node_id, NOON, end, about=1000)) == 60
    some = details(session, node_id, NOON, end, about=10)
    assert [one.moment for one in some] == at_noon_plus(*range(0, 60, 6))


def test_the_fleets_trend_shows_the_last_hours():
    present = now()
    node_id = make_node()
    for hours in (30, 20, 2):
        store(node_id, batch(point(present - hours * HOUR, cpu_usage=float(hours))), at=present - hours * HOUR)
    roll_up_all(present)
    trend = fleet_trend(db.session(), 24)
    assert [row.cpu_usage for row in trend] == [20.0, 2.0]
    assert [row.nodes for row in trend] == [1, 1]


def test_prometheus_is_told_of_hosts_of_the_fleet_only():
    present = now()
    online = make_node("a", last_heartbeat=present)
    make_node("b", status=OFFLINE, maintenance_until=present + HOUR)
    make_node("c", status=PENDING)
    store(online, batch(point(present)), at=present)
    found = nodes_metrics_for_prometheus(db.session())
    assert [(node.hostname, node.status, node.is_in_maintenance) for node in found] == [
        ("a", "online", False),
        ("b", "offline", True),
    ]
    assert found[0].point is not None
    assert found[1].point is None
