"""The page of one host's measurements: every range, both languages, with nothing, one and many points."""

import json
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from zoneinfo import ZoneInfo

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from app.metrics.charts import between, latest, node_charts
from app.nodes.models import Node
from app.people.models import User
from tests.factories import browser_as, make_user
from tests.metrics.builders import CARD, DETAIL, NOON, batch, make_node, point, roll_up_all, store, store_every_minute

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
CHARTS = ["CPU", "Memory", "Network", "Load", "Disk space", "Disk traffic", "Processes and connections"]


@pytest.fixture
def browser(app: Flask) -> FlaskClient:
    with app.app_context():
        make_user("vera", "viewer")
    return browser_as(app, "vera")


@pytest.fixture
def sqlite_browser(sqlite_app: Flask) -> FlaskClient:
    """For what does not depend on the database."""
    with sqlite_app.app_context():
        make_user("vera", "viewer")
    return browser_as(sqlite_app, "vera")


def page(browser: FlaskClient, path: str, **headers: str) -> str:
    answer = browser.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    assert answer.status_code == 200, answer.text
    assert "style=" not in answer.text
    assert "<script>" not in answer.text
    return answer.text


def read_outs(html: str) -> dict[str, dict]:
    """By the chart's label: what its cross-hair would say."""
    found = {}
    for figure in re.findall(r"<figure.*?</figure>", html, re.DOTALL):
        label = re.search(r'role="img" aria-label="([^"]*)"', figure)
        data = re.search(r'data-chart="([^"]*)"', figure)
        assert label is not None
        assert data is not None
        found[unescape(label[1])] = json.loads(unescape(data[1]))
    return found


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("points", [0, 1, 300])
def test_it_renders_with_nothing_one_and_many_points(app: Flask, browser: FlaskClient, points: int, language: str):
    with app.app_context():
        node_id = make_node("web-1", last_metrics_at=now() if points else None)
        if points:
            store_every_minute(node_id, now() - points * MINUTE, points, detail=DETAIL)
    browser.set_cookie("ops_lang", language)
    for span in ("1h", "6h", "24h", "7d", "30d", "90d", "nonsense"):
        html = page(browser, f"/nodes/{node_id}/metrics?range={span}")
        assert "web-1" in html
        charts = read_outs(html)
        assert len(charts) == (len(CHARTS) if points else 0)
        assert html.count('<path class="line') >= (8 if points else 0)
    assert ('<html lang="zh-CN"' in html) == (language == "zh")


def test_a_host_without_any_point_says_when_the_first_one_comes(sqlite_app: Flask, sqlite_browser: FlaskClient):
    with sqlite_app.app_context():
        node_id = make_node(heartbeat_interval_s=45)
    html = page(sqlite_browser, f"/nodes/{node_id}/metrics")
    assert "No measurements yet" in html
    assert "within 45 seconds" in html


def test_a_host_that_is_silent_now_shows_empty_charts_not_the_beginning(sqlite_app: Flask, sqlite_browser: FlaskClient):
    with sqlite_app.app_context():
        node_id = make_node(last_metrics_at=now() - 2 * DAY)
    html = page(sqlite_browser, f"/nodes/{node_id}/metrics")
    assert "No measurements yet" not in html
    assert html.count("No data in this time.") == len(CHARTS)


def test_the_charts_in_their_order_with_their_lines(sqlite_app: Flask, sqlite_browser: FlaskClient):
    with sqlite_app.app_context():
        node_id = make_node(last_metrics_at=now())
        store_every_minute(node_id, now() - 30 * MINUTE, 30, detail=DETAIL, swap_used=2**30)
    charts = read_outs(page(sqlite_browser, f"/nodes/{node_id}/metrics"))
    assert list(charts) == CHARTS
    names = {label: [line["name"] for line in data["series"]] for label, data in charts.items()}
    assert names["Memory"] == ["memory", "swap"]
    assert names["Disk space"] == ["all disks", "/srv", "/"]
    assert charts["Memory"]["series"][1]["v"][0] == 50.0
    assert charts["Disk traffic"]["series"][1]["v"][0] == 8192.0


