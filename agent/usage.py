"""What this process itself uses: CPU since the last look, resident memory now."""

from __future__ import annotations

import os
import resource
import time
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Used(NamedTuple):
    """CPU in percent of one core, resident bytes."""

    cpu_percent: float
    memory_bytes: int


class Usage:
    """Of the agent alone; its tasks are the host's business."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._spent = _spent_s()

    def now(self) -> Used:
        """Since the last call that was at least a second ago."""
        now, spent = time.monotonic(), _spent_s()
        percent = round(100.0 * (spent - self._spent) / max(0.001, now - self._at), 1)
        if now - self._at >= 1.0:
            self._at, self._spent = now, spent
        return Used(percent, _resident_bytes())


def _spent_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * _PAGE
