"""The Manager's time as this host knows it: anchored on the boot clock, which nobody can set."""

from __future__ import annotations

from typing import NamedTuple

from daemon.system import System
from protocol.times import to_epoch, to_text

AGREE_S = 2.0


class Anchor(NamedTuple):
    """The Manager said `manager_s` when this boot was `boottime_s` old."""

    manager_s: float
    boottime_s: float

    def at(self, boottime_s: float) -> float:
        """The Manager's time at another moment of the same boot."""
        return self.manager_s + boottime_s - self.boottime_s


class Clock:
    """Hands out times. `first`, this boot's first anchor, never moves: corrected stamps are the same in a retry."""

    def __init__(self, system: System, boot_id: str, anchor: Anchor | None = None, first: Anchor | None = None) -> None:
        self._system = system
        self.boot_id = boot_id
        self.anchor = anchor
        self.first = first

    def learn(self, manager_s: float) -> None:
        """An answer told the Manager's time, just now."""
        self.anchor = Anchor(manager_s, self._system.boottime())
        if self.first is None:
            self.first = self.anchor

    def learn_text(self, manager_time: str | None) -> None:
        """As `learn`, from an answer that may not say it, or only pretend to."""
        try:
            self.learn(to_epoch(manager_time or ""))
        except ValueError:
            return

    def manager_now(self) -> float | None:
        """The Manager's time; None before the first answer of this boot."""
        return None if self.anchor is None else self.anchor.at(self._system.boottime())

    def best_now(self) -> float:
        """The Manager's time if it is known and the wall clock disagrees with it, else the wall clock."""
        wall, manager = self._system.wall(), self.manager_now()
        return wall if manager is None or abs(manager - wall) <= AGREE_S else manager

    def offset_ms(self) -> int | None:
        """How far the Manager is ahead of the wall clock."""
        manager = self.manager_now()
        return None if manager is None else int((manager - self._system.wall()) * 1000)

    def corrected(self, stamp_s: float, boot_id: str, boottime_s: float) -> float:
        """The stamp of a point measured before the Manager's time was known, if it was in this boot and far off."""
        if self.first is None or boot_id != self.boot_id:
            return stamp_s
        true_s = self.first.at(boottime_s)
        return stamp_s if abs(true_s - stamp_s) <= AGREE_S else true_s

    def text(self) -> str:
        """`best_now` for the wire."""
        return to_text(self.best_now())
