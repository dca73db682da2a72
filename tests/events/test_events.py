"""The timeline: words for what happened, filters, the page, the API."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask

from app.events.actions import note
from app.events.models import Event
from app.events.queries import recent_troubles
from app.events.sentences import SENTENCES
from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from tests.factories import Api
from tests.visitors import visit

HOST = {"node_id": 7, "hostname": "web-7"}


def happen(kind: str = "node.online", message: str = "as written", **values: Any) -> None:
    session = db.session()
    in_transaction(session, lambda: note(session, kind, message, **(HOST | values)))


@pytest.mark.parametrize(
    ("kind", "data", "sentence"),
    [
        ("node.enrolled", {"token": "eu", "ip": "10.0.0.1"}, "enrolled with the token “eu” from 10.0.0.1"),
        ("node.enrolled", {"token": None, "ip": "10.0.0.1"}, "enrolled from 10.0.0.1"),
        ("node.online", {"silent_s": 600}, "is online again after 10 minutes"),
        ("node.online", None, "is online again"),
        ("node.online", {"silent_s": "long"}, "is online again"),
        ("node.offline", {"last_heartbeat": "2026-01-31T10:00:00Z"}, "nothing heard since 2026-01-31 10:00:00 UTC"),
        ("node.offline", {"last_heartbeat": "yesterday"}, "went offline"),
        ("node.maintenance", {"until": "2026-01-31T10:00:00Z", "reason": "50 %s off"}, "10:00:00 UTC: 50 %s off"),
        ("node.points_lost", {"points": 12345}, "12,345 measurements were lost on the host"),
        ("node.approved", {"by": "alice"}, "approved by alice"),
        ("node.approved", {}, "as written"),
        ("node.approved", ["by"], "as written"),
        ("something.new", {"by": "alice"}, "as written"),
    ],
)
def test_what_happened_in_words(sqlite_app: Flask, kind: str, data: Any, sentence: str) -> None:
    with sqlite_app.test_request_context("/events"):
        event = Event(kind=kind, message="as written", data=data, source="manager", severity="info")
        assert event.sentence.endswith(sentence)
        assert event.remark == ""


def test_every_sentence_has_its_example_in_the_code(sqlite_app: Flask) -> None:
    data = {"token": "t", "ip": "i", "by": "b", "silent_s": 1, "points": 1, "step_s": 1.5, "reason": "r"}
    data |= {"agent": "a", "signal": 9, "exit_code": 1, "task": "t", "missed": 2, "no_host": "n"}
    data |= dict.fromkeys(("until", "last_heartbeat", "scheduled_for"), "2026-01-31T10:00:00Z")
    with sqlite_app.test_request_context("/events"):
        for kind, templates in SENTENCES.items():
            event = Event(kind=kind, message="as written", data=data, source="manager", severity="info")
            assert event.sentence != "as written", kind
            assert "%(" not in event.sentence, kind
            assert len(templates) <= 3


def test_a_host_cannot_put_words_into_the_managers_mouth(sqlite_app: Flask) -> None:
    with sqlite_app.test_request_context("/events"):
        forged = Event(kind="node.revoked", message="ha", data={"by": "alice"}, source="host", severity="info")
        assert (forged.sentence, forged.remark, forged.state) == ("ha", "", "idle")
        own = Event(kind="daemon.started", message="daemon 1.4 started", source="host", severity="info")
        assert (own.sentence, own.remark) == ("the Daemon started", "daemon 1.4 started")


def test_an_event_has_a_state(sqlite_app: Flask) -> None:
    with sqlite_app.test_request_context("/events"):
        states = [
            Event(kind=kind, message="", severity=severity, source="manager").state
            for kind, severity in (("x", "critical"), ("x", "warning"), ("node.online", "info"), ("x", "info"))
        ]
    assert states == ["bad", "warn", "ok", "idle"]


def test_it_lists_filters_and_sorts(app: Flask, cast: dict[str, Api]) -> None:
    at = now()
    with app.app_context():
        happen("node.offline", severity="warning", occurred_at=at - timedelta(hours=30))
        happen("node.online", occurred_at=at - timedelta(hours=2))
        happen("node.online", node_id=8, hostname="DB_8")
        happen("node.cloned", severity="critical", message="50% twice")

    def kinds(query: str) -> list[str]:
        answer = cast["vera"].get(f"/events{query}")
        assert answer.status_code == 200, answer.text
        return [item["kind"].partition(".")[2] for item in answer.json["data"]["items"]]

    start = (at - timedelta(hours=3)).isoformat().replace("+", "%2B")
    end = (at - timedelta(hours=1)).isoformat().replace("+", "%2B")
    for query, expected in (
        ("", ["cloned", "online", "online", "offline"]),
        ("?sort=occurred_at", ["offline", "online", "online", "cloned"]),
        ("?severity=warning", ["offline"]),
        ("?kind=node.online", ["online", "online"]),
        ("?kind=node.online&node_id=8", ["online"]),
        ("?keyword=db_", ["online"]),
        ("?keyword=50%25", ["cloned"]),
        ("?hours=24", ["cloned", "online", "online"]),
        (f"?start={start}&end={end}", ["online"]),
        ("?source=host", []),
        ("?page_size=1&page=4", ["offline"]),
    ):
        assert kinds(query) == expected, query
    for wrong in ("?severity=bad", "?start=2026-01-01", "?sort=data", "?hours=0"):
        assert cast["vera"].get(f"/events{wrong}").json["code"] == 1001, wrong


def test_an_event_is_told_to_programs_in_their_language_with_its_data(app: Flask, cast: dict[str, Api]) -> None:
    moment = datetime(2026, 1, 31, 10, 0, tzinfo=UTC)
    with app.app_context():
        happen("node.approved", data={"by": "alice"}, occurred_at=moment)
    item = cast["vera"].get("/events").json["data"]["items"][0]
    assert (item["node_id"], item["hostname"], item["severity"], item["source"]) == (7, "web-7", "info", "manager")
    assert (item["message"], item["data"]) == ("approved by alice", {"by": "alice"})
    assert item["occurred_at"] == "2026-01-31T10:00:00Z"


def test_the_page_shows_filters_and_hands_out_the_timeline(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        happen("node.offline", severity="warning")
        happen("node.deleted", node_id=None, data={"by": "alice"})
        happen("custom.kind", message="<b>bold</b>")
    browser = visit(app, "vera")
    html = browser.get("/events").text
    assert '<a href="/nodes/7">web-7</a>' in html
    assert "deleted by alice" in html
    assert "&lt;b&gt;bold" in html
    assert '<option value="custom.kind">' in html
    assert "deleted by alice" not in browser.get("/events?severity=warning&hours=1").text
    fragment = browser.get("/events", headers={"HX-Request": "true", "HX-Target": "events-table"}).text
    assert fragment.lstrip().startswith('<div class="list" id="events-table" hx-get="/events"')
    rows = list(csv.DictReader(io.StringIO(browser.get("/events?format=csv").text.lstrip("\ufeff"))))
    assert [row["kind"] for row in rows] == ["custom.kind", "node.deleted", "node.offline"]
    assert len(json.loads(browser.get("/events?format=json&kind=custom.kind").text)) == 1


def test_troubles_are_the_newest_of_both_kinds(context: Flask) -> None:
    for number, severity in enumerate(("warning", "critical", "info", "warning", "critical", "info")):
        happen(f"k.{number}", severity=severity)
    assert [event.kind for event in recent_troubles(db.session(), 3)] == ["k.4", "k.3", "k.1"]
