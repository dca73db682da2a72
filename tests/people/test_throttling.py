"""Guessing passwords: how often, from where, for how long, and that the log knows."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from flask import Flask

from app.kernel.context import ops
from app.kernel.db import db, in_transaction
from app.people import attempts, passwords
from app.settings.actions import change_settings
from tests.audit.reading import entries
from tests.factories import PASSWORD, SYSTEM, Api, api_as, make_user, submit


def sign_in(app: Flask, name: str, password: str = "wrong-password", address: str = "198.51.100.7"):
    client = app.test_client()
    return client.post(
        "/api/v1/auth/login",
        json={"username": name, "password": password},
        environ_base={"REMOTE_ADDR": address},
    )


def set_limits(app: Flask, **limits: int) -> None:
    with app.app_context():
        values = {f"auth.attempts_per_{name}": value for name, value in limits.items()}
        in_transaction(db.session(), lambda: change_settings(db.session(), SYSTEM, values))


def test_after_five_failures_even_the_right_password_has_to_wait(app: Flask) -> None:
    with app.app_context():
        make_user("ada")
    assert [sign_in(app, "ada").status_code for _ in range(5)] == [401] * 5
    answer = sign_in(app, "ada", PASSWORD)
    assert (answer.status_code, answer.json["code"]) == (429, 1005)
    assert 1 <= int(answer.headers["Retry-After"]) <= attempts.ACCOUNT_WINDOW_S
    rows = entries(app, action="auth.sign_in")
    assert [row.error_message for row in rows][5:] == ["too many failed attempts"]
    assert [row.status for row in rows] == ["failed"] * 6
    assert {row.ip for row in rows} == {"198.51.100.7"}


def test_the_page_throttles_too_and_says_when_to_come_back(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada")
    client = sqlite_app.test_client()
    wrong = [submit(client, "/login", {"username": "ada", "password": "wrong-password"}) for _ in range(6)]
    assert [answer.status_code for answer in wrong] == [422] * 5 + [429]
    assert int(wrong[5].headers["Retry-After"]) >= 1
    assert 'value="ada"' in wrong[5].text
    assert len(entries(sqlite_app, action="auth.sign_in", error_message="too many failed attempts")) == 1


def test_others_and_other_places_are_not_shut_out(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada")
        make_user("bert")
    for _ in range(6):
        sign_in(sqlite_app, "ada")
    assert sign_in(sqlite_app, "ada", PASSWORD).status_code == 429
    assert sign_in(sqlite_app, "bert", PASSWORD).status_code == 200
    assert sign_in(sqlite_app, "ada", PASSWORD, address="198.51.100.8").status_code == 200


def test_a_success_forgets_the_accounts_failures(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada")
    for _ in range(3):
        assert [sign_in(sqlite_app, "ada").status_code for _ in range(4)] == [401] * 4
        assert sign_in(sqlite_app, "ada", PASSWORD).status_code == 200


def test_one_address_cannot_try_one_password_on_everybody(sqlite_app: Flask) -> None:
    set_limits(sqlite_app, address=8)
    with sqlite_app.app_context():
        make_user("ada")
    assert [sign_in(sqlite_app, f"user{number}").status_code for number in range(8)] == [401] * 8
    answer = sign_in(sqlite_app, "ada", PASSWORD)
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > attempts.ACCOUNT_WINDOW_S
    assert sign_in(sqlite_app, "ada", PASSWORD, address="198.51.100.8").status_code == 200


def test_an_account_of_ones_own_does_not_open_the_others(sqlite_app: Flask) -> None:
    """Signing in successfully in between must not reset what the address has failed so far."""
    set_limits(sqlite_app, address=8)
    with sqlite_app.app_context():
        make_user("mallory")
    for number in range(8):
        sign_in(sqlite_app, f"user{number}")
        sign_in(sqlite_app, "mallory", PASSWORD)
    assert sign_in(sqlite_app, "user9").status_code == 429


def test_all_addresses_of_one_ipv6_network_count_as_one(sqlite_app: Flask) -> None:
    for number in range(5):
        sign_in(sqlite_app, "ada", address=f"2001:db8:0:1::{number:x}")
    assert sign_in(sqlite_app, "ada", address="2001:db8:0:1:ffff::1").status_code == 429
    assert sign_in(sqlite_app, "ada", address="2001:db8:0:2::1").status_code == 401
    for number in range(5):
        sign_in(sqlite_app, "ada", address=f"::ffff:192.0.2.{number}")
    assert sign_in(sqlite_app, "ada", address="::ffff:192.0.2.77").status_code == 401


def test_after_the_window_it_works_again(sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "ACCOUNT_WINDOW_S", 1)
    with sqlite_app.app_context():
        make_user("ada")
        redis = ops().redis
    for _ in range(6):
        blocked = sign_in(sqlite_app, "ada")
    assert blocked.status_code == 429
    key = next(key for key in redis.scan_iter("rate:sign-in:*"))
    redis.pexpire(key, 1)
    while redis.exists(key):
        pass
    assert sign_in(sqlite_app, "ada", PASSWORD).status_code == 200


def test_waiting_does_not_begin_anew_with_every_further_attempt(sqlite_app: Flask) -> None:
    for _ in range(5):
        sign_in(sqlite_app, "ada")
    with sqlite_app.app_context():
        redis = ops().redis
    key = next(key for key in redis.scan_iter("rate:sign-in:*"))
    redis.expire(key, 40)
    waits = [int(sign_in(sqlite_app, "ada").headers["Retry-After"]) for _ in range(3)]
    assert max(waits) <= 40


def test_guesses_that_arrive_at_once_get_no_more_tries_than_one_after_another(
    sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand guesses look at the counter before the first of them has been counted."""
    with sqlite_app.app_context():
        make_user("ada")
    all_have_looked, looked, hashed = Event(), [], []
    check, compare = attempts.Attempt.check, passwords._matches

    def slow_check(self: attempts.Attempt) -> None:
        check(self)
        looked.append(self)
        if len(looked) >= 20:
            all_have_looked.set()
        all_have_looked.wait(5)

    def counted_compare(password_hash: str, password: str) -> bool:
        hashed.append(password)
        return compare(password_hash, password)

    monkeypatch.setattr(attempts.Attempt, "check", slow_check)
    monkeypatch.setattr(passwords, "_matches", counted_compare)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _n: sign_in(sqlite_app, "ada").status_code, range(20)))
    assert set(answers) == {401, 429}
    assert len(hashed) <= 5 + passwords.AT_ONCE._initial_value


