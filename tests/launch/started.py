"""Programs that tests start, watch and end, and a look at which processes belong to them."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tests.services import ROOT, wait_for

MARK = "TEST_RUN_MARK"


def processes_with(*texts: str) -> dict[int, str]:
    """Running processes with one of these in their environment or on their command line: pid and command."""
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (directory / "environ").read_bytes().decode(errors="replace")
            state = (directory / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and any(text in command or text in environment for text in texts):
                found[int(directory.name)] = command
    return found


class Started:
    """A program in the background, its output collected as it comes."""

    further_marks: tuple[str, ...] = ()
    """Recognise processes that have overwritten their environment, as Redis does."""

    def __init__(self, command: list[str], environment: Mapping[str, str], mark: str, **popen: object) -> None:
        self.mark = mark
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, MARK: mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **popen,
        )
        self._output = b""
        self._times: list[tuple[float, str]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._output += line
            self._times.append((time.monotonic(), line.decode(errors="replace").rstrip("\n")))

    @property
    def output(self) -> str:
        return self._output.decode(errors="replace")

    @property
    def lines(self) -> list[str]:
        return [line for _, line in self._times]

    def moments(self, text: str) -> list[float]:
        return [moment for moment, line in list(self._times) if text in line]

    def wait_for_line(self, text: str, timeout: float = 90, count: int = 1) -> None:
        def is_there() -> bool:
            if self.output.count(text) >= count:
                return True
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.output}"
            return False

        wait_for(is_there, timeout, f"{text!r} in\n{self.output}", 0.05)

    def processes(self) -> dict[int, str]:
        found = processes_with(f"{MARK}={self.mark}", *self.further_marks)
        return {pid: command for pid, command in found.items() if pid != os.getpid()}

    def pid_of(self, text: str) -> int:
        """The one that the launcher started, not one of its children."""
        return min(pid for pid, command in self.processes().items() if text in command)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        self.process.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout: float = 60) -> int:
        code = self.process.wait(timeout)
        self._thread.join(10)
        return code

    def close(self) -> None:
        """Nothing of it stays, whatever the test came to."""
        for _ in range(3):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._thread.join(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


def module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]
