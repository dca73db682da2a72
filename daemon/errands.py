"""Short-lived threads for what would hold up the main one; none of them exists while there is nothing to do."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Callable

from daemon.commands import Call, Failed, Later
from protocol.errors import AGENT_BUSY, BAD_PAYLOAD, TASK_FAILED, ProtocolError

log = logging.getLogger("daemon.errands")


class Errands:
    """At most `most` at once, at most `waiting` more in turn; beyond that they are refused."""

    def __init__(self, name: str, most: int, waiting: int) -> None:
        self._name = name
        self._most = most
        self._most_waiting = waiting
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._threads: set[threading.Thread] = set()
        self.stopping = threading.Event()

    def start(self, work: Callable[[], None]) -> bool:
        """Have it done. False: too much is going on, or the Daemon stops."""
        with self._lock:
            if self.stopping.is_set():
                return False
            if len(self._threads) < self._most:
                thread = threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True)
                self._threads.add(thread)
                thread.start()
                return True
            if len(self._waiting) < self._most_waiting:
                self._waiting.append(work)
                return True
            return False

    def later(self, work: Callable[[Call], None]) -> Later:
        """The same for a command: whatever `work` raises ends it."""

        def begin(call: Call) -> None:
            if not self.start(lambda: _guarded(work, call)):
                call.fail(AGENT_BUSY, "too much of this is going on at once; try again")

        return Later(begin)

    def stop(self, timeout_s: float) -> None:
        """Tell them, and wait for them."""
        with self._lock:
            self.stopping.set()
            self._waiting.clear()
            threads = list(self._threads)
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, first: Callable[[], None]) -> None:
        work: Callable[[], None] | None = first
        while work is not None:
            try:
                work()
            except Exception:
                # A loop's iteration: the next one may succeed.
                log.exception("%s stumbled", self._name)
            with self._lock:
                work = self._waiting.popleft() if self._waiting else None
                if work is None:
                    self._threads.discard(threading.current_thread())


def _guarded(work: Callable[[Call], None], call: Call) -> None:
    try:
        work(call)
    except Failed as error:
        call.fail(error.error_code, str(error), error.data)
    except ProtocolError as error:
        call.fail(BAD_PAYLOAD, str(error))
    except Exception as error:
        # A command's mistake must end it, not the thread.
        log.exception("a command failed", extra={"command": call.id, "kind": call.kind})
        call.fail(TASK_FAILED, f"{type(error).__name__}: {error}")
