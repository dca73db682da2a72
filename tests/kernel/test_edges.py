"""Where requests come in and answers go out: headers, addresses, refusals as pages, transactions, outages."""

import html
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from app.kernel import db as kernel_db
from app.kernel.db import db
from app.kernel.edges import HEADERS, is_within, local_address
from tests.factories import Api, api_as, browser_as, make_user
from tests.kernel.lab import DriverError, Lab
from tests.services import MariaDb, Redis
from tests.variants import MakeApp, count_rows, emptied, forget

HTMX = {"HX-Request": "true"}


def csrf_token(client: FlaskClient, path: str = "/login") -> str:
    return client.get(path).text.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]


# Headers


@pytest.mark.parametrize(
    "path",
    [
        "/login",
        "/",
        "/nothing",
        "/health",
        "/health/live",
        "/metrics",
        "/static/nothing.css",
        "/api/v1/health",
        "/api/v1/nothing",
        "/api/v1/openapi.json",
        "/api/v1/lab/fail/secret",
        "/lab/fail/secret",
        "/lab/fail/gone",
    ],
)
def test_every_answer_carries_the_security_headers(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["X-Request-ID"])
    assert "Server" not in answer.headers


def test_static_files_carry_them_too_and_may_be_kept(client: FlaskClient) -> None:
    path = next(iter(sorted(Path(client.application.static_folder or "").rglob("*.css"))))
    answer = client.get(f"/static/{path.relative_to(client.application.static_folder or '')}")
    assert answer.status_code == 200
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "max-age=31536000" in answer.headers["Cache-Control"]


