"""Which agents there should be: the host's own, what comes with the Daemon, then the Manager's; what is wanted of each;
what lies on the disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Callable, NamedTuple

from daemon.measure import Logbook
from daemon.supervisor import policy
from daemon.supervisor.desires import Desires
from daemon.supervisor.runs import RunFiles, stored_manifest
from daemon.system import System
from protocol.errors import ProtocolError
from protocol.fields import Fields
from protocol.manifests import NAME, AgentEntry, Manifest, parse_entry

HOST, BUILTIN, MANAGER = "host", "builtin", "manager"
LOCAL = (HOST, BUILTIN)
"""Declared on the host itself: neither bounded by the capability file nor the Manager's to change."""


class Declared(NamedTuple):
    """An agent as it should be."""

    manifest: Manifest
    source: str
    desired: str


class Stray(NamedTuple):
    """A directory of an agent that nobody declares. Without `declared` there is nothing in it that makes sense."""

    name: str
    declared: Declared | None


class Roster:
    """Nothing that the Manager declared is taken away while its settings are lost (version 0)."""

    def __init__(self, system: System, directory: str, logbook: Logbook, desires: Desires) -> None:
        self._system = system
        self._directory = directory
        self._logbook = logbook
        self._desires = desires
        self._told: dict[str, str] = {}
        self._settings: tuple[int, tuple[dict[str, Any], ...]] | None = None
        self.local: dict[str, tuple[Manifest, str]] = {}

    def use_host(self, host: Iterable[Manifest], along: Iterable[Manifest]) -> None:
        """What this host declares itself, and what comes with the Daemon; its own words win."""
        self.local = {manifest.name: (manifest, BUILTIN) for manifest in along}
        self.local.update({manifest.name: (manifest, HOST) for manifest in host})

    @property
    def is_set_up(self) -> bool:
        """Whether anybody has said yet what the Manager declares."""
        return self._settings is not None

    def use_settings(self, version: int, entries: tuple[dict[str, Any], ...]) -> None:
        """What the Manager declares."""
        self._settings = (version, entries)

    def is_empty(self) -> bool:
        """Whether there is nothing to do at all."""
        return not self.local and not (self._settings and self._settings[1]) and not self._names()

    def declared(self, known: Callable[[str], Declared | None]) -> dict[str, Declared]:
        """Every agent by name. The host's own win; of what makes no sense is told once, and what was there stays."""
        found: dict[str, Declared] = {}
        problems: dict[str, str] = {}
        for raw in self._settings[1] if self._settings else ():
            name = str(raw.get("name"))
            if name in self.local:
                continue
            try:
                entry = parse_entry(Fields(raw))
            except ProtocolError as error:
                problems[name] = str(error)
                before = known(name)
                if before is not None:
                    found[name] = before
            else:
                # Whatever it calls itself: what comes from outside has no more rights than the Manager.
                found[name] = Declared(entry.manifest, MANAGER, self._newest(entry))
        for name, (manifest, source) in self.local.items():
            found[name] = Declared(manifest, source, self._own(manifest))
        self._tell(problems)
        return found

    def is_authority(self, source: str | None) -> bool:
        """Whether the absence of an agent of this source means that there should be none."""
        return source in LOCAL or (self._settings is not None and self._settings[0] > 0)

    def strays(self, names: Iterable[str]) -> list[Stray]:
        """What lies on the disk beside the agents of these names, removed while the Daemon was away for instance."""
        known = set(names)
        return [self._stray(name) for name in self._names() if name not in known]

    def _stray(self, name: str) -> Stray:
        note = RunFiles(self._system, f"{self._directory}/{name}").read_note()
        manifest = None if note is None else stored_manifest(note)
        if note is None or manifest is None or manifest.name != name:
            return Stray(name, None)
        desire = self._desires.find(name)
        desired = policy.STOPPED if self.is_authority(note.source) else policy.RUNNING
        if desire is not None and not self.is_authority(note.source):
            desired = desire.desired
        return Stray(name, Declared(manifest, note.source, desired))

    def _names(self) -> list[str]:
        return [name for name in self._system.names(self._directory) if NAME.fullmatch(name) is not None]

    def _newest(self, entry: AgentEntry) -> str:
        known = self._desires.find(entry.name)
        if known is None or entry.seq > known.seq:
            self._desires.put(entry.name, entry.desired, entry.seq)
            return entry.desired
        return known.desired

    def _own(self, manifest: Manifest) -> str:
        known = self._desires.find(manifest.name)
        if known is not None:
            return known.desired
        desired = policy.RUNNING if manifest.autostart else policy.STOPPED
        self._desires.put(manifest.name, desired, -1)
        return desired

    def _tell(self, problems: dict[str, str]) -> None:
        for name, problem in problems.items():
            if self._told.get(name) != problem:
                words = f"{name}: its manifest makes no sense and is not used: {problem}"
                self._logbook.add_event("agent.error", "critical", words, {"agent": name[:64]})
        self._told = problems
