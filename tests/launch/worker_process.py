"""A worker process with jobs that only tests want. Started as a program; what they do is written to a file."""

import os
import sys
import time
from pathlib import Path
from types import ModuleType

from app import worker

jobs = ModuleType("app.probe.jobs")


def note(text: str) -> None:
    with Path(os.environ["PROBE_FILE"]).open("a") as file:
        file.write(f"{text}\n")


def quick(number: int) -> None:
    note(f"ran {number}")


def slow(seconds: int) -> None:
    note("began")
    time.sleep(seconds)
    note("finished")


def stuck() -> None:
    """As a bug would: no time-out of its own, and errors swallowed."""
    note("began")
    while True:
        time.sleep(0.1)


for function in (quick, slow, stuck):
    setattr(jobs, function.__name__, function)
sys.modules["app.probe"] = ModuleType("app.probe")
sys.modules["app.probe.jobs"] = jobs

if __name__ == "__main__":
    worker.STOP_GRACE_S = int(os.environ.get("STOP_GRACE_S", worker.STOP_GRACE_S))
    sys.exit(worker.main())
