"""Asking a host something and waiting for its answer, for a page or a program that looks at it right now.

While it waits it owns no connection to the database; a host that is not there is not asked at all.
"""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy import select, update

from app.commands.actions import issue
from app.commands.models import Command
from app.kernel.access import Actor
from app.kernel.clock import now
from app.kernel.db import db, in_transaction, reading
from app.kernel.errors import Conflict
from app.nodes.errors import NodeOffline
from app.nodes.models import ONLINE
from app.nodes.queries import node_by_id
from protocol import states

PATIENCE_S = 10.0
SHORTEST_LOOK_S, LONGEST_LOOK_S = 0.02, 0.25


class NoAnswer(NodeOffline):
    """It counts as online, but said nothing in time."""

    message = _l("The host did not answer in time.")


class Refused(Conflict):
    """The host answered that it will not, or cannot."""


def ask(actor: Actor, node_id: int, kind: str, payload: Mapping[str, Any], patience_s: float = PATIENCE_S) -> Any:
    """What the host's result holds. Raises NodeOffline, NoAnswer or Refused. Ends the transaction that is open."""
    status = node_by_id(db.session(), node_id).status
    db.session.remove()
    if status != ONLINE:
        raise NodeOffline
    valid_for = timedelta(seconds=patience_s + 1)
    with reading(False):
        session = db.session()
        command_id = in_transaction(session, lambda: issue(session, actor, node_id, kind, payload, valid_for).id)
        db.session.remove()
    deadline, pause_s = time.monotonic() + patience_s, SHORTEST_LOOK_S
    while time.monotonic() < deadline:
        db.session.remove()
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_LOOK_S)
        with reading():
            found = _ended(command_id)
        if found is not None:
            db.session.remove()
            return found
    _give_up(command_id)
    raise NoAnswer


def _ended(command_id: int) -> dict[str, Any] | None:
    columns = (Command.state, Command.result, Command.error, Command.error_code)
    row = db.session.execute(select(*columns).where(Command.id == command_id)).first()
    if row is None or row.state not in states.TERMINAL:
        return None
    if row.state != states.SUCCEEDED:
        db.session.remove()
        raise Refused(_refusal(row.error_code, row.error))
    return row.result if isinstance(row.result, dict) else {}


def _refusal(code: str | None, error: str | None) -> str:
    if code == "forbidden_by_host":
        return str(_("The host's own rules forbid this."))
    if code == "unsupported_kind":
        return str(_("The Daemon on this host is too old for this."))
    return error or str(_("The host could not do this."))


def _give_up(command_id: int) -> None:
    """Nobody waits any more, so the host need not begin."""
    db.session.remove()
    queued = update(Command).where(Command.id == command_id, Command.state == states.QUEUED)
    with reading(False):
        session = db.session()
        in_transaction(session, lambda: session.execute(queued.values(state=states.CANCELLED, finished_at=now())))
        db.session.remove()
