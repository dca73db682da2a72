"""`python -m agent`: the task agent in the foreground, or its version and out."""

from __future__ import annotations

import os
import sys

from agent.main import main
from agent.version import VERSION


def run(arguments: list[str]) -> int:
    """The exit code."""
    if arguments == ["--version"]:
        sys.stdout.write(VERSION + "\n")
        return 0
    _keep_path()
    return main(arguments)


def _keep_path() -> None:
    """Children of ours must find this very package, whatever the working directory is by then."""
    root = __file__.rpartition("/agent/")[0]
    known = os.environ.get("PYTHONPATH", "")
    if root and root not in known.split(":"):
        os.environ["PYTHONPATH"] = f"{root}:{known}" if known else root


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
