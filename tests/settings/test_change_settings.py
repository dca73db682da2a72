"""Changing settings at run time, by the API and by the page: checked, audited, all or none, seen everywhere."""

import time
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug.test import TestResponse

from app.audit.models import AuditRow
from app.kernel.db import db, in_transaction
from app.kernel.live_settings import ChangedSetting, changed_settings, live_settings
from config import known_settings
from tests.conftest import Applications
from tests.factories import Api, api_as, browser_as, make_user
from tests.services import wait_for
from tests.variants import build, dispose

INTERVAL = "node.heartbeat_interval"


@pytest.fixture
def alice(app: Flask) -> Api:
    with app.app_context():
        make_user("alice", "admin")
    return api_as(app, "alice")


def change(api: Api, **values: Any) -> TestResponse:
    return api.put("/system/settings", {"values": {name.replace("__", "."): value for name, value in values.items()}})


def shown(api: Api, key: str = INTERVAL) -> dict[str, Any]:
    items = api.get("/system/settings").json["data"]["items"]
    return next(item for item in items if item["key"] == key)


def wrong(answer: TestResponse) -> dict[str, str]:
    assert (answer.status_code, answer.json["code"]) == (400, 1001), answer.text
    return {error["field"]: error["message"] for error in answer.json["data"]["errors"]}


def audit_rows(app: Flask) -> list[AuditRow]:
    with app.app_context():
        return list(db.session.scalars(select(AuditRow).filter_by(action="settings.change").order_by(AuditRow.id)))


def test_every_setting_that_may_change_is_listed_and_no_other(alice: Api) -> None:
    items = alice.get("/system/settings").json["data"]["items"]
    assert [item["key"] for item in items] == [item.key for item in known_settings() if item.is_runtime]
    assert all(item["description"] for item in items)
    assert shown(alice) == {
        "key": INTERVAL,
        "value": 60,
        "configured": 60,
        "is_changed": False,
        "allowed": "10 – 300",
        "description": "How often a Daemon checks in.",
    }


def test_a_change_is_in_force_at_once_audited_and_can_be_taken_back(app: Flask, alice: Api) -> None:
    assert change(alice, node__heartbeat_interval=30).status_code == 200
    assert (shown(alice)["value"], shown(alice)["configured"], shown(alice)["is_changed"]) == (30, 60, True)
    with app.app_context():
        assert live_settings().node.heartbeat_interval == 30
    assert change(alice, node__heartbeat_interval=None).status_code == 200
    assert (shown(alice)["value"], shown(alice)["is_changed"]) == (60, False)
    first, second = audit_rows(app)
    assert first.detail == {"before": {INTERVAL: 60}, "after": {INTERVAL: 30}}
    assert second.detail == {"before": {INTERVAL: 30}, "after": {INTERVAL: 60}}
    assert (first.username, first.resource_type, first.status) == ("alice", "settings", "success")


def test_durations_may_be_given_with_their_unit(alice: Api) -> None:
    assert change(alice, node__heartbeat_interval="2m").status_code == 200
    assert shown(alice)["value"] == 120


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (INTERVAL, 9), (INTERVAL, 301), (INTERVAL, "often"), (INTERVAL, True), (INTERVAL, ""), (INTERVAL, 10**400),
        (INTERVAL, "9" * 400), (INTERVAL, -60),
        ("metrics.retention_days", "30"), ("metrics.retention_days", 1.5), ("metrics.retention_days", 30.0),
        ("metrics.retention_days", True), ("metrics.retention_days", 0),
        ("ui.timezone", "Mars/Olympus"), ("ui.timezone", 7), ("ui.timezone", ""),
        ("log.level", "debug"), ("database.password", "x"), ("database.password", None), ("server.http.addr", ":1"),
        ("nothing.here", 1), ("nothing.here", None), ("node", 1), ("", 1), ("x" * 1000, 1), ("\x00", 1),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_refused_named_and_changes_nothing(one_alice: Api, key: str, value: object) -> None:
    answer = one_alice.put("/system/settings", {"values": {key: value, "audit.checkpoint_interval": 90}})
    assert set(wrong(answer)) == {key}
    assert shown(one_alice, "audit.checkpoint_interval")["is_changed"] is False


