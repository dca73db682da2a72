"""HTML forms over the pydantic schemas that the API uses too: what was typed, what is wrong, the checked value."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, get_origin

from pydantic import BaseModel, ValidationError
from werkzeug.datastructures import MultiDict

from app.kernel.db import db
from app.kernel.errors import AppError, FieldError
from app.kernel.validation import WHOLE, field_errors

Schema = TypeVar("Schema", bound=BaseModel)
Result = TypeVar("Result")
ROW_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
OVERALL = ""
"""Errors that belong to no field stand under this name."""


class Form(Generic[Schema]):
    """A form as it is shown: empty, filled from an object, or as somebody sent it."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self.values: dict[str, Any] = dict(values or {})
        self.errors: dict[str, list[str]] = {}
        self.value: Schema | None = None

    @classmethod
    def received(cls, schema: type[Schema], data: MultiDict[str, str], **fixed: Any) -> "Form[Schema]":
        """Read what was sent. An empty field counts as left out, an unticked box as no, unknown fields are dropped."""
        form: Form[Schema] = cls(_values(schema, data) | fixed)
        try:
            form.value = schema.model_validate(form.values)
        except ValidationError as error:
            form.add_errors(field_errors(error))
        return form

    def add_errors(self, errors: Sequence[FieldError]) -> None:
        """What is wrong inside a field (`scopes.0`) is shown at the field."""
        for error in errors:
            field = error["field"] if error["field"] in self.values else error["field"].partition(".")[0]
            if field == WHOLE and WHOLE not in self.values:
                field = OVERALL
            messages = self.errors.setdefault(field, [])
            if error["message"] not in messages:
                messages.append(error["message"])

    def submit(self, action: Callable[[Schema], Result]) -> Result | None:
        """Do the action with the checked value. None when there is none, or when the action refused: see `errors`.

        What the action had already written is undone; refusals that are not about this form go on upwards.
        """
        if self.value is None:
            return None
        try:
            return action(self.value)
        except AppError as error:
            if error.code not in (1001, 1006) and not error.errors:
                raise
            db.session.rollback()
            self.add_errors(error.errors or [FieldError(OVERALL, str(error.message))])
            return None


def row_numbers(texts: Iterable[str], most: int = 1000) -> list[int]:
    """The numbers of rows among what was sent; whatever can be none is left out."""
    return [int(text) for text in texts if ROW_NUMBER.fullmatch(text)][:most]


def _values(schema: type[BaseModel], data: MultiDict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, info in schema.model_fields.items():
        if get_origin(info.annotation) is list or "list[" in str(info.annotation):
            values[name] = [item for item in data.getlist(name) if item.strip() != ""]
        elif info.annotation is bool:
            values[name] = name in data and data[name] not in ("", "0", "false", "off")
        elif data.get(name, "") != "":
            values[name] = data[name]
    return values
