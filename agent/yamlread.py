"""YAML to plain JSON values, in short-lived children only: a module for `agent.configure`, a filter for the agent."""

from __future__ import annotations

import json
import sys
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

MAX_CHARS = 256 * 1024


class YamlProblem(Exception):
    """The text is not YAML, or holds what JSON cannot."""


def read_yaml(text: str) -> Any:
    """Parse a document without tags, aliases to objects or anything else that JSON does not know."""
    if len(text) > MAX_CHARS:
        raise YamlProblem(f"must not exceed {MAX_CHARS} characters")
    try:
        loaded = YAML(typ="safe", pure=True).load(text)
        json.dumps(loaded, allow_nan=False)
    except YAMLError as error:
        raise YamlProblem(" ".join(str(error).split())) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise YamlProblem("holds values that JSON does not know") from error
    return loaded


def main() -> int:
    """stdin to stdout."""
    try:
        sys.stdout.write(json.dumps(read_yaml(sys.stdin.read(MAX_CHARS + 1))))
    except (YamlProblem, UnicodeDecodeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
