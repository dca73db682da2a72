"""What should run and what should not, durable over crash and reboot; the Manager's newer words win over older ones."""

from __future__ import annotations

import json
import logging
from typing import NamedTuple

from daemon.disk import write_file
from daemon.system import System
from protocol.manifests import DESIRED

# No agent can have this name.
_NAME = "_desired.json"
_MAX_BYTES = 1024 * 1024

log = logging.getLogger("daemon.supervisor")


class Desire(NamedTuple):
    """`seq` is the Manager's number of the change; the host's own start values have -1."""

    desired: str
    seq: int


class Desires:
    """One small file, written whole before anything is done about it."""

    def __init__(self, system: System, directory: str) -> None:
        self._system = system
        self._directory = directory
        self._known: dict[str, Desire] = {}
        self.is_damaged = False
        self._load()

    def find(self, name: str) -> Desire | None:
        """What is wanted of an agent; None if nobody ever said."""
        return self._known.get(name)

    def is_old(self, name: str, seq: int) -> bool:
        """Whether a newer change was seen already."""
        known = self._known.get(name)
        return known is not None and seq < known.seq

    def put(self, name: str, desired: str, seq: int) -> None:
        """On the disk when this returns. A disk that refuses costs durability, not the order."""
        fresh = Desire(desired, seq)
        if self._known.get(name) != fresh:
            self._known[name] = fresh
            self._store()

    def forget(self, name: str) -> None:
        """The agent is no more."""
        if self._known.pop(name, None) is not None:
            self._store()

    def _load(self) -> None:
        path = f"{self._directory}/{_NAME}"
        if not self._system.exists(path):
            return
        try:
            for name, (desired, seq) in json.loads(self._system.read(path, _MAX_BYTES)).items():
                if desired in DESIRED and type(seq) is int:
                    self._known[name] = Desire(desired, seq)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            self.is_damaged = True
            log.error("cannot read what agents should run (%s); the settings decide", error)  # noqa: TRY400

    def _store(self) -> None:
        try:
            write_file(self._system, self._directory, _NAME, json.dumps(self._known).encode("utf-8"))
        except OSError as error:
            log.error("cannot write down what agents should run: %s", error)  # noqa: TRY400
