"""How well the Daemon supervises: restart after kill -9, cost of fifty agents, limits, leftovers, and its own death.

    python -m bench.supervise                 # everything of ours, about six minutes
    python -m bench.supervise --only restart  # one part: restart, cost, limits, cycles, kills
    python -m bench.supervise --rivals        # circus and supervisor beside it, installed for this run from PyPI

Starts a throw-away Manager of the tests and a real Daemon on this machine; needs nothing else. Every supervisor is
measured from outside by the same program, which writes a line into a file when it starts.
"""

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.daemon_memory import cpu_seconds, smaps
from protocol.settings import DEFAULTS
from tests.daemon.manager import FakeManager
from tests.daemon.processes import DaemonProcess, wait_for
from tests.daemon.supervisor.box import kill_marked, processes_of, zombies_of

PARTS = ("restart", "cost", "limits", "cycles", "kills")
ROWS: list[tuple[str, str]] = []


def row(what: str, figure: str) -> None:
    """One line of the table, also at once, because the parts take minutes."""
    ROWS.append((what, figure))
    print(f"  {what:<46}{figure}", flush=True)


class Host:
    """A Manager and a Daemon with agents."""

    def __init__(self, place: Path) -> None:
        self.manager = FakeManager(place / "manager")
        self.manager.settings = DEFAULTS._replace(version=1, heartbeat_interval_s=60, metrics_interval_s=60)
        self.manager.next_checkin_s = 60.0
        self.daemon = DaemonProcess(place / "host")
        self.entries: dict[str, dict[str, Any]] = {}
        self.seq = 1
        if self.daemon.enroll(self.manager) != 0:
            raise SystemExit(self.daemon.output())

    def add(self, name: str, start: list[str], desired: str = "running", **more: Any) -> None:
        manifest = {"name": name, "type": "custom", "start": start, **more}
        self.entries[name] = {
            "name": name, "desired": desired, "seq": self.seq, "source": "manager", "manifest": manifest,
        }  # fmt: skip

    def declare(self) -> None:
        settings = self.manager.settings
        self.manager.settings = settings._replace(version=settings.version + 1, agents=tuple(self.entries.values()))
        if self.manager.node.polls:
            self.order("settings.refresh")

    def start(self) -> int:
        """The Daemon's pid, once its link is up."""
        polls = self.manager.node.polls if self.manager.nodes else 0
        # As installed: with compiled modules.
        process = self.daemon.start(PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(self.daemon.directory / "pyc"))
        wait_for(lambda: self.manager.node.polls > polls, "the link", 60)
        return process.pid

    def order(self, kind: str, **payload: Any) -> Any:
        """A command's result."""
        sent = self.manager.send(kind, payload)
        return wait_for(lambda: self.manager.node.result(sent), kind, 90)

    def told(self, kind: str) -> set[str]:
        """Names of agents that an event of this kind was about."""
        return {event.data["agent"] for event in self.manager.node.events if event.kind == kind and event.data}

    def agents(self) -> dict[str, Any]:
        reports = [checkin.agents for checkin in self.manager.node.checkins if checkin.agents is not None]
        return {agent.name: agent for agent in reports[-1]} if reports else {}

    def close(self) -> None:
        self.daemon.stop(signal.SIGKILL)
        kill_marked(self.daemon.state_dir)
        self.manager.close()


def marked_program(file: Path) -> list[str]:
    """A program that says when it starts and who it is."""
    return ["/bin/sh", "-c", f"echo $$ >>{file}; exec sleep 100000"]


def pids_in(file: Path) -> list[int]:
    return [int(word) for word in file.read_text().split()] if file.exists() else []


def time_to_restart(file: Path, timeout_s: float = 30.0) -> float:
    """Kill the newest process of this file and wait for the next one's line; seconds."""
    known = pids_in(file)
    begun = time.perf_counter()
    os.kill(known[-1], signal.SIGKILL)
    while len(pids_in(file)) == len(known):
        if time.perf_counter() - begun > timeout_s:
            raise SystemExit(f"{file}: it was not started again")
        time.sleep(0.0005)
    return time.perf_counter() - begun


def shown(times: list[float]) -> str:
    ordered = sorted(1000 * one for one in times)
    middle, late = statistics.median(ordered), ordered[int(len(ordered) * 0.95)]
    return f"median {middle:.0f} ms, p95 {late:.0f}, longest {ordered[-1]:.0f}, {len(ordered)} tries"


# ---- ours


def restart(place: Path, tries: int) -> None:
    """Each try is the first restart of another agent, as the specification's steps want it."""
    host = Host(place)
    try:
        files = [place / f"started-{number}" for number in range(tries)]
        for number, file in enumerate(files):
            host.add(f"a{number}", marked_program(file))
        host.declare()
        host.start()
        wait_for(lambda: all(pids_in(file) for file in files), "all agents", 120)
        time.sleep(3)
        times = []
        for file in files:
            times.append(time_to_restart(file))
            time.sleep(0.2)
    finally:
        host.close()
    row("kill -9 to running again", shown(times))


