"""The frame of /api/v1: one envelope for everything, strict about what comes in, the same for every room."""

import io
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.kernel.api import DEEPEST_BODY
from tests.factories import Api, api_as, make_user
from tests.kernel.lab import Lab, ThingIn
from tests.variants import MakeApp

JSON = {"Content-Type": "application/json"}


def enveloped(answer: TestResponse, code: int, status: int) -> Any:
    """The data, after looking at what is around it."""
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/json"
    assert set(answer.json) == {"code", "message", "data", "timestamp"}
    assert answer.json["code"] == code
    assert answer.json["message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", answer.json["timestamp"])
    return answer.json["data"]


def wrong_fields(answer: TestResponse) -> list[str]:
    data = enveloped(answer, 1001, 400)
    assert set(data) == {"errors"}
    assert all(set(error) == {"field", "message"} and error["message"] for error in data["errors"])
    return [error["field"] for error in data["errors"]]


def put(client: FlaskClient, body: bytes | str, **headers: str) -> TestResponse:
    return client.put("/api/v1/lab/echo", data=body, headers=JSON | headers)


def test_what_succeeds_is_enveloped_with_the_status_of_its_kind(client: FlaskClient, lab: Lab) -> None:
    made = client.post("/api/v1/lab/things", json={"name": "a"})
    assert enveloped(made, 0, 201)["key"] == "lab.a"
    assert enveloped(client.post("/api/v1/lab/start"), 0, 202) == {"name": "started", "since": None}
    listed = enveloped(client.get("/api/v1/lab/things"), 0, 200)
    assert listed["total"] == 1
    assert (listed["page"], listed["page_size"]) == (1, 20)
    assert enveloped(client.delete("/api/v1/lab/things/7"), 0, 200) is None
    assert lab.calls[-1] == 7


@pytest.mark.parametrize(
    ("method", "path", "code", "status"),
    [
        ("GET", "/api/v1/nothing", 1004, 404),
        ("GET", "/api/v1", 1004, 404),
        ("GET", "/api/v1/", 1004, 404),
        ("GET", "/api/", 1004, 404),
        ("GET", "/api/v2/lab/things", 1004, 404),
        ("POST", "/api/v1/nothing", 1004, 404),
        ("GET", "/api/v1/lab/things/x", 1004, 404),
        ("PATCH", "/api/v1/lab/things", 1007, 405),
        ("DELETE", "/api/v1/lab/echo", 1007, 405),
        ("TRACE", "/api/v1/lab/echo", 1007, 405),
        ("BREW", "/api/v1/lab/echo", 1007, 405),
        ("GET", "/api/v1/lab/fail/conflict", 1006, 409),
        ("GET", "/api/v1/lab/fail/forbidden", 1003, 403),
        ("GET", "/api/v1/lab/fail/integrity", 1006, 409),
        ("GET", "/api/v1/lab/fail/gone", 5001, 503),
        ("GET", "/api/v1/lab/fail/deadlock", 5001, 503),
        ("GET", "/api/v1/lab/fail/secret", 5000, 500),
        ("GET", "/api/v1/lab/things/7", 1002, 401),
    ],
)
def test_every_refusal_is_enveloped(client: FlaskClient, method: str, path: str, code: int, status: int) -> None:
    enveloped(client.open(path, method=method), code, status)


def test_an_unexpected_error_says_nothing_of_itself(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    answer = client.get("/api/v1/lab/fail/secret")
    assert "hunter2" not in answer.text
    assert "Traceback" not in answer.text
    assert "hunter2" in caplog.text, "the log has it"


def test_a_method_that_is_not_allowed_tells_which_are(client: FlaskClient) -> None:
    allowed = client.patch("/api/v1/lab/things").headers["Allow"]
    assert set(allowed.split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}


def test_an_unauthenticated_answer_says_how_to_authenticate(client: FlaskClient) -> None:
    assert client.get("/api/v1/lab/things/7").headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "ops_pat_x", "é", "x" * 10_000, "eyJhbGciOiJub25lIn0.e30."])
