"""Chart geometry: nothing lost by thinning, holes stay holes, round ticks in every zone and unit."""

import json
import math
import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from app.kernel.charts import (
    MAX_POINTS,
    WIDTH,
    Chart,
    Series,
    Threshold,
    Unit,
    build_chart,
    build_distribution,
    build_spark,
    format_value,
    time_ticks,
)

START = datetime(2026, 11, 20, 0, 0, tzinfo=UTC)
END = START + timedelta(hours=24)


def every_minute(values: list[float | None]) -> list[tuple[datetime, float | None]]:
    return [(START + timedelta(minutes=n), value) for n, value in enumerate(values)]


def chart_of(values: list[float | None], unit: Unit = "number", **more: object) -> Chart:
    return build_chart([Series("x", every_minute(values), area=True)], START, END, unit, **more)  # type: ignore[arg-type]


def stretches(path: str) -> int:
    return path.count("M")


def drawn_heights(path: str) -> list[float]:
    """Absolute heights of all points of a path of relative steps."""
    heights: list[float] = []
    for piece in re.findall(r"M([^M]+)", path):
        head, _, steps = piece.partition("l")
        y = float(head.removesuffix("h0").split()[1])
        heights.append(y)
        numbers = [float(n) for n in steps.split()]
        for dy in numbers[1::2]:
            y += dy
            heights.append(y)
    return heights


def test_a_peak_of_one_minute_in_a_month_is_still_drawn():
    values: list[float | None] = [10.0] * 1440
    values[700] = 97.5
    values[300] = 2.25
    data = json.loads(chart_of(values).data)["series"][0]
    assert len(data["v"]) <= MAX_POINTS
    assert max(data["v"]) == 97.5
    assert min(data["v"]) == 2.25


@pytest.mark.parametrize("count", [1, 2, 3, 599, 600, 601, 1440])
def test_never_more_points_than_the_limit_and_always_the_ends(count):
    data = json.loads(chart_of([float(n % 7) for n in range(count)]).data)["series"][0]
    assert len(data["t"]) <= MAX_POINTS
    assert data["t"][0] == 0
    assert data["t"][-1] == (count - 1) * 60
    assert data["t"] == sorted(data["t"])


def test_many_short_stretches_stay_under_the_limit():
    values = [None if n % 3 == 2 else 1.0 for n in range(1440)]
    assert len(json.loads(chart_of(values, max_points=100).data)["series"][0]["t"]) <= 100


def test_missing_values_break_the_line():
    assert stretches(chart_of([1.0, 2.0, None, 3.0, 4.0]).drawings[0].line) == 2


def test_missing_points_break_the_line():
    points = every_minute([1.0] * 10) + [(START + timedelta(hours=2, minutes=n), 1.0) for n in range(10)]
    drawing = build_chart([Series("x", points)], START, END, "number").drawings[0]
    assert stretches(drawing.line) == 2


def test_a_wider_allowed_gap_joins_the_line():
    points = [*every_minute([1.0] * 10), (START + timedelta(hours=2), 1.0)]
    assert stretches(build_chart([Series("x", points)], START, END, "number", gap_s=7200).drawings[0].line) == 1


def test_a_lone_point_is_a_dot_without_area():
    drawing = chart_of([1.0, None, None]).drawings[0]
    assert drawing.line.endswith("h0")
    assert drawing.area == ""


def test_points_outside_the_window_are_cut_off():
    early: list[tuple[datetime, float | None]] = [(START - timedelta(minutes=1), 99.0), (START, 1.0)]
    chart = build_chart([Series("x", [*early, (END + timedelta(seconds=1), 99.0)])], START, END, "number")
    assert json.loads(chart.data)["series"][0]["v"] == [1.0]
    assert chart.drawings[0].high == "1.00"


def test_what_is_not_a_number_counts_as_missing():
    chart = chart_of([1.0, math.nan, math.inf, 2.0])
    assert stretches(chart.drawings[0].line) == 2
    assert chart.drawings[0].high == "2.00"


