"""Languages and how times, numbers and sizes are written in them."""

from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask, g
from flask.testing import FlaskClient
from flask_babel import gettext

from app.kernel.access import Actor
from app.kernel.i18n import ago, exact, file_size, language, time_zone
from tests.factories import browser_as, make_user, submit

MOMENT = datetime(2026, 3, 29, 1, 30, 5, 123456, tzinfo=UTC)


def page_language(client: FlaskClient, path: str = "/login", **headers: str) -> str:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.get(path, headers=given).text.split('<html lang="', 1)[1].split('"', 1)[0]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", "en"),
        ("zh-CN", "zh"),
        ("zh-Hant", "zh"),
        ("de-DE,de;q=0.9", "en"),
        ("en;q=0.1,zh;q=0.2", "zh"),
        ("x", "en"),
    ],
)
def test_a_first_visit_follows_accept_language(sqlite_app: Flask, header: str, expected: str) -> None:
    shown = page_language(sqlite_app.test_client(), Accept_Language=header)
    assert shown.startswith(expected)


def test_the_switch_wins_over_the_browser_and_is_remembered(sqlite_app: Flask) -> None:
    client = sqlite_app.test_client()
    answer = submit(client, "/preferences/language", {"value": "zh", "next": "/login"}, page="/login")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/login")
    assert page_language(client, Accept_Language="en").startswith("zh")
    cookie = client.get_cookie("ops_lang")
    assert cookie is not None
    assert cookie.http_only
    assert submit(client, "/preferences/language", {"value": "klingon"}, page="/login").status_code == 303
    assert page_language(client).startswith("zh")


def test_a_persons_choice_follows_him_to_another_browser_but_not_into_the_api(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada")
    first = browser_as(sqlite_app, "ada")
    submit(first, "/preferences/language", {"value": "zh"}, page="/profile")
    second = browser_as(sqlite_app, "ada")
    assert page_language(second, "/profile", Accept_Language="en").startswith("zh")
    api = second.get("/api/v1/nothing", headers={"Accept-Language": "en"})
    assert api.json["message"] == "There is no such thing."


def test_outside_of_requests_everything_is_english(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        assert language() == "en"
        assert gettext("Please sign in.") == "Please sign in."


@pytest.mark.parametrize(
    ("zone", "text"),
    [
        ("UTC", "2026-03-29 01:30:05 UTC"),
        ("Asia/Shanghai", "2026-03-29 09:30:05"),
        ("Europe/Berlin", "2026-03-29 03:30"),
    ],
)
def test_exact_times_are_in_the_readers_zone(sqlite_app: Flask, zone: str, text: str) -> None:
    with sqlite_app.test_request_context("/"):
        g.actor = Actor(timezone=zone)
        assert time_zone() == zone
        assert exact(MOMENT).startswith(text)
        assert exact(None) == "–"


def test_who_chose_no_zone_gets_the_configured_one(sqlite_app: Flask) -> None:
    with sqlite_app.test_request_context("/"):
        assert time_zone() == "UTC"


@pytest.mark.parametrize(
    ("delta", "english", "chinese"),
    [
        (timedelta(seconds=0.5), "just now", "刚刚"),
        (timedelta(seconds=30), "30 seconds ago", "30秒钟前"),
        (timedelta(minutes=-5), "in 5 minutes", "5分钟后"),
        (timedelta(hours=3), "3 hours ago", "3小时前"),
        (timedelta(days=800), "2 years ago", "2年前"),
    ],
)
def test_times_are_told_by_how_long_ago_with_the_exact_one_behind(
    sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch, delta: timedelta, english: str, chinese: str
) -> None:
    monkeypatch.setattr("app.kernel.i18n.now", lambda: MOMENT + delta)
    for header, text in (("en", english), ("zh", chinese)):
        with sqlite_app.test_request_context("/", headers={"Accept-Language": header}):
            shown = ago(MOMENT)
        assert f">{text}</time>" in shown
        assert 'datetime="2026-03-29T01:30:05.123Z"' in shown
        assert 'title="2026-03-29 01:30:05 UTC"' in shown


def test_never_is_a_word(sqlite_app: Flask) -> None:
    with sqlite_app.test_request_context("/"):
        assert "never" in ago(None)


def test_sizes_and_numbers_are_written_as_the_language_does(sqlite_app: Flask) -> None:
    filters = sqlite_app.jinja_env.filters
    with sqlite_app.test_request_context("/"):
        assert [file_size(size) for size in (None, 0, 1023, 1536, 2**30, 2**50)] == [
            "–",
            "0 B",
            "1,023 B",
            "1.5 KiB",
            "1 GiB",
            "1,024 TiB",
        ]
        assert (filters["number"](1234567.5), filters["number"](None)) == ("1,234,567.5", "–")
        assert (filters["percent"](41.26), filters["percent"](None)) == ("41.3 %", "–")