def cost(place: Path, count: int, seconds: float) -> None:
    """Memory and CPU with many agents, each with the default health check and one over TCP."""
    host = Host(place)
    try:
        port = host.manager.url.rpartition(":")[2]
        health = [{"kind": "process"}, {"kind": "tcp", "port": int(port)}]
        for number in range(count):
            host.add(f"a{number}", ["/bin/sleep", "100000"], health=health)
        host.declare()
        host.start()
        host.daemon.stop()
        pid = host.start()
        wait_for(lambda: len(host.agents()) == count, "all agents", 120)
        time.sleep(10)
        begun, used = time.monotonic(), cpu_seconds(pid, True)
        time.sleep(seconds)
        share = 100 * (cpu_seconds(pid, True) - used) / (time.monotonic() - begun)
        memory = smaps(pid)
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        shims = [smaps(shim)["Pss"] for shim in processes_of(host.daemon.state_dir) if is_shim(shim)]
        row(
            f"{count} agents: Daemon's memory",
            f"RSS {memory['Rss'] / 1024:.1f} MiB, PSS {memory['Pss'] / 1024:.1f} MiB",
        )
        row(f"{count} agents: Daemon's CPU", f"{share:.2f} % of one core over {seconds:.0f} s, {threads} threads")
        row("a shim", f"PSS {statistics.mean(shims):.0f} KiB on average of {len(shims)}")
    finally:
        host.close()


def is_shim(pid: int) -> bool:
    return b"ops" in Path(f"/proc/{pid}/cmdline").read_bytes().lower()


def limits(place: Path, count: int) -> None:
    """Runaways come a few at a time, so that each gets its share of the cores; the quiet ones stay all along."""
    host = Host(place)
    bounds = {"cpu_percent": 8, "cpu_for_s": 4, "memory_bytes": 32 << 20, "action": "alert"}
    burning = ["/bin/sh", "-c", "while :; do :; done"]
    growing = [sys.executable, "-I", "-S", "-c", "x = bytearray(64 << 20)\nimport time; time.sleep(1000)"]
    runaways = {f"{'burns' if number % 2 else 'grows'}-{number}" for number in range(count)}
    try:
        for number in range(count):
            host.add(f"quiet-{number}", ["/bin/sh", "-c", "while :; do sleep 1; done"], limits=bounds)
        host.declare()
        host.start()
        for batch in in_batches(sorted(runaways, key=lambda name: int(name.rpartition("-")[2])), 6):
            for name in batch:
                host.add(name, burning if name.startswith("burns") else growing, limits=bounds)
            host.declare()
            deadline = time.monotonic() + 45
            while time.monotonic() < deadline and not set(batch) <= host.told("agent.limit"):
                time.sleep(1)
                host.order("settings.refresh")
            for name in batch:
                del host.entries[name]
            host.declare()
        told = host.told("agent.limit") | host.told("agent.crashed")
    finally:
        host.close()
    row("runaway processes caught", f"{len(told & runaways)} of {count} (half by CPU, half by memory)")
    row("quiet processes touched", f"{len(told - runaways)} of {count}")


def in_batches(names: list[str], size: int) -> list[list[str]]:
    return [names[first : first + size] for first in range(0, len(names), size)]


def cycles(place: Path, count: int) -> None:
    """Start and stop by command, a program with children, one of which leaves the session."""
    host = Host(place)
    try:
        code = "sleep 1000 & (setsid sleep 1001 &) ; exec sleep 1002"
        host.add("one", ["/bin/sh", "-c", code], desired="stopped")
        host.declare()
        pid = host.start()
        failed = 0
        runs: set[bytes] = set()
        for _ in range(count):
            host.seq += 1
            failed += host.order("agent.start", name="one", seq=host.seq).status != "succeeded"
            run = (host.daemon.state_dir / "agents/one/shim").read_text().split()[0]
            runs.add(f"OPS_RUN={run}".encode())
            failed += host.order("agent.stop", name="one", seq=host.seq).status != "succeeded"
        time.sleep(1)
        left = [one for one in Path("/proc").glob("[0-9]*/environ") if has_any(one, runs)]
        row(f"{count} start/stop cycles", f"{failed} failed, {len(left)} orphans, {len(zombies_of(pid))} zombies")
    finally:
        host.close()


def has_any(environ: Path, runs: set[bytes]) -> bool:
    try:
        return bool(runs & set(environ.read_bytes().split(b"\0")))
    except OSError:
        return False


