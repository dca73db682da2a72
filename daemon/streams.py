"""Streams towards the Manager: bytes of a log that somebody looks at just now, each over a connection of its own.

Nothing is kept: what the Manager has not taken is sent again from memory, a stream that it does not know is over.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, NamedTuple, Union

from daemon.backoff import Backoff
from daemon.clock import Clock
from daemon.commands import Call, Failed, Later
from daemon.connection import Connection, LinkDown, Refused
from daemon.errands import Errands
from daemon.identity import IdentityError
from daemon.logfollow import FollowedFiles, WholeFile
from daemon.logreader import Wish, current_only, read_logs
from daemon.system import System
from protocol.errors import FORBIDDEN_BY_HOST, TASK_FAILED, ProtocolError
from protocol.fields import WORD, Fields
from protocol.limits import BIG, STREAM_BYTES
from protocol.manifests import NAME
from protocol.streams import parse_stream_answer
from protocol.times import to_epoch

AT_ONCE = 4
READERS = 2
READERS_WAITING = 20
LOOK_S = 0.25
FULL_S = 0.25
KEEP_ALIVE_S = 10.0
LONGEST_S = 4 * 3600.0
LINES = 2000
FIRST_LINES = 1000
QUERY_CHARS = 200

DAEMON = "daemon"
"""The name under which the Daemon's own log is read."""

log = logging.getLogger("daemon.streams")

Source = Union[FollowedFiles, WholeFile]


class StreamOrder(NamedTuple):
    """Payload of `agent.stream_logs`."""

    name: str
    stream: str
    file: str | None
    query: str
    follow: bool
    lines: int
    max_bytes: int
    until: str


def parse_stream_order(payload: Fields) -> StreamOrder:
    """Read the payload; ProtocolError names what is wrong."""
    follow = payload.flag("follow", True)
    file = payload.text_or_none("file", 1024)
    if not follow and file is None:
        raise payload.refuse("file", "is required unless the log is followed")
    return StreamOrder(
        name=payload.text("name", 64, 1, NAME),
        stream=payload.text("stream", 64, 16, WORD),
        file=file,
        query=payload.text_or_none("query", QUERY_CHARS, 0) or "",
        follow=follow,
        lines=payload.integer_or_none("lines", 0, FIRST_LINES) or 0,
        max_bytes=payload.integer("max_bytes", 1, BIG),
        until=payload.time("until"),
    )


class Logs:
    """Handlers of `agent.logs` and `agent.stream_logs`. `log_paths`: which files may be read; None: no such agent.

    `forbids_log` says of an agent's log why the host does not let it be read.
    """

    def __init__(
        self,
        system: System,
        clock: Clock,
        log_paths: Callable[[str], list[str] | None],
        new_connection: Callable[[], Connection],
        forbids_log: Callable[[str, str], str | None],
    ) -> None:
        self._system = system
        self._clock = clock
        self._log_paths = log_paths
        self._forbids_log = forbids_log
        self._new_connection = new_connection
        self._readers = Errands("logs", READERS, READERS_WAITING)
        self._streams = Errands("stream", AT_ONCE, 0)
        self._senders: set[Sender] = set()

    def read(self, payload: Fields) -> Later:
        """Handler of `agent.logs`."""
        name = payload.text("name", 64, 1, NAME)
        lines = payload.integer_or_none("lines", 1, LINES)
        since = payload.time("since") if payload.has("since") else None
        query = payload.text_or_none("query", QUERY_CHARS, 0) or ""
        file = payload.text_or_none("file", 1024)
        wish = Wish(200 if lines is None else lines, query, None if since is None else to_epoch(since))
        return self._readers.later(lambda call: call.succeed(read_logs(self._system, self._paths(name, file), wish)))

    def stream(self, payload: Fields) -> Later:
        """Handler of `agent.stream_logs`."""
        order = parse_stream_order(payload)
        return self._streams.later(lambda call: self._send(order, call))

    def stop(self, timeout_s: float) -> None:
        """End what is under way."""
        self._readers.stop(0.0)
        self._streams.stopping.set()
        for sender in list(self._senders):
            sender.abort()
        self._streams.stop(timeout_s)

    def _paths(self, name: str, file: str | None) -> list[str]:
        paths = self._log_paths(name)
        if paths is None:
            raise Failed(TASK_FAILED, f"there is no agent {name} on this host")
        if file is None:
            return paths
        if file not in paths:
            words = self._forbids_log(name, file)
            if words is not None:
                raise Failed(FORBIDDEN_BY_HOST, words)
            raise Failed(TASK_FAILED, f"{file} is not a log of {name}")
        return [file]

    def _send(self, order: StreamOrder, call: Call) -> None:
        paths = self._paths(order.name, order.file)
        source: Source
        try:
            source = (
                FollowedFiles(current_only(paths), order.query, order.lines) if order.follow else WholeFile(paths[0])
            )
        except OSError as error:
            raise Failed(TASK_FAILED, f"{paths[0]}: {error.strerror}") from error
        now = self._clock.manager_now() or self._clock.best_now()
        left_s = min(LONGEST_S, to_epoch(order.until) - now)
        sender = Sender(order, source, self._new_connection, self._streams.stopping, time.monotonic() + left_s)
        self._senders.add(sender)
        try:
            reason = sender.run()
        finally:
            self._senders.discard(sender)
            source.close()
        call.succeed({"bytes": sender.offset, "reason": reason})


