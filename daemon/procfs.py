"""What the kernel says in /proc and /sys, parsed and nothing more. psutil does it for 5.5 MB more memory."""

from __future__ import annotations

import re
from typing import NamedTuple

from daemon.system import System

# Interfaces that only carry traffic between the host and its own containers and guests.
_INTERNAL = re.compile(
    r"(lo|veth|docker|br-|cni|flannel|cali|tunl|vxlan\.calico|virbr|vnet|tap|lxc|lxd|podman|kube-|nodelocaldns|dummy|ifb)"
)
_LOCAL_TYPES = frozenset(
    "ext2 ext3 ext4 xfs btrfs zfs f2fs jfs reiserfs bcachefs vfat exfat ntfs ntfs3 fuseblk ubifs nilfs2 hfsplus".split()
)
_NOT_DISKS = re.compile(r"(loop|ram|zram|dm-|md|sr|fd|nbd)\d*")
_SECTOR = 512


class CpuTimes(NamedTuple):
    """Ticks since boot."""

    busy: int
    total: int


class Memory(NamedTuple):
    """Bytes."""

    total: int
    available: int
    cached: int
    swap_total: int
    swap_free: int


class MountPoint(NamedTuple):
    """A real local file system."""

    path: str
    device: str
    fstype: str


class NetCounters(NamedTuple):
    """Since boot, in the order of the wire's message."""

    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int


class DiskCounters(NamedTuple):
    """Since boot; `busy_ms` is the time in which at least one request was under way."""

    read_bytes: int
    write_bytes: int
    reads: int
    writes: int
    busy_ms: int


class Kernel:
    """Reads files under two roots, which tests replace."""

    def __init__(self, system: System, proc: str = "/proc", sys: str = "/sys") -> None:
        self._system = system
        self.proc = proc
        self.sys = sys

    def text(self, path: str, limit: int = 1024 * 1024) -> str:
        """A file's text; what is not UTF-8 in it is replaced."""
        return self._system.read(path, limit).decode("utf-8", "replace")

    def text_or_empty(self, path: str) -> str:
        """The stripped text of a small file, or nothing."""
        try:
            return self.text(path, 4096).strip()
        except OSError:
            return ""

    def cpu(self) -> tuple[CpuTimes, list[CpuTimes]]:
        """The whole host and each logical core that is online."""
        whole, cores = CpuTimes(0, 0), []
        for line in self.text(f"{self.proc}/stat").splitlines():
            if not line.startswith("cpu"):
                break
            name, _, rest = line.partition(" ")
            # user nice system idle iowait irq softirq steal; guest time is in user already.
            ticks = [int(word) for word in rest.split()[:8]]
            times = CpuTimes(sum(ticks) - sum(ticks[3:5]), sum(ticks))
            if name == "cpu":
                whole = times
            else:
                cores.append(times)
        return whole, cores

    def memory(self) -> Memory:
        """/proc/meminfo; kernels before 3.14 have no MemAvailable."""
        found: dict[str, int] = {}
        for line in self.text(f"{self.proc}/meminfo").splitlines():
            name, _, rest = line.partition(":")
            words = rest.split()
            if words:
                found[name] = int(words[0]) * 1024
        cached = found.get("Cached", 0) + found.get("Buffers", 0) + found.get("SReclaimable", 0) - found.get("Shmem", 0)
        available = found.get("MemAvailable", found.get("MemFree", 0) + max(0, cached))
        total = found["MemTotal"]
        return Memory(total, min(available, total), max(0, cached), found.get("SwapTotal", 0), found.get("SwapFree", 0))

    def mounts(self) -> list[MountPoint]:
        """Each local device once, at its first mount; the root alone where there is none, as in a container."""
        seen: dict[str, MountPoint] = {}
        for line in self.text(f"{self.proc}/self/mounts").splitlines():
            words = line.split(" ")
            if len(words) < 3 or words[2] not in _LOCAL_TYPES or words[0].startswith("/dev/loop"):
                continue
            device, path = _unescape(words[0]), _unescape(words[1])
            known = seen.get(device)
            if known is None or len(path) < len(known.path):
                seen[device] = MountPoint(path, device, words[2])
        return list(seen.values()) or [MountPoint("/", "", "")]

    def space(self, mount: MountPoint) -> tuple[int, int]:
        """Total and used bytes."""
        return self._system.space(mount.path)

    def network(self) -> dict[str, NetCounters]:
        """Every interface but the internal ones."""
        found = {}
        for line in self.text(f"{self.proc}/net/dev").splitlines()[2:]:
            name, _, rest = line.partition(":")
            name, words = name.strip(), rest.split()
            if len(words) < 12 or is_internal(name):
                continue
            n = [int(word) for word in words]
            found[name] = NetCounters(n[0], n[8], n[1], n[9], n[2], n[10], n[3], n[11])
        return found

    def disks(self) -> dict[str, DiskCounters]:
        """Whole disks; partitions, loops and what is built on other disks would count twice."""
        names = set(self.block_devices())
        found = {}
        for line in self.text(f"{self.proc}/diskstats").splitlines():
            words = line.split()
            if len(words) < 14 or words[2] not in names:
                continue
            n = [int(word) for word in words[3:14]]
            found[words[2]] = DiskCounters(n[2] * _SECTOR, n[6] * _SECTOR, n[0], n[4], n[9])
        return found

    def block_devices(self) -> list[str]:
        """Names of whole disks."""
        try:
            names = self._system.names(f"{self.sys}/block")
        except OSError:
            return []
        return [name for name in names if _NOT_DISKS.fullmatch(name) is None]

    def load(self) -> tuple[float, float, float]:
        """1, 5 and 15 minutes."""
        one, five, fifteen = self.text(f"{self.proc}/loadavg").split()[:3]
        return float(one), float(five), float(fifteen)

    def process_count(self) -> int:
        """Processes, not threads."""
        return sum(name.isdigit() for name in self._system.names(self.proc))

    def tcp_connections(self) -> int:
        """Established ones of IPv4 and IPv6, from the kernel's own counter: one line, however many there are."""
        lines = [line.split() for line in self.text(f"{self.proc}/net/snmp").splitlines() if line.startswith("Tcp:")]
        return int(dict(zip(*lines))["CurrEstab"])

    def names(self, path: str) -> list[str]:
        """What is in a directory; nothing if it is not there."""
        try:
            return self._system.names(path)
        except OSError:
            return []


def is_internal(name: str) -> bool:
    """Whether an interface belongs to loopback, containers or guests."""
    return _INTERNAL.match(name) is not None and (name == "lo" or not name.startswith("lo"))


def _unescape(text: str) -> str:
    """Blanks and the like are octal in /proc/mounts."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), text) if "\\" in text else text
