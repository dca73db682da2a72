"""Live mode: the page that watches a host, the samples it waits for, and how it works without a script."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from redis import Redis
from redis.exceptions import ConnectionError as RedisAway

from app.kernel.wake import CHANNEL
from app.link import live
from app.overview import pages_live
from protocol.metrics import Sample
from protocol.times import to_text
from tests.nodes.fleet import make_node
from tests.visitors import make_cast, visit


def sample(second: int = 0, cpu: float | None = 12.5) -> Sample:
    at = datetime.now(UTC) + timedelta(seconds=second)
    return Sample(to_text(at.timestamp()), cpu, 50.0, 2**30, 1e6, 2e6, 3e5, 4e5)


@pytest.fixture
def watched(sqlite_app: Flask) -> int:
    make_cast(sqlite_app)
    with sqlite_app.app_context():
        return make_node("web-1")


def test_looking_at_the_page_has_the_host_send_samples(sqlite_app: Flask, watched: int) -> None:
    redis: Redis = sqlite_app.extensions["ops"].redis
    listener = redis.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(CHANNEL)
    listener.get_message(timeout=1)
    assert visit(sqlite_app, "vera").get(f"/nodes/{watched}/live").status_code == 200
    with sqlite_app.app_context():
        assert live.wanted_until(watched) is not None
    heard = listener.get_message(timeout=2)
    assert json.loads(heard["data"]) == {"why": "live", "nodes": [watched]}
    listener.close()


def test_a_host_that_is_offline_is_not_asked(sqlite_app: Flask, watched: int) -> None:
    with sqlite_app.app_context():
        gone = make_node("web-2", status="offline")
    html = visit(sqlite_app, "vera").get(f"/nodes/{gone}/live").text
    assert "The host is not online." in html
    with sqlite_app.app_context():
        assert live.wanted_until(gone) is None
    answer = visit(sqlite_app, "vera").get(f"/nodes/{gone}/live/samples?after=0").json
    assert answer == {"samples": [], "last": 0, "online": False}


def test_samples_come_once_each_and_in_order(sqlite_app: Flask, watched: int) -> None:
    with sqlite_app.app_context():
        live.keep(watched, [sample(0, 1.0), sample(1, 2.0)])
    browser = visit(sqlite_app, "vera")
    first = browser.get(f"/nodes/{watched}/live/samples?after=0").json
    assert [one["cpu_usage"] for one in first["samples"]] == [1.0, 2.0]
    assert (first["last"], first["online"]) == (2, True)
    with sqlite_app.app_context():
        live.keep(watched, [sample(2, 3.0)])
    second = browser.get(f"/nodes/{watched}/live/samples?after={first['last']}").json
    assert [one["cpu_usage"] for one in second["samples"]] == [3.0]


def test_the_answer_waits_for_the_next_sample(sqlite_app: Flask, watched: int) -> None:
    def send() -> None:
        time.sleep(0.5)
        with sqlite_app.app_context():
            live.keep(watched, [sample()])

    sender = threading.Thread(target=send)
    sender.start()
    started = time.monotonic()
    answer = visit(sqlite_app, "vera").get(f"/nodes/{watched}/live/samples?after=0").json
    sender.join()
    assert 0.4 < time.monotonic() - started < 20
    assert answer["last"] == 1


def test_it_does_not_wait_for_ever(sqlite_app: Flask, watched: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_live, "HELD_S", 0.3)
    answer = visit(sqlite_app, "vera").get(f"/nodes/{watched}/live/samples?after=7").json
    assert answer == {"samples": [], "last": 7, "online": True}


def test_numbers_that_begin_anew_are_noticed(sqlite_app: Flask, watched: int) -> None:
    with sqlite_app.app_context():
        live.keep(watched, [sample()])
    answer = visit(sqlite_app, "vera").get(f"/nodes/{watched}/live/samples?after=500").json
    assert (len(answer["samples"]), answer["last"]) == (1, 1)


def test_without_a_script_the_page_draws_the_minute_and_loads_itself_anew(sqlite_app: Flask, watched: int) -> None:
    with sqlite_app.app_context():
        live.keep(watched, [sample(second, 40.0) for second in range(-30, 1)])
    browser = visit(sqlite_app, "vera")
    page = browser.get(f"/nodes/{watched}/live")
    assert "Refresh" not in page.headers
    assert f'<noscript><meta http-equiv="refresh" content="0;url=/nodes/{watched}/live?reload=2">' in page.text
    plain = browser.get(f"/nodes/{watched}/live?reload=2")
    assert plain.headers["Refresh"] == "2"
    assert "<noscript><meta" not in plain.text
    assert "data-follow=" not in plain.text
    assert plain.text.count('<path class="line') == 6
    assert "40.0%" in plain.text
    stopped = browser.get(f"/nodes/{watched}/live?reload=0")
    assert "Refresh" not in stopped.headers
    assert "<noscript><meta" not in stopped.text


def test_the_page_opens_while_redis_is_away(sqlite_app: Flask, watched: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_node_id: int) -> None:
        raise RedisAway

    monkeypatch.setattr(live, "watch", away)
    html = visit(sqlite_app, "vera").get(f"/nodes/{watched}/live").text
    assert "Live values are not available right now." in html


def test_a_node_that_is_not_there(sqlite_app: Flask, watched: int) -> None:
    browser = visit(sqlite_app, "vera")
    assert browser.get("/nodes/999/live").status_code == 404
    assert browser.get("/nodes/999/live/samples").status_code == 404
    assert sqlite_app.test_client().get(f"/nodes/{watched}/live/samples").status_code == 302
