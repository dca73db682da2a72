"""JSON by path; order stays, and the indent as far as it can be seen."""

from __future__ import annotations

import json
import re
from typing import Any

from agent.formats import tree
from agent.formats.problem import FormatProblem, shown

_INDENT = re.compile(r"[\[{][ \t]*\r?\n([ \t]+)\S")


def read(text: str, key: str) -> str | None:
    """Text as it is, anything else as JSON."""
    value = tree.find(_load(text), key)
    return None if tree.is_missing(value) else shown(value)


def change(text: str, key: str, value: Any) -> str:
    """Set a value of any JSON type."""
    loaded = _load(text)
    tree.put(loaded, key, value)
    return _dump(loaded, text)


def unset(text: str, key: str) -> str:
    """Take it out."""
    loaded = _load(text)
    return _dump(loaded, text) if tree.take_out(loaded, key) else text


def _load(text: str) -> Any:
    if not text.strip():
        return {}
    try:
        return json.loads(text)
    except ValueError as error:
        raise FormatProblem(f"is not JSON: {error}") from None


def _dump(loaded: Any, text: str) -> str:
    found = _INDENT.search(text)
    indent = found.group(1) if found else None if text.strip() else "  "
    spaces = (", ", ": ") if indent is None and re.search(r'"\s*: ', text) else (",", ":" if indent is None else ": ")
    end = "\n" if text.endswith("\n") or not text else ""
    return json.dumps(loaded, indent=indent, separators=spaces, ensure_ascii=False) + end
