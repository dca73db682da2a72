"""Live mode: one-second samples of a host while somebody looks at it, in Redis for a minute, never stored."""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from app.kernel.clock import now
from app.kernel.context import ops
from app.kernel.wake import LIVE, wake_now
from protocol.codec import to_plain
from protocol.metrics import Sample
from protocol.times import to_text

WATCHED_S = 15
"""How long one look keeps a host in live mode; a page that stays open keeps looking."""
WATCHED = "live:watched"
KEPT_S = 120
MOST_KEPT = 120


def watch(node_id: int) -> None:
    """Somebody looks at this host now."""
    until = (now() + timedelta(seconds=WATCHED_S)).timestamp()
    pipe = ops().redis.pipeline(transaction=False)
    pipe.set(f"live:{node_id}:until", to_text(until), ex=WATCHED_S, get=True)
    pipe.zadd(WATCHED, {str(node_id): until})
    if pipe.execute()[0] is None:
        wake_now([node_id], LIVE)


def watched_nodes() -> set[int]:
    """All hosts that somebody looks at now. For gateways, which ask once a second and not at every poll."""
    redis, at = ops().redis, now().timestamp()
    redis.zremrangebyscore(WATCHED, "-inf", at)
    members: Any = redis.zrange(WATCHED, 0, -1)
    return {int(member) for member in members}


def wanted_until(node_id: int) -> str | None:
    """Until when samples are wanted, in the wire's form."""
    found: Any = ops().redis.get(f"live:{node_id}:until")
    return found.decode() if isinstance(found, bytes) else found


def keep(node_id: int, samples: Sequence[Sample]) -> None:
    """Each sample gets the next number, by which pages ask for what came after."""
    if not samples:
        return
    redis, name = ops().redis, f"live:{node_id}:samples"
    last = int(redis.incrby(f"live:{node_id}:number", len(samples)))
    first = last - len(samples) + 1
    pipe = redis.pipeline(transaction=False)
    pipe.rpush(name, *(json.dumps({"number": first + at} | to_plain(sample)) for at, sample in enumerate(samples)))
    pipe.ltrim(name, -MOST_KEPT, -1)
    pipe.expire(name, KEPT_S)
    pipe.expire(f"live:{node_id}:number", 86400)
    pipe.execute()


def samples_after(node_id: int, number: int) -> list[dict[str, Any]]:
    """What came after this number, oldest first."""
    rows: Any = ops().redis.lrange(f"live:{node_id}:samples", 0, -1)
    return [sample for row in rows if (sample := json.loads(row))["number"] > number]
