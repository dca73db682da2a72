"""A host of the tests that hands tasks to a real agent, whose process the test itself starts and kills."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.commands import Runner, Surroundings, handlers
from daemon.tasks import CANCEL, RUN, Tasks
from protocol.commands import Output, Report, Result
from tests.daemon.host import Host
from tests.daemon.manager import FakeManager
from tests.daemon.processes import wait_for

RESUMABLE = frozenset({RUN, CANCEL})


class TaskHost(Host):
    """`Host` with the part that tasks need. `find_socket` may change at any time."""

    def __init__(
        self, directory: Path, manager: FakeManager, find_socket: Callable[[], str | None], **how: Any
    ) -> None:
        super().__init__(directory, manager, **how)
        self.find_socket = find_socket
        self.agent: Any = None
        self.is_stopped = False
        self.intake._kept_elsewhere = {RUN}
        self.tasks = Tasks(
            self.system, self.clock, self.intake, self.outbox, lambda: self.find_socket(), lambda: self.courier.nudge(),
            self.link.new_connection,
        )  # fmt: skip
        around = Surroundings(self.system, lambda: self.checkins.settings.version, self.link.check_in_now)
        table = {**handlers(around), **self.tasks.handlers()}
        nudge = lambda: self.courier.nudge()  # noqa: E731
        self.runner = Runner(self.system, self.clock, table, self.intake, self.outbox, nudge)

    def start(self) -> "TaskHost":
        self.intake.catch_up(RESUMABLE)
        self.link.start()
        return self

    def stop(self) -> None:
        if not self.is_stopped:
            self.is_stopped = True
            self.tasks.stop(10)
            super().stop()

    def killed(self) -> "TaskHost":
        """What is left on the disk, in the hands of a new Daemon; nothing in memory comes along."""
        self.outbox.claim = list  # type: ignore[method-assign]
        self.stop()
        return TaskHost(self.directory, self.manager, self.find_socket, machine=self.machine, system=self.system)


def script(text: str, timeout: int = 60, **content: object) -> dict[str, Any]:
    content = {"interpreter": "shell", "script": text, **content}
    return {"type": "script", "content": content, "parameters": {}, "timeout": timeout}


def reports_of(manager: FakeManager, command: str) -> list[Report]:
    return [report for report in manager.node.reports if report.command == command]


def result_of(manager: FakeManager, command: str, timeout_s: float = 30.0) -> Result:
    found = wait_for(lambda: manager.node.result(command), f"the result of {command}", timeout_s)
    assert isinstance(found, Result)
    return found


def stream_of(manager: FakeManager, command: str, name: str = "stdout") -> bytes:
    """Put together from the pieces, of which each must be there once and begin where the one before it ended."""
    pieces = [report for report in reports_of(manager, command) if isinstance(report, Output)]
    assert [piece.seq for piece in pieces] == list(range(len(pieces)))
    mine = [piece for piece in pieces if piece.stream == name]
    found = b""
    for piece in mine:
        assert piece.offset >= len(found)
        found += piece.data
    return found
