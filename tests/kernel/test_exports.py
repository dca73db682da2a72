"""CSV and JSON of what a list shows: read back by programs as it was, and run by no spreadsheet."""

import csv
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from app.kernel import exports
from app.kernel.errors import TooManyRequests
from app.kernel.exports import csv_response, json_response, jsonl_response

ROWS: list[dict[str, Any]] = [
    {"id": 1, "name": 'a "quoted", comma', "tags": ["x", "y"], "at": None, "on": True},
    {"id": 2, "name": "line\nbreak\r\n字🚀", "tags": [], "at": "2026-01-01T00:00:00Z", "on": False},
]
FIELDS = ("id", "name", "tags", "at", "on")


@pytest.fixture(autouse=True)
def request_context(sqlite_app: Flask) -> Iterator[None]:
    with sqlite_app.test_request_context("/"):
        yield


def table(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline="")))


def test_csv_is_read_back_by_programs_and_by_excel() -> None:
    answer = csv_response("users", FIELDS, ROWS)
    assert answer.mimetype == "text/csv"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="users.csv"'
    assert answer.get_data().startswith(b"\xef\xbb\xbf"), "without it Excel takes UTF-8 for something else"
    assert table(answer.get_data(as_text=True)) == [
        list(FIELDS),
        ["1", 'a "quoted", comma', '["x", "y"]', "", "true"],
        ["2", "line\nbreak\r\n字🚀", "[]", "2026-01-01T00:00:00Z", "false"],
    ]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_cell_is_a_formula(start: str) -> None:
    text = csv_response("x", ("name",), [{"name": f"{start}cmd|' /C calc'!A0"}]).get_data(as_text=True)
    assert table(text)[1][0].startswith("'")


def test_numbers_stay_numbers() -> None:
    text = csv_response("x", ("a", "b", "c"), [{"a": -5, "b": 2.5, "c": "5"}]).get_data(as_text=True)
    assert table(text)[1] == ["-5", "2.5", "5"]


def test_a_field_that_a_row_lacks_is_empty_and_others_are_left_out() -> None:
    text = csv_response("x", ("a", "b"), [{"b": 1, "c": 2}]).get_data(as_text=True)
    assert table(text)[1] == ["", "1"]


def test_json_and_jsonl_hold_the_same_rows() -> None:
    answer, lines = json_response("users", ROWS), jsonl_response("users", ROWS)
    assert json.loads(answer.get_data()) == ROWS
    assert [json.loads(line) for line in lines.get_data(as_text=True).splitlines()] == ROWS
    assert (answer.mimetype, lines.mimetype) == ("application/json", "application/x-ndjson")
    assert 'filename="users.jsonl"' in lines.headers["Content-Disposition"]


def test_nothing_is_still_well_formed() -> None:
    assert json.loads(json_response("x", []).get_data()) == []
    assert jsonl_response("x", []).get_data() == b""
    assert table(csv_response("x", ("a",), []).get_data(as_text=True)) == [["a"]]


def test_a_long_export_is_sent_while_it_is_read() -> None:
    read = []

    def rows() -> Iterator[dict[str, str]]:
        for number in range(10_000):
            read.append(number)
            yield {"name": "x" * 100}

    parts = csv_response("x", ("name",), rows()).iter_encoded()
    next(parts)
    next(parts)
    assert 0 < len(read) < 1000
    assert len(b"".join(parts).splitlines()) > 9_000


def test_those_that_are_read_at_the_same_time_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps a connection to the database: whoever reads slowly must not keep all of them."""
    monkeypatch.setattr(exports, "_places", threading.BoundedSemaphore(1))
    first = json_response("x", ROWS)
    with pytest.raises(TooManyRequests):
        json_response("x", ROWS)
    first.close()
    for _ in range(3):
        assert json.loads(json_response("x", ROWS).get_data()) == ROWS
