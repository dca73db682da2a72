"""The states of a command and the only steps between them; decided here for both sides, stored elsewhere."""

from __future__ import annotations

QUEUED = "queued"
DELIVERED = "delivered"
ACCEPTED = "accepted"
STARTED = "started"
SUCCEEDED = "succeeded"
FAILED = "failed"
TIMED_OUT = "timed_out"
CANCELLED = "cancelled"
INTERRUPTED = "interrupted"
EXPIRED = "expired"

TERMINAL = frozenset({SUCCEEDED, FAILED, TIMED_OUT, CANCELLED, INTERRUPTED, EXPIRED})
OPEN = frozenset({QUEUED, DELIVERED, ACCEPTED, STARTED})
STATES = OPEN | TERMINAL

# A report may be lost and the next one arrive: a later step stands for those before it, so forward jumps are legal.
# A lease that runs out leaves a command `delivered` (it is handed out again), so nothing ever goes back.
TRANSITIONS = {
    QUEUED: frozenset({DELIVERED, CANCELLED, EXPIRED}),
    DELIVERED: frozenset({ACCEPTED, STARTED}) | TERMINAL,
    ACCEPTED: frozenset({STARTED}) | TERMINAL,
    STARTED: TERMINAL - {EXPIRED},
    **{state: frozenset() for state in TERMINAL},
}

# Type of a report → the state it asks for; a result names its own, output asks for none.
REPORT_STATE = {"accept": ACCEPTED, "start": STARTED}


def can_move(source: str, target: str) -> bool:
    """Whether a command in `source` may become `target`; staying where one is, is no step."""
    return target in TRANSITIONS[source]


def is_terminal(state: str) -> bool:
    """Whether nothing can follow."""
    return state in TERMINAL
