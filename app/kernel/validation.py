"""What pydantic found wrong, as field errors in the reader's language. Forms and the API share it."""

import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from flask_babel import lazy_gettext as _l
from flask_babel.speaklater import LazyString
from pydantic import AwareDatetime, ValidationError

from app.kernel.errors import FieldError

WHOLE = "body"
"""The name of what is wrong with no field in particular."""

MESSAGES: Mapping[str, LazyString] = {
    "missing": _l("This is needed."),
    "extra_forbidden": _l("There is no such field."),
    "string_type": _l("Text is expected here."),
    "string_too_short": _l("At least %(min_length)s characters are needed."),
    "string_too_long": _l("At most %(max_length)s characters are allowed."),
    "string_pattern_mismatch": _l("This has characters or a form that is not allowed."),
    "int_type": _l("A whole number is expected here."),
    "int_parsing": _l("A whole number is expected here."),
    "int_from_float": _l("A whole number is expected here."),
    "int_parsing_size": _l("This number is too large."),
    "float_type": _l("A number is expected here."),
    "float_parsing": _l("A number is expected here."),
    "finite_number": _l("A number is expected here."),
    "bool_type": _l("Yes or no is expected here."),
    "bool_parsing": _l("Yes or no is expected here."),
    "greater_than_equal": _l("At least %(ge)s is expected."),
    "greater_than": _l("More than %(gt)s is expected."),
    "less_than_equal": _l("At most %(le)s is allowed."),
    "less_than": _l("Less than %(lt)s is expected."),
    "enum": _l("One of these is expected: %(expected)s."),
    "literal_error": _l("One of these is expected: %(expected)s."),
    "list_type": _l("A list is expected here."),
    "dict_type": _l("Names with values are expected here."),
    "model_type": _l("Names with values are expected here."),
    "model_attributes_type": _l("Names with values are expected here."),
    "too_short": _l("At least %(min_length)s entries are needed."),
    "too_long": _l("At most %(max_length)s entries are allowed."),
    "datetime_type": _l("A time such as 2026-01-31T12:00:00Z is expected."),
    "datetime_parsing": _l("A time such as 2026-01-31T12:00:00Z is expected."),
    "datetime_from_date_parsing": _l("A time such as 2026-01-31T12:00:00Z is expected."),
    "timezone_aware": _l("A time needs its zone, for instance a Z at its end."),
    "json_invalid": _l("This is not JSON."),
}


# What pydantic reads from text is wider than what the API documents: "1_0" as 10, "yes" as true, "0" as 1970.
SHAPES: Mapping[object, tuple[re.Pattern[str], str]] = {
    bool: (re.compile(r"true|false|1|0"), "bool_parsing"),
    int: (re.compile(r"-?[0-9]+"), "int_parsing"),
    float: (re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?"), "float_parsing"),
    datetime: (re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}.*"), "datetime_parsing"),
    AwareDatetime: (re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}.*"), "datetime_parsing"),
}


def wrong_shape(annotation: object, text: str) -> str | None:
    """What is wrong with text that stands for a value of this type, before anybody tries to read it."""
    kinds = [kind for kind in _kinds(annotation) if kind in SHAPES]
    if str in _kinds(annotation) or not kinds or any(SHAPES[kind][0].fullmatch(text) for kind in kinds):
        return None
    return str(MESSAGES[SHAPES[kinds[0]][1]])


def is_moment(annotation: object) -> bool:
    return not {datetime, AwareDatetime}.isdisjoint(_kinds(annotation))


@cache
def _kinds(annotation: object) -> frozenset[object]:
    """The types that may stand there: `int | None` and `Annotated[int, …]` are int."""
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _kinds(inner[0])
    if get_origin(annotation) in (Union, UnionType):
        return frozenset().union(*(_kinds(kind) for kind in inner))
    return frozenset({annotation})


def field_errors(error: ValidationError) -> list[FieldError]:
    """One entry a problem, named by its path: `items.0.name`."""
    return [
        FieldError(".".join(map(str, problem["loc"])) or WHOLE, _message(problem))
        for problem in error.errors(include_url=False, include_input=False)
    ]


def _message(problem: Any) -> str:
    known = MESSAGES.get(problem["type"])
    if known is not None:
        text: str = str(known) % problem.get("ctx", {})
        return text
    reason = problem.get("ctx", {}).get("error")
    shown = str(problem["msg"])
    return str(reason.args[0]) if isinstance(reason, ValueError) and reason.args else shown
