"""Runs the task agent with a disk that fails or a death that comes on demand: `python -m tests.agent.faulty`.

SIGUSR1 fills the disk, SIGUSR2 empties it. OPS_TEST_DIE_AT=n kills the process at its n-th step that touches the disk
or starts a child, counted from the first order on.
"""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

from agent.__main__ import run

is_full = False
steps = 0
is_counting = False
DIE_AT = int(os.environ.pop("OPS_TEST_DIE_AT", "0"))

real_write, real_fsync, real_replace, real_popen = os.write, os.fsync, os.replace, subprocess.Popen


def step() -> None:
    global steps
    if is_counting and DIE_AT:
        steps += 1
        if steps == DIE_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def write(fd: int, data: bytes) -> int:
    global is_counting
    path = str(Path(f"/proc/self/fd/{fd}").readlink())
    if is_full and path.startswith("/") and "memfd" not in path and not path.endswith(".log.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    if path.endswith("executions.log"):
        is_counting = True
    step()
    if (
        is_counting
        and DIE_AT
        and steps == DIE_AT - 1
        and len(data) > 8
        and path.startswith("/")
        and "memfd" not in path
    ):
        # Half of it: a torn write, and then the end.
        real_write(fd, bytes(data)[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return real_write(fd, data)


def fsync(fd: int) -> None:
    step()
    real_fsync(fd)
    step()


def replace(source: str, target: str) -> None:
    if is_full:
        raise OSError(errno.ENOSPC, "No space left on device")
    step()
    real_replace(source, target)


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    def __init__(self, *arguments: object, **how: object) -> None:
        step()
        super().__init__(*arguments, **how)  # type: ignore[call-overload]
        step()


def fill(number: int, _: object) -> None:
    global is_full
    is_full = number == signal.SIGUSR1
    print("the disk is full" if is_full else "room again", flush=True)


if __name__ == "__main__":
    os.write, os.fsync, os.replace = write, fsync, replace  # type: ignore[assignment]
    subprocess.Popen = Popen  # type: ignore[misc]
    signal.signal(signal.SIGUSR1, fill)
    signal.signal(signal.SIGUSR2, fill)
    sys.exit(run(sys.argv[1:]))
