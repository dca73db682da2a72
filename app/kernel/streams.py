"""Bytes that a host sends while somebody looks: in Redis for moments, never the only copy, gone when it is wiped.

A stream has one writer, the node that it was opened for, and readers who ask for what comes after an offset. Who may
read it is for the feature that opened it to say.
"""

import json
import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal

from redis import Redis

from app.kernel.context import ops
from app.kernel.draining import draining
from app.kernel.errors import TooManyRequests

Keep = Literal["newest", "all"]

WINDOW_BYTES = 512 * 1024
"""So much is kept: of `newest` the end, of `all` what was not read yet, and then the writer has to wait."""
IDLE_S = 120
"""A stream that nobody reads is forgotten after this, whatever is written to it."""
LIFETIME_S = 65 * 60
"""And any stream this long after it was opened: logs are followed for an hour."""
SILENT_S = 35
"""A writer says something every ten seconds; after this much silence it counts as lost."""
MOST_OPEN, MOST_OF_NODE = 200, 20
LOOK_S = 1.0
READ_BYTES = 256 * 1024

OPEN_KEY = "streams:open"
STREAM_ID_BYTES = 24

# Offsets count all bytes of the stream; `first` is the offset of the first byte that is still kept.
_TOUCH = """
local function touch(node, ttl, now)
  redis.call('EXPIRE', KEYS[1], ttl)
  redis.call('EXPIRE', KEYS[2], ttl)
  redis.call('ZADD', KEYS[3], 'XX', now + ttl, node .. ':' .. KEYS[1])
end
local function close(reason, node, ttl, now)
  redis.call('HSET', KEYS[1], 'closed', reason)
  touch(node, ttl, now)
end
local function cut(first, target)
  local rest = redis.call('GETRANGE', KEYS[2], target - first, -1)
  redis.call('SET', KEYS[2], rest)
  redis.call('HSET', KEYS[1], 'first', target)
  return target
end
"""

_WRITE = (
    _TOUCH
    + """
local facts = redis.call('HMGET', KEYS[1], 'node', 'first', 'next', 'window', 'keep', 'closed', 'read_at', 'opened')
local offset, data, is_end = tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1'
local now, ttl = tonumber(ARGV[5]), tonumber(ARGV[6])
if not facts[1] or facts[1] ~= ARGV[1] then return {-1, 0} end
local first, next, window = tonumber(facts[2]), tonumber(facts[3]), tonumber(facts[4])
if facts[6] ~= '' then return {next, 1} end
if now - tonumber(facts[7]) >= ttl or now - tonumber(facts[8]) >= tonumber(ARGV[7]) then
  close('idle', facts[1], ttl, now)
  redis.call('PUBLISH', KEYS[1], '')
  return {next, 1}
end
redis.call('HSET', KEYS[1], 'seen', ARGV[5])
local stop = offset + #data
if offset <= next and stop > next then
  local piece = string.sub(data, next - offset + 1)
  if facts[5] == 'all' then piece = string.sub(piece, 1, math.max(0, window - (next - first))) end
  if #piece > 0 then
    redis.call('APPEND', KEYS[2], piece)
    next = next + #piece
    redis.call('HSET', KEYS[1], 'next', next)
    if facts[5] == 'newest' and next - first > 2 * window then cut(first, next - window) end
  end
end
local is_closed = 0
if is_end and offset <= next and stop <= next then
  close('end', facts[1], ttl, now)
  is_closed = 1
end
redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
redis.call('PUBLISH', KEYS[1], '')
return {next, is_closed}
"""
)

_READ = (
    _TOUCH
    + """
local facts = redis.call('HMGET', KEYS[1], 'first', 'next', 'window', 'keep', 'closed', 'seen', 'opened', 'node')
if not facts[1] then return false end
local after, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local first, next, window = tonumber(facts[1]), tonumber(facts[2]), tonumber(facts[3])
after = math.min(after, next)
if facts[4] == 'all' and after > first and (after == next or after - first >= window / 4) then
  first = cut(first, after)
end
after = math.max(after, first)
local data = ''
if after < next then data = redis.call('GETRANGE', KEYS[2], after - first, after - first + most - 1) end
local now, ttl, closed = tonumber(ARGV[3]), tonumber(ARGV[4]), facts[5]
if closed == '' and now - tonumber(facts[7]) >= tonumber(ARGV[5]) then
  closed = 'old'
  close(closed, facts[8], ttl, now)
elseif closed == '' then
  redis.call('HSET', KEYS[1], 'read_at', ARGV[3])
  touch(facts[8], ttl, now)
else
  redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
end
return {after, data, next, closed, facts[6] or facts[7]}
"""
)


@dataclass(frozen=True)
class Taken:
    """What the writer is told: the byte that is wanted next, and whether anything is wanted at all."""

    next: int
    is_closed: bool


