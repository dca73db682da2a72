"""Held polls: who waits, and how they are woken. A waiter owns a greenlet and an entry here, no connection to anything.

Whoever waits registers first, then looks in the database, then waits; so nothing committed in between is missed. One
greenlet listens to Redis; another asks the database once a second, so that a lost message or a dead Redis costs a
second and not a poll. Where many hosts are woken at once, a third one lets them go a few at a time.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from flask import Flask
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.commands.models import Command
from app.kernel.clock import now
from app.kernel.db import db, in_transaction, is_away, reading, set_reads_only
from app.kernel.errors import AppError
from app.kernel.wake import CHANNEL, COMMAND, LIVE, REVOKED, read_wake
from app.link import live
from app.link.identity import KnownPeers
from app.link.presence import note_presence
from app.nodes.actions import note_lost_connections
from app.nodes.models import Revocation
from protocol.states import QUEUED

log = logging.getLogger(__name__)
SWEEP_S = 1.0
GONE, REPLACED, DRAINING = "gone", "replaced", "draining"
PRESENCE_S = 5.0
ANSWERED_AT_ONCE = 50
"""Of hosts that are woken together, so many are answered at a time: more would only wait for the database, and keep
everybody else waiting for it too."""
PACE_S = 0.005
LOOK_BACK = timedelta(seconds=10)
"""Transactions do not commit in the order of their times: each sweep looks this far back again."""


class Waiter:
    """One held poll."""

    __slots__ = ("instance", "node_id", "reasons", "signal")

    def __init__(self, node_id: int, instance: str) -> None:
        self.node_id, self.instance = node_id, instance
        self.signal = threading.Event()
        self.reasons: set[str] = set()

    def wake(self, why: str) -> None:
        self.reasons.add(why)
        self.signal.set()


class Waiters:
    """The held polls of this process, one for each node at the most: a second one ends the first."""

    def __init__(self) -> None:
        self._held: dict[int, Waiter] = {}
        self._lost: dict[int, datetime] = {}
        self._backlog: dict[int, None] = {}
        self._answered: set[Waiter] = set()
        self.has_backlog, self.has_none = threading.Event(), threading.Event()
        self.has_none.set()
        self.known = KnownPeers()
        self.watched: set[int] = set()
        """Hosts that somebody looks at, as of a second ago."""

    def __len__(self) -> int:
        return len(self._held)

    def enter(self, node_id: int, instance: str) -> Waiter:
        waiter = Waiter(node_id, instance)
        self._lost.pop(node_id, None)
        earlier = self._held.get(node_id)
        self._held[node_id] = waiter
        if earlier is not None:
            earlier.wake(REPLACED)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        self._answered.discard(waiter)
        if self._held.get(waiter.node_id) is waiter:
            del self._held[waiter.node_id]
            if GONE in waiter.reasons:
                self._lost[waiter.node_id] = now()

    def take_lost(self) -> dict[int, datetime]:
        """Nodes whose connection broke while it was held and which have not come back yet, each told once."""
        lost, self._lost = self._lost, {}
        return lost

    def wake(self, node_ids: Iterable[int], why: str) -> None:
        held = [node_id for node_id in node_ids if node_id in self._held]
        if why == COMMAND and len(held) > ANSWERED_AT_ONCE:
            self._backlog |= dict.fromkeys(held)
            self.has_none.clear()
            self.has_backlog.set()
            return
        for node_id in held:
            self._held[node_id].wake(why)

    def wake_some(self) -> None:
        """Of many that have commands, as many as those that were woken before have left room for."""
        while self._backlog and len(self._answered) < ANSWERED_AT_ONCE:
            node_id = next(iter(self._backlog))
            del self._backlog[node_id]
            if waiter := self._held.get(node_id):
                self._answered.add(waiter)
                waiter.wake(COMMAND)
        if not self._backlog:
            self.has_backlog.clear()
            self.has_none.set()

    def wake_others(self, node_id: int, instance: str) -> None:
        """A new instance of a Daemon was accepted: a poll that an older one still holds is over."""
        waiter = self._held.get(node_id)
        if waiter is not None and waiter.instance != instance:
            waiter.wake(REPLACED)

    def wake_all(self, why: str) -> None:
        for waiter in list(self._held.values()):
            waiter.wake(why)


class Watch:
    """The greenlets of a gateway process that wake its waiters."""

    def __init__(self, app: Flask, waiters: Waiters, redis: Redis) -> None:
        self._app, self._waiters, self._redis = app, waiters, redis
        self._revocations_seen: set[int] = set()
        self._next_presence = 0.0
        self._is_told = False
        self.started_at: datetime = now()

    def start(self) -> None:
        for run in (self._listen, self._sweep, self._pace):
            threading.Thread(target=run, daemon=True, name=run.__name__).start()

    def _listen(self) -> None:
        while True:
            self._guarded(self._listen_once)
            time.sleep(SWEEP_S)

    def _listen_once(self) -> None:
        with self._redis.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
            channel.subscribe(CHANNEL)
            self._waiters.wake_all("resubscribed")
            self._is_told = True
            try:
                while True:
                    message = channel.get_message(timeout=5.0)
                    wake = read_wake(message["data"]) if message else None
                    if wake is not None:
                        self._woken(*wake)
            finally:
                # The sweep sees what was revoked, but not what a newer certificate took the place of.
                self._is_told = False
                self._waiters.known.drop_all()

    def _woken(self, why: str, node_ids: list[int]) -> None:
        if why == REVOKED:
            self._waiters.known.drop(set(node_ids))
        self._waiters.wake(node_ids, why)

    def _pace(self) -> None:
        while True:
            self._waiters.has_backlog.wait()
            self._waiters.wake_some()
            time.sleep(PACE_S)

    def _sweep(self) -> None:
        while True:
            self._guarded(self._sweep_once)
            self._guarded(self._look_for_watched)
            time.sleep(SWEEP_S)

    def _sweep_once(self) -> None:
        with self._app.app_context():
            try:
                with reading():
                    self._look()
                if lost := self._waiters.take_lost():
                    set_reads_only(False)
                    in_transaction(db.session(), lambda: note_lost_connections(db.session(), lost))
                if time.monotonic() >= self._next_presence:
                    set_reads_only(False)
                    in_transaction(db.session(), lambda: note_presence(db.session(), self.started_at))
                    self._next_presence = time.monotonic() + PRESENCE_S
            finally:
                db.session.remove()

    def _look(self) -> None:
        session, since = db.session(), now() - LOOK_BACK
        commanded = select(Command.node_id).where(Command.issued_at > since, Command.state == QUEUED).distinct()
        self._waiters.wake(session.scalars(commanded).all(), COMMAND)
        fresh = session.execute(select(Revocation.id, Revocation.node_id).where(Revocation.revoked_at > since)).all()
        unseen = {node_id for row_id, node_id in fresh if row_id not in self._revocations_seen}
        self._revocations_seen = {row_id for row_id, _node_id in fresh}
        if unseen:
            self._woken(REVOKED, list(unseen))
        if self._is_told:
            self._waiters.known.guard()

    def _look_for_watched(self) -> None:
        with self._app.app_context():
            watched = live.watched_nodes()
        self._waiters.wake(watched - self._waiters.watched, LIVE)
        self._waiters.watched = watched

    def _guarded(self, work: Callable[[], Any]) -> None:
        """One round of a loop that must not end. What keeps it from its work for now is one line, not a trace."""
        try:
            work()
        except (RedisError, AppError) as error:
            log.warning("the watch of held polls waits: %s", type(error).__name__)
        except SQLAlchemyError as error:
            if not is_away(error):
                log.exception("the watch of held polls failed")
        except Exception:
            log.exception("the watch of held polls failed")
