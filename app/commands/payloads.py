"""Payloads: as text within the wire's bound, kept once for a whole fan-out, completed by features at delivery."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flask_babel import gettext as _
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.commands.hooks import hooks
from app.commands.models import Command, Fanout, Target
from app.kernel.errors import TooLarge
from protocol.codec import canonical
from protocol.limits import ANSWER_BYTES, PAYLOAD_CHARS

BYTES_AT_ONCE = ANSWER_BYTES // 4
"""Of payloads in one answer: inside of it their quotes and line ends are escaped once more."""


def payload_text(payload: Mapping[str, Any]) -> str:
    """Raises TooLarge for what no host would read."""
    text = canonical(dict(payload))
    if len(text) > PAYLOAD_CHARS:
        raise TooLarge(_("This is too large for one command: at most %(count)s characters.", count=PAYLOAD_CHARS))
    return text


def stored_payloads(session: Session, commands: Sequence[Command]) -> dict[int, str]:
    """Command id → text, wherever it is kept: by the command itself, its target or its fan-out."""
    found = {command.id: command.payload for command in commands if command.payload is not None}
    shared = {command.target_id: command.id for command in commands if command.payload is None}
    if shared:
        kept = select(Target.id, func.coalesce(Target.payload, Fanout.payload).label("text"))
        kept = kept.join(Fanout, Fanout.id == Target.fanout_id).where(Target.id.in_(shared))
        found |= {shared[row.id]: row.text for row in session.execute(kept)}
    return found


def complete(session: Session, command: Command, stored: str) -> str:
    """What goes to the host. Raises AppError if the feature cannot make it."""
    make = hooks().payloads.get(command.kind)
    return stored if make is None else payload_text(make(session, command, json.loads(stored)))
