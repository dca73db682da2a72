"""What this host allows, decided by a file that only its root can write; the Manager cannot widen it."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from typing import Any

from daemon.system import System
from protocol.capabilities import matches_file, matches_user, parse_capabilities, uniform_capabilities
from protocol.checkin import Capabilities

MAX_BYTES = 60_000

log = logging.getLogger("daemon.capabilities")


class CapabilityFile:
    """Reads the file again only when it was touched."""

    def __init__(self, system: System, path: str) -> None:
        self._system = system
        self._path = path
        self._seen: object = None
        self._lock = threading.Lock()
        self.current = self._told = uniform_capabilities("missing", True)

    def refresh(self) -> bool:
        """Look at the file; True if what is allowed changed since the last call."""
        with self._lock:
            self._look()
            is_changed, self._told = self.current != self._told, self.current
            return is_changed

    def present(self) -> Capabilities:
        """Look at the file, for what is about to be done."""
        with self._lock:
            self._look()
            return self.current

    def forbids_command(self, user: str | None) -> str | None:
        """Why a program that the Manager names must not be run as this user (null: as the Daemon's own), or None."""
        allowed = self.present()
        name = user or ("root" if os.geteuid() == 0 else os.environ.get("USER", ""))
        if not allowed.scripts:
            return "this host does not let the Manager run commands (scripts in its capability file)"
        if not matches_user(name, allowed.run_as):
            return f"this host does not let the Manager run commands as {name} (run_as in its capability file)"
        return None

    def forbids_file(self, path: str) -> str | None:
        """Why a file that the Manager names must be neither read nor written, or None."""
        if matches_file(path, self.present().files):
            return None
        return f"this host does not let the Manager touch {path} (files in its capability file)"

    def _look(self) -> None:
        before = self.current
        try:
            content, facts = self._system.read_with_facts(self._path, MAX_BYTES + 1)
            folder = self._system.facts(self._path.rpartition("/")[0] or "/")
        except FileNotFoundError:
            self._seen, self.current = None, uniform_capabilities("missing", True)
            return
        except OSError as error:
            self._deny("unsafe", f"cannot be read: {error}", before)
            return
        seen = (facts, content, folder.owner, folder.mode)
        if seen == self._seen:
            return
        self._seen = seen
        if not facts.is_regular or facts.owner != 0 or facts.mode & 0o022 or folder.owner != 0 or folder.mode & 0o022:
            self._deny("unsafe", "must be a file of root in a directory of root, writable by nobody else", before)
            return
        try:
            self.current = parse_capabilities(self._load(content))
        except ValueError as error:
            self._deny("invalid", str(error), before)
            return
        log.info("capabilities come from %s", self._path)

    def _deny(self, state: str, reason: str, before: Capabilities) -> None:
        self.current = uniform_capabilities(state, False)
        if self.current != before:
            log.error("%s %s; everything it could allow is denied", self._path, reason)

    def _load(self, content: bytes) -> Any:
        if len(content) > MAX_BYTES:
            raise ValueError(f"must not exceed {MAX_BYTES} bytes")
        finished = self._system.run([sys.executable, "-m", "daemon.yamlread"], content)
        if finished.code != 0:
            raise ValueError("is not YAML")
        return json.loads(finished.out)
