"""Requests held until there is something new: they look, wait without owning a database connection, look again.

Whoever makes something new says so with `wake.tell_after_commit`. A message that is lost, or a Redis that is away,
costs a second: then it is looked at again anyway.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from redis.client import PubSub
from redis.exceptions import RedisError

from app.kernel.access import current_actor
from app.kernel.context import ops
from app.kernel.db import db, reading
from app.kernel.draining import draining
from app.kernel.errors import TooManyRequests
from app.kernel.wake import topic_channel

log = logging.getLogger(__name__)
Found = TypeVar("Found")

LOOK_S = 1.0
GATHER_S = 0.03
"""What comes at once is brought at once: a moment after the first news, all of it is looked at together."""
MOST_HELD, MOST_OF_ONE = 500, 100
"""In one process, by everybody and by one person: nobody keeps all others from following theirs."""
BUSY_S = 5
_places, _taken = threading.BoundedSemaphore(MOST_HELD), Counter[int | None]()


def look_until(topic: str, look: Callable[[], Found], is_news: Callable[[Found], bool], wait_s: float) -> Found:
    """What `look` finds, as soon as `is_news`, or after so many seconds. No row that it returns may be used afterwards.

    Ends the transaction that is open. Raises TooManyRequests when too many requests of this process are held already.
    """
    found, deadline = _looked(look), time.monotonic() + wait_s
    if is_news(found) or wait_s <= 0 or draining.is_set():
        return found
    who = current_actor().user_id
    if _taken[who] >= MOST_OF_ONE or not _places.acquire(blocking=False):
        raise TooManyRequests(retry_after_s=BUSY_S)
    _taken[who] += 1
    channel = None
    try:
        channel = _subscribed(topic)
        while True:
            # Once more after subscribing: what came in between would wake nobody.
            found = _looked(look)
            left = deadline - time.monotonic()
            if is_news(found) or left <= 0 or draining.is_set():
                return found
            if not _is_told(channel, min(left, LOOK_S)):
                continue
            time.sleep(GATHER_S)
    finally:
        _places.release()
        _taken[who] -= 1
        if not _taken[who]:
            del _taken[who]
        _close(channel)


def _looked(look: Callable[[], Found]) -> Found:
    with reading():
        try:
            return look()
        finally:
            db.session.remove()


def _subscribed(topic: str) -> PubSub | None:
    channel: PubSub = ops().redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    try:
        channel.subscribe(topic_channel(topic))
    except RedisError as error:
        log.warning("nobody tells of news, it is looked for each second: %s", type(error).__name__)
        _close(channel)
        return None
    return channel


def _is_told(channel: PubSub | None, most_s: float) -> bool:
    """Whether something was published within so many seconds. All that was published is taken."""
    if channel is None:
        draining.wait(most_s)
        return False
    ends_at, message = time.monotonic() + most_s, None
    try:
        while message is None and (left := ends_at - time.monotonic()) > 0:
            message = channel.get_message(timeout=left)
        is_told: Any = message
        while message is not None:
            message = channel.get_message(timeout=0)
    except RedisError:
        draining.wait(max(0.0, ends_at - time.monotonic()))
        return False
    return is_told is not None


def _close(channel: PubSub | None) -> None:
    if channel is not None:
        with suppress(RedisError):
            channel.close()