def test_a_wrong_token_is_no_token_also_where_none_is_needed(client: FlaskClient, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    enveloped(client.get("/api/v1/lab/things/7", headers=headers), 1002, 401)
    enveloped(client.get("/api/v1/lab/things", headers=headers), 0, 200)


@pytest.mark.parametrize("scheme", ["Basic YTpi", "Bearer", "bearer", "Token x", ""])
def test_other_schemes_authenticate_nobody(client: FlaskClient, scheme: str) -> None:
    enveloped(client.get("/api/v1/lab/things/7", headers={"Authorization": scheme}), 1002, 401)


# Bodies


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "nope",
        '{"name": "a",}',
        "{'name': 'a'}",
        '{"name": "a"} {"name": "b"}',
        '{"name": "a", "name": "b"}',
        '{"name": "a", "labels": {"x": "1", "x": "2"}}',
        '{"name": "a", "ratio": NaN}',
        '{"name": "a", "ratio": Infinity}',
        '{"name": "a", "ratio": -Infinity}',
        '{"name": "a", "count": ' + "9" * 5000 + "}",
        '{"name": "a\nb"}',
        b'{"name": "\xff"}',
        b'\xff\xfe{\x00"\x00',
        '{"name": "a"}'.encode("utf-16"),
        '{"name": "a"}'.encode("utf-32-le"),
        b'\xef\xbb\xbf{"name": "a"}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "[]",
        "[1]",
        '"name"',
        "null",
        "true",
        "7",
        '{"labels": ' + "[" * (DEEPEST_BODY + 1) + "]" * (DEEPEST_BODY + 1) + "}",
        '{"name": "\\ud800"}',
    ],
    ids=lambda body: repr(body)[:40],
)
def test_what_is_no_json_object_is_refused(client: FlaskClient, lab: Lab, body: bytes | str) -> None:
    assert wrong_fields(put(client, body)) == ["body"]
    assert lab.calls == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 7),
        ("name", None),
        ("name", ["a"]),
        ("name", ""),
        ("name", "   "),
        ("name", "x" * 65),
        ("count", "5"),
        ("count", 5.0),
        ("count", 5.5),
        ("count", True),
        ("count", 0),
        ("count", 2**31 + 1),
        ("count", 10**300),
        ("ratio", "1.5"),
        ("ratio", True),
        ("is_red", 1),
        ("is_red", "true"),
        ("is_red", None),
        ("kind", "SMALL"),
        ("kind", 1),
        ("parts", "a"),
        ("parts.0", [7]),
        ("parts", {"a": "b"}),
        ("labels.x", {"x": 7}),
        ("since", "2026-01-01"),
        ("since", "2026-01-01T00:00:00"),
        ("since", 1_767_225_600),
        ("since", "yesterday"),
        ("since", "0"),
        ("since", "1767225600"),
        ("since", " 1.5 "),
        ("since", "2026-13-01T00:00:00Z"),
    ],
)
def test_a_wrong_type_or_value_is_refused_and_named(client: FlaskClient, lab: Lab, field: str, value: object) -> None:
    name = field.partition(".")[0]
    assert wrong_fields(client.put("/api/v1/lab/echo", json={"name": "a"} | {name: value})) == [field]
    assert lab.calls == []


def test_every_wrong_field_is_named_at_once_and_unknown_ones_too(client: FlaskClient) -> None:
    answer = client.put("/api/v1/lab/echo", json={"count": "x", "surprise": 1, "__proto__": {}})
    assert sorted(wrong_fields(answer)) == ["__proto__", "count", "name", "surprise"]
    assert wrong_fields(client.put("/api/v1/lab/echo")) == ["name"]
    assert wrong_fields(put(client, b"")) == ["name"]


def test_what_is_right_arrives_as_it_was_sent(client: FlaskClient, lab: Lab) -> None:
    name = "a\x00b🚀\u2028<script>"
    value = {"name": f"  {name} ", "count": 2**31, "ratio": 1.5, "is_red": True, "kind": "big", "parts": ["", " x "]}
    answer = client.put("/api/v1/lab/echo", json=value)
    assert enveloped(answer, 0, 200)["name"] == name
    assert lab.calls == [ThingIn(name=name, count=2**31, ratio=1.5, is_red=True, kind="big", parts=["", "x"])]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/json", ""])
def test_the_content_type_does_not_matter(client: FlaskClient, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    assert client.put("/api/v1/lab/echo", data='{"name": "a"}', headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("2026-01-01T02:00:00+02:00", "2026-01-01T00:00:00Z"),
        ("2026-01-01T00:00:00.123456Z", "2026-01-01T00:00:00.123456Z"),
        ("9999-12-31T23:59:59-12:00", "9999-12-31T23:59:59.999999Z"),
        ("0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00Z"),
    ],
)
def test_times_leave_in_utc_with_a_z(client: FlaskClient, sent: str, shown: str) -> None:
    answer = client.put("/api/v1/lab/echo", json={"name": "a", "since": sent})
    assert enveloped(answer, 0, 200)["since"] == shown