@pytest.mark.parametrize("path", ["/login", "/nothing", "/api/v1/health", "/health"])
def test_answers_are_kept_by_nobody(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert answer.headers["Cache-Control"] == "no-store"
    assert {"hx-request", "cookie", "accept-language"} <= {name.lower() for name in answer.vary}


def test_transport_security_is_asked_for_only_where_there_is_any(client: FlaskClient) -> None:
    assert "Strict-Transport-Security" not in client.get("/health").headers
    answer = client.get("/health", base_url="https://ops.example")
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"


@pytest.mark.parametrize("given", ["abc", "A-Za.z_0", "x" * 64])
def test_a_sane_request_id_is_echoed(client: FlaskClient, given: str) -> None:
    assert client.get("/api/v1/health", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", " ", "a b", "x" * 65, "é", "a;b", "<x>", '{"a":1}', "a\tb"])
def test_a_strange_request_id_is_replaced(client: FlaskClient, given: str) -> None:
    answer = client.get("/api/v1/health", headers={"X-Request-ID": given})
    assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["X-Request-ID"])


@pytest.mark.parametrize("name", ["X-Anything", "Cookie", "User-Agent", "Referer", "Accept", "If-None-Match", "Range"])
def test_huge_headers_are_no_trouble(client: FlaskClient, name: str) -> None:
    client = client.application.test_client(use_cookies=False)
    for value in (
        "x" * 100_000,
        "ops_session=" + "b" * 100_000,
        "ops_session=\xff\xff",
        "\xff" * 1000,
        ";=,\"'" * 1000,
    ):
        assert client.get("/login", headers={name: value}).status_code == 200
        assert client.get("/api/v1/health", headers={name: value}).status_code == 200


# CORS


def test_other_origins_are_told_nothing_unless_they_are_configured(client: FlaskClient) -> None:
    answer = client.get("/api/v1/health", headers={"Origin": "https://panel.example"})
    assert not [name for name, _value in answer.headers if name.startswith("Access-Control")]
    assert "Origin" not in answer.vary


def test_configured_origins_may_call_the_api_and_only_the_api(make_app: MakeApp) -> None:
    app = make_app(OPS_SERVER__CORS_ORIGINS="https://panel.example,https://other.example:8443")
    client, panel = app.test_client(), {"Origin": "https://panel.example"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    before = client.options("/api/v1/system/users", headers=panel | asked)
    assert before.status_code == 200
    assert before.headers["Access-Control-Allow-Origin"] == "https://panel.example"
    assert "POST" in before.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in before.headers["Access-Control-Allow-Headers"]
    for path in ("/api/v1/health", "/api/v1/system/users", "/api/v1/nothing"):
        answer = client.get(path, headers=panel)
        assert answer.headers["Access-Control-Allow-Origin"] == "https://panel.example"
        assert "X-Request-ID" in answer.headers["Access-Control-Expose-Headers"]
        assert "Origin" in answer.vary
        assert "Access-Control-Allow-Credentials" not in answer.headers
    for origin in ("https://panel.example.evil", "http://panel.example", "null", "https://other.example", ""):
        answer = client.get("/api/v1/health", headers={"Origin": origin})
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "Origin" in answer.vary
    assert "Access-Control-Allow-Origin" not in client.get("/login", headers=panel).headers


# Addresses


FORWARDED = {"X-Forwarded-For": "203.0.113.9, 198.51.100.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "ops.x"}


def noted_address(app: Flask, peer: str) -> tuple[str, bool]:
    """The address in the audit log, and whether the request counted as TLS."""
    answer = (
        Api(app)
        .app.test_client()
        .post(
            "/api/v1/auth/login",
            json={"username": "nobody", "password": "x"},
            headers=FORWARDED,
            environ_overrides={"REMOTE_ADDR": peer},
        )
    )
    assert answer.status_code == 401
    with app.app_context():
        ip = db.session.scalar(text("SELECT ip FROM audit_logs ORDER BY id DESC LIMIT 1"))
    return str(ip), "Strict-Transport-Security" in answer.headers


def test_what_a_proxy_says_is_believed_only_from_proxies_we_were_told_of(make_app: MakeApp) -> None:
    app = make_app(OPS_SERVER__HTTP__TRUSTED_PROXIES="10.0.0.0/8,2001:db8::/32,local")
    told = ("198.51.100.7", True)
    assert noted_address(app, "10.1.2.3") == told
    assert noted_address(app, "::ffff:10.1.2.3") == told
    assert noted_address(app, "2001:db8::1") == told
    assert noted_address(app, "") == told
    assert noted_address(app, "11.0.0.1") == ("11.0.0.1", False)
    assert noted_address(app, "2001:db9::1") == ("2001:db9::1", False)


def test_without_known_proxies_nobody_is_believed(make_app: MakeApp) -> None:
    app = make_app()
    assert noted_address(app, "127.0.0.1") == ("127.0.0.1", False)
    assert noted_address(app, "") == ("local", False)


def test_redirects_do_not_follow_a_made_up_host(client: FlaskClient) -> None:
    answer = client.get("/", headers={"X-Forwarded-Host": "evil.example"})
    assert answer.headers["Location"] == "/login"


def test_networks_are_matched_by_address_and_not_by_text() -> None:
    networks = ["127.0.0.1", "10.0.0.0/8", "::1", "local"]
    inside = ["127.0.0.1", "10.255.0.1", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "local"]
    outside = ["127.0.0.2", "11.0.0.1", "::2", "", "10.0.0", "nonsense", "10.0.0.1, 127.0.0.1", "::ffff:11.0.0.1"]
    assert [is_within(address, networks) for address in inside] == [True] * len(inside)
    assert [is_within(address, networks) for address in outside] == [False] * len(outside)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("/users?page=2#x", True),
        ("/", True),
        *((address, False) for address in ("", None, "users", "//evil.example", "/\\evil.example", "\\/evil.example")),
        *((address, False) for address in ("https://evil.example", "/\n/evil", "/\tevil", " /users", "javascript:x")),
    ],
)
def test_only_our_own_addresses_are_gone_on_to(given: str | None, taken: bool) -> None:
    assert local_address(given, "/fallback") == (given if taken else "/fallback")


# Refusals as pages


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404),
        ("/users/x", 404),
        ("/%ff%fe", 404),
        ("/%00", 404),
        ("/lab/fail/conflict", 409),
        ("/lab/fail/fields", 400),
        ("/lab/fail/forbidden", 403),
        ("/lab/fail/secret", 500),
        ("/lab/fail/gone", 503),
        ("/lab/fail/deadlock", 503),
    ],
)
def test_a_refusal_is_a_page_for_people(client: FlaskClient, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.mimetype == "text/html"
    assert "<h1" in answer.text
    assert answer.headers["X-Request-ID"] in answer.text
    assert "hunter2" not in answer.text
    assert "Traceback" not in answer.text
    if status == 503:
        assert int(answer.headers["Retry-After"]) > 0


def test_messages_of_refusals_are_escaped(client: FlaskClient) -> None:
    page = client.get("/lab/fail/conflict").text
    assert html.escape("Two of <them>.") in page
    assert "Two of <them>." not in page


def test_a_method_that_no_page_has_is_refused_and_told_which_are(client: FlaskClient) -> None:
    answer = client.put("/login")
    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}


def test_a_form_that_comes_back_keeps_its_retry_after(client: FlaskClient) -> None:
    answer = client.get("/lab/fail/form")
    assert (answer.status_code, answer.text, answer.headers["Retry-After"]) == (429, "a form", "7")


def test_strangers_are_sent_to_sign_in_and_back(client: FlaskClient) -> None:
    assert client.get("/").headers["Location"] == "/login"
    assert client.get("/users?page=2").headers["Location"] == "/login?next=/users?page%3D2"
    answer = client.get("/users", headers=HTMX)
    assert (answer.status_code, answer.headers["HX-Redirect"]) == (401, "/login")


