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
    """Children of ours must find this very package and its libraries, whatever the working directory is by then."""
    root = __file__.rpartition("/agent/")[0]
    known = os.environ.get("PYTHONPATH", "").split(":")
    libraries = f"{root}/lib/cp{sys.version_info[0]}{sys.version_info[1]}"
    wanted = [path for path in (root, libraries) if path and os.path.isdir(path)]  # noqa: PTH112
    sys.path += [path for path in wanted if path not in sys.path]
    os.environ["PYTHONPATH"] = ":".join([*wanted, *(path for path in known if path and path not in wanted)])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
