"""GET /nodes/{id}/metrics: the contract's points, bounds, refusals."""

from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask

from app.kernel.clock import now, rfc3339
from app.metrics import api
from app.metrics.schemas import MetricsOut
from protocol.times import to_datetime
from tests.factories import Api, api_as, make_user
from tests.metrics.builders import (
    CARD,
    DETAIL,
    NOON,
    batch,
    make_node,
    point,
    roll_up_all,
    store,
    store_every_minute,
)

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
CONTRACT = (
    "timestamp cpu_usage memory_usage memory_used disk_usage disk_used network_rx network_tx load_avg_1 load_avg_5"
    " load_avg_15 process_count tcp_connections"
).split()
PARTS = {"cores", "mounts", "interfaces", "disk_io", "gpu"}


@pytest.fixture
def vera(cast: dict[str, Api]) -> Api:
    return cast["vera"]


@pytest.fixture
def node_id(app: Flask) -> int:
    with app.app_context():
        return make_node()


@pytest.fixture
def sqlite_vera(sqlite_app: Flask) -> tuple[Api, int]:
    """A viewer and a host, for what does not depend on the database."""
    with sqlite_app.app_context():
        make_user("vera", "viewer")
        return api_as(sqlite_app, "vera"), make_node()


def ask(api: Api, node_id: int, **query: Any) -> Any:
    asked = "&".join(f"{name}={quote(str(value))}" for name, value in query.items())
    answer = api.get(f"/nodes/{node_id}/metrics?{asked}")
    assert answer.status_code == 200, answer.text
    MetricsOut.model_validate(answer.json["data"])
    return answer.json["data"]


def refused(api: Api, node_id: int, **query: Any) -> tuple[int, int, set[str]]:
    asked = "&".join(f"{name}={quote(str(value))}" for name, value in query.items())
    answer = api.get(f"/nodes/{node_id}/metrics?{asked}")
    errors = (answer.json["data"] or {}).get("errors", [])
    return answer.status_code, answer.json["code"], {error["field"] for error in errors}


def test_the_last_hour_by_default(app: Flask, vera: Api, node_id: int):
    present = now()
    with app.app_context():
        told = (point(present - 61 * MINUTE), point(present - 59 * MINUTE, cpu_usage=33.25), point(present))
        store(node_id, batch(*told), at=present)
    data = ask(vera, node_id)
    assert data["resolution"] == "raw"
    assert len(data["items"]) == 2
    first = data["items"][0]
    assert set(CONTRACT) <= set(first)
    assert not PARTS & set(first)
    assert to_datetime(first["timestamp"]) == to_datetime(told[1].timestamp)
    expected = told[1]._asdict()
    for name in CONTRACT[1:]:
        assert first[name] == pytest.approx(expected[name]), name


def test_a_stretch_of_time_in_any_zone(app: Flask, vera: Api, node_id: int):
    with app.app_context():
        store_every_minute(node_id, NOON, 10)
    data = ask(vera, node_id, start="2026-11-20T20:02:00+08:00", end=rfc3339(NOON + 4 * MINUTE), resolution="raw")
    assert [item["timestamp"] for item in data["items"]] == [rfc3339(NOON + n * MINUTE) for n in (2, 3, 4)]


def test_rolled_up_points_are_means_with_their_maxima(app: Flask, vera: Api, node_id: int):
    with app.app_context():
        told = [point(NOON + n * MINUTE, cpu_usage=10.0 * n, memory_used=2**33 + n, process_count=n) for n in range(4)]
        store(node_id, batch(*told), at=NOON + 5 * MINUTE)
        roll_up_all(NOON + HOUR)
    for resolution in ("5m", "1h"):
        data = ask(vera, node_id, start=rfc3339(NOON), end=rfc3339(NOON + HOUR), resolution=resolution)
        assert data["resolution"] == resolution
        (item,) = data["items"]
        assert item["timestamp"] == rfc3339(NOON)
        assert (item["cpu_usage"], item["max"]["cpu_usage"]) == (15.0, 30.0)
        assert (item["memory_used"], item["max"]["memory_used"]) == (2**33 + 2, 2**33 + 3)
        assert isinstance(item["process_count"], int)