@pytest.fixture(scope="module")
def one_app(applications: Applications) -> Any:
    app = build(applications)
    with app.app_context():
        make_user("alice", "admin")
    yield app
    dispose(app)


@pytest.fixture(scope="module")
def one_alice(one_app: Flask) -> Api:
    return api_as(one_app, "alice")


def test_everything_that_is_wrong_is_named_at_once(one_alice: Api) -> None:
    answer = one_alice.put(
        "/system/settings", {"values": {INTERVAL: 5, "metrics.retention_days": "x", "nothing": 1, "log.level": "x"}}
    )
    assert set(wrong(answer)) == {INTERVAL, "metrics.retention_days", "nothing", "log.level"}


@pytest.mark.parametrize("body", [{}, {"values": {}}, {"values": []}, {"values": {INTERVAL: [30]}}, {INTERVAL: 30}])
def test_a_body_of_another_shape_is_refused(one_alice: Api, body: object) -> None:
    assert wrong(one_alice.put("/system/settings", body))


def test_settings_that_contradict_each_other_are_refused(one_alice: Api) -> None:
    assert set(wrong(change(one_alice, auth__session_idle="8d"))) == {"auth.session_idle"}
    assert set(wrong(change(one_alice, auth__session_ttl="1h"))) == {"auth.session_idle"}
    assert change(one_alice, auth__session_idle="30m", auth__session_ttl="1h").status_code == 200
    assert set(wrong(change(one_alice, auth__session_idle=None))) == {"auth.session_idle"}
    assert change(one_alice, auth__session_idle=None, auth__session_ttl=None).status_code == 200


def test_a_change_to_what_is_there_already_is_no_change(app: Flask, alice: Api) -> None:
    assert change(alice, node__heartbeat_interval=60).status_code == 200
    assert audit_rows(app) == []


def test_a_stored_value_that_an_upgrade_no_longer_allows_is_ignored_and_in_nobodys_way(app: Flask, alice: Api) -> None:
    with app.app_context():
        rows = [ChangedSetting(key=INTERVAL, value=3), ChangedSetting(key="gone.since", value=1)]
        in_transaction(db.session(), lambda: db.session.add_all(rows))
    assert (shown(alice)["value"], shown(alice)["is_changed"]) == (60, False)
    assert change(alice, metrics__retention_days=7).status_code == 200
    assert change(alice, node__heartbeat_interval=20).status_code == 200
    assert shown(alice)["value"] == 20
    with app.app_context():
        assert changed_settings(db.session()) == {INTERVAL: 20, "gone.since": 1, "metrics.retention_days": 7}


def test_only_administrators_see_and_change_settings(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("oscar", "operator")
    oscar = api_as(sqlite_app, "oscar")
    assert oscar.get("/system/settings").status_code == 403
    assert change(oscar, node__heartbeat_interval=30).status_code == 403


def test_every_process_sees_a_change_within_a_second(applications: Applications) -> None:
    one, two = build(applications), build(applications)
    with one.app_context():
        make_user("alice", "admin")
    here, there = api_as(one, "alice"), api_as(two, "alice")
    with two.app_context():
        assert live_settings().node.heartbeat_interval == 60
    assert change(here, node__heartbeat_interval=30).status_code == 200
    started = time.monotonic()

    def is_seen() -> bool:
        with two.app_context():
            return live_settings().node.heartbeat_interval == 30

    wait_for(is_seen, 3, "the change in the other process")
    assert time.monotonic() - started < 20
    assert shown(there)["value"] == 30
    for app in (one, two):
        dispose(app)


# The page


@pytest.fixture
def browser(sqlite_app: Flask) -> FlaskClient:
    with sqlite_app.app_context():
        make_user("alice", "admin")
    return browser_as(sqlite_app, "alice")


def typed(client: FlaskClient, **changes: str) -> TestResponse:
    """The form as it is shown, with some fields typed over."""
    page = client.get("/settings").text
    token = page.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]
    data = {item.key: field(page, item.key) for item in known_settings() if item.is_runtime}
    given = {name.replace("__", "."): value for name, value in changes.items()}
    return client.post("/settings", data=data | given | {"csrf_token": token})