def kills(place: Path, count: int) -> None:
    """The Daemon is killed while agents start, stop and crash; at the end each is as desired, once."""
    chance = random.Random(4711)
    host = Host(place)
    wanted = {f"a{number}": "running" for number in range(6)}
    try:
        for name in wanted:
            host.add(name, ["/bin/sleep", f"{100000 + int(name[1:])}"])
        host.declare()
        host.start()
        for _ in range(count):
            host.seq += 1
            for name in wanted:
                wanted[name] = chance.choice(("running", "stopped"))
                verb = "start" if wanted[name] == "running" else "stop"
                host.manager.send(f"agent.{verb}", {"name": name, "seq": host.seq})
            time.sleep(chance.random() * 0.5)
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(chance.choice(processes_of(host.daemon.state_dir)), signal.SIGKILL)
            time.sleep(chance.random() * 0.1)
            host.daemon.stop(signal.SIGKILL)
            host.daemon.start()
            time.sleep(chance.random())
        host.seq += 1
        for name, desired in wanted.items():
            host.entries[name]["desired"], host.entries[name]["seq"] = desired, host.seq
        settings = host.manager.settings
        host.manager.settings = settings._replace(version=settings.version + 1, agents=tuple(host.entries.values()))
        with contextlib.suppress(AssertionError):
            wait_for(lambda: all(processes_named(name) == (state == "running") for name, state in wanted.items()),
                     "the desired state", 90)  # fmt: skip
        time.sleep(2)
        wrong = [name for name, state in wanted.items() if processes_named(name) != (state == "running")]
    finally:
        host.close()
    row(f"Daemon killed {count} times", f"{len(wrong)} of {len(wanted)} agents not in their desired state exactly once")


def processes_named(name: str) -> int:
    """How many processes of an agent there are on the whole machine."""
    line = f"/bin/sleep\0{100000 + int(name[1:])}\0".encode()
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            count += path.read_bytes() == line
    return count


# ---- others


def rivals(place: Path, tries: int) -> None:
    """circus and supervisor with default settings, one program each; every try waits until they call it stable."""
    venv = place / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run(
        [str(venv / "bin/pip"), "install", "--quiet", "circus", "supervisor", "setuptools<81"], check=True
    )  # fmt: skip
    file = place / "supervisor-started"
    (place / "supervisord.conf").write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={place}/s.log\npidfile={place}/s.pid\n"
        f"[program:one]\ncommand=/bin/sh -c 'echo $$ >>{file}; exec sleep 100000'\n"
    )
    argv = [str(venv / "bin/supervisord"), "-c", str(place / "supervisord.conf")]
    rival("supervisor", argv, file, tries)
    file = place / "circus-started"
    (place / "circus.ini").write_text(
        f"[circus]\nendpoint=ipc://{place}/c1\npubsub_endpoint=ipc://{place}/c2\n"
        f"[watcher:one]\ncmd=/bin/sh -c 'echo $$ >>{file}; exec sleep 100000'\nmax_retry=-1\n"
    )
    rival("circus", [str(venv / "bin/circusd"), str(place / "circus.ini")], file, tries)


def rival(name: str, argv: list[str], file: Path, tries: int) -> None:
    with (file.parent / f"{name}.out").open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out) as process:
        try:
            wait_for(lambda: pids_in(file), f"{name}'s program", 30)
            time.sleep(3)
            times = []
            for _ in range(tries):
                times.append(time_to_restart(file))
                time.sleep(1.5)
            memory = smaps(process.pid)
        finally:
            process.terminate()
            process.wait(20)
            for pid in pids_in(file)[-1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    row(f"{name}: kill -9 to running again", shown(times))
    row(f"{name}: memory with one program", f"RSS {memory['Rss'] / 1024:.1f} MiB, PSS {memory['Pss'] / 1024:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be given several times")
    parser.add_argument("--tries", type=int, default=50, help="kills of an agent")
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring CPU")
    parser.add_argument("--runaways", type=int, default=100)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--kills", type=int, default=50, help="of the Daemon")
    parser.add_argument("--rivals", action="store_true", help="measure circus and supervisor too")
    given = parser.parse_args()
    # Whoever ends it early must not be left with its Daemons and agents.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parts: dict[str, Callable[[Path], None]] = {
        "restart": lambda place: restart(place, given.tries),
        "cost": lambda place: cost(place, given.agents, given.seconds),
        "limits": lambda place: limits(place, given.runaways),
        "cycles": lambda place: cycles(place, given.cycles),
        "kills": lambda place: kills(place, given.kills),
    }
    for name in given.only or PARTS:
        with tempfile.TemporaryDirectory(prefix="ops-") as place:
            parts[name](Path(place))
    if given.rivals:
        with tempfile.TemporaryDirectory(prefix="ops-") as place:
            rivals(Path(place), given.tries)


if __name__ == "__main__":
    main()
