"""An export that somebody checks elsewhere, with our public key and nothing else."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask import Flask

from app.audit import chain
from app.audit.exported import ExportReport, verify_export
from tests.audit.conftest import write_rows
from tests.audit.reading import run_sql
from tests.factories import browser_as, make_user

Line = dict[str, Any]


@pytest.fixture
def log(app: Flask) -> Flask:
    with app.app_context():
        make_user("alice", "admin")
    write_rows(app, *range(1, 8))
    return app


def exported(app: Flask, query: str = "") -> list[Line]:
    answer = browser_as(app, "alice").get(f"/audit?format=jsonl{query}")
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.splitlines()]


def verified(app: Flask, lines: list[Line] | list[str]) -> ExportReport:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return verify_export(texts, app.extensions["ops"].keys.audit.public_key())


@pytest.mark.parametrize("query", ["", "&sort=id", "&sort=sequence", "&sort=created_at", "&sort=-created_at"])
def test_a_whole_export_is_complete_in_whatever_direction(log: Flask, query: str) -> None:
    lines = exported(log, query)
    assert verified(log, lines) == ExportReport(len(lines) - 1, True, None)
    assert len(lines) == 1 + 1 + 7 + 1


def test_it_holds_what_the_page_shows_and_what_was_hashed(log: Flask) -> None:
    *rows, end = exported(log, "&sort=id")
    assert rows[0]["previous_hash"] == chain.GENESIS_HASH
    assert rows[1]["previous_hash"] == rows[0]["hash"]
    assert json.loads(rows[3]["canonical"])["action"] == rows[3]["action"] == "test.done"
    assert end["statement"]["head"] == {"sequence": rows[-1]["sequence"], "hash": rows[-1]["hash"]}
    assert end["statement"]["rows"] == len(rows)


def test_an_extract_is_genuine_but_not_complete(log: Flask) -> None:
    for query in ("&action=test.done", "&resource_id=3", "&keyword=nothing-like-that", "&sort=username"):
        report = verified(log, exported(log, query))
        assert (report.finding, report.is_complete) == (None, False), query
    assert exported(log, "&action=test.done")[-1]["statement"]["filters"] == {"action": "test.done"}


def without(lines: list[Line], number: int) -> list[Line]:
    return lines[:number] + lines[number + 1 :]


def with_change(lines: list[Line], number: int, **change: Any) -> list[Line]:
    return [*lines[:number], lines[number] | change, *lines[number + 1 :]]


def rehashed(lines: list[Line], number: int) -> list[Line]:
    """Row `number` blames somebody else, and every hash behind it fits again."""
    previous = lines[number]["previous_hash"]
    changed = []
    for line in lines[number:-1]:
        body = json.loads(line["canonical"])
        if line is lines[number]:
            line, body = line | {"username": "mallory"}, body | {"username": "mallory"}
        text = chain.compact(body)
        line = line | {"canonical": text, "previous_hash": previous, "hash": chain.next_hash(previous, text)}
        previous = line["hash"]
        changed.append(line)
    return [*lines[:number], *changed, lines[-1]]


TAMPERINGS: dict[str, tuple[Callable[[list[Line]], list[Any]], int]] = {
    "a field": (lambda lines: with_change(lines, 2, username="mallory"), 3),
    "the time": (lambda lines: with_change(lines, 2, created_at="2020-01-01T00:00:00Z"), 3),
    "the text": (lambda lines: with_change(lines, 2, canonical=lines[2]["canonical"].replace("ada", "eve")), 3),
    "the hash": (lambda lines: with_change(lines, 2, hash="0" * 64), 3),
    "the detail": (lambda lines: with_change(lines, 3, detail={"after": {"n": 99}}), 4),
    "a row gone": (lambda lines: without(lines, 2), 0),
    "the first row gone": (lambda lines: without(lines, 0), 0),
    "the last row gone": (lambda lines: without(lines, 8), 0),
    "two rows swapped": (lambda lines: [lines[1], lines[0], *lines[2:]], 0),
    "a row twice": (lambda lines: [lines[0], *lines], 1),
    "chained anew": (lambda lines: rehashed(lines, 2), 9),
    "cut off": (lambda lines: lines[:5], 0),
    "no end": (lambda lines: lines[:-1], 0),
    "something behind the end": (lambda lines: [*lines, lines[0]], 0),
    "two ends": (lambda lines: [*lines, lines[-1]], 0),
    "garbage": (lambda lines: ["garbage", *lines], 0),
    "a number": (lambda lines: ["7", *lines], 0),
    "an empty line": (lambda lines: ["", *lines], 0),
    "nested": (lambda lines: ["[" * 100_000, *lines], 0),
    "nothing at all": (lambda lines: [], 0),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_whoever_changes_the_file_is_noticed(applications: Any, what: str) -> None:
    app = applications.empty("sqlite")
    with app.app_context():
        make_user("alice", "admin")
    write_rows(app, *range(1, 8))
    tamper, sequence = TAMPERINGS[what]
    lines = exported(app, "&sort=id")
    assert verified(app, lines).finding is None
    report = verified(app, tamper(lines))
    assert report.finding is not None
    assert not report.is_complete
    assert report.finding.sequence == sequence, report.finding


@pytest.mark.parametrize(
    "change", [{"rows": 3}, {"head": {"sequence": 3, "hash": "x"}}, {"filters": {"status": "failed"}}]
)
def test_the_statement_itself_is_signed(log: Flask, change: Line) -> None:
    lines = exported(log)
    lines[-1]["statement"] |= change
    report = verified(log, lines)
    assert report.finding is not None
    assert "signed" in report.finding.problem


def test_another_key_vouches_for_nothing(log: Flask) -> None:
    lines = [json.dumps(line) for line in exported(log)]
    report = verify_export(lines, Ed25519PrivateKey.generate().public_key())
    assert str(report.finding) == "The export was not signed with this key."


def test_what_was_wrong_in_the_database_is_said_in_what_we_sign(log: Flask) -> None:
    """Somebody with the database writes the chain anew: an export cannot be made to vouch for it."""
    run_sql(log, "UPDATE audit_logs SET username = 'mallory' WHERE id = 4")
    report = verified(log, exported(log))
    assert report.finding is not None
    assert report.finding.sequence == 4
    report = verified(log, exported(log, "&resource_id=3"))
    assert report.finding is not None


def test_a_log_whose_head_is_not_ours_is_not_vouched_for(log: Flask) -> None:
    client = browser_as(log, "alice")
    run_sql(log, "UPDATE audit_head SET seal = 'x'")
    assert client.get("/audit?format=jsonl").status_code == 409
    assert client.get("/audit?format=csv").status_code == 200
    assert client.get("/audit").status_code == 200
