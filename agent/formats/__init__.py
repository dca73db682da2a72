"""Formats of configuration files: each reads, sets and unsets one key in a text and leaves the rest alone."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

from agent.formats import ini, jsonpath, lines, properties, xmlpath, yamlpath
from agent.formats.problem import FormatProblem

__all__ = ["FORMATS", "Format", "FormatProblem"]


class Format(NamedTuple):
    """`read` gives None for what is not there; the others give the new text. All raise FormatProblem."""

    read: Callable[[str, str], str | None]
    set: Callable[[str, str, Any], str]
    unset: Callable[[str, str], str]


FORMATS = {
    "ini": Format(ini.read, ini.change, ini.unset),
    "properties": Format(properties.read, properties.change, properties.unset),
    "json": Format(jsonpath.read, jsonpath.change, jsonpath.unset),
    "yaml": Format(yamlpath.read, yamlpath.change, yamlpath.unset),
    "xml": Format(xmlpath.read, xmlpath.change, xmlpath.unset),
    "lines": Format(lines.read, lines.change, lines.unset),
}
