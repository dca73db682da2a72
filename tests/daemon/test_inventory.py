"""What a host says it is: from the files of made-up kernels, and of this one."""

import hashlib
import os
import socket
from pathlib import Path

import psutil
import pytest

from daemon.inventory import REFRESH_S, InventoryReader, read_machine
from daemon.procfs import Kernel
from daemon.system import System
from protocol.codec import decode, encode
from protocol.fields import Fields
from protocol.inventory import inventory_hash, parse_inventory
from tests.daemon.faults import FixedClocks

FIB_TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 192.0.2.0/24 2 0 2
        |-- 192.0.2.7
           /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 169.254.3.4
        /32 host LOCAL
     |-- 198.51.100.9
        /32 host LOCAL
"""
IF_INET6 = (
    "20010db8000000000000000000000007 02 40 00 80     eth0\n"
    "fe800000000000000000000000000001 02 40 20 80     eth0\n"
    "00000000000000000000000000000001 01 80 10 80       lo\n"
    "fd000000000000000000000000000009 03 40 00 80 docker0\n"
)
DISKS = {"sda": ("2048", "1"), "nvme0n1": ("4096", "0"), "loop0": ("8", "0"), "sdb": ("0", "1")}


def made_up(tmp_path: Path, **dmi: str) -> Kernel:
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    for name in ("net", "self", "sys/kernel/random"):
        (proc / name).mkdir(parents=True, exist_ok=True)
    (proc / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 500 kB\nSwapTotal: 10 kB\nSwapFree: 10 kB\n")
    (proc / "self/mounts").write_text("overlay / overlay rw 0 0\n")
    (proc / "stat").write_text("cpu 1 1 1 1\nbtime 1700000000\n")
    (proc / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some  CPU @ 2GHz\nflags\t\t: fpu hypervisor sse\n")
    (proc / "net/fib_trie").write_text(FIB_TRIE)
    (proc / "net/if_inet6").write_text(IF_INET6)
    (proc / "sys/kernel/random/boot_id").write_text("4d84792a-ab22\n")
    for name, address in {"eth0": "02:00:00:00:00:01", "lo": "00:00:00:00:00:00", "veth1": "02:00:00:00:00:09"}.items():
        (sys / "class/net" / name).mkdir(parents=True, exist_ok=True)
        (sys / "class/net" / name / "address").write_text(address + "\n")
    for name, (size, rotational) in DISKS.items():
        (sys / "block" / name / "queue").mkdir(parents=True, exist_ok=True)
        (sys / "block" / name / "size").write_text(size)
        (sys / "block" / name / "queue/rotational").write_text(rotational)
    (sys / "block/sda/device").mkdir(exist_ok=True)
    (sys / "block/sda/device/model").write_text("BIG DISK\n")
    (sys / "class/dmi/id").mkdir(parents=True, exist_ok=True)
    for name, text in dmi.items():
        (sys / "class/dmi/id" / name).write_text(text + "\n")
    return Kernel(System(), str(proc), str(sys))


def test_what_files_say_is_gathered(tmp_path: Path) -> None:
    found = InventoryReader(System(), made_up(tmp_path), None).read()
    assert found.hostname == socket.gethostname()
    assert found.ips == ("192.0.2.7", "198.51.100.9", "2001:db8::7")
    assert found.macs == ("02:00:00:00:00:01",)
    assert found.cpu_model == "Some CPU @ 2GHz"
    assert found.cpu_cores == os.cpu_count()
    assert (found.memory_total, found.swap_total) == (1024000, 10240)
    assert [tuple(disk) for disk in found.disks] == [
        ("nvme0n1", 4096 * 512, None, False),
        ("sda", 2048 * 512, "BIG DISK", True),
    ]
    assert found.boot_time == "2023-11-14T22:13:20Z"
    assert parse_inventory(Fields(decode(encode(found), 1 << 20))) == found


def test_this_host_is_described_as_psutil_sees_it() -> None:
    found = InventoryReader(System(), Kernel(System()), "https://192.0.2.1:9443").read()
    assert found.memory_total == psutil.virtual_memory().total
    addresses = {
        address.address.partition("%")[0]
        for each in psutil.net_if_addrs().values()
        for address in each
        if address.family in (socket.AF_INET, socket.AF_INET6)
    }
    assert set(found.ips) <= addresses
    assert found.kernel_version == os.uname().release
    assert found.boot_time is not None


@pytest.mark.parametrize(
    ("dmi", "virtualization", "cloud"),
    [
        ({"sys_vendor": "QEMU", "product_name": "Standard PC"}, "kvm", None),
        ({"sys_vendor": "Amazon EC2", "product_name": "m5.large"}, "kvm", "aws"),
        ({"sys_vendor": "Alibaba Cloud", "product_name": "Alibaba Cloud ECS"}, "kvm", "alibaba"),
        ({"sys_vendor": "VMware, Inc.", "product_name": "VMware Virtual Platform"}, "vmware", None),
        ({"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine"}, "hyperv", None),
        (
            {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"},
            "hyperv",
            "azure",
        ),
        ({"sys_vendor": "Dell Inc.", "product_name": "PowerEdge"}, "vm", None),
    ],
)
def test_where_it_runs(tmp_path: Path, dmi: dict[str, str], virtualization: str, cloud: str | None) -> None:
    system = System()
    system.exists = lambda path: False  # type: ignore[method-assign]
    reader = InventoryReader(system, made_up(tmp_path, **dmi), None)
    assert (reader._virtualization(), reader._cloud()) == (virtualization, cloud)


def test_the_hash_stays_over_restarts_and_follows_changes(tmp_path: Path) -> None:
    kernel = made_up(tmp_path)
    clocks = FixedClocks()
    first = inventory_hash(InventoryReader(clocks, kernel, None).read())
    clocks.wall_s += 0.7
    assert inventory_hash(InventoryReader(clocks, kernel, None).read()) == first
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2000 kB\nMemAvailable: 500 kB\n")
    assert inventory_hash(InventoryReader(clocks, kernel, None).read()) != first


def test_it_is_read_anew_once_an_hour_or_when_asked(tmp_path: Path) -> None:
    clocks = FixedClocks()
    reader = InventoryReader(clocks, made_up(tmp_path), None)
    before = reader.read()
    (tmp_path / "proc/cpuinfo").write_text("model name: Other\n")
    assert reader.read() is before
    clocks.forward(REFRESH_S + 1)
    assert reader.read().cpu_model == "Other"
    (tmp_path / "proc/cpuinfo").write_text("model name: Third\n")
    reader.refresh()
    assert reader.read().cpu_model == "Third"


def test_a_host_without_those_files_is_described_as_well(tmp_path: Path) -> None:
    kernel = made_up(tmp_path)
    for name in ("cpuinfo", "net/fib_trie", "net/if_inet6", "sys/kernel/random/boot_id"):
        (tmp_path / "proc" / name).unlink()
    found = InventoryReader(System(), kernel, None).read()
    assert (found.cpu_model, found.ips) == ("", ())
    assert parse_inventory(Fields(decode(encode(found), 1 << 20))) == found
    assert read_machine(System(), kernel).boot_id.startswith("unknown-")


def test_ids_leave_the_host_only_as_hashes(tmp_path: Path) -> None:
    kernel = made_up(tmp_path, product_uuid="4C4C4544-0042")
    machine = read_machine(System(), kernel)
    assert machine.hardware_id == hashlib.sha256(b"ops-scaffold:hardware:4c4c4544-0042").hexdigest()
    assert machine.boot_id == "4d84792a-ab22"
    raw = Path("/etc/machine-id").read_text().strip() if Path("/etc/machine-id").exists() else ""
    expected = hashlib.sha256(f"ops-scaffold:machine:{raw}".encode()).hexdigest() if raw else None
    assert machine.machine_id == expected
