"""What an instance of the Daemon must remember of itself: generation, lease, anchors of time, the audit head."""

from __future__ import annotations

import logging
from typing import Any

from daemon.clock import Anchor
from daemon.disk import SlotFile, write_file
from daemon.system import System
from protocol.checkin import AuditHead
from protocol.codec import decode, encode
from protocol.errors import ProtocolError
from protocol.fields import Fields
from protocol.limits import ANSWER_BYTES
from protocol.settings import DEFAULTS, Settings, parse_settings

log = logging.getLogger("daemon.state")


class InstanceState:
    """The slot file behind the lease. A new instance raises the generation before it says anything."""

    def __init__(self, system: System, directory: str, boot_id: str) -> None:
        self._slots = SlotFile(system, directory, "instance")
        kept = self._slots.load()
        self.is_new = kept is None
        kept = kept or {}
        self.instance_id = system.random_bytes(16).hex()
        self.boot_id = boot_id
        self.generation = int(kept.get("generation", 0)) + 1
        self.sequence = 0
        self.lease: str | None = kept.get("lease")
        self.audit_head = AuditHead(*kept["audit_head"]) if kept.get("audit_head") else None
        is_same_boot = kept.get("boot_id") == boot_id
        self.anchor = Anchor(*kept["anchor"]) if is_same_boot and kept.get("anchor") else None
        self.first_anchor = Anchor(*kept["first_anchor"]) if is_same_boot and kept.get("first_anchor") else None
        self.store()

    def store(self) -> None:
        """Durable when this returns. A disk that refuses is told in the log; the Manager sorts out what follows."""
        content: dict[str, Any] = {
            "generation": self.generation,
            "lease": self.lease,
            "boot_id": self.boot_id,
            "anchor": self.anchor,
            "first_anchor": self.first_anchor,
            "audit_head": self.audit_head,
        }
        try:
            self._slots.store(content)
        except OSError as error:
            log.error("cannot store the lease: %s", error)  # noqa: TRY400

    def forget_identity(self) -> None:
        """A new node starts without a lease."""
        self.lease = None
        self.store()

    def close(self) -> None:
        """Close the file."""
        self._slots.close()


def load_settings(system: System, directory: str) -> Settings:
    """The last good set from the Manager; the defaults if there is none or it is damaged."""
    path = f"{directory}/{_SETTINGS}"
    if not system.exists(path):
        return DEFAULTS
    try:
        return parse_settings(Fields(decode(system.read(path), ANSWER_BYTES)))
    except (OSError, ProtocolError) as error:
        log.warning("the stored settings are damaged (%s); the Manager will send them again", error)
        return DEFAULTS


def store_settings(system: System, directory: str, settings: Settings) -> None:
    """Keep a good set over restarts. OSError if the disk refuses."""
    write_file(system, directory, _SETTINGS, encode(settings))


_SETTINGS = "settings.json"