def field(page: str, key: str) -> str:
    """What stands in a field of the page, whichever kind it is."""
    _, _, rest = page.partition(f'name="{key}"')
    assert rest, key
    tag, _, after = rest.partition(">")
    if 'value="' in tag:
        return tag.split('value="', 1)[1].split('"', 1)[0]
    chosen = [option for option in after.partition("</select>")[0].split("<option ")[1:] if " selected" in option]
    return chosen[0].split('value="', 1)[1].split('"', 1)[0]


def stored(app: Flask) -> dict[str, Any]:
    with app.app_context():
        return changed_settings(db.session())


def test_the_page_shows_what_may_change_and_what_is_allowed(browser: FlaskClient) -> None:
    page = browser.get("/settings").text
    for item in known_settings():
        assert (f'name="{item.key}"' in page) == item.is_runtime, item.key
    assert "10s – 5m" in page
    assert field(page, INTERVAL) == "1m"


def test_the_page_changes_what_was_typed_over_and_nothing_else(sqlite_app: Flask, browser: FlaskClient) -> None:
    answer = typed(browser, node__heartbeat_interval="45", metrics__retention_days="7", ui__timezone="Asia/Shanghai")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/settings")
    assert stored(sqlite_app) == {INTERVAL: 45, "metrics.retention_days": 7, "ui.timezone": "Asia/Shanghai"}
    (row,) = audit_rows(sqlite_app)
    assert row.detail["after"] == {INTERVAL: 45, "metrics.retention_days": 7, "ui.timezone": "Asia/Shanghai"}


@pytest.mark.parametrize("back", ["", "60", "60s", "1m"])
def test_an_empty_field_or_the_configured_value_goes_back_to_it(
    sqlite_app: Flask, browser: FlaskClient, back: str
) -> None:
    typed(browser, node__heartbeat_interval="45")
    assert stored(sqlite_app) == {INTERVAL: 45}
    assert typed(browser, node__heartbeat_interval=back).status_code == 303
    assert stored(sqlite_app) == {}


def test_yes_and_no_can_be_typed(sqlite_app: Flask, browser: FlaskClient) -> None:
    switches = [item.key for item in known_settings() if item.is_runtime and item.info.annotation is bool]
    for key in switches:
        for word, value in (("yes", True), ("false", None)):
            assert typed(browser, **{key: word}).status_code == 303
            assert stored(sqlite_app).get(key) == value
        assert typed(browser, **{key: "perhaps"}).status_code == 422


def test_a_wrong_field_brings_the_form_back_as_it_was_typed(sqlite_app: Flask, browser: FlaskClient) -> None:
    answer = typed(browser, node__heartbeat_interval="9s", metrics__retention_days="many", ui__refresh_interval="10")
    assert answer.status_code == 422
    assert field(answer.text, INTERVAL) == "9s"
    assert field(answer.text, "metrics.retention_days") == "many"
    assert answer.text.count("A whole number is expected here.") >= 1
    assert stored(sqlite_app) == {}


def test_fields_that_a_form_does_not_have_stay_as_they_are(sqlite_app: Flask, browser: FlaskClient) -> None:
    """A form that was loaded before an upgrade knows nothing of newer settings."""
    typed(browser, node__heartbeat_interval="45")
    token = browser.get("/settings").text.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]
    answer = browser.post("/settings", data={"csrf_token": token, "metrics.retention_days": "7", "nothing": "1"})
    assert answer.status_code == 303
    assert stored(sqlite_app) == {INTERVAL: 45, "metrics.retention_days": 7}
