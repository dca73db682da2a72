"""What the resident Daemon costs: RSS and PSS with its TLS link up, CPU over a time, and how long a measurement takes.

    python -m bench.daemon_memory --seconds 600

Starts a throw-away Manager of the tests and a real Daemon, both on this machine; needs nothing else.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from daemon.clock import Clock
from daemon.collector import Collector
from daemon.gpu import GpuReader
from daemon.procfs import Kernel
from daemon.system import System
from protocol.settings import DEFAULTS
from tests.daemon.manager import FakeManager
from tests.daemon.processes import DaemonProcess, wait_for

TICKS = os.sysconf("SC_CLK_TCK")


def smaps(pid: int) -> dict[str, int]:
    """KiB by name, of the whole process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def cpu_seconds(pid: int, with_children: bool) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11 : 15 if with_children else 13]) / TICKS


def collection_times(count: int) -> list[float]:
    """Milliseconds of `count` full measurements by the Daemon's own collector."""
    system = System()
    collector = Collector(system, Kernel(system), Clock(system, "bench"), GpuReader(system, False))
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        collector.measure()
        times.append((time.perf_counter() - begun) * 1000)
        time.sleep(0.01)
    return sorted(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--interval", type=int, default=60, help="of check-ins and measurements, 10 to 300")
    parser.add_argument("--collections", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        manager = FakeManager(Path(place) / "manager")
        manager.settings = DEFAULTS._replace(
            version=1, heartbeat_interval_s=given.interval, metrics_interval_s=given.interval
        )
        manager.next_checkin_s = float(given.interval)
        host = DaemonProcess(Path(place) / "host")
        if host.enroll(manager) != 0:
            raise SystemExit(host.output())
        process = host.start()
        try:
            wait_for(lambda: manager.node.points and manager.node.polls > 1, "the link")
            begun, used = time.monotonic(), cpu_seconds(process.pid, True)
            peak = 0
            while time.monotonic() - begun < given.seconds:
                time.sleep(min(5.0, given.seconds))
                peak = max(peak, smaps(process.pid)["Rss"])
            elapsed = time.monotonic() - begun
            share = 100 * (cpu_seconds(process.pid, True) - used) / elapsed
            memory = smaps(process.pid)
            threads = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
        finally:
            host.stop()
            manager.close()
    times = collection_times(given.collections)
    print(f"RSS            {memory['Rss'] / 1024:7.1f} MiB (peak {peak / 1024:.1f})")
    print(f"PSS            {memory['Pss'] / 1024:7.1f} MiB, private {(memory['Private_Dirty']) / 1024:.1f} MiB dirty")
    print(f"threads        {threads:7d}")
    print(f"CPU            {share:7.3f} % of one core over {elapsed:.0f} s, interval {given.interval} s")
    quantiles = statistics.quantiles(times, n=100)
    print(
        f"collection     {statistics.median(times):7.2f} ms median, p95 {quantiles[94]:.2f}, p99 {quantiles[98]:.2f}, "
        f"longest {times[-1]:.2f}, {len(times)} of them"
    )


if __name__ == "__main__":
    main()
