"""A supervisor inside the test process, with real programs and a logbook that tests can read."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from daemon.clock import Clock
from daemon.supervisor.processes import ProcessTable, parse_stat
from daemon.supervisor.program import Answer
from daemon.supervisor.supervisor import Supervisor
from daemon.system import System
from protocol.checkin import AgentStatus
from protocol.fields import Fields
from protocol.manifests import parse_manifest
from tests.daemon.faults import HastySystem
from tests.daemon.processes import wait_for

BOOT_ID = "4d84792a"


class Told(NamedTuple):
    """An event as the Manager will get it."""

    kind: str
    severity: str
    message: str
    data: dict[str, Any]
    ago_s: float


class Book:
    """Stands for the logbook."""

    def __init__(self) -> None:
        self.events: list[Told] = []

    def add_event(
        self, kind: str, severity: str, message: str, data: dict[str, Any] | None = None, ago_s: float = 0.0
    ) -> None:
        self.events.append(Told(kind, severity, message, data or {}, ago_s))

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def of(self, kind: str) -> list[Told]:
        return [event for event in self.events if event.kind == kind]


class Box:
    """One host's supervisor; `restarted` is what a killed Daemon's successor finds."""

    def __init__(
        self,
        directory: Path,
        system: System | None = None,
        boot_id: str = BOOT_ID,
        forbids: Callable[[str | None], str | None] = lambda _: None,
        forbids_file: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self.directory = directory
        self.system = system or HastySystem()
        directory.mkdir(parents=True, exist_ok=True)
        self.book = Book()
        self.boot_id = boot_id
        self.version = 0
        self.entries: dict[str, dict[str, Any]] = {}
        self.supervisor = Supervisor(
            self.system, Clock(self.system, boot_id), self.book, str(directory), boot_id, lambda: None,  # type: ignore[arg-type]
            forbids=forbids, forbids_file=forbids_file,
        )  # fmt: skip

    # ---- what the Manager says

    def add(self, name: str, start: list[str], desired: str = "running", seq: int = 1, **more: Any) -> None:
        """An agent in the Manager's settings."""
        manifest = {"name": name, "type": "custom", "start": start, **more}
        if not start:
            del manifest["start"]
        self.entries[name] = {
            "name": name, "desired": desired, "seq": seq, "source": "manager", "manifest": manifest,
        }  # fmt: skip
        self.send()

    def remove(self, name: str) -> None:
        del self.entries[name]
        self.send()

    def send(self) -> None:
        self.version += 1
        self.supervisor.use_settings(self.version, tuple(self.entries.values()))

    def host(self, *manifests: dict[str, Any]) -> None:
        self.supervisor.use_host(parse_manifest(Fields(manifest)) for manifest in manifests)

    def order(self, verb: str, name: str, seq: int | None = None, timeout_s: float = 30.0) -> Answer:
        done = threading.Event()
        answers: list[Answer] = []

        def take(answer: Answer) -> None:
            answers.append(answer)
            done.set()

        self.supervisor.order(verb, name, seq, take)
        assert done.wait(timeout_s), f"no answer to {verb} {name}"
        return answers[0]

    # ---- what is seen

    def status(self, name: str) -> AgentStatus:
        found = self.supervisor.find(name)
        assert found is not None
        return found

    def is_there(self, name: str) -> bool:
        return self.supervisor.find(name) is not None

    def running(self, name: str, than: int | None = None) -> int:
        """The pid, once it runs (as another process than that)."""

        def pid() -> int | None:
            found = self.supervisor.find(name)
            is_up = found is not None and found.status == "running" and found.pid != than
            return found.pid if found is not None and is_up else None

        found = int(wait_for(pid, f"{name} to run"))
        wait_for(lambda: has_become_itself(found), f"{name} to be itself")
        return found

    def reaches(self, name: str, status: str, timeout_s: float = 20.0) -> None:
        wait_for(lambda: self.is_there(name) and self.status(name).status == status, f"{name} {status}", timeout_s)

    def told(self, kind: str, count: int = 1, timeout_s: float = 20.0) -> Told:
        wait_for(lambda: len(self.book.of(kind)) >= count, f"{count} {kind}", timeout_s)
        return self.book.of(kind)[count - 1]

    def output(self, name: str) -> str:
        path = self.directory / "agents" / name / "output.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    # ---- its end

    def leave(self) -> None:
        """As if the Daemon was killed: agents run on."""
        self.supervisor.stop(10, with_agents=False)

    def restarted(self, **how: Any) -> "Box":
        self.leave()
        again = Box(self.directory, how.get("system", self.system), how.get("boot_id", self.boot_id))
        again.entries, again.version = self.entries, self.version
        return again

    def close(self) -> None:
        self.supervisor.stop(15, with_agents=True)
        kill_marked(self.directory)


def processes_of(directory: Path) -> list[int]:
    """Every living process that was started by a supervisor of this directory, agents and shims."""
    runs = [path.read_text().split()[0] for path in directory.glob("agents/*/shim") if path.read_text()]
    return marked([f"OPS_RUN={run}".encode() for run in runs])


def marked(markers: list[bytes]) -> list[int]:
    table = ProcessTable(System())
    return [pid for pid in table.read() if any(table.has_environment(pid, marker) for marker in markers)]


def kill_marked(directory: Path) -> None:
    for pid in processes_of(directory):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def has_become_itself(pid: int) -> bool:
    """Whether it is the program by now, and no longer the shell or launcher that becomes it. Also if it has ended."""
    line = ProcessTable(System()).command_line(pid)
    return "OPS_SHIM" not in line and "launch.py" not in line


def is_alive(pid: int) -> bool:
    return ProcessTable(System()).one(pid) is not None


def zombies_of(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            process = parse_stat(path.read_bytes())
        except OSError:
            continue
        if process is not None and process.is_zombie and process.ppid == parent:
            found.append(process.pid)
    return found


def script(code: str) -> list[str]:
    """A Python program of a few lines."""
    return [sys.executable, "-I", "-S", "-u", "-c", code]


def shell(code: str) -> list[str]:
    return ["/bin/sh", "-c", code]


def timed(call: Callable[[], Any]) -> float:
    begun = time.monotonic()
    call()
    return time.monotonic() - begun
