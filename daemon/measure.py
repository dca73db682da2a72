"""Puts measurements and events into the spool and takes them out as wire messages, with the stamp they will keep."""

from __future__ import annotations

from typing import Any

from daemon.clock import Clock
from daemon.spool import EVENT, METRICS, Item, Spool
from daemon.system import System
from protocol.checkin import Event, parse_event
from protocol.codec import decode, encode
from protocol.errors import ProtocolError
from protocol.fields import Fields
from protocol.limits import MIB
from protocol.metrics import Batch, Point, parse_point
from protocol.times import to_epoch, to_text


class Logbook:
    """Everything the Manager is to be told, in the order it happened."""

    def __init__(self, system: System, spool: Spool, clock: Clock) -> None:
        self._system = system
        self._spool = spool
        self._clock = clock

    def add_point(self, point: Point) -> None:
        """A measurement."""
        self._spool.append(METRICS, encode(self._stamped(point)))

    def add_event(
        self, kind: str, severity: str, message: str, data: dict[str, Any] | None = None, ago_s: float = 0.0
    ) -> None:
        """Something that happened on this host, `ago_s` before now but in this boot."""
        stamp = to_text(self._clock.best_now() - ago_s)
        record = self._stamped(Event("new", stamp, kind, severity, message[:1000], data))
        record["boottime_s"] -= ago_s
        self._spool.append(EVENT, encode(record))

    def read(self, items: list[Item]) -> tuple[list[Batch], list[Event], list[str]]:
        """Items of the spool as messages; the third list names those that make no sense and will never be sent."""
        batches: list[Batch] = []
        events: list[Event] = []
        senseless: list[str] = []
        for item in items:
            message = self._message(item)
            if isinstance(message, Batch):
                batches.append(message)
            elif isinstance(message, Event):
                events.append(message)
            else:
                senseless.append(item.id)
        return batches, events, senseless

    def expire(self, max_age_s: float) -> None:
        """Drop what is older than this by the Manager's time; without that time nothing is too old."""
        now = self._clock.manager_now()
        if now is None:
            return
        limit = now - max_age_s

        def is_too_old(payload: bytes) -> bool:
            try:
                record = Fields(decode(payload, MIB))
                return to_epoch(self._final_stamp(record, record.inner("content").time("timestamp"))) < limit
            except ProtocolError:
                return True

        self._spool.expire(is_too_old)

    def _message(self, item: Item) -> Batch | Event | None:
        try:
            record = Fields(decode(item.payload, MIB))
            content = record.inner("content")
            if item.kind == METRICS:
                point = parse_point(content)
                stamp = self._final_stamp(record, point.timestamp)
                return Batch(item.id, (point._replace(timestamp=stamp),))
            if item.kind == EVENT:
                event = parse_event(content)
                return event._replace(id=item.id, timestamp=self._final_stamp(record, event.timestamp))
        except ProtocolError:
            return None
        return None

    def _stamped(self, content: Any) -> dict[str, Any]:
        return {
            "boot_id": self._clock.boot_id,
            "boottime_s": self._system.boottime(),
            "is_final": self._clock.anchor is not None,
            "content": content,
        }

    def _final_stamp(self, record: Fields, stamp: str) -> str:
        if record.flag("is_final"):
            return stamp
        boottime_s = record.number("boottime_s", 0, 1e10)
        corrected = self._clock.corrected(to_epoch(stamp), record.text("boot_id"), boottime_s)
        return stamp if corrected == to_epoch(stamp) else to_text(corrected)
