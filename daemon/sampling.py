"""The collector's thread: a measurement every interval into the spool, and every second one for those who look on."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Callable

from daemon.clock import Clock
from daemon.collector import Collector
from daemon.gpu import GpuReader
from daemon.measure import Logbook
from daemon.system import System
from protocol.metrics import Sample
from protocol.times import to_epoch

FIRST_S = 1.0
LIVE_S = 1.0
LIVE_KEPT = 5
GPU_LEAD_S = 2.0
BEFORE_CHECKIN_S = 0.5
STEP_TOLERANCE_S = 2.0

log = logging.getLogger("daemon.sampling")


class Sampler:
    """Measures just before the check-in that carries it, when both come equally often."""

    def __init__(
        self,
        system: System,
        clock: Clock,
        make_collector: Callable[[], Collector],
        gpu: GpuReader,
        logbook: Logbook,
        next_checkin: Callable[[], float],
        on_sample: Callable[[], None],
    ) -> None:
        self._system = system
        self._clock = clock
        self._make_collector = make_collector
        self._regular = make_collector()
        self._live: Collector | None = None
        self._gpu = gpu
        self._logbook = logbook
        self._next_checkin = next_checkin
        self._on_sample = on_sample
        self._changed = threading.Condition()
        self._is_stopping = False
        self._interval_s = 60.0
        self._live_max_s = 0.0
        self._live_until = 0.0
        self._samples: deque[Sample] = deque(maxlen=LIVE_KEPT)
        self._wall_ahead = system.wall() - system.boottime()
        self.last_duration_ms = 0.0
        self.alive_until = system.boottime() + 600.0
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    # ---- from other threads

    def start(self) -> None:
        """Go."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End after the measurement under way."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        self._gpu.close()

    def use(self, interval_s: float, live_max_s: float) -> None:
        """New settings; the next measurement already follows them."""
        with self._changed:
            self._interval_s, self._live_max_s = interval_s, live_max_s
            self._changed.notify_all()

    def watch_until(self, until: str | None) -> None:
        """Somebody looks on until then (the Manager's time); null: nobody does."""
        now = self._clock.manager_now()
        with self._changed:
            left = 0.0 if until is None or now is None else min(to_epoch(until) - now, self._live_max_s)
            self._live_until = self._system.boottime() + left
            self._changed.notify_all()

    def take_samples(self) -> list[Sample]:
        """What was measured since the last call, at most the last few."""
        with self._changed:
            samples = list(self._samples)
            self._samples.clear()
            return samples

    def is_watched(self) -> bool:
        """Whether live mode is on."""
        return self._system.boottime() < self._live_until

    # ---- the thread

    def _run(self) -> None:
        last = self._system.boottime() - self._interval_s + FIRST_S
        next_live = 0.0
        while True:
            with self._changed:
                due = self._due(last)
                now = self._system.boottime()
                wake = min(due, max(next_live, now) if self.is_watched() else due)
                if due - GPU_LEAD_S > now:
                    wake = min(wake, due - GPU_LEAD_S)
                if not self._is_stopping and wake > now:
                    self._changed.wait(wake - now)
                if self._is_stopping:
                    return
            self.alive_until = self._system.boottime() + 600.0
            now = self._system.boottime()
            try:
                if now >= self._due(last) - GPU_LEAD_S:
                    self._gpu.start()
                if now >= self._due(last):
                    last = now
                    self._measure()
                if self.is_watched() and now >= next_live:
                    next_live = now + LIVE_S if self._live is None else max(next_live + LIVE_S, now + LIVE_S / 2)
                    self._sample()
                elif not self.is_watched():
                    self._live = None
            except Exception:
                # A loop's iteration: the next measurement may succeed.
                log.exception("a measurement failed")

    def _due(self, last: float) -> float:
        """When to measure next: an interval after the last, shifted to just before a check-in that is near."""
        due = last + self._interval_s
        wanted = self._next_checkin() - BEFORE_CHECKIN_S
        return wanted if abs(wanted - due) < self._interval_s / 4 and wanted > last + self._interval_s / 2 else due

    def _measure(self) -> None:
        self._watch_the_clock()
        begun = time.perf_counter()
        point = self._regular.measure()
        self.last_duration_ms = (time.perf_counter() - begun) * 1000
        self._logbook.add_point(point)

    def _sample(self) -> None:
        if self._live is None:
            # The first reading is only what the next one is compared with.
            self._live = self._make_collector()
            return
        sample = self._live.sample()
        with self._changed:
            self._samples.append(sample)
        self._on_sample()

    def _watch_the_clock(self) -> None:
        ahead = self._system.wall() - self._system.boottime()
        step = ahead - self._wall_ahead
        self._wall_ahead = ahead
        if abs(step) > STEP_TOLERANCE_S:
            words = f"this host's clock was set by {step:+.1f} s"
            log.warning(words)
            self._logbook.add_event("clock.stepped", "info", words, {"step_s": round(step, 3)})
