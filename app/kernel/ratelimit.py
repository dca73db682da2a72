"""Counting requests and failures in fixed windows: in Redis for all processes, while it is away each alone."""

import ipaddress
import time
from contextlib import suppress
from dataclasses import dataclass
from math import ceil

from flask import current_app
from redis.exceptions import RedisError

from app.kernel.context import ops

ASK_REDIS_AGAIN_S = 2.0
"""A Redis that hangs costs one request its time-out, and not every one."""


@dataclass(frozen=True)
class Usage:
    """How often something happened in the present window, and when that window ends."""

    count: int
    resets_in_s: int


class LocalCounters:
    """What one process counts by itself when Redis is away; bounded, oldest windows are forgotten first."""

    MOST = 10_000

    def __init__(self) -> None:
        self.redis_is_away_until = 0.0
        self._counts: dict[str, tuple[int, float]] = {}

    def add(self, key: str, window_s: int, by: int) -> Usage:
        present = time.monotonic()
        count, ends = self._counts.get(key, (0, 0.0))
        if ends <= present:
            count, ends = 0, present + window_s
        if by:
            self._counts.pop(key, None)
            self._counts[key] = (count + by, ends)
            while len(self._counts) > self.MOST:
                self._counts.pop(next(iter(self._counts)))
        return Usage(count + by, max(1, ceil(ends - present)))

    def forget(self, key: str) -> None:
        self._counts.pop(key, None)


def neighbourhood(address: str) -> str:
    """What an address counts as: with IPv6 its /64, since whoever has one address there has all of them."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        return str(found.ipv4_mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return address


def count(key: str, window_s: int, by: int = 1) -> Usage:
    """Add to a counter and tell it; `by=0` only looks."""
    name = f"rate:{key}"
    local = _local()
    if time.monotonic() < local.redis_is_away_until:
        return local.add(name, window_s, by)
    try:
        return _count_in_redis(name, window_s, by)
    except RedisError:
        local.redis_is_away_until = time.monotonic() + ASK_REDIS_AGAIN_S
        return local.add(name, window_s, by)


def _count_in_redis(name: str, window_s: int, by: int) -> Usage:
    pipe = ops().redis.pipeline(transaction=False)
    if by:
        pipe.set(name, 0, ex=window_s, nx=True)
        pipe.incrby(name, by)
    else:
        pipe.get(name)
    pipe.ttl(name)
    *_, counted, ttl = pipe.execute()
    if by and ttl < 0:  # the window ended between the first two commands: a counter without an end would lock out
        ops().redis.expire(name, window_s)
        ttl = window_s
    return Usage(int(counted or 0), max(1, ttl))


def forget(key: str) -> None:
    _local().forget(f"rate:{key}")
    with suppress(RedisError):
        ops().redis.delete(f"rate:{key}")


def _local() -> LocalCounters:
    counters: LocalCounters = current_app.extensions.setdefault("local_counters", LocalCounters())
    return counters
