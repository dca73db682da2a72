"""Turns the kernel's counters into measurements: rates since the last one, totals, and the parts behind them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Callable, NamedTuple, TypeVar

from daemon.clock import Clock
from daemon.gpu import GpuReader
from daemon.procfs import CpuTimes, DiskCounters, Kernel, Memory, NetCounters
from daemon.system import System
from protocol.limits import CORES, PARTS
from protocol.metrics import Detail, DiskIo, Interface, Mount, Point, Sample

T = TypeVar("T")

log = logging.getLogger("daemon.collector")


class Counters(NamedTuple):
    """What rates are made of, with the boot clock's time of the reading."""

    at: float
    cpu: CpuTimes | None
    cores: list[CpuTimes]
    network: dict[str, NetCounters]
    disks: dict[str, DiskCounters]


class Collector:
    """One per purpose: the regular measurement and live mode each compare with their own last reading."""

    def __init__(self, system: System, kernel: Kernel, clock: Clock, gpu: GpuReader) -> None:
        self._system = system
        self._kernel = kernel
        self._clock = clock
        self._gpu = gpu
        self._missing: list[str] = []
        self._told: set[str] = set()
        self._last = self._read_counters()

    def measure(self) -> Point:
        """A full measurement. A part that cannot be read is null and named; the others are not touched by it."""
        self._missing = []
        stamp = self._clock.text()
        last, now = self._last, self._read_counters()
        self._last = now
        memory = self._try("memory", self._kernel.memory)
        mounts = self._try("mounts", self._mounts)
        load = self._try("load", self._kernel.load) or (None, None, None)
        interfaces = None if "network" in self._missing else _interfaces(last, now)
        disk_total = None if mounts is None else sum(mount.total for mount in mounts)
        disk_used = None if mounts is None else sum(mount.used for mount in mounts)
        detail = Detail(
            cores=None if "cpu" in self._missing else _core_usage(last.cores, now.cores)[:CORES],
            mounts=None if mounts is None else tuple(mounts[:PARTS]),
            interfaces=None if interfaces is None else tuple(interfaces[:PARTS]),
            disk_io=None if "disks" in self._missing else tuple(_disk_io(last, now)[:PARTS]),
            gpu=self._try("gpu", self._gpu.collect),
            missing=(),
        )
        process_count = self._try("processes", self._kernel.process_count)
        tcp_connections = self._try("tcp", self._kernel.tcp_connections)
        self._tell()
        return Point(
            timestamp=stamp,
            uptime_s=round(self._system.boottime(), 3),
            cpu_usage=_usage(last.cpu, now.cpu),
            memory_usage=None if memory is None else _share(memory.total - memory.available, memory.total),
            memory_total=None if memory is None else memory.total,
            memory_used=None if memory is None else memory.total - memory.available,
            memory_available=None if memory is None else memory.available,
            memory_cached=None if memory is None else memory.cached,
            swap_total=None if memory is None else memory.swap_total,
            swap_used=None if memory is None else max(0, memory.swap_total - memory.swap_free),
            disk_usage=None if disk_used is None or disk_total is None else _share(disk_used, disk_total),
            disk_total=disk_total,
            disk_used=disk_used,
            network_rx=None if interfaces is None else _sum(part.rx_rate for part in interfaces),
            network_tx=None if interfaces is None else _sum(part.tx_rate for part in interfaces),
            load_avg_1=load[0],
            load_avg_5=load[1],
            load_avg_15=load[2],
            process_count=process_count,
            tcp_connections=tcp_connections,
            detail=detail._replace(missing=tuple(self._missing)),
        )

    def sample(self) -> Sample:
        """The few figures of live mode."""
        self._missing = []
        last, now = self._last, self._read_counters()
        self._last = now
        memory: Memory | None = self._try("memory", self._kernel.memory)
        interfaces, disks = _interfaces(last, now), _disk_io(last, now)
        return Sample(
            timestamp=self._clock.text(),
            cpu_usage=_usage(last.cpu, now.cpu),
            memory_usage=None if memory is None else _share(memory.total - memory.available, memory.total),
            memory_used=None if memory is None else memory.total - memory.available,
            disk_read=_sum(part.read_rate for part in disks),
            disk_write=_sum(part.write_rate for part in disks),
            network_rx=_sum(part.rx_rate for part in interfaces),
            network_tx=_sum(part.tx_rate for part in interfaces),
        )

    def _read_counters(self) -> Counters:
        cpu = self._try("cpu", self._kernel.cpu)
        network = self._try("network", self._kernel.network)
        disks = self._try("disks", self._kernel.disks)
        return Counters(
            self._system.boottime(),
            None if cpu is None else cpu[0],
            [] if cpu is None else cpu[1],
            network or {},
            disks or {},
        )

    def _mounts(self) -> list[Mount]:
        found = []
        for mount in self._kernel.mounts():
            try:
                total, used = self._kernel.space(mount)
            except OSError:
                continue
            if total > 0:
                found.append(Mount(mount.path, mount.device, mount.fstype, total, used, _share(used, total)))
        return found

    def _try(self, part: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            self._missing.append(part)
            if part not in self._told:
                log.warning("cannot measure %s: %s: %s", part, type(error).__name__, error)
            return None

    def _tell(self) -> None:
        """Each part that fails is told once, and again after it worked in between."""
        for part in self._told - set(self._missing):
            log.info("%s can be measured again", part)
        self._told = set(self._missing)


def _usage(last: CpuTimes | None, now: CpuTimes | None) -> float | None:
    if last is None or now is None or now.total <= last.total:
        return None
    return _share(max(0, now.busy - last.busy), now.total - last.total)


def _core_usage(last: list[CpuTimes], now: list[CpuTimes]) -> tuple[float, ...]:
    if len(last) != len(now):
        # A core went on- or offline; the lines no longer belong together.
        return ()
    return tuple(_usage(before, after) or 0.0 for before, after in zip(last, now))


def _interfaces(last: Counters, now: Counters) -> list[Interface]:
    seconds = now.at - last.at
    found = []
    for name, counters in now.network.items():
        before = last.network.get(name)
        rx = None if before is None else _rate(before.rx_bytes, counters.rx_bytes, seconds)
        tx = None if before is None else _rate(before.tx_bytes, counters.tx_bytes, seconds)
        found.append(Interface(name[:64], *counters, rx, tx))
    return found


def _disk_io(last: Counters, now: Counters) -> list[DiskIo]:
    seconds = now.at - last.at
    found = []
    for name, counters in now.disks.items():
        before = last.disks.get(name)
        read = write = busy = None
        if before is not None:
            read = _rate(before.read_bytes, counters.read_bytes, seconds)
            write = _rate(before.write_bytes, counters.write_bytes, seconds)
            busy_rate = _rate(before.busy_ms, counters.busy_ms, seconds)
            busy = None if busy_rate is None else min(100.0, round(busy_rate / 10, 2))
        found.append(
            DiskIo(
                name[:128],
                counters.read_bytes,
                counters.write_bytes,
                counters.reads,
                counters.writes,
                read,
                write,
                busy,
            )
        )
    return found


def _rate(before: int, after: int, seconds: float) -> float | None:
    """Per second; None if the counter went back (a device was replaced) or no time has passed."""
    return None if after < before or seconds <= 0 else round((after - before) / seconds, 1)


def _share(part: int, whole: int) -> float:
    return round(min(100.0, 100.0 * part / whole), 2) if whole > 0 else 0.0


def _sum(rates: Iterable[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return round(sum(known), 1) if known else None
