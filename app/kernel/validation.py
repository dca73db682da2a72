"""What pydantic found wrong, as field errors in the reader's language. Forms and the API share it."""

from collections.abc import Mapping
from typing import Any

from flask_babel import lazy_gettext as _l
from flask_babel.speaklater import LazyString
from pydantic import ValidationError

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
