"""What this host allows, decided by a file that only its root can write; the Manager cannot widen it."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from typing import Any

from daemon.system import System
from protocol.checkin import Capabilities

MAX_BYTES = 60_000

_SWITCHES = ("scripts", "terminal", "packages", "config")
_LISTS = {"run_as": 64, "files": 1024}

log = logging.getLogger("daemon.capabilities")


class CapabilityFile:
    """Reads the file again only when it was touched."""

    def __init__(self, system: System, path: str) -> None:
        self._system = system
        self._path = path
        self._seen: object = None
        self._lock = threading.Lock()
        self.current = self._told = _uniform("missing", True)

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
        if "*" not in allowed.run_as and name not in allowed.run_as:
            return f"this host does not let the Manager run commands as {name} (run_as in its capability file)"
        return None

    def _look(self) -> None:
        before = self.current
        try:
            content, facts = self._system.read_with_facts(self._path, MAX_BYTES + 1)
            folder = self._system.facts(self._path.rpartition("/")[0] or "/")
        except FileNotFoundError:
            self._seen, self.current = None, _uniform("missing", True)
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
        self.current = _uniform(state, False)
        if self.current != before:
            log.error("%s %s; everything it could allow is denied", self._path, reason)

    def _load(self, content: bytes) -> Any:
        if len(content) > MAX_BYTES:
            raise ValueError(f"must not exceed {MAX_BYTES} bytes")
        finished = self._system.run([sys.executable, "-m", "daemon.yamlread"], content)
        if finished.code != 0:
            raise ValueError("is not YAML")
        return json.loads(finished.out)


def parse_capabilities(loaded: Any) -> Capabilities:
    """The content of the file. What it does not name is allowed; what it misspells makes it invalid."""
    if not isinstance(loaded, dict) or set(loaded) != {"allow"} or not isinstance(loaded["allow"], dict):
        raise ValueError("must hold one name, allow, with the capabilities under it")
    allow = loaded["allow"]
    unknown = set(allow) - set(_SWITCHES) - set(_LISTS)
    if unknown:
        raise ValueError("does not know " + ", ".join(sorted(map(str, unknown))))
    for name in _SWITCHES:
        if not isinstance(allow.get(name, True), bool):
            raise ValueError(f"allow.{name} must be true or false")
    for name, high in _LISTS.items():
        value = allow.get(name, [])
        if not isinstance(value, list) or len(value) > 100:
            raise ValueError(f"allow.{name} must be a list of at most 100")
        if not all(isinstance(word, str) and 1 <= len(word) <= high for word in value):
            raise ValueError(f"allow.{name} must hold texts of 1 to {high} characters")
    return Capabilities(
        state="file",
        scripts=allow.get("scripts", True),
        terminal=allow.get("terminal", True),
        packages=allow.get("packages", True),
        config=allow.get("config", True),
        run_as=tuple(allow.get("run_as", ["*"])),
        files=tuple(allow.get("files", ["/**"])),
    )


def _uniform(state: str, is_allowed: bool) -> Capabilities:
    return Capabilities(
        state=state,
        scripts=is_allowed,
        terminal=is_allowed,
        packages=is_allowed,
        config=is_allowed,
        run_as=("*",) if is_allowed else (),
        files=("/**",) if is_allowed else (),
    )
