"""Reading the log: filters, pages and order against a plain reckoning, counts that are remembered, downloads."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from time import perf_counter
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from sqlalchemy import event

from app.audit import actions, queries
from app.audit.actions import record
from app.audit.schemas import AuditQuery
from app.kernel.access import Actor
from app.kernel.db import db, in_transaction, reading
from tests.audit.reading import entries, run_sql
from tests.factories import Api, api_as, browser_as, make_user

BEGINNING = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ROWS = 90
NAMES = ("ada", "Ada", "bert", "carl_1", "carlx1", "100%")


def write_log(app: Flask, monkeypatch: pytest.MonkeyPatch, count: int = ROWS, first: int = 0) -> None:
    """Rows with few different values, an hour apart, in several transactions."""
    with app.app_context(), monkeypatch.context() as patch:
        session = db.session()
        numbers = iter(range(first, first + count))
        while chunk := list(islice(numbers, 10)):
            moments = iter([BEGINNING + timedelta(hours=number) for number in chunk])
            patch.setattr(actions, "now", lambda moments=moments: next(moments))

            def work(chunk: list[int] = chunk) -> None:
                for number in chunk:
                    actor = Actor(user_id=number % 6 + 1, username=NAMES[number % 6], ip=f"192.0.2.{number % 9}")
                    kind = ("user", "node", "task")[number % 3]
                    failed = "no" if number % 7 == 0 else None
                    record(session, actor, f"{kind}.{'update' if number % 2 else 'create'}", kind, number % 5,
                           error_message=failed)  # fmt: skip

            in_transaction(session, work)


@pytest.fixture
def log(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Flask:
    write_log(app, monkeypatch)
    return app


def page_of(app: Flask, **given: Any) -> tuple[int, list[int]]:
    """Total, and the numbers of the rows on the page."""
    with app.app_context(), reading():
        found = queries.audit_rows(db.session(), AuditQuery(**given))
        numbers = [row.id for row in found.items]
        db.session.rollback()
    return found.total, numbers


def moment(hours: float) -> datetime:
    return BEGINNING + timedelta(hours=hours)


Fits = Callable[[Any], bool]
FILTERS: list[tuple[dict[str, Any], Fits]] = [
    ({}, lambda row: True),
    ({"username": "ada"}, lambda row: row.username == "ada"),
    ({"user_id": 3}, lambda row: row.user_id == 3),
    ({"action": "node.update"}, lambda row: row.action == "node.update"),
    ({"resource_type": "task"}, lambda row: row.resource_type == "task"),
    ({"resource_type": "task", "resource_id": "2"}, lambda row: (row.resource_type, row.resource_id) == ("task", "2")),
    ({"status": "failed"}, lambda row: row.status == "failed"),
    ({"status": "success", "username": "bert"}, lambda row: row.status == "success" and row.username == "bert"),
    ({"start": moment(10)}, lambda row: row.created_at >= moment(10)),
    ({"end": moment(10)}, lambda row: row.created_at < moment(10)),
    ({"start": moment(7.5), "end": moment(40)}, lambda row: moment(7.5) <= row.created_at < moment(40)),
    ({"start": moment(20), "username": "ada"}, lambda row: row.created_at >= moment(20) and row.username == "ada"),
    ({"keyword": "NODE.UP"}, lambda row: row.action == "node.update"),
    ({"keyword": "ada"}, lambda row: row.username.lower() == "ada"),
    ({"keyword": "carl_1"}, lambda row: row.username == "carl_1"),
    ({"keyword": "%"}, lambda row: row.username == "100%"),
    ({"keyword": "192.0.2.4"}, lambda row: row.ip == "192.0.2.4"),
    ({"keyword": "no-such"}, lambda row: False),
    ({"keyword": "user", "status": "failed"}, lambda row: row.status == "failed" and row.resource_type == "user"),
    ({"username": "nobody-here"}, lambda row: False),
]  # fmt: skip
SORTS: dict[str, Callable[[Any], Any]] = {
    "id": lambda row: row.id, "sequence": lambda row: row.id, "created_at": lambda row: (row.created_at, row.id),
    "username": lambda row: (row.username, row.id), "action": lambda row: (row.action, row.id),
    "status": lambda row: (row.status, row.id),
}  # fmt: skip


def test_every_page_is_what_a_plain_reckoning_gives(log: Flask) -> None:
    rows = entries(log)
    for given, fits in FILTERS:
        fitting = [row for row in rows if fits(row)]
        newest_first = [row.id for row in reversed(fitting)]
        assert page_of(log, **given, page_size=100) == (len(fitting), newest_first), given
        for page in {1, 2, len(fitting) // 5, len(fitting) // 5 + 1, 99} - {0}:
            expected = newest_first[(page - 1) * 5 : page * 5]
            assert page_of(log, **given, page=page, page_size=5) == (len(fitting), expected), (given, page)


@pytest.mark.parametrize("sort", [*SORTS, *(f"-{name}" for name in SORTS)])
def test_in_every_order_too(log: Flask, sort: str) -> None:
    rows, key = entries(log), SORTS[sort.removeprefix("-")]
    for given, fits in (FILTERS[0], FILTERS[6], FILTERS[10]):
        expected = [row.id for row in sorted(filter(fits, rows), key=key, reverse=sort.startswith("-"))]
        for page in (1, 2, len(expected) // 7 + 1):
            found = page_of(log, **given, sort=sort, page=page, page_size=7)
            assert found == (len(expected), expected[(page - 1) * 7 : page * 7]), (given, page)


def test_what_is_counted_once_is_counted_on_and_not_again(log: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []

    def note(*given: Any) -> None:
        statements.append(given[2])

    with log.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", note)
    for given, _fits in FILTERS[1:]:
        page_of(log, **given)
        statements.clear()
        page_of(log, **given, page=2)
        assert not any("count(" in statement for statement in statements), given
    write_log(log, monkeypatch, 30, first=ROWS)
    rows = entries(log)
    for given, fits in FILTERS:
        statements.clear()
        fitting = [row.id for row in reversed(rows) if fits(row)]
        assert page_of(log, **given, page_size=100) == (len(fitting), fitting[:100]), given
        counts = [statement for statement in statements if "count(" in statement]
        assert all("audit_logs.id >" in statement for statement in counts), given
    event.remove(engine, "before_cursor_execute", note)


def test_what_is_remembered_of_another_log_is_not_believed(log: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restored backup, say: the same numbers, other rows."""
    for given, _fits in FILTERS:
        page_of(log, **given)
    with log.app_context():
        assert len(queries.known_actions(db.session())) == 6
        db.session.rollback()
    genesis = f"UPDATE audit_head SET sequence = 0, hash = '{queries.GENESIS_HASH}', seal = ''"
    run_sql(log, "DELETE FROM audit_logs", genesis)
    assert page_of(log, username="ada") == (0, [])
    write_log(log, monkeypatch, ROWS + 20, first=3)
    rows = entries(log)
    for given, fits in FILTERS:
        fitting = [row.id for row in reversed(rows) if fits(row)]
        assert page_of(log, **given, page_size=100) == (len(fitting), fitting[:100]), given


