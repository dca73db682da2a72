"""INI: `section.option`, or `option` before the first section. Comments, order and spacing stay."""

from __future__ import annotations

import re
from typing import Any

from agent.formats.problem import FormatProblem, ending_of, one_line

_SECTION = re.compile(r"\s*\[([^\]]*)\]\s*([;#].*)?")
_OPTION = re.compile(r"(\s*)([^=:\s;#\[][^=:]*?)(\s*[=:]\s*)(.*?)(\s*)")


def read(text: str, key: str) -> str | None:
    """The last one counts, as most programs have it."""
    found = None
    for _, value in _matches(text.splitlines(), key):
        found = value
    return found


def change(text: str, key: str, value: Any) -> str:
    """In place where it is; else at the end of its section, which is added if need be."""
    words, end = one_line(value), ending_of(text)
    lines = text.splitlines(keepends=True)
    found = list(_matches([line.rstrip("\r\n") for line in lines], key))
    section, option = _split(key)
    if found:
        number = found[-1][0]
        body = lines[number].rstrip("\r\n")
        option_found = _OPTION.fullmatch(body)
        if option_found is None:
            raise FormatProblem(f"{key} cannot be changed")
        space, name, sign = option_found.group(1), option_found.group(2), option_found.group(3)
        lines[number] = f"{space}{name}{sign}{words}{lines[number][len(body) :]}"
        return "".join(lines)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += end
    place = _end_of_section(lines, section)
    sign = " = " if any(" = " in line for line in lines) else "="
    if place is None:
        gap = [end] if lines and lines[-1].strip() else []
        lines += [*gap, f"[{section}]{end}", f"{option}{sign}{words}{end}"]
    else:
        lines.insert(place, f"{option}{sign}{words}{end}")
    return "".join(lines)


def unset(text: str, key: str) -> str:
    """Take its lines out."""
    lines = text.splitlines(keepends=True)
    gone = {number for number, _ in _matches([line.rstrip("\r\n") for line in lines], key)}
    return "".join(line for number, line in enumerate(lines) if number not in gone)


def _matches(lines: list[str], key: str) -> list[tuple[int, str]]:
    """Line numbers and values."""
    section, option = _split(key)
    current, found = "", []
    for number, line in enumerate(lines):
        head = _SECTION.fullmatch(line)
        if head is not None:
            current = head.group(1).strip()
            continue
        entry = _OPTION.fullmatch(line)
        if entry is not None and current == section and entry.group(2) == option:
            found.append((number, entry.group(4)))
    return found


def _end_of_section(lines: list[str], section: str) -> int | None:
    """Behind the last line of it that says something; None if there is no such section."""
    current, end = "", 0 if section == "" else None
    for number, line in enumerate(lines):
        head = _SECTION.fullmatch(line.rstrip("\r\n"))
        if head is not None:
            current = head.group(1).strip()
        if current == section and line.strip():
            end = number + 1
    return end


def _split(key: str) -> tuple[str, str]:
    section, _, option = key.rpartition(".")
    if not option or any(sign in option for sign in "=:\n[]"):
        raise FormatProblem("a key must be section.option, or option")
    return section, option
