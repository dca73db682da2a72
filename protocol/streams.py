"""Streams of bytes between a host and whoever looks at it; the bytes themselves travel bare."""

from __future__ import annotations

from typing import NamedTuple

from protocol.fields import Fields
from protocol.limits import BIG


class StreamAnswer(NamedTuple):
    """Which byte of the host's direction is wanted next. `closed`: none, nobody reads any more."""

    next: int
    closed: bool
    server_time: str


def parse_stream_answer(fields: Fields) -> StreamAnswer:
    """Read the answer to a piece."""
    return StreamAnswer(fields.integer("next", 0, BIG), fields.flag("closed"), fields.time("server_time"))
