"""Paths into trees of mappings and lists: `server.ports[0]`, `server.ports.0`, `"a.b".c`."""

from __future__ import annotations

import re
from typing import Any

from agent.formats.problem import FormatProblem

_STEP = re.compile(r'\[(-?\d+)\]|"((?:[^"\\]|\\.)*)"|([^.\[\]"]+)')
_MISSING = object()


def steps_of(key: str) -> list[str | int]:
    """The steps of a path."""
    steps: list[str | int] = []
    place = 0
    while place < len(key):
        if key[place] == "." and steps:
            place += 1
        found = _STEP.match(key, place)
        if found is None:
            raise FormatProblem(f"{key} is not a path such as server.ports[0]")
        index, quoted, word = found.groups()
        steps.append(int(index) if index is not None else word if word is not None else re.sub(r"\\(.)", r"\1", quoted))
        place = found.end()
    return steps


def find(tree: Any, key: str) -> Any:
    """The value, or `is_missing`."""
    for step in steps_of(key):
        tree = _inner(tree, step)
        if tree is _MISSING:
            break
    return tree


def is_missing(value: Any) -> bool:
    """Whether `find` found nothing."""
    return value is _MISSING


def put(tree: Any, key: str, value: Any) -> None:
    """Set it; mappings on the way are made. A list grows by one at its end."""
    *steps, last = steps_of(key)
    for step in steps:
        inner = _inner(tree, step)
        if inner is _MISSING or inner is None:
            inner = {}
            _put(tree, step, inner, key)
            inner = _inner(tree, step)
        tree = inner
    _put(tree, last, value, key)


def take_out(tree: Any, key: str) -> bool:
    """Whether it was there."""
    *steps, last = steps_of(key)
    for step in steps:
        tree = _inner(tree, step)
        if tree is _MISSING:
            return False
    if _inner(tree, last) is _MISSING:
        return False
    del tree[int(last) if isinstance(tree, list) else last]
    return True


def _inner(tree: Any, step: str | int) -> Any:
    if isinstance(tree, dict):
        return tree.get(step, tree.get(str(step), _MISSING))
    if isinstance(tree, list):
        number = _index(step)
        return tree[number] if number is not None and -len(tree) <= number < len(tree) else _MISSING
    return _MISSING


def _put(tree: Any, step: str | int, value: Any, key: str) -> None:
    if isinstance(tree, dict):
        tree[step if step in tree else str(step)] = value
        return
    number = _index(step)
    if not isinstance(tree, list) or number is None or not -len(tree) <= number <= len(tree):
        raise FormatProblem(f"there is no place for {key}")
    if number == len(tree):
        tree.append(value)
    else:
        tree[number] = value


def _index(step: str | int) -> int | None:
    if isinstance(step, int):
        return step
    return int(step) if step.lstrip("-").isdigit() and step.isascii() else None
