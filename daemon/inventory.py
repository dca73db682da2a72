"""What this host is: read once an hour from the kernel's files; and the hashed hints that tell machines apart."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from urllib.parse import urlsplit

from daemon.procfs import Kernel, MountPoint, is_internal
from daemon.system import System
from daemon.version import VERSION
from protocol.inventory import Disk, Inventory, Machine
from protocol.limits import PARTS
from protocol.times import to_text

REFRESH_S = 3600.0

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_VENDORS = {
    "amazon ec2": "aws",
    "amazon": "aws",
    "google": "gcp",
    "microsoft corporation": "azure",
    "alibaba cloud": "alibaba",
    "tencent cloud": "tencent",
    "huawei cloud": "huawei",
    "openstack foundation": "openstack",
    "digitalocean": "digitalocean",
    "hetzner": "hetzner",
}
_HYPERVISORS = {
    "qemu": "kvm",
    "kvm": "kvm",
    "vmware": "vmware",
    "virtualbox": "virtualbox",
    "innotek": "virtualbox",
    "xen": "xen",
    "microsoft corporation": "hyperv",
    "bochs": "kvm",
    "amazon ec2": "kvm",
    "google": "kvm",
    "alibaba cloud": "kvm",
}


class InventoryReader:
    """Keeps the last reading, so that a check-in costs nothing; `refresh` forgets it."""

    def __init__(self, system: System, kernel: Kernel, server_url: str | None) -> None:
        self._system = system
        self._kernel = kernel
        self._server_url = server_url
        self._kept: Inventory | None = None
        self._read_at = 0.0

    def read(self) -> Inventory:
        """The inventory, at most an hour old."""
        now = self._system.boottime()
        if self._kept is None or now - self._read_at > REFRESH_S:
            self._kept, self._read_at = self._gather(), now
        return self._kept

    def refresh(self) -> None:
        """Read anew next time."""
        self._kept = None

    def _gather(self) -> Inventory:
        release = self._os_release()
        memory = self._kernel.memory()
        kernel = os.uname()
        return Inventory(
            hostname=(socket.gethostname() or "localhost")[:253],
            ips=tuple(self._addresses()[:PARTS]),
            macs=tuple(self._macs()[:PARTS]),
            os="linux",
            os_name=release.get("NAME", "")[:128],
            os_version=release.get("VERSION_ID", "")[:64],
            kernel_version=kernel.release[:128],
            arch=_ARCHITECTURES.get(kernel.machine, kernel.machine)[:32],
            cpu_model=self._cpu_model()[:128],
            cpu_cores=os.cpu_count() or 0,
            memory_total=memory.total,
            swap_total=memory.swap_total,
            disk_total=sum(map(self._size_of, self._kernel.mounts())),
            disks=tuple(self._disks()[:PARTS]),
            python_version=".".join(str(part) for part in sys.version_info[:3]),
            daemon_version=VERSION,
            boot_time=self._boot_time(),
            virtualization=self._virtualization(),
            cloud=self._cloud(),
            timezone=self._timezone(),
        )

    def _size_of(self, mount: MountPoint) -> int:
        try:
            return self._kernel.space(mount)[0]
        except OSError:
            return 0

    def _os_release(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in ("/etc/os-release", "/usr/lib/os-release"):
            for line in self._kernel.text_or_empty(path).splitlines():
                name, mark, value = line.partition("=")
                if mark:
                    found.setdefault(name, value.strip().strip("\"'"))
        return found

    def _cpu_model(self) -> str:
        text = self._kernel.text_or_empty(f"{self._kernel.proc}/cpuinfo")
        for label in ("model name", "Model", "Hardware", "CPU part"):
            for line in text.splitlines():
                name, _, value = line.partition(":")
                if name.strip() == label and value.strip():
                    return " ".join(value.split())
        return ""

    def _addresses(self) -> list[str]:
        """The one towards the Manager first; neither loopback nor link-local."""
        found = [self._own_address(), *self._ipv4(), *self._ipv6()]
        return list(dict.fromkeys(address for address in found if address))

    def _own_address(self) -> str:
        parts = urlsplit(self._server_url or "")
        if not parts.hostname:
            return ""
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                with socket.socket(family, socket.SOCK_DGRAM) as probe:
                    # Connecting a datagram socket sends nothing; it only asks the routing table.
                    probe.connect((parts.hostname, parts.port or 443))
                    address = str(probe.getsockname()[0])
            except OSError:
                continue
            return "" if address.startswith(("127.", "::1")) else address
        return ""

    def _ipv4(self) -> list[str]:
        found, last = [], ""
        try:
            text = self._kernel.text(f"{self._kernel.proc}/net/fib_trie")
        except OSError:
            return []
        for line in text.splitlines():
            words = line.split()
            if words[:1] == ["|--"]:
                last = words[1]
            elif words[:1] == ["/32"] and words[-1] == "LOCAL" and not last.startswith(("127.", "169.254.")):
                found.append(last)
        return sorted(set(found))

    def _ipv6(self) -> list[str]:
        found = []
        for line in self._kernel.text_or_empty(f"{self._kernel.proc}/net/if_inet6").splitlines():
            words = line.split()
            if len(words) == 6 and words[3] == "00" and not is_internal(words[5]):
                found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[0])))
        return sorted(found)

    def _macs(self) -> list[str]:
        base = f"{self._kernel.sys}/class/net"
        names = [name for name in self._kernel.names(base) if not is_internal(name)]
        found = [self._kernel.text_or_empty(f"{base}/{name}/address") for name in names]
        return sorted({address for address in found if address and address.strip("0:")})

    def _disks(self) -> list[Disk]:
        found = []
        for name in self._kernel.block_devices():
            base = f"{self._kernel.sys}/block/{name}"
            size = self._kernel.text_or_empty(f"{base}/size")
            if size.isdigit() and int(size):
                model = self._kernel.text_or_empty(f"{base}/device/model")[:128] or None
                rotational = self._kernel.text_or_empty(f"{base}/queue/rotational")
                found.append(Disk(name[:128], int(size) * 512, model, {"1": True, "0": False}.get(rotational)))
        return found

    def _boot_time(self) -> str | None:
        """The kernel's own figure, which does not waver from start to start as the difference of two clocks does."""
        for line in self._kernel.text(f"{self._kernel.proc}/stat").splitlines():
            if line.startswith("btime ") and line[6:].isdigit():
                return to_text(int(line[6:]), 0)
        return None

    def _virtualization(self) -> str | None:
        container = self._kernel.text_or_empty("/run/systemd/container")
        if container:
            return container[:64]
        if self._system.exists("/.dockerenv"):
            return "docker"
        if self._system.exists("/run/.containerenv"):
            return "podman"
        vendor = f"{self._dmi('sys_vendor')} {self._dmi('product_name')}".lower()
        for mark, name in _HYPERVISORS.items():
            if mark in vendor:
                return name
        flags = self._kernel.text_or_empty(f"{self._kernel.proc}/cpuinfo")
        return "vm" if " hypervisor" in flags else None

    def _cloud(self) -> str | None:
        vendor = self._dmi("sys_vendor").lower()
        if vendor == "microsoft corporation" and "7783-7084-3265-9085-8269-3286-77" not in self._dmi(
            "chassis_asset_tag"
        ):
            # Hyper-V anywhere has this vendor; only Azure has that tag.
            return None
        return _VENDORS.get(vendor)

    def _dmi(self, name: str) -> str:
        return self._kernel.text_or_empty(f"{self._kernel.sys}/class/dmi/id/{name}")

    def _timezone(self) -> str | None:
        name = self._kernel.text_or_empty("/etc/timezone")
        if not name:
            name = self._system.link_target("/etc/localtime").partition("zoneinfo/")[2]
        return name[:64] or None


def read_machine(system: System, kernel: Kernel) -> Machine:
    """Hints, hashed so that the raw ids stay here."""
    machine_id = kernel.text_or_empty("/etc/machine-id")
    hardware_id = kernel.text_or_empty(f"{kernel.sys}/class/dmi/id/product_uuid").lower()
    boot_id = kernel.text_or_empty(f"{kernel.proc}/sys/kernel/random/boot_id")
    return Machine(
        machine_id=_hashed("machine", machine_id),
        hardware_id=_hashed("hardware", hardware_id),
        boot_id=boot_id[:64] or f"unknown-{int(system.wall() - system.boottime()) // 10}",
    )


def _hashed(kind: str, value: str) -> str | None:
    return hashlib.sha256(f"ops-scaffold:{kind}:{value}".encode()).hexdigest() if value else None