def test_without_data_it_says_so_and_keeps_its_axes():
    chart = chart_of([], "percent")
    assert chart.is_empty
    assert [tick.label for tick in chart.y_ticks] == ["0%", "25%", "50%", "75%", "100%"]
    assert chart.drawings[0].last == "–"


def test_an_end_before_the_start_is_refused():
    with pytest.raises(ValueError, match="end after"):
        build_chart([], END, START)


@pytest.mark.parametrize("tops", [0.0, 0.003, 1.0, 7.0, 99.0, 100.0, 1234.0, 5e9, 3e13])
@pytest.mark.parametrize("unit", ["percent", "bytes", "bytes_per_s", "count", "number", "seconds"])
def test_every_value_fits_under_round_and_distinct_labels(tops, unit):
    chart = chart_of([0.0, tops, tops / 3], unit)
    heights = drawn_heights(chart.drawings[0].line)
    assert min(heights) >= -0.2
    assert max(heights) <= chart.height + 0.2
    labels = [tick.label for tick in chart.y_ticks]
    assert 2 <= len(labels) <= 7
    assert len(set(labels)) == len(labels)


def test_negative_values_lower_the_floor_and_the_area_ends_at_zero():
    chart = chart_of([-5.0, 5.0])
    zero = next(tick.y for tick in chart.y_ticks if tick.label in ("0", "0.0"))
    assert f"V{zero:g}H" in chart.drawings[0].area


def test_percent_may_pass_a_hundred():
    assert chart_of([250.0], "percent").y_ticks[-1].label == "300%"


def test_counts_have_no_fractions_on_their_axis():
    assert [tick.label for tick in chart_of([1.0], "count").y_ticks] == ["0", "1"]


def test_bytes_have_binary_steps():
    assert [tick.label for tick in chart_of([3.5 * 1024**3], "bytes").y_ticks] == [
        "0 B",
        "1 GiB",
        "2 GiB",
        "3 GiB",
        "4 GiB",
    ]


def test_figures_come_from_all_points_and_not_from_those_drawn():
    drawing = chart_of([float(n) for n in range(1000)], "count").drawings[0]
    assert (drawing.low, drawing.mean, drawing.high, drawing.last) == ("0", "499.50", "999", "999")


def test_thresholds_are_placed_and_stretch_the_scale():
    chart = chart_of([1.0], "number", thresholds=[Threshold(90, "too much", "bad")])
    ((y, threshold),) = chart.thresholds
    assert threshold.label == "too much"
    assert 0 <= y < chart.height / 4


def test_a_pinned_top_drops_thresholds_above_it():
    assert chart_of([1.0], "percent", y_max=50.0, thresholds=[Threshold(90, "never")]).thresholds == ()


def test_colours_go_round_and_can_be_chosen():
    drawings = build_chart([Series(str(n), []) for n in range(7)] + [Series("own", [], slot=4)], START, END).drawings
    assert [drawing.slot for drawing in drawings] == [1, 2, 3, 4, 5, 6, 1, 4]


def test_unix_seconds_do_as_well_as_datetimes():
    by_number = [(START.timestamp() + 60 * n, 1.0 * n) for n in range(5)]
    one = build_chart([Series("x", by_number)], START, END, "number")
    assert one.drawings == build_chart([Series("x", every_minute([0.0, 1, 2, 3, 4]))], START, END, "number").drawings


def test_the_line_runs_over_the_whole_width():
    chart = build_chart([Series("x", [(START, 1.0), (END, 1.0)])], START, END, "number")
    assert chart.drawings[0].line == f"M0 0l{WIDTH} 0"


@pytest.mark.parametrize("hours", [0.25, 1, 6, 24, 168, 720, 2160, 8760, 87600])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "Asia/Kolkata", "Europe/Berlin", "America/St_Johns"])
def test_time_ticks_are_few_ordered_and_on_round_local_times(hours, zone):
    tz = ZoneInfo(zone)
    start = datetime(2026, 3, 20, 7, 13, 42, tzinfo=UTC)
    ticks = time_ticks(start, start + timedelta(hours=hours), tz, 8)
    assert 2 <= len(ticks) <= 9
    places = [tick.x for tick in ticks]
    assert places == sorted(set(places))
    assert places[0] >= 0
    assert places[-1] <= 100
    assert all(re.fullmatch(r"\d\d:\d[05]|\d\d:\d\d|\d\d-\d\d|\d{4}-\d\d-\d\d", tick.label) for tick in ticks)


