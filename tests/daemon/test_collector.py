"""The collector against psutil on this very host, and against files that a kernel might show."""

import json
import os
import shutil
import statistics
import time
from pathlib import Path

import psutil
import pytest

from daemon.clock import Clock
from daemon.collector import Collector
from daemon.gpu import GpuReader, parse_gpus
from daemon.procfs import CpuTimes, Kernel, is_internal
from daemon.system import System
from protocol.codec import decode, encode
from protocol.fields import Fields
from protocol.metrics import parse_point


class HurriedClock(System):
    """A boot clock that can be put forward."""

    ahead = 0.0

    def boottime(self) -> float:
        return super().boottime() + self.ahead


def collector(system: System | None = None, kernel: Kernel | None = None) -> Collector:
    system = system or System()
    return Collector(system, kernel or Kernel(system), Clock(system, "boot"), GpuReader(system, False))


def test_it_agrees_with_psutil() -> None:
    kernel = Kernel(System())
    memory, theirs = kernel.memory(), psutil.virtual_memory()
    assert memory.total == theirs.total
    assert memory.available == pytest.approx(theirs.available, rel=0.1)
    assert memory.swap_total == psutil.swap_memory().total
    whole, cores = kernel.cpu()
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    assert whole.busy / os.sysconf("SC_CLK_TCK") == pytest.approx(busy, rel=0.05, abs=1)
    assert len(cores) == psutil.cpu_count()
    assert kernel.load() == pytest.approx(psutil.getloadavg(), abs=0.3)
    assert kernel.process_count() == pytest.approx(len(psutil.pids()), abs=5)
    net = psutil.net_io_counters(pernic=True)
    for name, counters in kernel.network().items():
        assert counters.rx_bytes == pytest.approx(net[name].bytes_recv, rel=0.05, abs=1e6)
        assert counters.tx_packets == pytest.approx(net[name].packets_sent, rel=0.05, abs=1e4)
        assert counters.rx_errors == net[name].errin
        assert counters.tx_dropped == net[name].dropout
    disks = psutil.disk_io_counters(perdisk=True)
    for name, counters in kernel.disks().items():
        assert counters.read_bytes == pytest.approx(disks[name].read_bytes, rel=0.05, abs=1e7)
        assert counters.writes == pytest.approx(disks[name].write_count, rel=0.05, abs=1e3)
        assert counters.busy_ms == pytest.approx(disks[name].busy_time, rel=0.1, abs=1e3)
    mounts = kernel.mounts()
    for mount in mounts:
        usage = psutil.disk_usage(mount.path)
        assert kernel.space(mount)[0] == usage.total
        assert kernel.space(mount)[1] == pytest.approx(usage.used, rel=0.05)
    established = [each for each in psutil.net_connections("tcp") if each.status in ("ESTABLISHED", "CLOSE_WAIT")]
    assert kernel.tcp_connections() == pytest.approx(len(established), abs=10)


def test_a_measurement_is_complete_and_fits_the_wire() -> None:
    system = HurriedClock()
    subject = collector(system)
    deadline = time.monotonic() + 0.15
    while time.monotonic() < deadline:
        pass
    system.ahead = 10.0
    point = subject.measure()
    assert parse_point(Fields(decode(encode(point), 1 << 20))) == point
    assert point.detail is not None
    assert point.detail.missing == ()
    missing = [name for name, value in point._asdict().items() if value is None]
    assert missing == []
    assert 0 < point.cpu_usage <= 100  # type: ignore[operator]
    assert len(point.detail.cores or ()) == os.cpu_count()
    assert 0 < point.memory_usage < 100  # type: ignore[operator]


def test_a_measurement_takes_less_than_thirty_milliseconds() -> None:
    subject = collector()
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        subject.measure()
        times.append(time.perf_counter() - begun)
    assert statistics.median(times) < 0.030


