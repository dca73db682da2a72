"""What agents write: bounded files for their output, and the last lines of any log for the report of a crash."""

from __future__ import annotations

import logging

from daemon.logs import redact
from daemon.places import open_to_read
from daemon.system import System

MAX_BYTES = 10 * 1024 * 1024
KEPT = 2

LINES = 50
LINE_CHARS = 500
TAIL_BYTES = 16 * 1024

log = logging.getLogger("daemon.supervisor")


def rotate(system: System, path: str) -> bool:
    """Keep the file and those before it under a bound. The writer's descriptor stays good; nothing waits for it."""
    try:
        if system.facts(path).size <= MAX_BYTES:
            return False
        for number in range(KEPT - 1, 0, -1):
            if system.exists(f"{path}.{number}"):
                system.replace(f"{path}.{number}", f"{path}.{number + 1}")
        system.cut_file(path, f"{path}.1", MAX_BYTES)
    except FileNotFoundError:
        return False
    except OSError as error:
        log.warning("cannot rotate %s: %s", path, error)
        return False
    return True


def size(system: System, path: str) -> int:
    """How much there is of it."""
    try:
        return system.facts(path).size
    except OSError:
        return 0


def paths(path: str) -> list[str]:
    """The file and what was rotated out of it, newest first; they need not exist."""
    return [path, *(f"{path}.{number}" for number in range(1, KEPT + 1))]


def last_lines(system: System, path: str, count: int = LINES) -> list[str]:
    """The newest lines, oldest first, without secrets; nothing if the file cannot be read."""
    try:
        # Agents' users lay these files out: a link of theirs must not show what only root may read.
        fd = open_to_read(path)
    except OSError:
        return []
    try:
        raw = system.read_end(fd, TAIL_BYTES)
    finally:
        system.close(fd)
    lines = raw.decode("utf-8", "replace").replace("\0", "\ufffd").splitlines()
    if len(raw) == TAIL_BYTES:
        # The first one is only the end of a line.
        lines = lines[1:] or lines
    # Cut before secrets are looked for, which takes long in long lines; together, because a key has several lines.
    return redact("\n".join(line[:LINE_CHARS] for line in lines)).split("\n")[-count:] if lines else []