def test_long_times_come_rolled_up_by_themselves(app: Flask, vera: Api, node_id: int):
    present = now()
    for days, resolution in ((0.5, "raw"), (7, "5m"), (30, "1h")):
        start = rfc3339(present - timedelta(days=days))
        assert ask(vera, node_id, start=start, resolution="auto")["resolution"] == resolution


def test_parts_come_when_asked_for(app: Flask, vera: Api, node_id: int):
    present = now()
    with app.app_context():
        told = point(present - MINUTE, detail=DETAIL._replace(gpu=(CARD,)))
        store(node_id, batch(told, point(present)), at=present)
    first, second = ask(vera, node_id, detail=1)["items"]
    assert first["cores"] == [12.5, 99.0, 0.0, 41.25]
    assert first["mounts"][1] == {
        "mount": "/srv", "device": "/dev/vdb1", "fstype": "xfs",
        "total": 900 * 2**30, "used": 855 * 2**30, "usage": 95.0,
    }  # fmt: skip
    assert first["interfaces"][0]["rx_rate"] == 1000.5
    assert first["disk_io"][0]["busy"] == 3.5
    assert first["gpu"][0]["name"] == "A100"
    assert {name: second[name] for name in PARTS} == dict.fromkeys(PARTS)


def test_rolled_up_points_have_no_parts(app: Flask, vera: Api, node_id: int):
    with app.app_context():
        store(node_id, batch(point(NOON, detail=DETAIL)))
    (item,) = ask(vera, node_id, start=rfc3339(NOON), end=rfc3339(NOON), resolution="5m", detail="true")["items"]
    assert {name: item[name] for name in PARTS} == dict.fromkeys(PARTS)


def test_an_unknown_host_is_2001(vera: Api):
    assert refused(vera, 4711) == (404, 2001, set())


def test_nobody_sees_anything_without_signing_in(app: Flask, node_id: int):
    answer = Api(app).get(f"/nodes/{node_id}/metrics")
    assert (answer.status_code, answer.json["code"]) == (401, 1002)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"start": "yesterday"}, "start"),
        ({"end": "2026-11-20T12:00:00"}, "end"),
        ({"resolution": "2m"}, "resolution"),
        ({"detail": "perhaps"}, "detail"),
        ({"from": "2026-11-20T12:00:00Z"}, "from"),
        ({"start": "2026-11-20T12:00:01Z", "end": "2026-11-20T12:00:00Z"}, "start"),
        ({"start": "9999-12-31T23:59:59Z"}, "start"),
    ],
)
def test_what_makes_no_sense_is_1001(sqlite_vera: tuple[Api, int], query: dict[str, str], field: str):
    assert refused(*sqlite_vera, **query) == (400, 1001, {field})


@pytest.mark.parametrize(
    "query",
    [
        {"end": "0001-01-01T00:00:00Z"},
        {"start": "0001-01-01T00:00:00Z"},
        {"start": "0001-01-01T00:00:00Z", "end": "9999-12-31T23:59:59.999999Z", "resolution": "1h"},
        {"start": "0001-01-01T00:00:00Z", "end": "9999-12-31T23:59:59.999999Z", "resolution": "5m"},
        {"end": "9999-12-31T23:59:59.999999-14:00", "start": "9999-12-31T00:00:00Z"},
    ],
)
def test_the_ends_of_time_are_no_accident(sqlite_vera: tuple[Api, int], query: dict[str, str]):
    assert ask(*sqlite_vera, **query)["items"] == []


def test_more_points_than_the_bound_are_1001(app: Flask, vera: Api, node_id: int, monkeypatch: pytest.MonkeyPatch):
    with app.app_context():
        store_every_minute(node_id, NOON, 100, detail=DETAIL)
    whole = {"start": rfc3339(NOON), "end": rfc3339(NOON + 2 * HOUR)}
    monkeypatch.setattr(api, "MOST_POINTS", 100)
    assert len(ask(vera, node_id, **whole, resolution="raw")["items"]) == 100
    monkeypatch.setattr(api, "MOST_POINTS", 99)
    assert refused(vera, node_id, **whole, resolution="raw") == (400, 1001, {"resolution"})
    assert len(ask(vera, node_id, **whole, resolution="5m")["items"]) == 20
    monkeypatch.setattr(api, "MOST_DETAILED", 99)
    assert refused(vera, node_id, **whole, resolution="raw", detail=1) == (400, 1001, {"resolution"})
    monkeypatch.undo()
    assert api.MOST_POINTS == 20_000
