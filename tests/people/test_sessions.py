"""Sessions of browsers: the cookie, how a session begins, how it ends, and what cannot make one."""

import hashlib
import secrets

import pytest
from flask import Flask
from flask.sessions import SecureCookieSessionInterface
from sqlalchemy import text

from app.kernel.context import ops
from app.kernel.db import db, in_transaction
from app.people import jobs
from app.people.identity import COOKIE
from app.people.models import UserSession
from app.people.schemas import UserCreate
from app.settings.actions import change_settings
from tests.audit.reading import entries
from tests.factories import PASSWORD, SYSTEM, Api, api_as, browser_as, make_user, submit
from tests.people.conftest import Clock

SECURE = "https://localhost"


def test_a_cookie_that_was_there_before_never_becomes_a_session(app: Flask) -> None:
    """Fixation: somebody plants a value and waits until its owner signs in with it."""
    with app.app_context():
        make_user("ada", "admin")
    planted = secrets.token_urlsafe(32)
    victim = app.test_client()
    victim.set_cookie(COOKIE, planted)
    submit(victim, "/login", {"username": "ada", "password": PASSWORD})
    assert victim.get_cookie(COOKIE).value != planted
    attacker = app.test_client()
    attacker.set_cookie(COOKIE, planted)
    assert attacker.get("/users").status_code == 302
    assert victim.get("/users").status_code == 200


