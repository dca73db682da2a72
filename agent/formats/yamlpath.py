"""YAML by path; comments, order, quotes and anchors stay."""

from __future__ import annotations

import io
import json
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from agent.formats import tree
from agent.formats.problem import FormatProblem


def read(text: str, key: str) -> str | None:
    """Text as it is, anything else as JSON."""
    value = tree.find(_load(_yaml(), text), key)
    if tree.is_missing(value):
        return None
    return str(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def change(text: str, key: str, value: Any) -> str:
    """Set a value of any JSON type."""
    yaml = _yaml()
    loaded = _load(yaml, text)
    tree.put(loaded, key, value)
    return _dump(yaml, loaded)


def unset(text: str, key: str) -> str:
    """Take it out."""
    yaml = _yaml()
    loaded = _load(yaml, text)
    return _dump(yaml, loaded) if tree.take_out(loaded, key) else text


def _yaml() -> YAML:
    made = YAML(typ="rt", pure=True)
    made.preserve_quotes = True
    made.width = 4096
    return made


def _load(yaml: YAML, text: str) -> Any:
    try:
        loaded = yaml.load(text)
    except YAMLError as error:
        raise FormatProblem(f"is not YAML: {' '.join(str(error).split())}") from None
    return {} if loaded is None else loaded


def _dump(yaml: YAML, loaded: Any) -> str:
    out = io.StringIO()
    yaml.dump(loaded, out)
    return out.getvalue()
