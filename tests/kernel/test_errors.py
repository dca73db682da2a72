"""The table of codes: what the contract promises, told once and in the reader's language."""

import re
from http import HTTPStatus

import pytest
from flask import Flask
from redis.exceptions import RedisError
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import BadRequest, ImATeapot, NotFound, RequestEntityTooLarge, ServiceUnavailable

from app.kernel import errors
from app.kernel.edges import as_app_error
from app.kernel.envelope import failure
from app.kernel.errors import AppError, FieldError
from tests.kernel.lab import DriverError

CONTRACT = {
    1001: 400, 1002: 401, 1003: 403, 1004: 404, 1005: 429, 1006: 409, 1007: 405, 1008: 413,
    2001: 404, 2002: 409, 2003: 409, 3001: 404, 3002: 409, 3003: 400, 3004: 409, 3005: 409, 4001: 404, 4002: 409,
    5000: 500, 5001: 503, 5002: 503,
}  # fmt: skip


def kinds(kind: type[AppError] = AppError) -> set[type[AppError]]:
    return {kind}.union(*(kinds(inner) for inner in kind.__subclasses__()))


@pytest.mark.parametrize("kind", sorted(kinds(), key=lambda kind: (kind.code, kind.__name__)), ids=lambda k: k.__name__)
def test_every_error_has_a_code_of_the_contract_with_its_status(kind: type[AppError]) -> None:
    assert CONTRACT[kind.code] == kind.status


def test_the_kernel_has_an_error_for_every_general_code() -> None:
    own = {kind.code for kind in kinds() if kind.__module__ == errors.__name__}
    assert own == {code for code in CONTRACT if code < 2000 or code >= 5000}


def test_messages_are_sentences_in_both_languages(sqlite_app: Flask) -> None:
    own = [kind for kind in kinds() if kind.__module__ == errors.__name__]
    with sqlite_app.test_request_context("/api/x"):
        english = {kind: str(kind.message) for kind in own}
    with sqlite_app.test_request_context("/api/x", headers={"Accept-Language": "zh"}):
        chinese = {kind: str(kind.message) for kind in own}
    assert all(re.fullmatch(r"[A-Z].*\.", message) for message in english.values()), english
    assert all(re.search(r"[\u4e00-\u9fff]", message) for message in chinese.values()), chinese


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound(), 1004),
        (RequestEntityTooLarge(), 1008),
        (BadRequest(), 1001),
        (ImATeapot(), 1001),
        (ServiceUnavailable(), 5000),
        (IntegrityError("INSERT", {}, DriverError()), 1006),
        (DataError("INSERT", {}, DriverError(1406, "Data too long")), 1001),
        (OverflowError("Python int too large to convert to SQLite INTEGER"), 1001),
        (OverflowError("a mistake of ours"), 5000),
        (PoolTimeout(), 5001),
        (RedisError(), 5002),
        (KeyError("x"), 5000),
        (errors.Conflict(), 1006),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_foreign_errors_get_the_code_that_they_mean(sqlite_app: Flask, error: Exception, code: int) -> None:
    with sqlite_app.test_request_context("/"):
        shown = as_app_error(error)
    assert shown.code == code
    assert (shown.retry_after_s is not None) == (code in (5001, 5002))


def test_a_failure_carries_its_fields_its_data_and_when_to_come_again(sqlite_app: Flask) -> None:
    error = AppError("No.", errors=[FieldError("a.0", "wrong")], data={"left": 3}, retry_after_s=9)
    with sqlite_app.test_request_context("/"):
        answer = failure(error)
    assert answer.status_code == HTTPStatus.INTERNAL_SERVER_ERROR
    assert answer.json is not None
    assert answer.json["message"] == "No."
    assert answer.json["data"] == {"left": 3, "errors": [{"field": "a.0", "message": "wrong"}]}
    assert answer.headers["Retry-After"] == "9"


def test_a_failure_without_details_has_no_data(sqlite_app: Flask) -> None:
    with sqlite_app.test_request_context("/"):
        answer = failure(errors.NotFound())
        assert answer.json is not None
        assert answer.json["data"] is None
        assert "Retry-After" not in answer.headers


def test_an_error_can_be_told_outside_of_requests_too(sqlite_app: Flask) -> None:
    """Jobs and commands have an application but no request, and so nobody's language."""
    with sqlite_app.app_context():
        assert str(errors.Conflict()) == "1006 That contradicts what is there already."
