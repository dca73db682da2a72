"""What a format says about a text or a key that is of no use to it, and values as text."""

from __future__ import annotations

import json
from typing import Any


class FormatProblem(Exception):
    """In words for people."""


def one_line(value: Any) -> str:
    """A value for a format that knows only text in one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if "\n" in text or "\r" in text:
        raise FormatProblem("a value must not have several lines")
    return text


def shown(value: Any) -> str:
    """A value for people and scripts: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def ending_of(text: str) -> str:
    """How the lines of a text end."""
    return "\r\n" if "\r\n" in text else "\n"
