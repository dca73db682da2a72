"""The frame of /api/v1: rooms declare operations; permission, validation, envelope, idempotency and documents follow.

An operation is one decorator on one function. What OpenAPI says of it is what is enforced: both read the same lines.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import wraps
from http import HTTPStatus
from typing import Any, Generic, Protocol, TypeVar

from flask import Blueprint, Response, request
from flask_babel import gettext as _
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from app.kernel import idempotency
from app.kernel.access import PUBLIC, authorize, current_actor
from app.kernel.db import db, in_transaction
from app.kernel.envelope import success
from app.kernel.errors import AppError, BadParameter, FieldError, TooLarge
from app.kernel.paging import Page
from app.kernel.types import in_utc
from app.kernel.validation import MESSAGES, field_errors, is_moment, wrong_shape

Item = TypeVar("Item")
View = TypeVar("View", bound=Callable[..., Any])
DEEPEST_BODY = 20
NUMBER = re.compile(r"\s*[+-]?[0-9]+(\.[0-9]*)?\s*")


class Out(BaseModel):
    """Base of everything the API answers; made from rows by their attributes."""

    model_config = ConfigDict(from_attributes=True)


class In(BaseModel):
    """Base of everything the API accepts: unknown fields are errors, surrounding blanks are not part of a value.

    Beware of validators that run before pydantic's own: behind them it no longer knows that a value came from JSON, and
    strictly refuses every string that stands for a time or a choice.
    """

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    @field_validator("*")
    @classmethod
    def _times_in_utc(cls, value: Any) -> Any:
        """So that an answer shows UTC before the row has been to the database and back."""
        return in_utc(value) if isinstance(value, datetime) and value.tzinfo is not None else value


class Listing(Out, Generic[Item]):
    total: int
    items: list[Item]
    page: int
    page_size: int


@dataclass(frozen=True)
class Operation:
    """One method of one path, as it is enforced and documented."""

    method: str
    rule: str
    name: str
    permission: str
    summary: str
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    upload: Callable[[], "Uploaded"] | None = None
    """Takes the file of a multipart request to the disk, before anything else; the view gets it as `uploaded`."""
    media: Sequence[str] = ()
    """Types of the answer, if it is no envelope."""
    returns: Any = None
    status: int = HTTPStatus.OK
    errors: Sequence[type[AppError]] = ()
    is_idempotent: bool = False
    deprecated: bool = False


class Uploaded(Protocol):
    """A file that has come. The same request sent again has the same fingerprint."""

    @property
    def fingerprint(self) -> str: ...


@dataclass
class ApiRoom:
    """The API of one feature: a blueprint and the list of its operations."""

    name: str
    title: str
    operations: list[Operation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blueprint = Blueprint(f"{self.name}_api", __name__, url_prefix="/api/v1")

    def get(self, rule: str, **declared: Any) -> Callable[[View], View]:
        return self._operation("GET", rule, declared)

    def post(self, rule: str, **declared: Any) -> Callable[[View], View]:
        return self._operation("POST", rule, declared)

    def put(self, rule: str, **declared: Any) -> Callable[[View], View]:
        return self._operation("PUT", rule, declared)

    def delete(self, rule: str, **declared: Any) -> Callable[[View], View]:
        return self._operation("DELETE", rule, declared)

    def _operation(self, method: str, rule: str, declared: Mapping[str, Any]) -> Callable[[View], View]:
        def register(view: View) -> View:
            operation = Operation(method, rule, view.__name__, **declared)
            self.operations.append(operation)
            handler = _handler(operation, view)
            self.blueprint.add_url_rule(rule, view.__name__, handler, methods=[method])
            return view

        return register


def _handler(operation: Operation, view: Callable[..., Any]) -> Callable[..., Response]:
    @wraps(view)
    def handle(**path: Any) -> Response:
        actor = current_actor()
        authorize(actor, operation.permission)
        given = dict(path)
        if operation.query is not None:
            given["query"] = _query(operation.query)
        elif request.args:
            raise BadParameter(errors=field_errors(_no_fields(request.args)))
        if operation.body is not None:
            given["body"] = _body(operation.body)
        if operation.upload is not None:
            given["uploaded"] = operation.upload()
        if operation.method == "GET":
            return _answer(operation, view(**given))
        return in_transaction(db.session(), lambda: _change(operation, view, given))

    handle.permission = operation.permission  # type: ignore[attr-defined]
    return handle


def _change(operation: Operation, view: Callable[..., Any], given: Mapping[str, Any]) -> Response:
    key = request.headers.get("Idempotency-Key")
    if not operation.is_idempotent or key is None:
        return _answer(operation, view(**given))
    content = given["uploaded"].fingerprint if operation.upload is not None else request.get_data().hex()
    return idempotency.once(db.session(), current_actor(), key, content, lambda: _answer(operation, view(**given)))


def _answer(operation: Operation, result: Any) -> Response:
    if isinstance(result, Response):
        return result
    if operation.returns is None:
        return success(None, operation.status)
    if isinstance(result, Page):
        result = {"total": result.total, "items": result.items, "page": result.page, "page_size": result.page_size}
    shown = operation.returns.model_validate(result, from_attributes=True)
    return success(shown.model_dump(mode="json"), operation.status)


class _Nothing(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _no_fields(given: Mapping[str, Any]) -> ValidationError:
    try:
        _Nothing.model_validate(dict(given))
    except ValidationError as error:
        return error
    raise AssertionError("unreachable")


def _query(schema: type[BaseModel]) -> BaseModel:
    """Query strings hold only text, so numbers are read from it; a field that is no list may stand there once."""
    given: dict[str, Any] = {}
    errors: list[FieldError] = []
    for name, values in request.args.lists():
        info = schema.model_fields.get(name)
        is_list = info is not None and "list[" in str(info.annotation)
        given[name] = [part for value in values for part in value.split(",") if part] if is_list else values[0]
        if not is_list and len(values) > 1:
            errors.append(FieldError(name, _("This may be given only once.")))
        elif info is not None and not is_list and (problem := wrong_shape(info.annotation, values[0])):
            errors.append(FieldError(name, problem))
    named = {error["field"] for error in errors}
    try:
        query = schema.model_validate(given)
    except ValidationError as error:
        errors += [found for found in field_errors(error) if found["field"] not in named]
    else:
        if not errors:
            return query
    raise BadParameter(errors=errors)


def _body(schema: type[BaseModel]) -> BaseModel:
    """Strict JSON: no "5" for 5, no NaN, no doubled keys, not nested without end."""
    data = request.get_data()
    if request.content_length is None and len(data) >= (request.max_content_length or math.inf):
        raise TooLarge  # of a body that does not say its length, Werkzeug hands over only the beginning
    try:
        value = json.loads(data.decode("utf-8") or "{}", parse_constant=_refuse, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        reason = _("This is not JSON: %(reason)s", reason=str(error)[:200])
        raise BadParameter(errors=[FieldError("body", reason)]) from None
    if not isinstance(value, dict):
        raise BadParameter(errors=[FieldError("body", _("An object is expected here."))])
    if _depth(value) > DEEPEST_BODY:
        raise BadParameter(errors=[FieldError("body", _("This is nested too deeply."))])
    errors = [FieldError(name, MESSAGES["datetime_parsing"]) for name in _numbers_for_times(schema, value)]
    try:
        checked = schema.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        named = {found["field"] for found in errors}
        errors += [found for found in field_errors(error) if found["field"] not in named]
    else:
        if not errors:
            return checked
    raise BadParameter(errors=errors)


def _numbers_for_times(schema: type[BaseModel], value: Mapping[str, Any]) -> list[str]:
    """Fields that hold "0" where a time is expected, which pydantic takes for the beginning of 1970."""
    return [
        name
        for name, info in schema.model_fields.items()
        if is_moment(info.annotation) and isinstance(value.get(name), str) and NUMBER.fullmatch(value[name])
    ]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value


def _depth(value: Any) -> int:
    """How deeply lists and objects are nested, without recursing into what is already too deep."""
    deepest, level = 0, [value]
    while level and deepest <= DEEPEST_BODY:
        deepest += 1
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return deepest


def is_public(operation: Operation) -> bool:
    return operation.permission == PUBLIC
