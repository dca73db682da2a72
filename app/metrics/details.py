"""How the parts behind a point are packed for the database, and unpacked again.

A list instead of an object with names, since names would be most of it: version, further totals, then the parts in the
order of the wire. Longer ones are deflated; the first byte tells (`[` or zlib's own).
"""

import json
import zlib
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from app.metrics.models import moment_of
from protocol.metrics import Detail, DiskIo, Gpu, Interface, Mount, Point

VERSION = 1
DEFLATED_FROM = 400
LEVEL = 1
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False).encode
Part = TypeVar("Part")


class Totals(NamedTuple):
    """What a point has beyond the columns of `metric_points`: seconds and bytes."""

    uptime_s: float | None
    memory_available: int | None
    memory_cached: int | None
    swap_total: int | None
    disk_total: int | None


class Parts(NamedTuple):
    """What was stored behind one point."""

    ts: int
    totals: Totals
    detail: Detail

    @property
    def moment(self) -> datetime:
        return moment_of(self.ts)

    @property
    def booted_at(self) -> datetime | None:
        uptime_s = self.totals.uptime_s
        return None if uptime_s is None else self.moment - timedelta(seconds=uptime_s)


def pack(point: Point, detail: Detail) -> bytes:
    totals = (point.uptime_s, point.memory_available, point.memory_cached, point.swap_total, point.disk_total)
    body = _encode((VERSION, totals, *detail)).encode()
    return zlib.compress(body, LEVEL) if len(body) >= DEFLATED_FROM else body


def unpack(ts: int, body: bytes) -> Parts:
    """Parts that a later version added fields to have those of this one in front, so the rest is left out."""
    text = body if body.startswith(b"[") else zlib.decompress(body)
    _version, totals, cores, mounts, interfaces, disk_io, gpu, missing = json.loads(text)[:8]
    detail = Detail(
        cores=None if cores is None else tuple(cores),
        mounts=_each(Mount._make, 6, mounts),
        interfaces=_each(Interface._make, 11, interfaces),
        disk_io=_each(DiskIo._make, 8, disk_io),
        gpu=_each(Gpu._make, 7, gpu),
        missing=tuple(missing),
    )
    return Parts(ts, Totals._make(totals), detail)


def _each(make: Callable[[Iterable[Any]], Part], width: int, rows: list[list[Any]] | None) -> tuple[Part, ...] | None:
    return None if rows is None else tuple([make(row[:width]) for row in rows])
