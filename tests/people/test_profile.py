"""What everybody does for himself: address, language, time zone."""

from typing import Any

import pytest
from flask import Flask

from tests.audit.reading import entries
from tests.factories import api_as, browser_as, make_user, submit


def test_one_changes_the_own_profile_by_page_and_by_api(app: Flask) -> None:
    with app.app_context():
        make_user("vera", phone="12345")
    client, api = browser_as(app, "vera"), api_as(app, "vera")
    sent = {"email": "vera@example.org", "phone": "", "locale": "zh", "timezone": "Asia/Shanghai"}
    assert submit(client, "/profile", sent).status_code == 303
    me = api.get("/auth/me").json["data"]
    assert (me["email"], me["phone"], me["locale"], me["timezone"]) == ("vera@example.org", None, "zh", "Asia/Shanghai")
    assert 'lang="zh-CN"' in client.get("/profile").text
    changed = api.put("/auth/me", {"phone": "555 123"}).json["data"]
    assert (changed["email"], changed["phone"], changed["locale"]) == ("vera@example.org", "555 123", "zh")
    assert api.put("/auth/me", {"locale": None}).json["data"]["locale"] is None
    rows = entries(app, action="user.update_profile")
    assert rows[1].detail == {"before": {"phone": None}, "after": {"phone": "555 123"}}
    assert len(rows) == 3
    assert {row.username for row in rows} == {"vera"}


@pytest.mark.parametrize(
    ("body", "field"),
    [({"role": "admin"}, "role"), ({"username": "root"}, "username"), ({"status": "disabled"}, "status"),
     ({"must_change_password": False}, "must_change_password"), ({"timezone": "Moon/Crater"}, "timezone"),
     ({"locale": "fr"}, "locale"), ({"email": "x"}, "email"), ({"password": "x" * 9}, "password")],
)  # fmt: skip
def test_nothing_else_can_be_changed_that_way(sqlite_app: Flask, body: dict[str, Any], field: str) -> None:
    with sqlite_app.app_context():
        make_user("vera")
    answer = api_as(sqlite_app, "vera").put("/auth/me", body)
    assert answer.json["code"] == 1001
    assert [error["field"] for error in answer.json["data"]["errors"]] == [field]
    form = submit(browser_as(sqlite_app, "vera"), "/profile", body)
    assert form.status_code == (422 if field in ("timezone", "locale", "email") else 303)
    assert api_as(sqlite_app, "vera").get("/auth/me").json["data"]["role"] == "viewer"


def test_somebody_elses_address_is_refused(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("vera")
        make_user("bert", email="bert@example.org")
    assert api_as(sqlite_app, "vera").put("/auth/me", {"email": "bert@example.org"}).json["code"] == 1006
    form = submit(browser_as(sqlite_app, "vera"), "/profile", {"email": "bert@example.org"})
    assert form.status_code == 422
    assert 'href="#f-email"' in form.text


def test_saving_without_a_change_is_not_in_the_log(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("vera", email="vera@example.org")
    assert submit(browser_as(sqlite_app, "vera"), "/profile", {"email": "vera@example.org"}).status_code == 303
    assert entries(sqlite_app, action="user.update_profile") == []