def test_a_form_without_its_token_is_refused_and_does_nothing(client: FlaskClient, lab: Lab) -> None:
    for data in ({"name": "a"}, {"name": "a", "csrf_token": "x"}, {"name": "a", "csrf_token": ""}):
        answer = client.post("/lab/write", data=data)
        assert answer.status_code == 400
        assert "load the page again" in answer.text
    assert client.post("/lab/write", data={"name": "a"}, headers=HTMX).status_code == 400
    assert lab.calls == []


def test_a_token_of_another_browser_is_refused(client: FlaskClient, lab: Lab) -> None:
    foreign = csrf_token(client.application.test_client())
    csrf_token(client)
    assert client.post("/lab/write", data={"name": "a", "csrf_token": foreign}).status_code == 400
    assert lab.calls == []


def test_htmx_sends_the_token_in_a_header_and_is_told_where_to_go(client: FlaskClient, lab: Lab) -> None:
    headers = HTMX | {"X-CSRFToken": csrf_token(client)}
    answer = client.post("/lab/write", data={"name": "a"}, headers=headers)
    assert (answer.status_code, answer.headers["HX-Redirect"]) == (204, "/login")
    assert lab.calls == ["a"]


# Transactions


def deadlock() -> OperationalError:
    return OperationalError("UPDATE", {}, DriverError(1213, "Deadlock found"))


def test_a_page_that_lost_a_deadlock_is_done_again_and_says_so_once(any_client: FlaskClient, any_lab: Lab) -> None:
    any_lab.failures = [deadlock(), deadlock()]
    token = csrf_token(any_client)
    answer = any_client.post("/lab/write", data={"name": "a", "csrf_token": token})
    assert answer.status_code == 303
    assert any_lab.calls == ["a", "a", "a"]
    assert any_client.get("/login").text.count("It was written.") == 1
    assert any_client.get("/lab/read").text == "1"


def test_a_page_whose_work_was_undone_does_not_say_that_it_was_done(client: FlaskClient, lab: Lab) -> None:
    lab.failures = [deadlock()] * 4
    answer = client.post("/lab/write", data={"name": "a", "csrf_token": csrf_token(client)})
    assert answer.status_code == 503
    assert client.get("/lab/read").text == "0"


def test_an_operation_that_lost_a_deadlock_is_done_again(any_client: FlaskClient, any_lab: Lab) -> None:
    any_lab.failures = [deadlock()]
    assert any_client.post("/api/v1/lab/things", json={"name": "a"}).status_code == 201
    assert any_lab.calls == ["a", "a"]