def test_without_redis_each_process_counts_for_itself(sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite_app.app_context():
        make_user("ada")
        pool = ops().redis.connection_pool
    monkeypatch.setitem(pool.connection_kwargs, "path", "/nowhere/redis.sock")
    pool.disconnect()
    assert sign_in(sqlite_app, "ada", PASSWORD).status_code == 200
    for _ in range(5):
        assert sign_in(sqlite_app, "ada").status_code == 401
    assert sign_in(sqlite_app, "ada", PASSWORD).status_code == 429
    assert len(entries(sqlite_app, action="auth.sign_in", status="failed")) == 6


def test_whoever_found_an_open_session_cannot_guess_its_password(app: Flask) -> None:
    with app.app_context():
        make_user("ada")
    api = api_as(app, "ada")
    body = {"current_password": "wrong-password", "new_password": "another-horse-2"}
    assert [api.post("/auth/password", body).json["code"] for _ in range(5)] == [1001] * 5
    answer = api.post("/auth/password", body | {"current_password": PASSWORD})
    assert (answer.json["code"], answer.status_code) == (1005, 429)
    assert "Retry-After" in answer.headers
    rows = entries(app, action="auth.change_password", status="failed")
    assert [row.error_message for row in rows] == ["wrong present password"] * 5 + ["too many failed attempts"]
    assert {row.username for row in rows} == {"ada"}


def test_a_flood_of_refusals_does_not_fill_the_log(sqlite_app: Flask) -> None:
    """Each made-up name would be a row, and a page has no other limit."""
    set_limits(sqlite_app, address=1000)
    for number in range(70):
        sign_in(sqlite_app, f"made-up-{number}")
    assert len(entries(sqlite_app, action="auth.sign_in")) == 60
    sign_in(sqlite_app, "ada", address="198.51.100.8")
    assert len(entries(sqlite_app, action="auth.sign_in")) == 61


def test_what_is_counted_names_nobody(sqlite_app: Flask) -> None:
    sign_in(sqlite_app, "hunter2-typed-into-the-name")
    with sqlite_app.app_context():
        keys = b" ".join(ops().redis.scan_iter("*"))
    assert b"hunter2" not in keys
    assert b"rate:sign-in:" in keys


def test_a_locked_account_costs_no_hashing(sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        sign_in(sqlite_app, "ada")
    monkeypatch.setattr(passwords, "_matches", None)
    assert sign_in(sqlite_app, "ada").status_code == 429


def test_an_anonymous_api_client_is_slowed_down(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        values = {"server.rate_limit.anonymous": 10}
        in_transaction(db.session(), lambda: change_settings(db.session(), SYSTEM, values))
    answers = [Api(sqlite_app).get("/auth/me").status_code for _ in range(12)]
    assert answers == [401] * 10 + [429] * 2
