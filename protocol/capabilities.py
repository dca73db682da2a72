"""What the host's capability file may say; where the file lies and who may write it is checked by those who read it."""

from __future__ import annotations

import re
from typing import Any

from protocol.checkin import Capabilities

SWITCHES = ("scripts", "terminal", "packages", "config")
LISTS = {"run_as": 64, "files": 1024}

_STEPS = re.compile(r"\*\*/?|\*|\?")


def parse_capabilities(loaded: Any) -> Capabilities:
    """The content of the file. What it does not name is allowed; ValueError for what it misspells."""
    if not isinstance(loaded, dict) or set(loaded) != {"allow"} or not isinstance(loaded["allow"], dict):
        raise ValueError("must hold one name, allow, with the capabilities under it")
    allow = loaded["allow"]
    unknown = set(allow) - set(SWITCHES) - set(LISTS)
    if unknown:
        raise ValueError("does not know " + ", ".join(sorted(map(str, unknown))))
    for name in SWITCHES:
        if not isinstance(allow.get(name, True), bool):
            raise ValueError(f"allow.{name} must be true or false")
    for name, high in LISTS.items():
        value = allow.get(name, [])
        if not isinstance(value, list) or len(value) > 100:
            raise ValueError(f"allow.{name} must be a list of at most 100")
        if not all(isinstance(word, str) and 1 <= len(word) <= high for word in value):
            raise ValueError(f"allow.{name} must hold texts of 1 to {high} characters")
    return Capabilities(
        state="file",
        scripts=allow.get("scripts", True),
        terminal=allow.get("terminal", True),
        packages=allow.get("packages", True),
        config=allow.get("config", True),
        run_as=tuple(allow.get("run_as", ["*"])),
        files=tuple(allow.get("files", ["/**"])),
    )


def uniform_capabilities(state: str, is_allowed: bool) -> Capabilities:
    """All or nothing: for a host without the file, or with one that cannot be trusted."""
    return Capabilities(
        state=state,
        scripts=is_allowed,
        terminal=is_allowed,
        packages=is_allowed,
        config=is_allowed,
        run_as=("*",) if is_allowed else (),
        files=("/**",) if is_allowed else (),
    )


def matches_file(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether an absolute path fits: `*` and `?` stay within one name, `**` crosses directories.

    `/data/**` covers /data and whatever lies below it.
    """
    return any(_pattern(pattern).fullmatch(path) is not None for pattern in patterns)


def matches_user(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a user's name is listed; `*` alone stands for everybody."""
    return "*" in patterns or name in patterns


def _pattern(text: str) -> re.Pattern[str]:
    made, place = "", 0
    tail = ""
    if text.endswith("/**"):
        text, tail = text[:-3], "(?:/.*)?"
    for step in _STEPS.finditer(text):
        made += re.escape(text[place : step.start()])
        made += {"**": ".*", "**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}[step.group()]
        place = step.end()
    return re.compile(made + re.escape(text[place:]) + tail, re.DOTALL)