def test_a_host_without_swap_has_no_line_for_it(sqlite_app: Flask, sqlite_browser: FlaskClient):
    with sqlite_app.app_context():
        node_id = make_node(last_metrics_at=now(), swap_total=0)
        store(node_id, batch(point(now(), swap_used=0)), at=now())
    charts = read_outs(page(sqlite_browser, f"/nodes/{node_id}/metrics"))
    assert [line["name"] for line in charts["Memory"]["series"]] == ["memory"]


def test_means_stand_in_the_middle_of_their_buckets(sqlite_app: Flask, sqlite_browser: FlaskClient):
    with sqlite_app.app_context():
        node_id = make_node(last_metrics_at=now())
        start = (now() - 3 * DAY).replace(minute=0, second=0, microsecond=0)
        told = [point(start + n * MINUTE, cpu_usage=20.0 * n) for n in range(5)]
        store(node_id, batch(*told), at=start + 5 * MINUTE)
        roll_up_all(now())
    cpu = read_outs(page(sqlite_browser, f"/nodes/{node_id}/metrics?range=7d"))["CPU"]
    mean, highest = cpu["series"]
    assert (mean["v"], highest["v"]) == ([40.0], [80.0])
    assert cpu["from"] + mean["t"][0] == pytest.approx(start.timestamp() + 150, abs=1)


def test_a_hole_breaks_the_line_also_between_few_points(sqlite_app: Flask):
    with sqlite_app.app_context():
        node_id = make_node()
        store(node_id, batch(*(point(NOON + n * MINUTE) for n in (0, 1, 30, 31))), at=NOON + 32 * MINUTE)
        window = between("2026-11-20T12:00Z", "2026-11-20T13:00Z", UTC)
        assert window is not None
        with sqlite_app.test_request_context():
            charts = node_charts(db.session(), db.session.get_one(Node, node_id), window)
        assert charts[0].drawings[0].line.count("M") == 2


def test_the_tables_tell_of_the_newest_parts(sqlite_app: Flask, sqlite_browser: FlaskClient):
    with sqlite_app.app_context():
        node_id = make_node(last_metrics_at=now())
        told = DETAIL._replace(gpu=(CARD,), missing=("tcp",))
        store(node_id, batch(point(now(), detail=told)), at=now())
    html = page(sqlite_browser, f"/nodes/{node_id}/metrics")
    for words in ("/dev/vdb1", "eth0", "A100", "250 W", "61 °C", "Core 1: 99 %", "tcp", "4 cores", "855"):
        assert words in html, words


def test_it_says_which_points_these_are_and_what_is_not_kept_for_so_long(
    sqlite_app: Flask, sqlite_browser: FlaskClient
):
    with sqlite_app.app_context():
        node_id = make_node(last_metrics_at=now())
    for span, words, lacks_parts in (
        ("24h", "every measurement", False),
        ("7d", "means over five minutes", False),
        ("90d", "means over an hour", True),
    ):
        html = page(sqlite_browser, f"/nodes/{node_id}/metrics?range={span}")
        assert words in html
        assert ("are kept for 7 days" in html) == lacks_parts


def test_without_a_card_there_is_no_table_of_cards(sqlite_app: Flask, sqlite_browser: FlaskClient):
    with sqlite_app.app_context():
        node_id = make_node(last_metrics_at=now())
        store(node_id, batch(point(now(), detail=DETAIL)), at=now())
    assert "GPU" not in page(sqlite_browser, f"/nodes/{node_id}/metrics")


def test_strange_names_are_only_text(sqlite_app: Flask, sqlite_browser: FlaskClient):
    with sqlite_app.app_context():
        node_id = make_node(last_metrics_at=now())
        mount = DETAIL.mounts[0]._replace(mount="/<img src=x>", device='"><script>')
        told = DETAIL._replace(mounts=(mount, DETAIL.mounts[1]))
        store(node_id, batch(point(now(), detail=told)), at=now())
    html = page(sqlite_browser, f"/nodes/{node_id}/metrics")
    assert "<img" not in html
    assert "/&lt;img src=x&gt;" in html


