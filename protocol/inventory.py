"""What a host is: facts that change rarely. Sent at enrolment, and at check-in when its hash changes."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from protocol.codec import canonical
from protocol.fields import HEX_64, Fields
from protocol.limits import PARTS

OS_NAMES = ("linux", "windows", "darwin")
_ADDRESS = re.compile(r"[0-9A-Za-z.:%_-]+")


class Disk(NamedTuple):
    """A block device that is not a partition."""

    device: str
    size: int
    model: str | None
    rotational: bool | None


class Inventory(NamedTuple):
    """Spec N5. Sizes in bytes; `cpu_cores` counts logical ones."""

    hostname: str
    ips: tuple[str, ...]
    macs: tuple[str, ...]
    os: str
    os_name: str
    os_version: str
    kernel_version: str
    arch: str
    cpu_model: str
    cpu_cores: int
    memory_total: int
    swap_total: int
    disk_total: int
    disks: tuple[Disk, ...]
    python_version: str
    daemon_version: str
    boot_time: str | None
    virtualization: str | None
    cloud: str | None
    timezone: str | None


def parse_inventory(fields: Fields) -> Inventory:
    """Read an inventory."""
    return Inventory(
        hostname=fields.text("hostname", 253),
        ips=fields.texts("ips", PARTS, 64, _ADDRESS),
        macs=fields.texts("macs", PARTS, 32, _ADDRESS),
        os=fields.choice("os", OS_NAMES),
        os_name=fields.text("os_name", 128, 0),
        os_version=fields.text("os_version", 64, 0),
        kernel_version=fields.text("kernel_version", 128, 0),
        arch=fields.text("arch", 32),
        cpu_model=fields.text("cpu_model", 128, 0),
        cpu_cores=fields.integer("cpu_cores", 0, 65536),
        memory_total=fields.integer("memory_total"),
        swap_total=fields.integer("swap_total"),
        disk_total=fields.integer("disk_total"),
        disks=fields.each("disks", PARTS, _parse_disk),
        python_version=fields.text("python_version", 32, 0),
        daemon_version=fields.text("daemon_version", 64),
        boot_time=fields.time_or_none("boot_time"),
        virtualization=fields.text_or_none("virtualization", 64),
        cloud=fields.text_or_none("cloud", 64),
        timezone=fields.text_or_none("timezone", 64),
    )


def inventory_hash(inventory: Inventory) -> str:
    """What our Daemon sends as `inventory_hash`; to the Manager any 64 hex digits are just equal or not."""
    return hashlib.sha256(canonical(inventory).encode("utf-8")).hexdigest()


class Machine(NamedTuple):
    """Hints that tell two machines with one identity apart. Hashes, so that the raw ids stay on the host."""

    machine_id: str | None
    hardware_id: str | None
    boot_id: str


def parse_machine(fields: Fields) -> Machine:
    """Read the hints."""
    return Machine(
        machine_id=fields.text_or_none("machine_id", 64, 64, HEX_64),
        hardware_id=fields.text_or_none("hardware_id", 64, 64, HEX_64),
        boot_id=fields.text("boot_id", 64),
    )


def _parse_disk(fields: Fields) -> Disk:
    return Disk(
        device=fields.text("device", 128),
        size=fields.integer("size"),
        model=fields.text_or_none("model", 128),
        rotational=fields.flag_or_none("rotational"),
    )
