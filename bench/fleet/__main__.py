"""`python -m bench.fleet`: how a Manager fares with N hosts.

Starts a Manager of its own on free ports, lets N simulated Daemons enrol, check in, hold polls and answer commands over
the real wire, and prints what was measured. Simulator and Manager share this machine; the simulator's own share of the
processor is told.
"""

import argparse
import asyncio
import json
import multiprocessing
import platform
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import psutil

from bench.fleet.host import Host
from bench.fleet.manager import ROOT, Manager
from bench.fleet.tally import Tally, percentile
from bench.fleet.tasks import Click, click_on_all, click_on_hosts, delays, spans

SETTLE_S = 5
ENROLLING = 32
API = ("/nodes?page_size=50", "/nodes?selector=role%3Dweb%20or%20status%3Donline", "/system/dashboard")
PAGES = ("/dashboard", "/nodes", "/nodes?keyword=web&sort=-cpu_usage")


def main() -> int:
    given = arguments()
    with Manager(given.database, OPS_SERVER__GATEWAY_WORKERS=str(given.gateways)) as manager:
        token = manager.sign_in()
        join = manager.api("POST", "/enrollment/tokens", {"name": "bench"}, token)["token"]
        return measure(given, manager, token, join)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60, help="how long to measure once all are connected")
    parser.add_argument("--interval", type=float, default=60, help="seconds between two check-ins of a host")
    parser.add_argument("--commands", type=int, default=200, help="how many commands to time")
    parser.add_argument("--clicks", type=int, default=0, help="how many tasks to begin by the API, on one host each")
    parser.add_argument("--runs", type=int, default=0, help="how many tasks to begin on all hosts at once")
    parser.add_argument("--database", choices=["sqlite", "mariadb"], default="sqlite")
    parser.add_argument("--gateways", type=int, default=1, help="gateway processes")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    return parser.parse_args()


def simulate(nodes: range, url: str, ca_pem: str, join: str, interval: float, stop: Event, out: Any) -> None:
    """One process of simulated hosts. Ends when told, then hands over what it saw."""
    tally = Tally()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def run() -> None:
        gate = asyncio.Semaphore(ENROLLING)

        async def one(number: int) -> None:
            async with gate:
                host = Host(number, url, ca_pem, tally, interval)
                context = await host.enroll(join)
            await host.run(context, stop.is_set)

        tasks = [asyncio.create_task(one(number)) for number in nodes]
        said = 0
        while not stop.is_set():
            await asyncio.sleep(0.2)
            if tally.enrolled != said:
                said = tally.enrolled
                out.put(("enrolled", said))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    started = time.process_time()
    asyncio.run(run())
    out.put(("tally", tally, time.process_time() - started))


