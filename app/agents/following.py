"""Logs as they grow, and whole log files: bytes that the host sends over a stream while somebody reads them."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from app.agents.manifests import RESERVED
from app.agents.queries import agent_by_name
from app.commands.actions import issue
from app.kernel import streams
from app.kernel.access import Actor
from app.kernel.clock import now
from app.kernel.db import db, in_transaction, reading
from app.kernel.errors import NotFound
from app.nodes.errors import NodeOffline
from app.nodes.models import ONLINE
from app.nodes.queries import node_by_id
from protocol.limits import MIB
from protocol.times import to_text

STREAM_LOGS = "agent.stream_logs"
FOLLOWED_FOR = timedelta(hours=1)
DOWNLOADED_WITHIN = timedelta(minutes=30)
FOLLOWED_BYTES, DOWNLOADED_BYTES = 256 * MIB, 2048 * MIB
HELD_S = 10.0
DELIVERED_WITHIN = timedelta(seconds=20)


def begin(actor: Actor, node_id: int, name: str, *, follow: bool, file: str | None, query: str | None) -> str:
    """Have the host send a log; answers the stream's id. Raises NodeOffline. Ends the transaction that is open."""
    session = db.session()
    if name not in RESERVED:
        agent_by_name(session, node_id, name)
    if node_by_id(session, node_id).status != ONLINE:
        raise NodeOffline
    db.session.remove()
    stream = streams.open_stream(node_id, keep="newest" if follow else "all", facts={"agent": name})
    lasts = FOLLOWED_FOR if follow else DOWNLOADED_WITHIN
    payload: dict[str, Any] = {
        "name": name,
        "stream": stream,
        "follow": follow,
        "max_bytes": FOLLOWED_BYTES if follow else DOWNLOADED_BYTES,
        "until": to_text((now() + lasts).timestamp()),
    }
    payload |= {key: value for key, value in (("file", file), ("query", query)) if value}
    with reading(False):
        session = db.session()
        in_transaction(session, lambda: issue(session, actor, node_id, STREAM_LOGS, payload, DELIVERED_WITHIN))
        db.session.remove()
    return stream


def piece(node_id: int, name: str, stream: str, after: int) -> dict[str, Any]:
    """What came after so many bytes; waits for it a while. Raises NotFound for a stream of another agent."""
    _check(node_id, name, stream)
    db.session.remove()
    found = streams.read_when_there(stream, after, HELD_S)
    data = _whole_characters(found.data, is_last=found.is_closed)
    return {
        "text": data.decode("utf-8", "replace"),
        "next": found.start + len(data),
        "skipped": max(0, found.start - after),
        "over": found.is_over,
        "silent": found.is_silent,
    }


def _whole_characters(data: bytes, *, is_last: bool) -> bytes:
    """Without the beginning of a character whose end has not come yet."""
    if is_last:
        return data
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if back < length else data
        if byte < 0x80:
            break
    return data


def _check(node_id: int, name: str, stream: str) -> None:
    facts = streams.facts_of(stream)
    if facts is None or (facts["node_id"], facts.get("agent")) != (node_id, name):
        raise NotFound


def whole(stream: str) -> Iterator[bytes]:
    """Everything of a stream that keeps all, as it comes. The host waits while nobody reads."""
    after = 0
    try:
        while True:
            found = streams.read_when_there(stream, after, HELD_S)
            if found.data:
                yield found.data
            after = found.next
            if found.is_over or found.is_silent:
                return
    finally:
        streams.close(stream)


def end(node_id: int, name: str, stream: str) -> None:
    """Nobody reads any more."""
    _check(node_id, name, stream)
    streams.close(stream)