def test_a_body_that_is_too_large_is_refused(make_app: MakeApp) -> None:
    client = make_app(Lab().install, OPS_SERVER__HTTP__MAX_BODY="2KiB").test_client()
    enveloped(put(client, json.dumps({"name": "a", "parts": ["x" * 3000]})), 1008, 413)
    enveloped(put(client, json.dumps({"name": "a", "parts": ["x" * 1000]})), 0, 200)


def test_a_body_of_unsaid_length_is_refused_where_it_becomes_too_large(make_app: MakeApp) -> None:
    client = make_app(Lab().install, OPS_SERVER__HTTP__MAX_BODY="2KiB").test_client()
    environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    body = json.dumps({"name": "a", "parts": ["x" * 100_000]}).encode()
    answer = client.put("/api/v1/lab/echo", input_stream=io.BytesIO(body), environ_overrides=environ)
    enveloped(answer, 1008, 413)
    answer = client.put("/api/v1/lab/echo", input_stream=io.BytesIO(b'{"name": "a"}'), environ_overrides=environ)
    enveloped(answer, 0, 200)


# Queries and paths


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("page=0", "page"),
        ("page=-1", "page"),
        ("page=x", "page"),
        ("page=", "page"),
        ("page=1.5", "page"),
        ("page=1.0", "page"),
        ("page=%2B1", "page"),
        ("page=%201", "page"),
        ("page=1_0", "page"),
        ("page=１", "page"),
        ("page=99999999999999999999", "page"),
        ("page_size=0", "page_size"),
        ("page_size=101", "page_size"),
        ("page=1&page=2", "page"),
        ("sort=colour", "sort"),
        ("sort=--key", "sort"),
        ("sort=", "sort"),
        ("sort=key;drop", "sort"),
        ("colour=red", "colour"),
        ("Page=1", "Page"),
        ("keyword=" + "x" * 21, "keyword"),
        ("tags=a,b&tags=c,d", "tags"),
        ("since=2026-01-01", "since"),
        ("since=0", "since"),
        ("since=1767225600", "since"),
        ("since=2026-01-01T00:00:00", "since"),
    ],
)
def test_a_wrong_or_unknown_query_is_refused_and_named(client: FlaskClient, query: str, field: str) -> None:
    assert wrong_fields(client.get(f"/api/v1/lab/things?{query}")) == [field]


def test_all_that_is_wrong_in_a_query_is_named_at_once(client: FlaskClient) -> None:
    answer = client.get("/api/v1/lab/things?page=1.0&page_size=0&sort=a&sort=b&since=0&colour=red")
    assert sorted(wrong_fields(answer)) == ["colour", "page", "page_size", "since", "sort"]


def test_a_query_where_none_is_expected_is_refused(client: FlaskClient, lab: Lab) -> None:
    assert wrong_fields(client.put("/api/v1/lab/echo?dry_run=1", json={"name": "a"})) == ["dry_run"]
    assert wrong_fields(client.delete("/api/v1/lab/things/1?force=1")) == ["force"]
    assert lab.calls == []


def test_odd_bytes_in_a_query_are_no_trouble(any_client: FlaskClient) -> None:
    for value in ("%ff%fe", "%00", "%ed%a0%80", "%F0%9F%9A%80", "%25_%5C", "%22%27"):
        enveloped(any_client.get(f"/api/v1/lab/things?keyword={value}&tags={value}"), 0, 200)


def test_lists_and_times_in_a_query_are_read(client: FlaskClient, lab: Lab) -> None:
    client.get("/api/v1/lab/things?tags=a,b&tags=c&since=2026-01-01T01:00:00%2B01:00&page=2&page_size=100&sort=-key")
    query = lab.calls[-1]
    assert query.tags == ["a", "b", "c"]
    assert query.since == datetime(2026, 1, 1, tzinfo=UTC)
    assert (query.page, query.page_size, query.sort) == (2, 100, "-key")


def test_numbers_beyond_what_a_database_holds_are_just_not_found(app: Flask) -> None:
    with app.app_context():
        make_user("alice", "admin")
    alice = api_as(app, "alice")
    for number in ("9223372036854775807", "9223372036854775808", "9" * 19, "9" * 20, "9" * 5000):
        for method in ("GET", "PUT", "DELETE"):
            body = {"role": "viewer"} if method == "PUT" else None
            enveloped(alice.call(method, f"/system/users/{number}", body), 1004, 404)