def test_only_so_many_counts_are_remembered(log: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MOST_COUNTED", 3)
    for number in range(6):
        page_of(log, keyword=f"word-{number}")
    assert len(log.extensions["audit_counts"]) == 3


def test_the_actions_that_occur_are_known_also_new_ones(log: Flask) -> None:
    def known() -> list[str]:
        with log.app_context():
            found = queries.known_actions(db.session())
            db.session.rollback()
        return found

    expected = sorted(f"{kind}.{verb}" for kind in ("user", "node", "task") for verb in ("create", "update"))
    assert known() == expected
    with log.app_context():
        in_transaction(db.session(), lambda: record(db.session(), Actor(), "brand.new", "thing"))
    assert known() == sorted([*expected, "brand.new"])
    assert known() == sorted([*expected, "brand.new"])


@pytest.fixture
def admin(log: Flask) -> Api:
    with log.app_context():
        make_user("alice", "admin")
    return api_as(log, "alice")


def test_the_api_lists_it_as_the_contract_says(admin: Api) -> None:
    data = admin.get("/system/audit-logs?page_size=2&action=node.update&sort=-created_at").json["data"]
    assert (data["total"], data["page"], data["page_size"]) == (15, 1, 2)
    row = data["items"][0]
    contract = "id sequence user_id username action resource_type resource_id detail ip user_agent status error_message"
    assert {*contract.split(), "created_at", "hash"} <= set(row)
    assert row["created_at"].endswith("Z")
    assert row["id"] == row["sequence"]
    assert not {"seal", "canonical"} & set(row)
    for wrong in ("page=0", "page_size=101", "sort=detail", "sort=hash", "status=maybe", "start=yesterday", "user_id=x",
                  "start=2026-01-01T00:00:00", "colour=red", "keyword=" + "x" * 101, "user_id=0"):  # fmt: skip
        assert admin.get(f"/system/audit-logs?{wrong}").json["code"] == 1001, wrong
    for odd in ("page=1000000000", "start=0001-01-01T00:00:00%2B14:00", "end=9999-12-31T23:59:59-12:00", "keyword=%00",
                "user_id=9223372036854775807", "username=%F0%9F%A6%8A", "keyword=%5C%25_%27%22"):  # fmt: skip
        assert admin.get(f"/system/audit-logs?{odd}").json["code"] == 0, odd


def test_the_page_shows_filters_and_one_row(log: Flask, admin: Api) -> None:
    client = browser_as(log, "alice")
    page = client.get("/audit?status=failed&action=user.create&page_size=20")
    assert page.status_code == 200
    assert "user.update</td>" not in page.text
    failed = [row for row in entries(log, status="failed") if row.action == "user.create"]
    assert all(f'href="/audit/{row.id}"' in page.text for row in failed[-3:])
    shown = client.get(f"/audit/{failed[0].id}").text
    assert failed[0].hash in shown
    assert client.get("/audit/999999").status_code == 404
    assert client.get("/audit/0").status_code == 404
    fragment = client.get("/audit?page=2", headers={"HX-Request": "true", "HX-Target": "audit-table"})
    assert "<html" not in fragment.text
    assert 'id="audit-table"' in fragment.text
    assert client.get("/audit?page=x&status=maybe&start=never").status_code == 200


@pytest.mark.parametrize("form", ["csv", "json", "jsonl"])
def test_downloads_hold_what_the_filters_leave_in_the_order_asked_for(log: Flask, admin: Api, form: str) -> None:
    client = browser_as(log, "alice")
    for given, fits in (FILTERS[6], FILTERS[12], FILTERS[17]):
        filters = "&".join(f"{name}={quote(str(value))}" for name, value in given.items())
        for sort in ("-id", "username", "-status", "created_at"):
            answer = client.get(f"/audit?format={form}&{filters}&sort={sort}&page=3&page_size=20")
            assert answer.headers["Content-Disposition"] == f'attachment; filename="audit.{form}"'
            if form == "csv":
                found = [int(row["id"]) for row in csv.DictReader(io.StringIO(answer.text.removeprefix("\ufeff")))]
            elif form == "json":
                found = [row["id"] for row in json.loads(answer.text)]
            else:
                found = [json.loads(line)["id"] for line in answer.text.splitlines()[:-1]]
            key = SORTS[sort.removeprefix("-")]
            fitting = sorted(filter(fits, entries(log)), key=key, reverse=sort.startswith("-"))
            assert found == [row.id for row in fitting], (given, sort)


def test_no_spreadsheet_runs_what_stands_in_a_download(app: Flask) -> None:
    with app.app_context():
        make_user("alice", "admin")
        session = db.session()
        for text in ("=1+1", "+1", "-1", "@x", "\t=1", "\r=1"):
            actor = Actor(username="x", user_agent=text)
            in_transaction(
                session, lambda a=actor, t=text: record(session, a, "test.done", "thing", t, error_message=t)
            )
    answer = browser_as(app, "alice").get("/audit?format=csv&action=test.done")
    rows = list(csv.DictReader(io.StringIO(answer.text.removeprefix("\ufeff"), newline="")))
    assert len(rows) == 6
    for row in rows:
        for field in ("resource_id", "user_agent", "error_message"):
            assert row[field].startswith("'"), row[field]


def test_a_download_of_any_length_holds_a_few_rows_at_a_time(log: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "CHUNK", 8)
    for sort in ("-id", "username", "-status"):
        with log.app_context(), reading():
            session, seen, most = db.session(), [], 0
            for rows in queries.exported_chunks(session, AuditQuery(sort=sort), ROWS):
                seen += [row.id for row in rows]
                most = max(most, len(session.identity_map))
                del rows
            session.rollback()
        assert sorted(seen) == list(range(1, ROWS + 1))
        assert most <= 16


def test_a_download_ends_where_the_log_ended_when_it_began(log: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "CHUNK", 8)
    with log.app_context():
        session = db.session()
        chunks = queries.exported_chunks(session, AuditQuery(sort="id"), ROWS)
        seen = [row.id for row in next(chunks)]
        session.rollback()
        in_transaction(session, lambda: record(session, Actor(), "test.late", "thing"))
        seen += [row.id for rows in chunks for row in rows]
        session.rollback()
    assert seen == list(range(1, ROWS + 1))


def test_a_long_download_lets_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(queries, "SPELL_S", 0.002)
    monkeypatch.setattr(queries.time, "sleep", pauses.append)

    def slow_rows() -> Iterator[int]:
        for number in range(20):
            ends = perf_counter() + 0.001
            while perf_counter() < ends:
                pass
            yield number

    assert list(queries.taking_turns(slow_rows())) == list(range(20))
    assert len(pauses) >= 5