@contextmanager
def write_lock_held(app: Flask) -> Iterator[None]:
    """Another process writes to the application's SQLite file."""
    with app.app_context():
        connection = sqlite3.connect(str(db.engine.url.database), isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def test_reading_never_takes_the_write_lock_and_writing_waits_and_then_says_so(
    sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite_app.app_context():
        make_user("alice", "admin")
    alice, browser = api_as(sqlite_app, "alice"), browser_as(sqlite_app, "alice")
    token = csrf_token(browser, "/profile")
    forget(sqlite_app)
    monkeypatch.setattr(kernel_db, "SQLITE_PATIENCE_S", 0.2)
    with write_lock_held(sqlite_app):
        started = time.monotonic()
        for path in ("/profile", "/users", "/audit", "/settings", "/health"):
            assert browser.get(path).status_code == 200, path
        for path in ("/auth/me", "/system/users", "/system/audit-logs", "/system/settings", "/health"):
            assert alice.get(path).status_code == 200, path
        assert time.monotonic() - started < 20
        for refused in (
            alice.post("/auth/tokens", {"name": "t"}),
            browser.post("/profile", data={"csrf_token": token, "locale": "en"}),
            Api(sqlite_app).post("/auth/login", {"username": "alice", "password": "correct-horse-1"}),
        ):
            assert refused.status_code == 503
            assert refused.headers["Retry-After"] == "1"
            assert refused.json is None or refused.json["code"] == 5001
    assert alice.post("/auth/tokens", {"name": "t"}).status_code == 201


def test_a_changing_request_gives_the_write_lock_back_before_it_answers(client: FlaskClient, lab: Lab) -> None:
    client.post("/api/v1/lab/things", json={"name": "a"})
    lab.failures = [RuntimeError("late")]
    client.post("/api/v1/lab/things", json={"name": "b"})
    with write_lock_held(client.application):
        pass


def test_no_page_leaves_a_transaction_or_a_mode_behind(client: FlaskClient) -> None:
    """Streams, refusals and reads alike: the next one of the same thread begins anew."""
    for path in ("/login", "/lab/fail/secret", "/api/v1/lab/things", "/lab/fail/forbidden"):
        client.get(path)
        assert kernel_db._reads_only.get() is False
        with client.application.app_context():
            assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


# Outages


@pytest.mark.fault
@pytest.mark.mariadb
def test_a_database_that_stops_is_told_and_its_return_is_noticed(fragile_app: Flask, own_mariadb: MariaDb) -> None:
    app = emptied(fragile_app)
    with app.app_context():
        make_user("alice", "admin")
    alice, browser = api_as(app, "alice"), browser_as(app, "alice")
    own_mariadb.kill()
    try:
        for answer in (alice.get("/auth/me"), alice.post("/auth/tokens", {"name": "t"}), Api(app).get("/health")):
            assert (answer.status_code, answer.json["code"]) == (503, 5001)
            assert int(answer.headers["Retry-After"]) > 0
        assert alice.get("/auth/me", Accept_Language="zh").json["message"] != alice.get("/auth/me").json["message"]
        for path in ("/users", "/profile", "/"):
            answer = browser.get(path)
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert "<h1" in answer.text
        stranger = app.test_client()
        assert stranger.get("/login").status_code == 200
        assert stranger.get("/health/live").status_code == 200
        assert browser.get("/health/live").status_code == 200
        assert browser.get("/health").json["checks"] == {"database": "unreachable", "redis": "ok"}
        refused = Api(app).post("/auth/login", {"username": "alice", "password": "correct-horse-1"})
        assert (refused.status_code, refused.json["code"]) == (503, 5001)
    finally:
        own_mariadb.start()
    assert alice.get("/auth/me").status_code == 200
    assert browser.get("/users").status_code == 200
    assert alice.post("/auth/tokens", {"name": "t"}).status_code == 201


@pytest.mark.fault
@pytest.mark.mariadb
def test_a_database_that_hangs_is_given_up_after_a_while(fragile_app: Flask, own_mariadb: MariaDb) -> None:
    app = emptied(fragile_app)
    with app.app_context():
        make_user("alice", "admin")
    alice = api_as(app, "alice")
    with own_mariadb.paused():
        started = time.monotonic()
        answer = alice.get("/auth/me")
        assert (answer.status_code, answer.json["code"]) == (503, 5001)
        assert 0.5 < time.monotonic() - started < 20
        assert app.test_client().get("/health/live").status_code == 200
    assert alice.get("/auth/me").status_code == 200


@pytest.mark.fault
@pytest.mark.mariadb
def test_without_redis_people_sign_in_limits_hold_and_health_says_so(fragile_app: Flask, own_redis: Redis) -> None:
    app = emptied(fragile_app)
    with app.app_context():
        make_user("alice", "admin")
    own_redis.stop()
    try:
        alice, browser = api_as(app, "alice"), browser_as(app, "alice")
        assert alice.get("/auth/me").status_code == 200
        assert alice.post("/auth/tokens", {"name": "t"}).status_code == 201
        assert browser.get("/users").status_code == 200
        health = browser.get("/health")
        assert (health.status_code, health.json) == (
            503,
            {"status": "unhealthy", "checks": {"database": "ok", "redis": "unreachable"}},
        )
        inside = Api(app).get("/health")
        assert (inside.status_code, inside.json["code"], inside.json["data"]) == (503, 5002, health.json)
        assert browser.get("/health/live").status_code == 200
        codes = [
            Api(app).post("/auth/login", {"username": "alice", "password": "wrong-one"}).json["code"]
            for _attempt in range(7)
        ]
        assert codes == [1002] * 5 + [1005] * 2
    finally:
        own_redis.start()
    forget(app)
    assert app.test_client().get("/health").status_code == 200


def test_a_pool_that_is_used_up_is_an_outage_too(any_client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with any_client.application.app_context():
        pool = db.engine.pool
        monkeypatch.setattr(pool, "_timeout", 0.1)
        connections = [db.engine.connect() for _connection in range(pool._max_overflow + pool.size())]  # type: ignore[attr-defined]
    try:
        answer = any_client.get("/api/v1/lab/things")
        assert (answer.status_code, answer.json["code"]) == (503, 5001)
        assert any_client.get("/lab/read").status_code == 503
        assert any_client.get("/health").status_code == 200, "health asks on a connection of its own"
    finally:
        for connection in connections:
            connection.close()
    assert any_client.get("/lab/read").status_code == 200


def test_a_refusal_that_cannot_be_written_down_is_still_a_refusal(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        if "audit" in statement:
            raise OperationalError(statement, {}, DriverError(2013, "gone"))

    with client.application.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", refuse)
    try:
        assert client.get("/lab/fail/forbidden").status_code == 403
    finally:
        event.remove(engine, "before_cursor_execute", refuse)
    assert "a refusal could not be audited" in caplog.text
    assert client.get("/lab/fail/forbidden").status_code == 403
    assert count_rows(client.application, "audit_logs") == 1
