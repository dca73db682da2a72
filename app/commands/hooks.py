"""What features tell this room of their commands and fan-outs: explicit tables, which `app.link.takers` holds and the
factory attaches. Nothing registers itself by being imported."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from flask import Flask, current_app
from sqlalchemy.orm import Session

from app.commands.models import Command, Fanout
from protocol.commands import Output, Result

EXTENSION = "command_hooks"


class Turn(NamedTuple):
    """A target whose turn has come."""

    target_id: int
    node_id: int
    subject: str


class Settled(NamedTuple):
    """A target that has ended, however it did. Told again if the host's late word corrects what was presumed."""

    target_id: int
    node_id: int
    subject: str
    state: str


TakeResult = Callable[[Session, Command, Result], None]
"""Called for each result of a command of its kind, once, in the transaction that takes the report."""

TakeOutput = Callable[[Session, Command, Output], None]
"""Called for each piece of output, perhaps again for one that it has: `seq` and `offset` tell."""

MakePayload = Callable[[Session, Command, Mapping[str, Any]], Mapping[str, Any]]
"""Makes what the host gets of what was stored, at each delivery: for secrets, which are not to lie about in tables.

May raise AppError: then the command has failed, and its message says why.
"""

Refuse = Callable[[Session, Fanout, Sequence[Turn]], Mapping[int, str]]
"""Target id → why it may not be done there, for those that may not: asked when their turn comes."""

CancelOrder = Callable[[Session, Fanout, Command], tuple[str, Mapping[str, Any]]]
"""Kind and payload of the command that ends one that the host has already."""

OnSettled = Callable[[Session, Fanout, Sequence[Settled]], None]
"""Told of targets in the transaction that settles them, many at once when many end at once."""

OnEnded = Callable[[Session, Fanout], None]
"""Told once, when the last target was settled."""


@dataclass(frozen=True)
class Purpose:
    """What a feature's fan-outs are for, and what only the feature knows of them."""

    name: str
    permission: str
    """What somebody needs to start, pause, resume, cancel and repeat them; looked at again at every dispatch."""
    refuse: Refuse | None = None
    cancel_order: CancelOrder | None = None
    """None: what a host has already goes on to its end."""
    on_settled: OnSettled | None = None
    on_ended: OnEnded | None = None


@dataclass(frozen=True)
class Hooks:
    """All of it. Results and payloads go by the kind of a command, purposes by their name."""

    results: Mapping[str, TakeResult] = field(default_factory=dict)
    outputs: Mapping[str, TakeOutput] = field(default_factory=dict)
    payloads: Mapping[str, MakePayload] = field(default_factory=dict)
    purposes: Mapping[str, Purpose] = field(default_factory=dict)
    private: frozenset[str] = frozenset()
    """Kinds whose results are not for everybody who may read commands: they hold files of the host."""


def attach(app: Flask, hooks: Hooks) -> None:
    app.extensions[EXTENSION] = hooks


def hooks() -> Hooks:
    """The current application's."""
    return cast(Hooks, current_app.extensions[EXTENSION])


def purpose_of(fanout: Fanout) -> Purpose:
    return hooks().purposes[fanout.purpose]