def test_a_free_choice_is_in_the_readers_time_zone(sqlite_app: Flask, sqlite_browser: FlaskClient):
    with sqlite_app.app_context():
        in_transaction(db.session(), lambda: setattr(db.session.query(User).one(), "timezone", "Asia/Shanghai"))
        node_id = make_node(last_metrics_at=now())
    html = page(sqlite_browser, f"/nodes/{node_id}/metrics?start=2026-11-20T20:00&end=2026-11-20T21:30")
    cpu = read_outs(html)["CPU"]
    assert (cpu["from"], cpu["to"]) == (NOON.timestamp(), (NOON + 90 * MINUTE).timestamp())
    assert cpu["tz"] == "Asia/Shanghai"
    assert 'name="start" value="2026-11-20T20:00"' in html
    assert 'name="end" value="2026-11-20T21:30"' in html


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-11-20T12:00", "2026-11-20T12:00"),
        ("2026-11-20T12:00", ""),
        ("", "2026-11-20T12:00"),
        ("soon", "later"),
        ("2020-11-20T12:00", "2026-11-20T12:00"),
        ("0001-01-01T00:00", "0001-01-01T05:00"),
        ("9999-12-31T20:00", "9999-12-31T23:59"),
    ],
)
def test_a_free_choice_that_cannot_be_shown_is_said_to_be_one(
    sqlite_app: Flask, sqlite_browser: FlaskClient, start: str, end: str
):
    with sqlite_app.app_context():
        node_id = make_node(last_metrics_at=now())
    html = page(sqlite_browser, f"/nodes/{node_id}/metrics?start={start}&end={end}")
    assert "This stretch of time cannot be shown." in html
    cpu = read_outs(html)["CPU"]
    assert cpu["to"] - cpu["from"] == 3600


def test_a_free_choice_across_the_change_of_the_clocks():
    window = between("2026-10-25T00:30", "2026-10-25T05:30", ZoneInfo("Europe/Berlin"))
    assert window is not None
    assert window.end - window.start == 6 * HOUR


def test_the_usual_range_is_the_last_hour():
    window = latest("")
    assert window.span == "1h"
    assert window.end - window.start == HOUR
    assert abs(window.end - datetime.now(UTC)) < MINUTE


def test_what_ends_now_refreshes_itself_and_a_free_choice_does_not(sqlite_app: Flask, sqlite_browser: FlaskClient):
    with sqlite_app.app_context():
        node_id = make_node(last_metrics_at=now())
    html = page(sqlite_browser, f"/nodes/{node_id}/metrics?range=6h")
    assert f'hx-get="/nodes/{node_id}/metrics?range=6h" hx-trigger="every 30s"' in html
    assert (
        "hx-trigger"
        not in page(sqlite_browser, f"/nodes/{node_id}/metrics?start=2026-11-20T12:00&end=2026-11-20T13:00").split(
            'id="main"'
        )[1]
    )


def test_a_refresh_brings_the_fragment_alone(sqlite_app: Flask, sqlite_browser: FlaskClient):
    with sqlite_app.app_context():
        node_id = make_node(last_metrics_at=now())
    part = page(sqlite_browser, f"/nodes/{node_id}/metrics", HX_Request="true", HX_Target="node-metrics")
    assert part.lstrip().startswith('<div class="stack" id="node-metrics"')
    assert "<html" not in part


def test_an_unknown_host_is_not_found(sqlite_browser: FlaskClient):
    assert sqlite_browser.get("/nodes/4711/metrics").status_code == 404


def test_nobody_sees_it_without_signing_in(sqlite_app: Flask):
    answer = sqlite_app.test_client().get("/nodes/1/metrics")
    assert answer.status_code == 302
    assert "/login" in answer.headers["Location"]


def test_points_in_the_table_are_what_the_charts_show(sqlite_app: Flask):
    """The charts of the overview and those of this page come from the same function."""
    with sqlite_app.app_context():
        node_id = make_node()
        present = now()
        store(node_id, batch(point(present - MINUTE), point(present)), at=present)
        with sqlite_app.test_request_context():
            charts = node_charts(db.session(), db.session.get_one(Node, node_id), latest("1h"))
        assert [chart.label for chart in charts] == CHARTS
        assert charts[0].drawings[0].last == "12.5%"
