"""Builds a check-in from what this host knows, and does what the answer says."""

from __future__ import annotations

import hashlib
import logging
from typing import Callable, NamedTuple

from daemon.capabilities import CapabilityFile
from daemon.clock import Clock
from daemon.measure import Logbook
from daemon.spool import Item, Spool
from daemon.state import InstanceState, store_settings
from daemon.system import System
from daemon.version import VERSION
from protocol.checkin import AgentStatus, CheckIn, CheckInAnswer, Dropped
from protocol.checkin import Clock as ClockReport
from protocol.codec import canonical
from protocol.inventory import Inventory, Machine, inventory_hash
from protocol.settings import Settings
from protocol.times import to_text

FULL_BYTES = 512 * 1024
LEAST_BYTES = 8 * 1024
FULL_RECORDS = 200

# What is left out after the Manager called a check-in invalid: nothing, the optional parts, all but one record.
WHOLE, LEAN, SINGLE = range(3)

log = logging.getLogger("daemon.checkin")


class Sent(NamedTuple):
    """A check-in and which records of the spool are in it."""

    message: CheckIn
    ids: list[str]


class CheckIns:
    """One at a time, from the link's thread."""

    def __init__(
        self,
        system: System,
        state_dir: str,
        state: InstanceState,
        clock: Clock,
        spool: Spool,
        logbook: Logbook,
        capabilities: CapabilityFile,
        machine: Machine,
        read_inventory: Callable[[], Inventory],
        settings: Settings,
        on_settings: Callable[[Settings], None],
        read_agents: Callable[[], tuple[AgentStatus, ...]] = lambda: (),
    ) -> None:
        self._system = system
        self._state_dir = state_dir
        self._state = state
        self._clock = clock
        self._spool = spool
        self._logbook = logbook
        self._capabilities = capabilities
        self._machine = machine
        self._read_inventory = read_inventory
        self.settings = settings
        self._on_settings = on_settings
        self._settings_error: str | None = None
        self._known_inventory: str | None = None
        self._wants_inventory = False
        self._read_agents = read_agents
        self._known_agents: str | None = None
        self._challenge: str | None = None
        self._is_audit_doubtful = False
        self._max_bytes = FULL_BYTES
        self._cut = WHOLE
        self._round_trip_ms: int | None = None

    def build(self) -> Sent:
        """The next check-in; each call is one more attempt."""
        state = self._state
        state.sequence += 1
        if self._capabilities.refresh():
            allowed = self._capabilities.current
            self._logbook.add_event("capabilities.changed", "info", f"capabilities: {allowed.state}", allowed._asdict())
        items: list[Item] = []
        if self._clock.anchor is not None:
            # Before the first answer of a boot the stamps may be years off; that answer puts them right.
            items = self._spool.take(self._max_bytes, 1 if self._cut == SINGLE else FULL_RECORDS)
        batches, events, senseless = self._logbook.read(items)
        if senseless:
            self._spool.settle([], senseless)
        inventory = self._read_inventory()
        digest = inventory_hash(inventory)
        is_inventory_due = self._wants_inventory or (self._known_inventory or digest) != digest
        agents = self._read_agents()
        agents_hash = hashlib.sha256(canonical(agents).encode("utf-8")).hexdigest()
        losses = self._spool.losses()
        message = CheckIn(
            instance_id=state.instance_id,
            generation=state.generation,
            sequence=state.sequence,
            lease=state.lease,
            challenge=self._challenge,
            machine=self._machine,
            sent_at=to_text(self._system.wall()),
            uptime_s=round(self._system.boottime(), 3),
            daemon_version=VERSION,
            settings_version=self.settings.version,
            settings_error=self._settings_error,
            inventory_hash=digest,
            inventory=inventory if is_inventory_due and self._cut == WHOLE else None,
            metrics=tuple(batches),
            pending_points=max(0, self._spool.pending() - len(batches) - len(events)),
            dropped=Dropped(
                losses.epoch, losses.records, None if losses.since_wall is None else to_text(losses.since_wall)
            ),
            events=tuple(events),
            agents_hash=agents_hash,
            agents=None if self._known_agents == agents_hash or self._cut != WHOLE else agents,
            capabilities=self._capabilities.current,
            clock=ClockReport(self._clock.offset_ms(), self._round_trip_ms),
            audit_head=state.audit_head,
        )
        return Sent(message, [batch.id for batch in batches] + [event.id for event in events])

    def take(self, sent: Sent, answer: CheckInAnswer, round_trip_s: float) -> None:
        """Do what the answer says: the lease first and durably, then forget what is safe."""
        if answer.lease is not None:
            self._state.lease = answer.lease
        self._take_audit_head(answer)
        self._state.anchor, self._state.first_anchor = self._clock.anchor, self._clock.first
        self._state.store()
        known = set(sent.ids)
        self._spool.settle(
            [name for name in answer.ack if name in known], [batch.id for batch in answer.refused if batch.id in known]
        )
        for batch in answer.refused:
            log.warning("the Manager will never take %s: %s", batch.id, batch.reason)
        self._known_inventory = sent.message.inventory_hash
        self._wants_inventory = answer.want_inventory
        self._known_agents = None if answer.want_agents else sent.message.agents_hash
        self._challenge = None
        self._round_trip_ms = int(round_trip_s * 1000)
        self._max_bytes = min(FULL_BYTES, self._max_bytes * 2)
        self._cut = WHOLE
        if answer.settings is not None and answer.settings.version != self.settings.version:
            self._apply(answer.settings)
        self._logbook.expire(self.settings.spool.max_age_s)

    def enrolled(self, settings: Settings) -> None:
        """A new identity brings settings of its own, and a Manager that knows nothing of this host yet."""
        self._known_inventory = None
        self._known_agents = None
        self._challenge = None
        self._apply(settings)

    def settings_refused(self, problem: str) -> None:
        """The old ones stay in force; the next check-in says why."""
        if self._settings_error is None:
            log.error("the Manager's settings are not applied: %s", problem)
        self._settings_error = problem[:500]

    def has_backlog(self, answer: CheckInAnswer) -> bool:
        """Whether the answer made progress and more is left than was sent."""
        return bool(answer.ack or answer.refused) and self._spool.pending() > 0

    def challenged(self, challenge: str) -> None:
        """The Manager wants to know that this is no late copy of a request."""
        self._challenge = challenge

    def too_large(self) -> None:
        """Send less at once."""
        self._max_bytes = max(LEAST_BYTES, self._max_bytes // 2)

    def invalid(self, sent: Sent, message: str) -> None:
        """The Manager does not understand. Leave things out until it does; a record refused alone is given up."""
        if self._cut == SINGLE:
            self._spool.settle([], sent.ids)
            self._cut = WHOLE
        else:
            self._cut += 1
        log.error("the Manager calls the check-in invalid: %s", message)

    def _apply(self, settings: Settings) -> None:
        try:
            store_settings(self._system, self._state_dir, settings)
            self._settings_error = None
        except OSError as error:
            self._settings_error = f"applied, but not stored: {error}"[:500]
        self.settings = settings
        self._on_settings(settings)
        log.info("settings version %d are in force", settings.version)

    def _take_audit_head(self, answer: CheckInAnswer) -> None:
        head, known = answer.audit_head, self._state.audit_head
        if head is None:
            return
        if known is None or head.sequence > known.sequence:
            self._state.audit_head = head
            self._is_audit_doubtful = False
        elif head != known and not self._is_audit_doubtful:
            self._is_audit_doubtful = True
            was, now = f"{known.sequence} ({known.hash[:12]})", f"{head.sequence} ({head.hash[:12]})"
            words = f"the audit chain was at {was} and is now at {now}"
            self._logbook.add_event("audit.went_back", "critical", words)
