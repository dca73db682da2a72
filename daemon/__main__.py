"""`python -m daemon`: the resident Daemon in the foreground, or a step of its own (`enroll`, `end-agents`) and out.

Keeps the allocator on two arenas.
"""

from __future__ import annotations

import os
import sys

from daemon.main import main

ARENAS = "MALLOC_ARENA_MAX"


def run(arguments: list[str]) -> int:
    """The allocator reads its settings once, before Python starts; hence a second start of the very same process."""
    _keep_path()
    if arguments[:1] in (["enroll"], ["end-agents"]):
        module = f"daemon.{arguments[0].replace('-', '_')}"
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments[1:]])  # noqa: S606
    if ARENAS not in os.environ:
        os.environ[ARENAS] = "2"
        os.execv(sys.executable, [sys.executable, "-m", "daemon", *arguments])  # noqa: S606
    return main(arguments)


def _keep_path() -> None:
    """Children must find this very package, whatever the working directory is by then."""
    root = __file__.rpartition("/daemon/")[0]
    known = os.environ.get("PYTHONPATH", "")
    if root and root not in known.split(":"):
        os.environ["PYTHONPATH"] = f"{root}:{known}" if known else root


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