@pytest.mark.parametrize(
    "number", ["0", "-1", "1.0", "1e3", "01", "%31%00", "x", "１", "%F0%9F", "%00", "..", "%2e%2e"]
)
def test_what_is_no_number_is_no_path(client: FlaskClient, number: str) -> None:
    assert client.get(f"/api/v1/lab/things/{number}").status_code in (404, 401)
    enveloped(client.delete(f"/api/v1/lab/things/{number}"), 1004, 404)


@pytest.mark.parametrize("path", ["/api/v1/%ff%fe", "/api/v1/%00", "/api/v1/a%0d%0ab", "/api/v1/" + "x" * 20_000])
def test_odd_paths_are_not_found(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    enveloped(answer, 1004, 404)


# Strange values in a database


def test_odd_text_is_kept_as_it_is(any_client: FlaskClient) -> None:
    names = ["a\x00b", "\x00", "\x1b[2J", "\u202e", "🚀" * 64, "'\"\\", "%s", "{{7*7}}", "é", "e\u0301"]
    for name in names:
        answer = any_client.post("/api/v1/lab/things", json={"name": name})
        assert enveloped(answer, 0, 201)["key"] == f"lab.{name}"
    listed = enveloped(any_client.get("/api/v1/lab/things"), 0, 200)
    assert sorted(row["key"] for row in listed["items"]) == sorted(f"lab.{name}" for name in names)


# Languages


@pytest.mark.parametrize(
    ("header", "is_chinese"),
    [
        *((header, True) for header in ("zh", "zh-CN,zh;q=0.9", "zh-Hans-CN", "zh-TW", "de,zh;q=0.5")),
        *((header, False) for header in ("en", "en,zh;q=0.9", "de", "", "*", "x" * 5000)),
    ],
)
def test_messages_follow_accept_language(client: FlaskClient, header: str, is_chinese: bool) -> None:
    headers = {"Accept-Language": header}
    answers = [
        client.get("/api/v1/lab/things", headers=headers),
        client.get("/api/v1/nothing", headers=headers),
        client.put("/api/v1/lab/echo", json={}, headers=headers),
        client.patch("/api/v1/lab/echo", headers=headers),
    ]
    texts = [answer.json["message"] for answer in answers]
    texts += [error["message"] for error in answers[2].json["data"]["errors"]]
    assert {any("\u4e00" <= char <= "\u9fff" for char in text) for text in texts} == {is_chinese}, texts


# HEAD and OPTIONS


def test_head_is_get_without_the_body(client: FlaskClient) -> None:
    head, get = client.head("/api/v1/lab/things"), client.get("/api/v1/lab/things")
    assert (head.status_code, head.data) == (200, b"")
    assert head.headers["Content-Length"] == str(len(get.data))
    assert client.head("/api/v1/nothing").status_code == 404
    assert client.head("/api/v1/lab/things/7").status_code == 401


def test_options_tells_the_methods_and_does_nothing(client: FlaskClient, lab: Lab) -> None:
    answer = client.options("/api/v1/lab/things/7")
    assert answer.status_code == 200
    assert {"GET", "DELETE"} <= set(answer.headers["Allow"].split(", "))
    assert lab.calls == []


# Transactions


def test_what_a_refused_request_wrote_is_undone(any_client: FlaskClient, any_lab: Lab) -> None:
    lab = any_lab
    lab.failures = [RuntimeError("after writing")]
    enveloped(any_client.post("/api/v1/lab/things", json={"name": "a"}), 5000, 500)
    with any_client.application.app_context():
        assert lab.rows() == 0
    enveloped(any_client.post("/api/v1/lab/things", json={"name": "a"}), 0, 201)
    enveloped(any_client.post("/api/v1/lab/things", json={"name": "a"}), 1006, 409)
    with any_client.application.app_context():
        assert lab.rows() == 1


def test_rights_are_asked_before_anything_is_looked_at(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        make_user("vera", "viewer")
    vera = api_as(sqlite_app, "vera")
    enveloped(vera.post("/system/users?x=1", {"surprise": 1}), 1003, 403)
    enveloped(Api(sqlite_app).post("/system/users", {"surprise": 1}), 1002, 401)
