"""Telling other processes that something is new: published after the commit, lost without harm (they also look).

Gateways are told of nodes that something waits for; whoever holds a request about something (`kernel.holding`) is told
by its topic.
"""

import json
import logging
from collections.abc import Iterable
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.kernel.context import ops

log = logging.getLogger(__name__)
CHANNEL = "ops:wake"
PENDING, TOPICS = "pending_wakes", "pending_topics"
COMMAND, REVOKED, CHECK_IN, LIVE = "command", "revoked", "checkin", "live"
NODES_IN_MESSAGE = 500
"""So that a gateway does not hold its breath over one message about a whole fleet."""


def wake_after_commit(session: Session, node_id: int, why: str) -> None:
    """Have the poll that this node holds answer once the present transaction is committed."""
    _listen()
    session.info.setdefault(PENDING, set()).add((node_id, why))


def tell_after_commit(session: Session, *topics: str) -> None:
    """Have whoever waits for news of these look, once the present transaction is committed."""
    _listen()
    session.info.setdefault(TOPICS, set()).update(topics)


def _listen() -> None:
    if not event.contains(Session, "after_commit", _publish):
        event.listen(Session, "after_commit", _publish)
        event.listen(Session, "after_rollback", _forget)


def wake_now(node_ids: list[int], why: str) -> None:
    """The same without a transaction."""
    _send({(node_id, why) for node_id in node_ids})


def _publish(session: Session) -> None:
    pending, topics = session.info.pop(PENDING, set()), session.info.pop(TOPICS, set())
    if pending or topics:
        _send(pending, topics)


def _forget(session: Session) -> None:
    session.info.pop(PENDING, None)
    session.info.pop(TOPICS, None)


def topic_channel(topic: str) -> str:
    return f"ops:news:{topic}"


def _send(wakes: set[tuple[int, str]], topics: Iterable[str] = ()) -> None:
    grouped: dict[str, list[int]] = {}
    for node_id, why in sorted(wakes):
        grouped.setdefault(why, []).append(node_id)
    try:
        pipe = ops().redis.pipeline(transaction=False)
        for why, node_ids in grouped.items():
            for first in range(0, len(node_ids), NODES_IN_MESSAGE):
                some = node_ids[first : first + NODES_IN_MESSAGE]
                pipe.publish(CHANNEL, json.dumps({"why": why, "nodes": some}))
        for topic in topics:
            pipe.publish(topic_channel(topic), "")
        pipe.execute()
    except RedisError as error:
        log.warning("could not tell of %d nodes' news: %s", len(wakes), type(error).__name__)


def read_wake(message: Any) -> tuple[str, list[int]] | None:
    """What a published message says; None for one that is not ours."""
    try:
        body = json.loads(message)
        return str(body["why"]), [int(node_id) for node_id in body["nodes"]]
    except (ValueError, TypeError, KeyError):
        return None
