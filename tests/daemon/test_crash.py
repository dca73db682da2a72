"""Death at every change of the disk: of the process (really killed, half-written data on a real disk) and of the
machine (only what was synced survives, or more, as file systems please)."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.clock import Anchor
from daemon.identity import CANDIDATE, CURRENT, Identity
from daemon.journal import FINISHED, RECEIVED, STARTED, Journal
from daemon.spool import METRICS, Spool
from daemon.state import InstanceState, load_settings, store_settings
from daemon.system import Finished, System
from protocol.commands import Command
from protocol.enrolment import Certificate, EnrollApproved
from protocol.settings import DEFAULTS, SpoolLimits
from tests.daemon.faults import Died, ForgetfulDisk, StepSystem, dies_at

pytestmark = pytest.mark.fault

LIMITS = SpoolLimits(max_bytes=1 << 20, max_age_s=3600)
CUTS = [(False, False), (True, False), (False, True), (True, True)]
COMMANDS = [f"00000000-0000-4000-8000-{number:012d}" for number in range(4)]

Say = Callable[[str], None]


def command(command_id: str) -> Command:
    return Command(command_id, "n" * 36, "ping", "{}", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "0" * 64)


# ---- what is done. `say` tells what must be true from then on.


def use_spool(system: System, say: Say) -> None:
    spool = Spool(system, "/state/spool", LIMITS)
    for number in range(1, 13):
        spool.append(METRICS, f"{number}".encode().ljust(20_000))
        say(f"kept {number}")
        if number % 4 == 0:
            items = spool.take(1 << 20, 3)
            say("acknowledging " + " ".join(item.payload.decode().strip() for item in items))
            spool.settle([item.id for item in items], [])
    spool.close()


def use_journal(system: System, say: Say) -> None:
    journal = Journal(system, "/state/journal")
    for command_id in COMMANDS:
        journal.receive(command(command_id), 2e9, starts_now=command_id != COMMANDS[1])
        say(f"received {command_id}")
        if command_id == COMMANDS[1]:
            journal.start(command_id)
        say(f"started {command_id}")
        journal.finish(command_id, {"command": command_id})
        say(f"finished {command_id}")
        if command_id == COMMANDS[0]:
            journal.reported(command_id)
    journal.forget(2e9 + 4000)
    journal._compact()
    journal.receive(command(COMMANDS[0][:-1] + "9"), 2e9, starts_now=True)
    journal.close()


def use_state(system: System, say: Say) -> None:
    for _ in range(3):
        state = InstanceState(system, "/state", "boot")
        say(f"generation {state.generation}")
        for number in range(3):
            state.lease = f"lease-{state.generation}-{number}"
            state.first_anchor = Anchor(1.0, 2.0)
            state.store()
            say(f"lease {state.lease}")
        state.close()
    store_settings(system, "/state", DEFAULTS._replace(version=7))
    say("settings 7")
    store_settings(system, "/state", DEFAULTS._replace(version=8))
    say("settings 8")


class PlainKeytool:
    """Stands in for the child that makes keys; counts, so that keys differ."""

    made = 0

    @classmethod
    def run(cls, *_: object) -> Finished:
        cls.made += 1
        key = f"-----BEGIN PRIVATE KEY-----\nkey{cls.made}\n-----END PRIVATE KEY-----\n"
        return Finished(0, json.dumps({"key_pem": key, "csr_pem": f"csr for key{cls.made}"}).encode(), False)


def certificate_for(csr: str, serial: str) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{serial} {csr}\n-----END CERTIFICATE-----\n"


def use_identity(system: System, say: Say) -> None:
    identity = Identity(system, "/state/identity")
    pending = identity.begin("https://m:1", "ca", "token", False)
    say(f"asked {pending.csr_pem}")
    identity.keep_ticket("ticket-1")
    node = EnrollApproved(
        "approved",
        5,
        "00000000-0000-4000-8000-000000000005",
        certificate_for(pending.csr_pem, "first"),
        "2030-01-01T00:00:00Z",
        "ca",
        b"k" * 32,
        DEFAULTS,
        "2026-01-01T00:00:00Z",
    )
    say("answered")
    identity.complete(node)
    say("enrolled first")
    csr = identity.renewal_request()
    say(f"asked {csr}")
    answer = Certificate(
        "approved", certificate_for(csr, "second"), "2031-01-01T00:00:00Z", "ca2", "2026-01-01T00:00:00Z"
    )
    identity.keep_candidate(answer)
    say("candidate second")
    identity.promote()
    say("promoted second")
    again = identity.begin("https://m:1", "ca2", None, True)
    say(f"asked {again.csr_pem}")
    say("answered again")
    identity.complete(node._replace(node_id=6, certificate_pem=certificate_for(again.csr_pem, "third")))
    say("enrolled third")


# ---- what must be true afterwards


def check_spool(system: System, said: list[str], is_machine_dead: bool) -> None:
    spool = Spool(system, "/state/spool", LIMITS)
    kept = {int(item.payload) for item in spool.take(1 << 30, 1000)}
    promised = {int(line.split()[1]) for line in said if line.startswith("kept")}
    acknowledging = [set(map(int, line.split()[1:])) for line in said if line.startswith("acknowledging")]
    maybe_gone = set().union(*acknowledging) if acknowledging else set()
    surely_gone = set().union(*acknowledging[:-1]) if acknowledging else set()
    assert promised - maybe_gone <= kept
    if not is_machine_dead:
        assert not surely_gone & kept
    assert spool.losses().records == 0
    assert kept <= set(range(1, 14))
    before = spool.pending()
    spool.append(METRICS, b"99")
    assert spool.pending() == before + 1
    assert int(spool.take(1 << 30, 1000)[-1].payload) == 99


def check_journal(system: System, said: list[str], is_machine_dead: bool) -> None:
    journal = Journal(system, "/state/journal")
    stages = {entry.id: entry for entry in journal.unreported()}
    for command_id in COMMANDS[1:]:
        stage = stages[command_id].stage if command_id in stages else 0
        if f"finished {command_id}" in said:
            assert stage == FINISHED
            assert stages[command_id].result == {"command": command_id}
        elif f"started {command_id}" in said:
            assert stage in (STARTED, FINISHED)
        elif f"received {command_id}" in said:
            assert stage in (RECEIVED, STARTED)
            assert command_id == COMMANDS[1] or stage == STARTED
    if f"received {COMMANDS[0]}" in said and f"received {COMMANDS[2]}" not in said:
        assert journal.knows(COMMANDS[0])
    assert not journal.is_damaged
    extra = "ffffffff-0000-4000-8000-000000000000"
    assert journal.receive(command(extra), 2e9, starts_now=True)
    assert not journal.receive(command(extra), 2e9, starts_now=True)
    journal.close()
    assert Journal(system, "/state/journal").knows(extra)


def check_state(system: System, said: list[str], is_machine_dead: bool) -> None:
    state = InstanceState(system, "/state", "boot")
    generations = [int(line.split()[1]) for line in said if line.startswith("generation")]
    assert state.generation > max(generations, default=0)
    leases = [line.split()[1] for line in said if line.startswith("lease")]
    if leases:
        # The one that was being stored may have made it; an older one never counts.
        everything = [f"lease-{generation}-{number}" for generation in range(1, 4) for number in range(3)]
        place = everything.index(leases[-1])
        assert state.lease in everything[place : place + 2]
    versions = [int(line.split()[1]) for line in said if line.startswith("settings")]
    assert load_settings(system, "/state").version in {
        *versions[-1:],
        (versions or [6])[-1] + 1,
        *([0] if not versions else []),
    }


def check_identity(system: System, said: list[str], is_machine_dead: bool) -> None:
    identity = Identity(system, "/state/identity")
    asked = [line.partition(" ")[2] for line in said if line.startswith("asked")]
    if not asked:
        return
    if "enrolled first" not in said:
        # Either the answer is on disk whole, or the very same request is made again.
        if identity.node is None:
            assert identity.pending is not None
            assert identity.pending.csr_pem == asked[0]
            return
        assert "answered" in said
    assert identity.node is not None
    current = system.read(identity.path(CURRENT)).decode()
    assert current.count("BEGIN CERTIFICATE") == current.count("BEGIN PRIVATE KEY") == 1
    # The certificate and the key in one file always belong together.
    key = current.split("-----BEGIN PRIVATE KEY-----\n")[1].split("\n")[0]
    assert f"csr for {key}\n" in current
    if identity.has(CANDIDATE):
        candidate = system.read(identity.path(CANDIDATE)).decode()
        key = candidate.split("-----BEGIN PRIVATE KEY-----\n")[1].split("\n")[0]
        assert f"second csr for {key}\n" in candidate
    if "enrolled third" in said:
        assert "third" in current
        assert identity.node.node_id == 6
    elif "promoted second" in said:
        assert "second" in current or "third" in current
    elif "candidate second" in said:
        assert identity.has(CANDIDATE) or "second" in current
    elif len(asked) > 1 and not identity.has(CANDIDATE) and "second" not in current:
        # Asking again must be with the same key, or the answer that is under way would fit nothing.
        assert identity.renewal_request() == asked[1]


SCENES = {
    "spool": (use_spool, check_spool),
    "journal": (use_journal, check_journal),
    "state": (use_state, check_state),
    "identity": (use_identity, check_identity),
}


def mended(system: System) -> System:
    """Identity needs keys; making real ones at each of hundreds of steps would take minutes."""
    system.run = PlainKeytool.run  # type: ignore[method-assign, assignment]
    return system


@pytest.mark.parametrize(("names", "contents"), CUTS)
@pytest.mark.parametrize("scene", SCENES)
def test_a_power_cut_at_any_step_loses_nothing_that_was_promised(scene: str, names: bool, contents: bool) -> None:
    use, check = SCENES[scene]
    whole = ForgetfulDisk()
    PlainKeytool.made = 0
    use(mended(whole), lambda _: None)
    assert whole.steps > 10
    for step in range(1, whole.steps + 2):
        disk, said = ForgetfulDisk(), []
        disk.dies_in = step
        PlainKeytool.made = 0
        try:
            use(mended(disk), said.append)
        except Died:
            assert step <= whole.steps
        disk.cut(names, contents)
        check(disk, said, is_machine_dead=True)


class Chroot(StepSystem):
    """Scenes say /state; on the real disk that is a directory of the test."""

    def __init__(self, base: str, on_step: Callable[[str], None]) -> None:
        super().__init__(on_step)
        self.base = base

    def __getattribute__(self, name: str) -> object:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found) or name in ("on_step", "run"):
            return found
        base = object.__getattribute__(self, "base")

        def moved(*args: object) -> object:
            return found(*(base + arg if isinstance(arg, str) and arg.startswith("/state") else arg for arg in args))

        return moved


def killed_at(scene: str, base: Path, step: int) -> list[str]:
    """Play a scene in a forked process that kills itself at the step; what it said until then."""
    (base / "state").mkdir(parents=True)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        # No pytest from here on: this process only ever ends by a signal or by _exit.
        try:
            system = Chroot(str(base), dies_at(step, lambda: os.kill(os.getpid(), signal.SIGKILL)))
            SCENES[scene][0](mended(system), lambda line: os.write(write, f"{line}\n".encode()) and None)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        said = told.read().decode().splitlines()
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status), step
    return said


def real_steps(scene: str, base: Path) -> int:
    count = 0

    def on_step(_: str) -> None:
        nonlocal count
        count += 1

    (base / "state").mkdir(parents=True)
    SCENES[scene][0](mended(Chroot(str(base), on_step)), lambda _: None)
    return count


@pytest.mark.parametrize("scene", SCENES)
def test_a_killed_process_leaves_nothing_half_done(scene: str, tmp_path: Path) -> None:
    PlainKeytool.made = 0
    for step in range(1, real_steps(scene, tmp_path / "count") + 1):
        base = tmp_path / f"step{step}"
        PlainKeytool.made = 0
        said = killed_at(scene, base, step)
        PlainKeytool.made = 100
        SCENES[scene][1](mended(Chroot(str(base), lambda _: None)), said, is_machine_dead=False)