@dataclass(frozen=True)
class Piece:
    """What a reader gets. `start` lies behind what was asked for if bytes were dropped before they were read."""

    start: int
    data: bytes
    is_closed: bool = False
    is_gone: bool = False
    """The stream is not known: it ended long ago, or Redis was wiped. There is nothing to wait for."""
    is_silent: bool = False
    """The host has not said anything for longer than it should."""

    @property
    def next(self) -> int:
        """What to ask for next."""
        return self.start + len(self.data)

    @property
    def is_over(self) -> bool:
        """Whether nothing will follow."""
        return self.is_gone or (self.is_closed and not self.data)


def open_stream(
    node_id: int, *, keep: Keep = "newest", window: int = WINDOW_BYTES, facts: dict[str, Any] | None = None
) -> str:
    """A new stream that this node may write to; its id is for the command that tells it to. `facts` come back as they
    are, with `facts_of`. Raises TooManyRequests.
    """
    redis, at = ops().redis, int(time.time())
    redis.zremrangebyscore(OPEN_KEY, 0, at)
    members: Any = redis.zrange(OPEN_KEY, 0, -1)
    of_node = sum(member.startswith(b"%d:" % node_id) for member in members)
    if len(members) >= MOST_OPEN or of_node >= MOST_OF_NODE:
        raise TooManyRequests(retry_after_s=10)
    stream_id = secrets.token_urlsafe(STREAM_ID_BYTES)
    name = _name(stream_id)
    content: dict[Any, Any] = {
        "node": node_id, "first": 0, "next": 0, "window": window, "keep": keep, "closed": "", "opened": at,
        "read_at": at, "facts": json.dumps(facts or {}),
    }  # fmt: skip
    pipe = redis.pipeline(transaction=True)
    pipe.hset(name, mapping=content)
    pipe.expire(name, IDLE_S)
    pipe.zadd(OPEN_KEY, {f"{node_id}:{name}": at + IDLE_S})
    pipe.execute()
    return stream_id


def facts_of(stream_id: str) -> dict[str, Any] | None:
    """What it was opened with, and its node under `node_id`; None if it is not known."""
    node_id, facts = ops().redis.hmget(_name(stream_id), "node", "facts")
    if node_id is None or facts is None:
        return None
    found: dict[str, Any] = json.loads(facts)
    return found | {"node_id": int(node_id)}


def write(stream_id: str, node_id: int, offset: int, data: bytes, *, is_end: bool = False) -> Taken | None:
    """Bytes from the node, beginning at its byte `offset`. What is known already is left out; what does not fit is not
    taken. None: there is no such stream, or it is another node's.
    """
    given = (node_id, offset, data, int(is_end), int(time.time()), IDLE_S, LIFETIME_S)
    upto, is_closed = ops().redis.eval(_WRITE, 3, *_keys(stream_id), *given)
    return None if upto < 0 else Taken(upto, bool(is_closed))


def read(stream_id: str, after: int, max_bytes: int = READ_BYTES) -> Piece:
    """What comes after so many bytes, as far as it is there. Of a stream that keeps `all`, what was asked to come after
    is known to have arrived, and makes room.
    """
    given = (after, max_bytes, int(time.time()), IDLE_S, LIFETIME_S)
    found = ops().redis.eval(_READ, 3, *_keys(stream_id), *given)
    if found is None:
        return Piece(after, b"", is_gone=True)
    start, data, end, closed, seen = found
    is_silent = not closed and int(time.time()) - int(seen) > SILENT_S
    return Piece(start, data, bool(closed) and start + len(data) >= end, is_silent=is_silent)


def read_when_there(stream_id: str, after: int, wait_s: float, max_bytes: int = READ_BYTES) -> Piece:
    """The same, but waits for bytes or the end. Let go of the database before: this may take `wait_s`.

    Raises RedisError at once when Redis goes away; when it was wiped, the piece says that the stream is gone.
    """
    piece = read(stream_id, after, max_bytes)
    deadline = time.monotonic() + wait_s
    if _has_news(piece, after) or wait_s <= 0:
        return piece
    redis: Redis = ops().redis
    with redis.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
        channel.subscribe(_name(stream_id))
        while True:
            # Once more after subscribing: what came in between would wake nobody.
            piece = read(stream_id, after, max_bytes)
            left = deadline - time.monotonic()
            if _has_news(piece, after) or left <= 0 or draining.is_set():
                return piece
            _wait(channel, min(left, LOOK_S))


def close(stream_id: str, reason: str = "reader") -> None:
    """Nobody wants more. The node hears it with its next piece; what is there can still be read."""
    redis, name = ops().redis, _name(stream_id)
    if redis.hget(name, "closed") == b"":
        redis.hset(name, "closed", reason)
        redis.expire(name, IDLE_S)
        redis.publish(name, "")


def _has_news(piece: Piece, after: int) -> bool:
    return bool(piece.data) or piece.is_closed or piece.is_gone or piece.is_silent or piece.start != after


def _wait(channel: Any, timeout_s: float) -> None:
    """Until something is published, at most so long; a message of another kind may end it early, which does no harm."""
    channel.get_message(timeout=timeout_s)


def _name(stream_id: str) -> str:
    return f"stream:{stream_id}"


def _keys(stream_id: str) -> tuple[str, str, str]:
    return _name(stream_id), f"stream:{stream_id}:bytes", OPEN_KEY
