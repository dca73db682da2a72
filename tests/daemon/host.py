"""A host inside the test process: every part of the Daemon but the collector, so that no test waits for points."""

import json
import threading
from pathlib import Path

from daemon.capabilities import CapabilityFile
from daemon.checkin import CheckIns
from daemon.clock import Clock
from daemon.collector import Collector
from daemon.commands import Runner, Surroundings, handlers
from daemon.courier import Courier
from daemon.credentials import Credentials
from daemon.gpu import GpuReader
from daemon.identity import Identity
from daemon.intake import Intake
from daemon.inventory import InventoryReader
from daemon.journal import Journal
from daemon.keytool import make_request, sign_recovery
from daemon.link import Link
from daemon.measure import Logbook
from daemon.outbox import Outbox
from daemon.procfs import Kernel
from daemon.sampling import Sampler
from daemon.spool import Spool
from daemon.state import InstanceState, load_settings, store_settings
from daemon.system import Finished, System
from protocol.commands import Command
from protocol.enrolment import EnrollApproved
from protocol.inventory import Machine
from protocol.metrics import Point
from protocol.settings import Settings
from protocol.times import to_text
from tests.daemon.faults import HastySystem
from tests.daemon.manager import FakeManager

MACHINE = Machine("a" * 64, "b" * 64, "boot-1")


class InnerSystem(HastySystem):
    """Spares the tests a child per key, which costs more than all the rest of them; and may have a wrong wall clock."""

    shift_s = 0.0

    def run(self, argv: list[str], stdin: bytes = b"", timeout_s: float = 30.0, limit: int = 1 << 20) -> Finished:
        if argv[-1] != "daemon.keytool":
            return super().run(argv, stdin, timeout_s, limit)
        order = json.loads(stdin)
        if order["do"] == "request":
            made = make_request(order["common_name"])
        else:
            made = sign_recovery(order["key_pem"], order["csr_pem"], order["node_uuid"], order["timestamp"])
        return Finished(0, json.dumps(made).encode(), False)

    def wall(self) -> float:
        return super().wall() + self.shift_s


class Host:
    """Parts over one state directory; `stop` and a new Host is a restart of the Daemon."""

    def __init__(
        self,
        directory: Path,
        manager: FakeManager,
        machine: Machine = MACHINE,
        system: System | None = None,
        server_url: str | None = None,
        proxy: str | None = None,
    ) -> None:
        self.directory = directory
        self.manager = manager
        self.machine = machine
        self.ran: list[Command] = []
        self.lives: list[str] = []
        self.system = system = system or InnerSystem()
        directory.mkdir(parents=True, exist_ok=True)
        system.make_dir(str(directory))
        base = str(directory)
        settings = load_settings(system, base)
        kernel = Kernel(system)
        self.state = InstanceState(system, base, machine.boot_id)
        self.clock = Clock(system, machine.boot_id, self.state.anchor, self.state.first_anchor)
        self.spool = Spool(system, f"{base}/spool", settings.spool)
        self.logbook = Logbook(system, self.spool, self.clock)
        self.journal = Journal(system, f"{base}/journal")
        self.outbox = Outbox(self.journal)
        self.identity = Identity(system, f"{base}/identity")
        self.inventory = InventoryReader(system, kernel, manager.url)
        self.applied: list[Settings] = []
        self.intake = Intake(self.identity, self.clock, self.journal, self.outbox, self.logbook, self._run)
        capabilities = CapabilityFile(system, f"{base}/none.yaml")
        self.checkins = CheckIns(
            system, base, self.state, self.clock, self.spool, self.logbook, capabilities, machine,
            self.inventory.read, settings, self.applied.append,
        )  # fmt: skip
        self.credentials = Credentials(system, self.identity, self.clock, self.state, self.logbook, machine)
        self.link = Link(
            system, self.credentials, self.checkins, self.clock, self.intake, self.outbox, self.inventory.read,
            self.lives.append, lambda: None, server_url, proxy,
        )  # fmt: skip
        around = Surroundings(system, lambda: self.checkins.settings.version, self.link.check_in_now)
        self.runner = Runner(system, self.clock, handlers(around), self.intake, self.outbox)
        gpu = GpuReader(system, False)
        self.sampler = Sampler(
            system, self.clock, lambda: Collector(system, kernel, self.clock, gpu), gpu, self.logbook,
            lambda: self.link.next_checkin, lambda: self.courier.nudge(),
        )  # fmt: skip
        self.courier = Courier(self.link, self.outbox, self.sampler, self.clock)
        self.takes_s = 0.0
        self._number = 0
        self._first = system.wall()

    def enroll(self, token: str | None = "join-me") -> EnrollApproved:
        pending = self.identity.begin(self.manager.url, self.manager.authority.pem, token, False)
        answer = self.credentials.enroll(pending, None, self.inventory.read())
        assert isinstance(answer, EnrollApproved)
        store_settings(self.system, str(self.directory), answer.settings)
        self.checkins.settings = answer.settings
        return answer

    def start(self) -> "Host":
        self.intake.catch_up()
        self.link.start()
        return self

    def stop(self) -> None:
        self.link.stop(10)
        self.courier.stop(10)
        self.close()

    def close(self) -> None:
        self.spool.close()
        self.journal.close()
        self.state.close()

    def restarted(self, **how: object) -> "Host":
        self.stop()
        again = Host(self.directory, self.manager, self.machine, **how)  # type: ignore[arg-type]
        again._number, again._first = self._number, self._first
        return again

    def add_points(self, count: int) -> list[str]:
        """Points a millisecond apart; their stamps."""
        stamps = []
        for _ in range(count):
            self._number += 1
            stamps.append(to_text(self._first + self._number / 1000))
            nothing = dict.fromkeys(Point._fields)
            self.logbook.add_point(Point(**{**nothing, "timestamp": stamps[-1], "cpu_usage": 1.0}))
        return stamps

    def _run(self, command: Command) -> None:
        self.ran.append(command)
        if self.takes_s:
            threading.Timer(self.takes_s, self._run_later, [command]).start()
        else:
            self.runner.run(command)

    def _run_later(self, command: Command) -> None:
        self.runner.run(command)
        self.courier.nudge()
