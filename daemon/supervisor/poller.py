"""Waits for many descriptors at once and calls whoever registered the one that has something to say."""

from __future__ import annotations

import contextlib
import select
from typing import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT


class Poller:
    """Of one thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}

    def add(self, fd: int, events: int, call: Callable[[], None]) -> None:
        """Call this when the descriptor is ready, until it is removed."""
        self._epoll.register(fd, events)
        self._calls[fd] = call

    def change(self, fd: int, events: int) -> None:
        """Wait for something else."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Fine if it was never added, or closed meanwhile."""
        if self._calls.pop(fd, None) is not None:
            # A descriptor that was closed has left by itself.
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def wait(self, timeout_s: float) -> None:
        """At most so long. Calls of descriptors that an earlier call removed are left out."""
        for fd, _ in self._epoll.poll(max(0.0, timeout_s)):
            call = self._calls.get(fd)
            if call is not None:
                call()

    def close(self) -> None:
        """Forget everything."""
        self._epoll.close()