def test_two_sign_ins_are_two_sessions(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada")
    cookies = {browser_as(sqlite_app, "ada").get_cookie(COOKIE).value for _ in range(3)}
    assert len(cookies) == 3
    assert min(map(len, cookies)) >= 43


def test_only_hashes_of_the_secrets_are_stored(app: Flask) -> None:
    with app.app_context():
        make_user("ada")
    cookie = browser_as(app, "ada").get_cookie(COOKIE).value
    api_as(app, "ada")
    with app.app_context(), db.engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM user_sessions ORDER BY id")).mappings().all()
    assert rows[0]["token_hash"] == hashlib.sha256(cookie.encode()).hexdigest()
    assert cookie not in str(rows)


def test_scripts_and_foreign_pages_do_not_get_the_cookie_and_it_stays_on_tls(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("ada")
    client = sqlite_app.test_client()
    submit(client, "/login", {"username": "ada", "password": PASSWORD})
    plain = client.get_cookie(COOKIE)
    assert (plain.http_only, plain.same_site, plain.secure, plain.path) == (True, "Lax", False, "/")
    assert plain.max_age == 7 * 86400
    assert plain.origin_only
    fresh = sqlite_app.test_client()
    token = fresh.get("/login", base_url=SECURE).text.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]
    form = {"csrf_token": token, "username": "ada", "password": PASSWORD}
    answer = fresh.post("/login", data=form, base_url=SECURE, headers={"Referer": f"{SECURE}/login"})
    cookie = next(line for line in answer.headers.getlist("Set-Cookie") if line.startswith(COOKIE))
    assert {"Secure", "HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
    assert answer.headers["Strict-Transport-Security"]
    assert answer.headers["Cache-Control"] == "no-store"


def test_behind_a_proxy_that_does_tls_the_cookie_is_secure_too(
    sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nobody told us to believe that proxy's headers."""
    with sqlite_app.app_context():
        make_user("ada")
        monkeypatch.setitem(ops().settings.__dict__, "public_url", "https://ops.example.org")
    answer = submit(sqlite_app.test_client(), "/login", {"username": "ada", "password": PASSWORD})
    cookie = next(line for line in answer.headers.getlist("Set-Cookie") if line.startswith(COOKIE))
    assert "Secure" in cookie.split("; ")


def test_a_session_ends_when_it_is_idle(app: Flask, clock: Clock) -> None:
    with app.app_context():
        make_user("ada", "admin")
    client = browser_as(app, "ada")
    for _ in range(3):
        clock.advance(hours=11)
        assert client.get("/users").status_code == 200
    clock.advance(hours=12, seconds=1)
    assert client.get("/users").status_code == 302


def test_however_busy_it_is_a_session_ends_after_its_days(sqlite_app: Flask, clock: Clock) -> None:
    with sqlite_app.app_context():
        make_user("ada", "admin")
    client = browser_as(sqlite_app, "ada")
    for _ in range(16):
        clock.advance(hours=10.4)
        assert client.get("/users").status_code == 200
    clock.advance(hours=1.7)
    assert client.get("/users").status_code == 302


def test_short_idle_times_count_from_the_last_request(sqlite_app: Flask, clock: Clock) -> None:
    """When a session was used is noted once in a while only; that must not end it early."""
    with sqlite_app.app_context():
        make_user("ada", "admin")
        values = {"auth.session_idle": 60}
        in_transaction(db.session(), lambda: change_settings(db.session(), SYSTEM, values))
    client = browser_as(sqlite_app, "ada")
    for _ in range(5):
        clock.advance(seconds=50)
        assert client.get("/users").status_code == 200
    clock.advance(seconds=61)
    assert client.get("/users").status_code == 302


def test_what_has_expired_is_forgotten_and_the_rest_stays(app: Flask, clock: Clock) -> None:
    with app.app_context():
        make_user("ada")
    browser_as(app, "ada")
    clock.advance(days=8)
    client = browser_as(app, "ada")
    with app.app_context():
        in_transaction(db.session(), jobs.forget_expired)
        assert db.session.query(UserSession).count() == 1
        db.session.rollback()
    assert client.get("/profile").status_code == 200


def test_a_stolen_key_of_the_forms_makes_no_session(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        ada = make_user("ada", "admin")
        serializer = SecureCookieSessionInterface().get_signing_serializer(sqlite_app)
        forged = serializer.dumps(
            {"_user_id": str(ada.id), "user_id": ada.id, "_fresh": True, "username": "ada", "role": "admin"}
        )
    client = sqlite_app.test_client()
    client.set_cookie("ops_form", forged)
    client.set_cookie(COOKIE, forged)
    assert client.get("/users").status_code == 302
    assert client.get("/api/v1/auth/me").status_code == 401


@pytest.mark.parametrize("value", ["", "x", "x" * 5000, "%00", "é", "' OR 1=1 --", "ops_pat_x", "\\u0000"])
def test_made_up_cookies_are_nobody(sqlite_app: Flask, value: str) -> None:
    client = sqlite_app.test_client()
    answer = client.get("/users", headers={"Cookie": f"{COOKIE}={value}".encode().decode("latin-1")})
    assert answer.status_code == 302


def test_a_programs_secret_is_no_cookie_and_a_cookie_is_no_bearer(app: Flask) -> None:
    """Both kinds stand in one table."""
    with app.app_context():
        make_user("ada", "admin")
    client = browser_as(app, "ada")
    cookie = client.get_cookie(COOKIE).value
    assert Api(app, cookie).get("/auth/me").status_code == 401
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(text("UPDATE user_sessions SET kind = 'api'"))
    assert client.get("/users").status_code == 302


def test_one_sees_and_ends_the_own_sessions_and_nobody_elses(app: Flask) -> None:
    with app.app_context():
        make_user("alice", "admin")
        ada, bert = make_user("ada").id, make_user("bert").id
    here, lost = browser_as(app, "ada"), browser_as(app, "ada")
    bertie, api = api_as(app, "bert"), api_as(app, "ada")
    listed = api.get("/auth/sessions").json["data"]
    assert listed["total"] == 3
    assert {item["kind"] for item in listed["items"]} == {"web", "api"}
    assert "hash" not in str(listed)
    theirs = bertie.get("/auth/sessions").json["data"]["items"][0]["id"]
    assert api.delete(f"/auth/sessions/{theirs}").json["code"] == 1004
    assert submit(here, f"/profile/sessions/{theirs}/end", {}, page="/profile/sessions").status_code == 404
    assert api.delete("/auth/sessions/999999").json["code"] == 1004
    assert bertie.get("/auth/me").status_code == 200
    assert entries(app, action="auth.end_session") == []

    lost_id = sorted(item["id"] for item in listed["items"])[1]
    assert submit(here, f"/profile/sessions/{lost_id}/end", {}, page="/profile/sessions").status_code == 303
    assert lost.get("/profile").status_code == 302
    assert here.get("/profile").status_code == 200
    row = entries(app, action="auth.end_session")[0]
    assert (row.username, row.resource_id) == ("ada", str(lost_id))

    assert api.get(f"/auth/sessions?user_id={bert}").json["code"] == 1003
    admin = api_as(app, "alice")
    assert admin.get(f"/auth/sessions?user_id={ada}").json["data"]["total"] == 2
    assert admin.delete(f"/auth/sessions/{theirs}").status_code == 200
    assert bertie.get("/auth/me").status_code == 401


def test_what_ended_by_idleness_is_not_shown_as_open(sqlite_app: Flask, clock: Clock) -> None:
    with sqlite_app.app_context():
        make_user("ada")
    browser_as(sqlite_app, "ada")
    clock.advance(hours=13)
    client = browser_as(sqlite_app, "ada")
    assert client.get("/profile/sessions").text.count('/end"') == 0
    assert api_as(sqlite_app, "ada").get("/auth/sessions").json["data"]["total"] == 2


def test_a_very_long_user_agent_is_cut_and_not_refused(app: Flask) -> None:
    with app.app_context():
        make_user("ada")
    client = app.test_client()
    client.environ_base["HTTP_USER_AGENT"] = "🦊é".encode().decode("latin-1") + "A" * 7000
    submit(client, "/login", {"username": "ada", "password": PASSWORD})
    assert client.get("/profile/sessions").status_code == 200
    assert len(entries(app, action="auth.sign_in")[0].user_agent) == 255


def test_usernames_cannot_be_made_that_stand_for_nobody() -> None:
    for name in ("system", "System", "nobody", "anonymous"):
        with pytest.raises(ValueError, match="kept for"):
            UserCreate(username=name, password=PASSWORD)
