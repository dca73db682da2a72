"""Java properties and shell-like `NAME=value` files. Comments and order stay; continued lines are understood."""

from __future__ import annotations

import re
from typing import Any

from agent.formats.problem import FormatProblem, ending_of, one_line

_ENTRY = re.compile(r"(\s*(?:export\s+)?)((?:\\.|[^\s=:\\#!])(?:\\.|[^\s=:\\])*)(\s*[=:]\s*|\s+|$)(.*)", re.DOTALL)


def read(text: str, key: str) -> str | None:
    """The last one counts."""
    found = None
    for _, _, value in _entries(text.splitlines(keepends=True), key):
        found = value
    return found


def change(text: str, key: str, value: Any) -> str:
    """In place where it is, else at the end."""
    words, end = one_line(value), ending_of(text)
    _check(key)
    lines = text.splitlines(keepends=True)
    found = _entries(lines, key)
    if found:
        first, last, _ = found[-1]
        entry = _ENTRY.fullmatch(lines[first].rstrip("\r\n"))
        if entry is None:
            raise FormatProblem(f"{key} cannot be changed")
        sign = entry.group(3) if entry.group(3).strip() or entry.group(4) else "="
        lines[first : last + 1] = [f"{entry.group(1)}{entry.group(2)}{sign}{words}{end}"]
        return "".join(lines)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += end
    sign = " = " if any(" = " in line for line in lines) else "="
    return "".join(lines) + f"{key}{sign}{words}{end}"


def unset(text: str, key: str) -> str:
    """Take its lines out."""
    lines = text.splitlines(keepends=True)
    gone = {number for first, last, _ in _entries(lines, key) for number in range(first, last + 1)}
    return "".join(line for number, line in enumerate(lines) if number not in gone)


def _entries(lines: list[str], key: str) -> list[tuple[int, int, str]]:
    """First and last line of each entry of this key, and its value."""
    found, number = [], 0
    while number < len(lines):
        first = number
        text = lines[number].rstrip("\r\n")
        if text.lstrip()[:1] in ("", "#", "!"):
            number += 1
            continue
        while _is_continued(text) and number + 1 < len(lines):
            number += 1
            text = text[:-1] + lines[number].rstrip("\r\n").lstrip()
        entry = _ENTRY.fullmatch(text)
        if entry is not None and re.sub(r"\\(.)", r"\1", entry.group(2)) == key:
            found.append((first, number, entry.group(4)))
        number += 1
    return found


def _is_continued(text: str) -> bool:
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def _check(key: str) -> None:
    if any(sign.isspace() or sign in "=:#!\\" for sign in key):
        raise FormatProblem("a key must not hold blanks, '=', ':', '#', '!' or '\\'")
