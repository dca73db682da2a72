"""Which wire version two sides speak: one header, the same major, the current and the previous minor."""

from __future__ import annotations

import re
from typing import NamedTuple

from protocol.errors import BAD_PARAMETER, WIRE_UNSUPPORTED, ProtocolError

HEADER = "X-Ops-Wire"
INSTANCE_HEADER = "X-Ops-Instance"

_SHAPE = re.compile(r"(0|[1-9]\d{0,2})\.(0|[1-9]\d{0,2})", re.ASCII)


class Wire(NamedTuple):
    """A wire version; compared as a pair."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


CURRENT = Wire(1, 0)


def parse_wire(text: str | None) -> Wire:
    """Read the value of `X-Ops-Wire`; a missing header is an error, never a guess."""
    match = _SHAPE.fullmatch(text or "")
    if match is None:
        raise _unsupported("must be major.minor, such as 1.0")
    return Wire(int(match.group(1)), int(match.group(2)))


def negotiate(offered: str | None, current: Wire = CURRENT) -> Wire:
    """The version a server answers in: never above what was offered, never below its own previous minor."""
    wire = parse_wire(offered)
    if wire.major != current.major or wire.minor < current.minor - 1:
        raise _unsupported(f"wire {wire} is not spoken here; this side speaks {supported(current)}")
    return min(wire, current)


def accept_answer(answered: str | None, current: Wire = CURRENT) -> Wire:
    """What a client makes of the answer's header: the same rule, and an answer never exceeds the offer."""
    wire = parse_wire(answered)
    if wire.major != current.major or not current.minor - 1 <= wire.minor <= current.minor:
        raise _unsupported(f"answered in wire {wire}; this side speaks {supported(current)}")
    return wire


def supported(current: Wire = CURRENT) -> str:
    """The versions a side speaks, for messages to people: `1.0` or `1.0, 1.1`."""
    lowest = max(0, current.minor - 1)
    return ", ".join(f"{current.major}.{minor}" for minor in range(lowest, current.minor + 1))


def _unsupported(message: str) -> ProtocolError:
    return ProtocolError(HEADER, message, BAD_PARAMETER, WIRE_UNSUPPORTED)
