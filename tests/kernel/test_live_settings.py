"""Settings in force now: seen by every process within a second, never taken from half-done or outdated changes."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from app.kernel import live_settings as module
from app.kernel.db import db, in_transaction, reading
from app.kernel.live_settings import (
    ChangedSetting,
    changed_settings,
    forget_cached_settings,
    is_allowed,
    live_settings,
    overlaid,
    value_of,
    with_value,
)
from config import load_settings
from tests.services import MariaDb, wait_for
from tests.variants import MakeApp, emptied

KEY = "node.heartbeat_interval"


def store(key: str, value: Any) -> None:
    in_transaction(db.session(), lambda: db.session.merge(ChangedSetting(key=key, value=value)))


def test_what_was_changed_stands_over_what_is_configured(context: Flask) -> None:
    assert live_settings().node.heartbeat_interval == 60
    store(KEY, 30)
    forget_cached_settings()
    assert live_settings().node.heartbeat_interval == 30
    assert changed_settings(db.session()) == {KEY: 30}


def test_another_process_sees_a_change_within_a_second_and_asks_no_more_often(make_app: MakeApp) -> None:
    one, two = make_app(), make_app()
    with two.app_context():
        assert live_settings().node.heartbeat_interval == 60
    with one.app_context():
        store(KEY, 30)
    started = time.monotonic()

    def seen() -> bool:
        with two.app_context():
            return live_settings().node.heartbeat_interval == 30

    assert not seen(), "what was read just now is not read again"
    wait_for(seen, 2, "the change")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (KEY, 5),
        (KEY, "often"),
        (KEY, None),
        (KEY, [1]),
        ("log.level", "debug"),
        ("database.password", "x"),
        ("gone.since", 1),
        ("node", 1),
        ("", 1),
    ],
)
def test_a_stored_value_that_is_no_longer_allowed_is_left_out(context: Flask, key: str, value: Any) -> None:
    """An upgrade may have narrowed its bounds, or taken the setting away."""
    store("metrics.retention_days", 7)
    store(key, value if value is not None else "null")
    forget_cached_settings()
    expected = with_value(load_settings([], {}), "metrics.retention_days", 7)
    assert live_settings().model_dump(exclude={"data_dir", "keys", "database", "redis"}) == expected.model_dump(
        exclude={"data_dir", "keys", "database", "redis"}
    )
    assert not is_allowed(live_settings(), key, value)


def test_values_are_checked_and_nothing_is_changed_in_place() -> None:
    before = load_settings([], {})
    after = overlaid(before, {KEY: "90s", "ui.timezone": "Asia/Shanghai"})
    assert (value_of(before, KEY), value_of(after, KEY)) == (60, 90)
    assert value_of(after, "ui.timezone") == "Asia/Shanghai"
    with pytest.raises(ValueError, match="less than or equal to 300"):
        with_value(before, KEY, 301)


def test_reading_settings_leaves_no_transaction_and_takes_no_lock(context: Flask) -> None:
    session = db.session()
    session.rollback()
    forget_cached_settings()
    live_settings()
    assert not session.in_transaction()
    with reading():
        session.get(ChangedSetting, "x")
        forget_cached_settings()
        live_settings()
        assert session.in_transaction(), "a transaction that was open is left open"
    session.rollback()


def test_a_changing_request_may_read_settings_before_it_writes(context: Flask) -> None:
    """On SQLite a transaction that began as a reader could not write any more."""
    session = db.session()

    def work() -> None:
        forget_cached_settings()
        live_settings()
        session.add(ChangedSetting(key="a", value=1))

    session.rollback()
    in_transaction(session, work)
    assert changed_settings(session) == {"a": 1}


def test_an_error_that_is_no_outage_is_not_hidden(context: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise KeyError("x")

    db.session.rollback()
    forget_cached_settings()
    monkeypatch.setattr(module, "changed_settings", fail)
    with pytest.raises(KeyError):
        live_settings()


@pytest.fixture
def older() -> Callable[[Flask], None]:
    """Makes the cache look as if it had been filled a while ago."""

    def age(app: Flask) -> None:
        made, settings = app.extensions["live_settings"]
        app.extensions["live_settings"] = (made - 60, settings)

    return age


@pytest.mark.fault
@pytest.mark.mariadb
def test_while_the_database_is_away_the_last_known_settings_are_in_force(
    fragile_app: Flask, own_mariadb: MariaDb, older: Callable[[Flask], None]
) -> None:
    app = emptied(fragile_app)
    with app.app_context():
        store(KEY, 30)
        assert live_settings().node.heartbeat_interval == 30
    own_mariadb.kill()
    try:
        with app.app_context():
            older(app)
            assert live_settings().node.heartbeat_interval == 30
            forget_cached_settings()
            assert live_settings().node.heartbeat_interval == 60, "a process that never asked goes by its configuration"
    finally:
        own_mariadb.start()
    with app.app_context():
        older(app)
        assert live_settings().node.heartbeat_interval == 30
