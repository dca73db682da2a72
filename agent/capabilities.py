"""What this host allows, decided by a file that only its root can write; nobody who calls the agent can widen it."""

# ruff: noqa: PTH116

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys

from protocol.capabilities import parse_capabilities, uniform_capabilities
from protocol.checkin import Capabilities

MAX_BYTES = 60_000
PARSE_S = 10

log = logging.getLogger("agent.capabilities")


class CapabilityFile:
    """Reads the file again only when it was touched."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: object = None
        self._current = uniform_capabilities("missing", True)

    def now(self) -> Capabilities:
        """What is allowed at this moment; two `stat` calls if nothing changed."""
        try:
            folder = os.stat(self._path.rpartition("/")[0] or "/")
            found = os.stat(self._path)
        except FileNotFoundError:
            self._seen, self._current = None, uniform_capabilities("missing", True)
            return self._current
        except OSError as error:
            return self._deny("unsafe", f"cannot be read: {error}")
        seen = (
            found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, folder.st_uid, folder.st_mode,
        )  # fmt: skip
        if seen == self._seen:
            return self._current
        self._seen = seen
        if folder.st_uid != 0 or folder.st_mode & 0o022:
            return self._deny("unsafe", "must lie in a directory of root, writable by nobody else")
        return self._read()

    def _read(self) -> Capabilities:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(fd, "rb") as file:  # noqa: PTH123
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
                    return self._deny("unsafe", "must be a file of root, writable by nobody else")
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ValueError(f"must not exceed {MAX_BYTES} bytes")
            done = subprocess.run(
                [sys.executable, "-m", "agent.yamlread"],
                input=content,
                stdout=subprocess.PIPE,
                timeout=PARSE_S,
                check=False,
            )
            if done.returncode != 0:
                raise ValueError("is not YAML")
            self._current = parse_capabilities(json.loads(done.stdout))
        except (ValueError, subprocess.TimeoutExpired) as error:
            return self._deny("invalid", str(error))
        except OSError as error:
            return self._deny("unsafe", f"cannot be read: {error}")
        log.info("capabilities come from %s", self._path)
        return self._current

    def _deny(self, state: str, reason: str) -> Capabilities:
        denied = uniform_capabilities(state, False)
        if self._current != denied:
            log.error("%s %s; everything it could allow is denied", self._path, reason)
        self._current = denied
        return denied
