"""Plain lines, found by a regular expression."""

from __future__ import annotations

import re
from typing import Any

from agent.formats.problem import FormatProblem, ending_of, one_line


def read(text: str, key: str) -> str | None:
    """The lines that match, or None."""
    found = [line for line in text.splitlines() if _pattern(key).search(line)]
    return "\n".join(found) + "\n" if found else None


def change(text: str, key: str, value: Any) -> str:
    """Replace every matching line; if there is none, add one at the end."""
    line = one_line(value)
    changed, count = _replaced(text, key, line)
    if count:
        return changed
    gap = "" if not text or text.endswith("\n") else ending_of(text)
    return text + gap + line + ending_of(text)


def replace_line(text: str, key: str, value: Any) -> str:
    """Replace every matching line; there must be one."""
    changed, count = _replaced(text, key, one_line(value))
    if not count:
        raise FormatProblem(f"no line matches {key}")
    return changed


def unset(text: str, key: str) -> str:
    """Take matching lines out."""
    pattern = _pattern(key)
    return "".join(line for line in text.splitlines(keepends=True) if not pattern.search(line.rstrip("\r\n")))


def _replaced(text: str, key: str, line: str) -> tuple[str, int]:
    pattern, made, count = _pattern(key), [], 0
    for old in text.splitlines(keepends=True):
        body = old.rstrip("\r\n")
        if pattern.search(body):
            made.append(line + old[len(body) :])
            count += 1
        else:
            made.append(old)
    return "".join(made), count


def _pattern(key: str) -> re.Pattern[str]:
    try:
        return re.compile(key)
    except re.error as error:
        raise FormatProblem(f"{key} is not a regular expression: {error}") from None