def made_up(tmp_path: Path, **files: str) -> Kernel:
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    for name in ("1", "22", "self", "net", "333"):
        (proc / name).mkdir(parents=True, exist_ok=True)
    for name in ("sda", "nvme0n1", "loop0", "dm-0", "md127", "zram0", "sr0"):
        (sys / "block" / name).mkdir(parents=True, exist_ok=True)
    content = {
        "stat": "cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 50 0 50 350 50 0 0 0 0 0\n"
        "cpu1 50 0 50 350 50 0 0 0 0 0\nintr 5\n",
        "meminfo": "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\nBuffers: 10 kB\nCached: 200 kB\n"
        "SReclaimable: 20 kB\nShmem: 30 kB\nSwapTotal: 500 kB\nSwapFree: 300 kB\nHugePages_Total: 0\n",
        "loadavg": "0.10 0.20 0.30 1/300 4000\n",
        "net/dev": "Inter-| Receive\n face |bytes\n    lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n"
        "eth0:1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0\nveth12: 7 7 7 7 0 0 0 0 7 7 7 7 0 0 0 0\n",
        "net/snmp": "Ip: A\nIp: 1\nTcp: RtoAlgorithm CurrEstab InSegs\nTcp: 1 42 7\n",
        "diskstats": "8 0 sda 10 0 100 5 20 0 200 6 0 500 11\n8 1 sda1 10 0 100 5 20 0 200 6 0 500 11\n"
        "253 0 dm-0 10 0 100 5 20 0 200 6 0 500 11\n",
        "self/mounts": "/dev/sda1 / ext4 rw 0 0\n/dev/sda1 /var/lib/docker ext4 rw 0 0\n"
        "/dev/sdb1 /srv/a\\040b xfs rw 0 0\n"
        "/dev/loop0 /snap/x squashfs ro 0 0\nnas:/x /mnt/nfs nfs4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n",
        **files,
    }
    for name, text in content.items():
        (proc / name).write_text(text)
    return Kernel(System(), str(proc), str(sys))


def test_what_kernels_write_is_understood(tmp_path: Path) -> None:
    kernel = made_up(tmp_path)
    assert kernel.cpu() == (CpuTimes(200, 1000), [CpuTimes(100, 500), CpuTimes(100, 500)])
    assert kernel.memory() == (1024000, 409600, 204800, 512000, 307200)
    assert kernel.load() == (0.1, 0.2, 0.3)
    assert kernel.network() == {"eth0": (1000, 2000, 10, 20, 1, 3, 2, 4)}
    assert kernel.tcp_connections() == 42
    assert kernel.disks() == {"sda": (51200, 102400, 10, 20, 500)}
    assert [(mount.path, mount.device) for mount in kernel.mounts()] == [("/", "/dev/sda1"), ("/srv/a b", "/dev/sdb1")]
    assert kernel.process_count() == 3


def test_an_old_kernel_without_memavailable(tmp_path: Path) -> None:
    kernel = made_up(tmp_path, meminfo="MemTotal: 1000 kB\nMemFree: 100 kB\nCached: 200 kB\nBuffers: 50 kB\n")
    assert kernel.memory().available == 350 * 1024


def test_a_container_without_local_mounts_shows_its_root(tmp_path: Path) -> None:
    kernel = made_up(tmp_path, **{"self/mounts": "overlay / overlay rw 0 0\nproc /proc proc rw 0 0\n"})
    assert [mount.path for mount in kernel.mounts()] == ["/"]


@pytest.mark.parametrize(
    "name", ["lo", "veth1a", "docker0", "br-12ab", "cni0", "cali99", "virbr0", "flannel.1", "tap0"]
)
def test_internal_interfaces(name: str) -> None:
    assert is_internal(name)


@pytest.mark.parametrize("name", ["eth0", "ens3", "bond0", "wlan0", "enp1s0f0", "br0", "long0", "vlan12", "wg0"])
def test_real_interfaces(name: str) -> None:
    assert not is_internal(name)


def test_rates_are_per_second_and_a_counter_that_goes_back_has_none(tmp_path: Path) -> None:
    system = HurriedClock()
    kernel = made_up(tmp_path)
    subject = collector(system, kernel)
    made_up(
        tmp_path,
        stat="cpu  150 0 100 750 100 0 0 0 50 0\ncpu0 100 0 50 350 50 0 0 0 0 0\ncpu1 50 0 50 400 50 0 0 0 0 0\n",
        **{
            "net/dev": "a\nb\neth0:21000 10 1 2 0 0 0 0 1000 20 3 4 0 0 0 0\neth1: 5 5 5 5 0 0 0 0 5 5 5 5 0 0 0 0\n",
            "diskstats": "8 0 sda 10 0 2100 5 20 0 200 6 0 5500 11\n",
        },
    )
    system.ahead = 10.0
    point = subject.measure()
    detail = point.detail
    assert detail is not None
    assert point.cpu_usage == 50.0
    assert detail.cores == (100.0, 0.0)
    assert detail.interfaces is not None
    assert [(part.name, part.tx_rate) for part in detail.interfaces] == [("eth0", None), ("eth1", None)]
    assert detail.interfaces[0].rx_rate == pytest.approx(2000, rel=0.01)
    assert point.network_rx == pytest.approx(2000, rel=0.01)
    assert point.network_tx is None
    assert detail.disk_io is not None
    assert detail.disk_io[0].read_rate == pytest.approx(102400, rel=0.01)
    assert detail.disk_io[0].busy == pytest.approx(50, rel=0.01)