class Sender:
    """One stream. Knows how far the Manager has it, and goes on from there after every trouble."""

    def __init__(
        self,
        order: StreamOrder,
        source: Source,
        new_connection: Callable[[], Connection],
        stopping: threading.Event,
        deadline: float,
    ) -> None:
        self._order = order
        self._source = source
        self._new_connection = new_connection
        self._stopping = stopping
        self._deadline = deadline
        self._connection: Connection | None = None
        self._backoff = Backoff()
        self._waiting = b""
        self.offset = 0
        """How many bytes the Manager has."""

    def run(self) -> str:
        """Send until somebody or something ends it; why it ended."""
        reason: str | None = None
        next_word = give_up = 0.0
        try:
            while not self._stopping.is_set():
                if reason is None:
                    reason = self._fill()
                    give_up = time.monotonic() + KEEP_ALIVE_S
                if not self._waiting and reason is None and time.monotonic() < next_word:
                    self._stopping.wait(LOOK_S)
                    continue
                next_word = time.monotonic() + KEEP_ALIVE_S
                is_end = reason is not None and len(self._waiting) <= STREAM_BYTES
                ended, is_taken = self._post(is_end)
                if ended is not None:
                    return ended
                if reason is not None and ((is_end and is_taken) or time.monotonic() > give_up):
                    return reason
            return "stopped"
        finally:
            self._hang_up()

    def abort(self) -> None:
        """From another thread: wait for nothing any more."""
        connection = self._connection
        if connection is not None:
            connection.abort()

    def _fill(self) -> str | None:
        """Take what the source has; why there will be no more, if there will not."""
        if time.monotonic() >= self._deadline:
            return "time"
        room = self._order.max_bytes - self.offset - len(self._waiting)
        if len(self._waiting) < STREAM_BYTES:
            self._waiting += self._source.read(min(room, STREAM_BYTES))[:room]
        if self.offset + len(self._waiting) >= self._order.max_bytes:
            return "full"
        return "end" if self._source.is_over else None

    def _post(self, is_end: bool) -> tuple[str | None, bool]:
        """One piece: a word if there is no sense in going on, and whether the Manager has taken all of it."""
        piece = self._waiting[:STREAM_BYTES]
        path = f"streams/{self._order.stream}?offset={self.offset}" + ("&end=1" if is_end else "")
        try:
            self._connection = connection = self._connection or self._new_connection()
            answer = parse_stream_answer(connection.post_bytes(path, piece))
        except Refused as error:
            if error.refusal.status not in (429, 503):
                return ("gone" if error.refusal.status == 404 else f"refused: {error.refusal.message}"), False
            self._pause(self._backoff.delay(error.refusal.retry_after_s))
            return None, False
        except (LinkDown, IdentityError, ProtocolError, ValueError) as error:
            log.info("a stream waits for the link: %s", error)
            self._hang_up()
            self._pause(self._backoff.delay())
            return None, False
        self._backoff.success()
        taken = answer.next - self.offset
        if not 0 <= taken <= len(piece):
            return "gone", False
        self._waiting = self._waiting[taken:]
        self.offset = answer.next
        is_whole = taken == len(piece)
        if answer.closed and not (is_end and is_whole):
            return "closed", True
        if piece and not taken:
            # Whoever reads is slower than we are.
            self._pause(FULL_S)
        return None, is_whole

    def _pause(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
