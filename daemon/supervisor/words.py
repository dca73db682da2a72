"""What is said of an agent's end, version and crash."""

from __future__ import annotations

import signal
from typing import Any

from daemon.supervisor import output
from daemon.supervisor.lifetime import Gone, Lifetime
from daemon.supervisor.limits import Watch
from daemon.supervisor.runs import NOT_STARTED
from daemon.system import System

LOG_FILES = 4

_CODES = {
    126: "the program cannot be executed",
    127: "the program was not found",
    NOT_STARTED: "directory or user do not fit",
}


def end_in_words(gone: Gone, said: str = "") -> str:
    """How it ended; `said`: its last words, if it failed right at its start."""
    ended = gone.ended
    if gone.words is not None:
        return gone.words[:500]
    if ended is None:
        return "ended; how is not known, because its shim was killed too"
    if ended.signal is not None:
        try:
            name = signal.Signals(ended.signal).name
        except ValueError:
            name = "unknown"
        return f"ended by signal {ended.signal} ({name})"
    why = _CODES.get(ended.code or 0)
    words = f"exited with code {ended.code}" + (f": {why}" if why else "")
    return f"{words}: {said}" if said and ended.code else words


def is_failure(gone: Gone) -> bool:
    """Anything but an exit with code 0."""
    return gone.is_failure and (gone.ended is None or gone.ended.code != 0)


def version_in(text: str) -> str | None:
    """The first word that looks like a version."""
    for word in text.replace("/", " ").replace(",", " ").replace("=", " ").replace(":", " ").split():
        found = word.lstrip("vV(").rstrip(").;")
        if found[:1].isdigit() and "." in found and len(found) <= 64:
            return found
    return None


def dossier(system: System, logs: tuple[str, ...], lifetime: Lifetime, gone: Gone | None, watch: Watch,
            now: float) -> dict[str, Any]:  # fmt: skip
    """What somebody needs who asks why it ended. `now`: when it did, by the boot clock."""
    ended = None if gone is None else gone.ended
    paths = (lifetime.files.output, *logs)[:LOG_FILES]
    lines = {path: output.last_lines(system, path) for path in paths}
    started = lifetime.started_at
    return {
        "exit_code": None if ended is None else ended.code,
        "signal": None if ended is None else ended.signal,
        "pid": None if lifetime.identity is None else lifetime.identity.pid,
        "started_at": lifetime.start_text,
        "ran_s": None if started is None else round(max(0.0, now - started), 1),
        "log": {path: found for path, found in lines.items() if found},
        "curve": watch.curve(now),
    }