def test_midnight_is_named_by_its_date():
    ticks = time_ticks(START - timedelta(hours=6), START + timedelta(hours=6), UTC, 8)
    assert [(tick.label, tick.major) for tick in ticks if tick.major] == [("11-20", True)]


def test_the_hour_that_the_clocks_skip_has_no_tick():
    berlin = ZoneInfo("Europe/Berlin")
    start = datetime(2026, 3, 29, 0, 0, tzinfo=berlin)
    labels = [tick.label for tick in time_ticks(start, start + timedelta(hours=7), berlin, 8)]
    assert labels == ["03-29", "01:00", "03:00", "04:00", "05:00", "06:00", "07:00"]


def test_days_after_the_clocks_changed_still_begin_at_midnight():
    berlin = ZoneInfo("Europe/Berlin")
    start = datetime(2026, 10, 23, 0, 0, tzinfo=berlin)
    assert [t.label for t in time_ticks(start, start + timedelta(days=5), berlin, 8)] == [
        "10-23",
        "10-24",
        "10-25",
        "10-26",
        "10-27",
        "10-28",
    ]


def test_labels_at_the_edges_stay_inside():
    ticks = time_ticks(START, END, UTC, 8)
    assert (ticks[0].anchor, ticks[-1].anchor) == ("start", "end")
    assert {tick.anchor for tick in ticks[1:-1]} == {"middle"}


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0, "percent", "0%"),
        (41.26, "percent", "41.3%"),
        (99.97, "percent", "100%"),
        (1536, "bytes", "1.5 KiB"),
        (12, "bytes", "12 B"),
        (0, "bytes_per_s", "0 B/s"),
        (1024**2 * 250, "bytes_per_s", "250 MiB/s"),
        (1284, "count", "1,284"),
        (2.5, "number", "2.50"),
        (0, "seconds", "0 s"),
        (0.0187, "seconds", "18.7 ms"),
        (90, "seconds", "1.5 min"),
        (7200, "seconds", "2 h"),
        (12.34, "seconds", "12.3 s"),
    ],
)
def test_values_in_words(value, unit, words):
    assert format_value(value, unit) == words


def test_big_counts_are_short_on_an_axis():
    assert [tick.label for tick in chart_of([40_000.0], "count").y_ticks] == ["0", "10 k", "20 k", "30 k", "40 k"]


def test_a_spark_keeps_inside_and_breaks_at_holes():
    spark = build_spark([1, 5, None, 3, 2])
    assert stretches(spark.line) == 2
    heights = drawn_heights(spark.line)
    assert min(heights) >= 0
    assert max(heights) <= spark.height


def test_a_flat_spark_runs_through_the_middle():
    spark = build_spark([4, 4, 4])
    assert set(drawn_heights(spark.line)) == {spark.height / 2}


def test_a_spark_without_values_is_empty():
    assert build_spark([None, None]) == build_spark([])


def test_shares_fill_the_bar_and_never_lie_about_nearly_all():
    shown = build_distribution([("new", 9999, "ok"), ("old", 1, "warn", "/nodes"), ("none", 0, "idle")])
    assert shown.total == 10_000
    assert [share.percent for share in shown.shares] == [">99.9%", "<0.1%", "0%"]
    assert sum(share.width for share in shown.shares) == pytest.approx(100)
    assert shown.shares[1].x == pytest.approx(99.99)
    assert shown.shares[1].href == "/nodes"


def test_shares_of_nothing():
    assert [share.percent for share in build_distribution([("a", 0, "ok")]).shares] == ["0%"]


def test_the_readout_knows_the_zone_by_a_name_that_browsers_know():
    assert json.loads(chart_of([1.0], tz=ZoneInfo("Asia/Shanghai")).data)["tz"] == "Asia/Shanghai"
    assert json.loads(chart_of([1.0]).data)["tz"] == "UTC"