def measure(given: argparse.Namespace, manager: Manager, token: str, join: str) -> int:
    out: Any = multiprocessing.Queue()
    stop = multiprocessing.Event()
    ca_pem = (manager.data / "keys" / "ca.pem").read_text("ascii")
    hosts = range(1, given.nodes + 1)
    started = time.monotonic()
    simulator = multiprocessing.Process(
        target=simulate, args=(hosts, manager.gateway_url, ca_pem, join, given.interval, stop, out), daemon=True
    )
    simulator.start()
    wait_until_enrolled(out, given.nodes)
    enrol_s = time.monotonic() - started
    print(f"{given.nodes} hosts enrolled in {enrol_s:.1f} s", flush=True)
    time.sleep(given.interval + SETTLE_S)
    measured_from = time.time()
    watch = Watch(manager, token)
    watch.start()
    times = issue_commands(manager, given.commands, given.seconds)
    clicks = click_on_hosts(manager, token, given.clicks, given.seconds) if given.clicks else []
    watch.stop()
    runs = click_on_all(manager, token, given.runs) if given.runs else []
    time.sleep(SETTLE_S)
    stop.set()
    tally, simulator_cpu_s = collect(out)
    simulator.join(30)
    checkins = [seconds for at, seconds in tally.checkins if at >= measured_from]
    figures = {
        "hosts": given.nodes,
        "database": given.database,
        "gateways": given.gateways,
        "enrolments_per_s": round(given.nodes / enrol_s, 1),
        **commands_figures(times, tally),
        **tasks_figures(clicks, runs, tally),
        "checkin_ms": milliseconds(checkins),
        "checkins": len(checkins),
        "api_ms": milliseconds(watch.api),
        "pages_ms": milliseconds(watch.pages),
        **acknowledged_figures(manager, tally),
        "errors": dict(tally.errors),
        "processes": watch.processes(),
        "simulator_cpu_s": round(simulator_cpu_s, 1),
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    report(figures)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["lost"] == 0 and figures["duplicated_commands"] == 0 else 1


def wait_until_enrolled(out: Any, nodes: int) -> None:
    while True:
        kind, value, *_ = out.get(timeout=600)
        if kind == "enrolled" and value >= nodes:
            return


def collect(out: Any) -> tuple[Tally, float]:
    while True:
        message = out.get(timeout=120)
        if message[0] == "tally":
            return message[1], message[2]


def issue_commands(manager: Manager, count: int, seconds: float) -> dict[str, float]:
    """Commands to hosts at random, evenly over the time. Timed from before the transaction that makes them."""
    command = [sys.executable, "-m", "bench.fleet.dispatch", str(count), str(seconds)]
    found = subprocess.run(command, cwd=ROOT, env=manager.environment, stdout=subprocess.PIPE, check=True)
    times: dict[str, float] = json.loads(found.stdout)
    return times


def commands_figures(times: dict[str, float], tally: Tally) -> dict[str, Any]:
    delays = [tally.arrivals[uuid][0] - at for uuid, at in times.items() if uuid in tally.arrivals]
    return {
        "commands": len(times),
        "dispatch_ms": milliseconds(delays),
        "lost_commands": len(times) - len(delays),
        "duplicated_commands": sum(len(arrivals) > 1 for arrivals in tally.arrivals.values()),
    }


def tasks_figures(clicks: list[Click], runs: list[Click], tally: Tally) -> dict[str, Any]:
    """Of tasks begun by the API: how soon they were at their hosts."""
    found, arrived = delays(clicks, tally), spans(runs, tally)
    return {
        "clicks": len(clicks),
        "click_ms": milliseconds(found),
        "click_answer_ms": milliseconds([click.answered_s for click in clicks]),
        "lost_clicks": len(clicks) - len(found),
        "runs": [
            {"hosts": len(span), "answer_s": round(click.answered_s, 3), "half_s": round(percentile(span, 0.5), 3)}
            | {"all_s": round(span[-1], 3) if span else None}
            for click, span in zip(runs, arrived, strict=True)
        ],
    }


def acknowledged_figures(manager: Manager, tally: Tally) -> dict[str, int]:
    """Every acknowledged point has to be in the database, once."""
    path = manager.data / "acknowledged.json"
    path.write_text(json.dumps(tally.acknowledged))
    command = [sys.executable, "-m", "bench.fleet.verify", str(path)]
    found = subprocess.run(command, cwd=ROOT, env=manager.environment, stdout=subprocess.PIPE, check=True)
    counts: dict[str, int] = json.loads(found.stdout)
    return counts


class Watch:
    """Asks the API and a page once a second meanwhile, and what the Manager's processes use."""

    def __init__(self, manager: Manager, token: str) -> None:
        self._manager, self._token = manager, token
        self._processes = manager.processes()
        self.api: list[float] = []
        self.pages: list[float] = []
        self._cpu_before: dict[str, float] = {}
        self._started = 0.0
        self._elapsed = 1.0
        self._rss: dict[str, int] = {}
        self._cpu: dict[str, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._started = time.monotonic()
        self._cpu_before = {name: cpu_s(process) for name, process in self._processes.items()}
        self._thread.start()

    def stop(self) -> None:
        self._elapsed = time.monotonic() - self._started
        self._cpu = {name: cpu_s(process) - self._cpu_before[name] for name, process in self._processes.items()}
        self._rss = {name: process.memory_info().rss for name, process in self._processes.items()}
        self._done.set()
        self._thread.join()

    def processes(self) -> dict[str, dict[str, float]]:
        return {
            name: {
                "rss_mb": round(self._rss[name] / 1e6, 1),
                "cpu_percent": round(100 * self._cpu[name] / self._elapsed, 1),
            }
            for name in self._processes
        }

    def _run(self) -> None:
        browser = self._manager.browser()
        while not self._done.wait(1.0):
            for path in API:
                started = time.perf_counter()
                self._manager.api("GET", path, token=self._token)
                self.api.append(time.perf_counter() - started)
            for path in PAGES:
                started = time.perf_counter()
                browser.open(self._manager.web_url + path, timeout=60).read()
                self.pages.append(time.perf_counter() - started)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def milliseconds(values: list[float]) -> dict[str, float]:
    return {f"p{share}": round(1000 * percentile(values, share / 100), 1) for share in (50, 95, 99)}


def report(figures: dict[str, Any]) -> None:
    print(f"\n{figures['hosts']} hosts, {figures['database']}, {figures['machine']}, {figures['date']}")
    rows: list[tuple[str, object]] = [
        ("enrolments a second", figures["enrolments_per_s"]),
        ("check-ins", f"{figures['checkins']}, ms {spread(figures['checkin_ms'])}"),
        ("commands", f"{figures['commands']}, ms {spread(figures['dispatch_ms'])}"),
        *([clicked(figures)] if figures["clicks"] else []),
        *(
            (f"task on {run['hosts']} hosts, s", f"answer {run['answer_s']}, half {run['half_s']}, all {run['all_s']}")
            for run in figures["runs"]
        ),
        ("commands lost, doubled", f"{figures['lost_commands']}, {figures['duplicated_commands']}"),
        ("points acknowledged, lost", f"{figures['acknowledged']}, {figures['lost']}"),
        ("API (nodes, selector, dashboard), ms", spread(figures["api_ms"])),
        ("pages (dashboard, nodes), ms", spread(figures["pages_ms"])),
        *(
            (f"{name}", f"{use['rss_mb']} MB, {use['cpu_percent']} % of a core")
            for name, use in figures["processes"].items()
        ),
        ("simulator", f"{figures['simulator_cpu_s']} s of processor time"),
        ("errors", dict(Counter(figures["errors"]).most_common(5)) or "none"),
    ]
    for name, value in rows:
        print(f"  {name:38} {value}")


def clicked(figures: dict[str, Any]) -> tuple[str, str]:
    answered, arrived = spread(figures["click_answer_ms"]), spread(figures["click_ms"])
    return "tasks by a click, ms to the host", f"{figures['clicks']}, {arrived}; the click's answer {answered}"


def spread(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value}" for name, value in figures.items())


if __name__ == "__main__":
    sys.exit(main())
