"""The one thread: waits for descriptors, signals and times, and calls whoever asked. Knows nothing of tasks."""

from __future__ import annotations

import heapq
import logging
import os
import selectors
import signal
import time
from collections import deque
from typing import Any, Callable

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

log = logging.getLogger("agent.loop")


class Timer:
    """Something to be called later, unless it is cancelled."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], Any]) -> None:
        self.callback: Callable[[], Any] | None = callback

    def cancel(self) -> None:
        """Fine at any time, also when it has gone off."""
        self.callback = None


class Loop:
    """Callbacks must not block. One that raises is logged and does not stop the others."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._soon: deque[Callable[[], Any]] = deque()
        self._signals: dict[int, Callable[[], Any]] = {}
        self._seen: deque[int] = deque()
        self._is_over = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.watch(self._wake_read, READ, self._drain)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    # ---- asking

    def watch(self, fd: int, events: int, callback: Callable[[int], Any]) -> None:
        """Call back with what is possible whenever it is; again to change what is waited for."""
        try:
            self._selector.modify(fd, events, callback)
        except KeyError:
            self._selector.register(fd, events, callback)

    def forget(self, fd: int) -> None:
        """No more calls for this descriptor; before it is closed."""
        try:
            self._selector.unregister(fd)
        except KeyError:
            return

    def later(self, delay_s: float, callback: Callable[[], Any]) -> Timer:
        """Call once, after a while."""
        timer = Timer(callback)
        self._count += 1
        heapq.heappush(self._timers, (time.monotonic() + delay_s, self._count, timer))
        return timer

    def soon(self, callback: Callable[[], Any]) -> None:
        """Call in this round, once everything that is ready now was dealt with."""
        self._soon.append(callback)

    def on_signal(self, number: int, callback: Callable[[], Any]) -> None:
        """Call in the loop, not in the signal handler."""
        self._signals[number] = callback
        signal.signal(number, lambda found, _: self._seen.append(found))

    def stop(self) -> None:
        """Leave `run` after this round."""
        self._is_over = True

    # ---- running

    def run(self) -> None:
        """Until somebody stops it."""
        while not self._is_over:
            self.round(self._patience())

    def round(self, patience_s: float | None) -> None:
        """Wait for something, at most that long, and deal with all of it."""
        for key, events in self._selector.select(patience_s):
            self._call(key.data, events)
        while self._seen:
            self._call(self._signals[self._seen.popleft()])
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                self._call(callback)
        while self._soon:
            self._call(self._soon.popleft())

    def _patience(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if self._soon or self._seen:
            return 0.0
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _call(self, callback: Callable[..., Any], *arguments: int) -> None:
        try:
            callback(*arguments)
        except Exception:
            # A loop's iteration: whatever went wrong for one caller must not end the agent.
            log.exception("a callback failed")

    def _drain(self, _: int) -> None:
        try:
            while len(os.read(self._wake_read, 4096)) == 4096:
                pass
        except BlockingIOError:
            return
