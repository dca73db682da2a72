"""SemVer 2 as text that sorts as versions do, so that a database can compare them."""

import re

SEMVER = re.compile(r"v?(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?")
RELEASE = "~"
"""Sorts after every pre-release: `~` is the last of the printable characters."""


def sortable_version(text: str) -> str | None:
    """The key of a version, None for what is none. Missing parts count as 0; build data does not count."""
    match = SEMVER.fullmatch(text.strip())
    if match is None:
        return None
    numbers = "".join(f"{int(part or 0):09d}" for part in match.groups()[:3])
    return f"{numbers}{_pre_release(match[4])}"[:255]


def _pre_release(text: str | None) -> str:
    """Numbers sort before words and by size; a longer list sorts after its beginning; none at all is last."""
    if text is None:
        return RELEASE
    parts = (f"0{int(part):09d}" if part.isdigit() and len(part) < 10 else f"1{part}" for part in text.split("."))
    return "!" + "!".join(parts)