@pytest.mark.parametrize(
    ("name", "part", "fields"),
    [
        ("stat", "cpu", ["cpu_usage"]),
        ("meminfo", "memory", ["memory_total", "memory_usage", "swap_used"]),
        ("loadavg", "load", ["load_avg_1", "load_avg_15"]),
        ("net/dev", "network", ["network_rx", "network_tx"]),
        ("net/snmp", "tcp", ["tcp_connections"]),
        ("diskstats", "disks", []),
        ("self/mounts", "mounts", ["disk_total", "disk_usage"]),
    ],
)
@pytest.mark.parametrize(
    "content", [None, "", "rubbish\n" * 5, "cpu x y z\nTcp: a\nMemTotal: x\n/dev/sda1\neth0: 1 2\n"]
)
def test_a_part_that_cannot_be_read_costs_only_itself(
    tmp_path: Path, name: str, part: str, fields: list[str], content: str | None
) -> None:
    kernel = made_up(tmp_path)
    subject = collector(kernel=kernel)
    path = tmp_path / "proc" / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    point = subject.measure()
    assert parse_point(Fields(decode(encode(point), 1 << 20))) == point
    assert point.detail is not None
    if content is None:
        assert point.detail.missing == (part,)
        assert all(getattr(point, field) is None for field in fields)
    assert point.process_count == 3
    others = {"load_avg_1", "tcp_connections", "memory_total"} - set(fields)
    assert all(getattr(point, field) is not None for field in others)


def test_live_samples(tmp_path: Path) -> None:
    subject = collector(kernel=made_up(tmp_path))
    sample = subject.sample()
    assert sample.memory_usage == 60.0
    assert json.loads(encode(sample))["network_rx"] == 0.0


QUERY = """0, NVIDIA A100, 37, 1024, 40960, 41, 61.52
1, NVIDIA A100, [N/A], [N/A], 40960, 39, [Not Supported]
rubbish
"""


def test_cards_are_read() -> None:
    first, second = parse_gpus(QUERY)
    assert first == (0, "NVIDIA A100", 37.0, 1024 << 20, 40960 << 20, 41.0, 61.52)
    assert second == (1, "NVIDIA A100", None, None, 40960 << 20, 39.0, None)


def program(tmp_path: Path, body: str) -> str:
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def collected(reader: GpuReader) -> object:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        found = reader.collect()
        if found is not None or reader._child is None:
            return found
        time.sleep(0.01)
    return None


def test_the_program_is_asked(tmp_path: Path) -> None:
    reader = GpuReader(System(), True, program(tmp_path, f"cat <<'END'\n{QUERY}END"))
    reader.start()
    reader.start()
    found = collected(reader)
    assert isinstance(found, tuple)
    assert len(found) == 2


def is_alive_in(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def test_a_program_that_hangs_is_given_up_with_its_children(tmp_path: Path) -> None:
    system = HurriedClock()
    reader = GpuReader(system, True, program(tmp_path, f"echo $$ > {tmp_path}/pid; sleep 600 & sleep 600"))
    reader.start()
    deadline = time.monotonic() + 5
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reader.collect() is None
    group = int((tmp_path / "pid").read_text())
    system.ahead = 6.0
    assert reader.collect() is None
    assert not [each for each in psutil.process_iter() if is_alive_in(each, group)]
    reader.start()
    assert reader._child is None
    system.ahead = 6.0 + 3601
    reader.start()
    assert reader._child is not None
    reader.close()


@pytest.mark.parametrize("body", ["exit 9", "echo 'NVIDIA-SMI has failed'; exit 1"])
def test_a_program_that_fails_is_asked_again_only_after_an_hour(tmp_path: Path, body: str) -> None:
    reader = GpuReader(System(), True, program(tmp_path, body))
    reader.start()
    assert collected(reader) is None
    reader.start()
    assert reader._child is None


def test_a_host_without_the_program(tmp_path: Path) -> None:
    assert shutil.which("nvidia-smi") is None
    reader = GpuReader(System(), True, str(tmp_path / "none"))
    reader.start()
    assert reader.collect() is None
