"""One measurement of a host with its detail, batches of them, and the one-second samples of live mode."""

from __future__ import annotations

from typing import NamedTuple

from protocol.fields import WORD, Fields
from protocol.limits import BIG, CORES, GPUS, PARTS, POINTS_PER_BATCH, SAMPLES

_RATE = 1e15


class Mount(NamedTuple):
    """A real local file system; bytes, percent."""

    mount: str
    device: str
    fstype: str
    total: int
    used: int
    usage: float


class Interface(NamedTuple):
    """A network interface: counters since boot, and bytes per second since the previous measurement."""

    name: str
    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int
    rx_rate: float | None
    tx_rate: float | None


class DiskIo(NamedTuple):
    """A block device: counters since boot, bytes per second, and the percent of time it was busy."""

    device: str
    read_bytes: int
    write_bytes: int
    reads: int
    writes: int
    read_rate: float | None
    write_rate: float | None
    busy: float | None


class Gpu(NamedTuple):
    """What `nvidia-smi` says about one card: percent, bytes, degrees Celsius, watts."""

    card: int
    name: str
    usage: float | None
    memory_used: int | None
    memory_total: int | None
    temperature: float | None
    power: float | None


class Detail(NamedTuple):
    """The parts behind the totals. `missing` names parts that could not be read this time."""

    cores: tuple[float, ...] | None
    mounts: tuple[Mount, ...] | None
    interfaces: tuple[Interface, ...] | None
    disk_io: tuple[DiskIo, ...] | None
    gpu: tuple[Gpu, ...] | None
    missing: tuple[str, ...]


class Point(NamedTuple):
    """One measurement. `timestamp` is when it was made and never changes; null is what could not be read."""

    timestamp: str
    uptime_s: float | None
    cpu_usage: float | None
    memory_usage: float | None
    memory_total: int | None
    memory_used: int | None
    memory_available: int | None
    memory_cached: int | None
    swap_total: int | None
    swap_used: int | None
    disk_usage: float | None
    disk_total: int | None
    disk_used: int | None
    network_rx: float | None
    network_tx: float | None
    load_avg_1: float | None
    load_avg_5: float | None
    load_avg_15: float | None
    process_count: int | None
    tcp_connections: int | None
    detail: Detail | None


class Batch(NamedTuple):
    """Points that were stored together on the host and are acknowledged together."""

    id: str
    points: tuple[Point, ...]


class Sample(NamedTuple):
    """Live mode: bytes per second, percent, bytes."""

    timestamp: str
    cpu_usage: float | None
    memory_usage: float | None
    memory_used: int | None
    disk_read: float | None
    disk_write: float | None
    network_rx: float | None
    network_tx: float | None


class Live(NamedTuple):
    """Body of `POST live`."""

    samples: tuple[Sample, ...]


class LiveAnswer(NamedTuple):
    """Until when samples are wanted, in the Manager's time; null ends live mode."""

    until: str | None


def parse_point(fields: Fields) -> Point:
    """Read one measurement."""
    return Point(
        timestamp=fields.time("timestamp"),
        uptime_s=fields.number_or_none("uptime_s", 0, 1e10),
        cpu_usage=fields.number_or_none("cpu_usage", 0, 100),
        memory_usage=fields.number_or_none("memory_usage", 0, 100),
        memory_total=fields.integer_or_none("memory_total"),
        memory_used=fields.integer_or_none("memory_used"),
        memory_available=fields.integer_or_none("memory_available"),
        memory_cached=fields.integer_or_none("memory_cached"),
        swap_total=fields.integer_or_none("swap_total"),
        swap_used=fields.integer_or_none("swap_used"),
        disk_usage=fields.number_or_none("disk_usage", 0, 100),
        disk_total=fields.integer_or_none("disk_total"),
        disk_used=fields.integer_or_none("disk_used"),
        network_rx=fields.number_or_none("network_rx", 0, _RATE),
        network_tx=fields.number_or_none("network_tx", 0, _RATE),
        load_avg_1=fields.number_or_none("load_avg_1", 0, 1e6),
        load_avg_5=fields.number_or_none("load_avg_5", 0, 1e6),
        load_avg_15=fields.number_or_none("load_avg_15", 0, 1e6),
        process_count=fields.integer_or_none("process_count", 0, 10**8),
        tcp_connections=fields.integer_or_none("tcp_connections", 0, 10**8),
        detail=fields.inner_or_none("detail", parse_detail),
    )


def parse_detail(fields: Fields) -> Detail:
    """Read the parts behind a point."""
    return Detail(
        cores=fields.numbers_or_none("cores", CORES, 0, 100),
        mounts=fields.each_or_none("mounts", PARTS, _parse_mount),
        interfaces=fields.each_or_none("interfaces", PARTS, _parse_interface),
        disk_io=fields.each_or_none("disk_io", PARTS, _parse_disk_io),
        gpu=fields.each_or_none("gpu", GPUS, _parse_gpu),
        missing=fields.texts("missing", 16, 32),
    )


def parse_batch(fields: Fields) -> Batch:
    """Read a batch; an empty one is refused."""
    batch = Batch(fields.text("id", 64, 1, WORD), fields.each("points", POINTS_PER_BATCH, parse_point))
    if not batch.points:
        raise fields.refuse("points", "must have 1 item or more")
    return batch


def parse_live(fields: Fields) -> Live:
    """Read the body of `POST live`."""
    return Live(fields.each("samples", SAMPLES, _parse_sample))


def parse_live_answer(fields: Fields) -> LiveAnswer:
    """Read the answer to `POST live`."""
    return LiveAnswer(fields.time_or_none("until"))


def _parse_mount(fields: Fields) -> Mount:
    return Mount(
        mount=fields.text("mount", 1024),
        device=fields.text("device", 1024, 0),
        fstype=fields.text("fstype", 64, 0),
        total=fields.integer("total"),
        used=fields.integer("used"),
        usage=fields.number("usage", 0, 100),
    )


def _parse_interface(fields: Fields) -> Interface:
    return Interface(
        name=fields.text("name", 64),
        rx_bytes=fields.integer("rx_bytes", 0, BIG),
        tx_bytes=fields.integer("tx_bytes", 0, BIG),
        rx_packets=fields.integer("rx_packets", 0, BIG),
        tx_packets=fields.integer("tx_packets", 0, BIG),
        rx_errors=fields.integer("rx_errors", 0, BIG),
        tx_errors=fields.integer("tx_errors", 0, BIG),
        rx_dropped=fields.integer("rx_dropped", 0, BIG),
        tx_dropped=fields.integer("tx_dropped", 0, BIG),
        rx_rate=fields.number_or_none("rx_rate", 0, _RATE),
        tx_rate=fields.number_or_none("tx_rate", 0, _RATE),
    )


def _parse_disk_io(fields: Fields) -> DiskIo:
    return DiskIo(
        device=fields.text("device", 128),
        read_bytes=fields.integer("read_bytes"),
        write_bytes=fields.integer("write_bytes"),
        reads=fields.integer("reads"),
        writes=fields.integer("writes"),
        read_rate=fields.number_or_none("read_rate", 0, _RATE),
        write_rate=fields.number_or_none("write_rate", 0, _RATE),
        busy=fields.number_or_none("busy", 0, 100),
    )


def _parse_gpu(fields: Fields) -> Gpu:
    return Gpu(
        card=fields.integer("card", 0, 255),
        name=fields.text("name", 128),
        usage=fields.number_or_none("usage", 0, 100),
        memory_used=fields.integer_or_none("memory_used"),
        memory_total=fields.integer_or_none("memory_total"),
        temperature=fields.number_or_none("temperature", -273, 1000),
        power=fields.number_or_none("power", 0, 100000),
    )


def _parse_sample(fields: Fields) -> Sample:
    return Sample(
        timestamp=fields.time("timestamp"),
        cpu_usage=fields.number_or_none("cpu_usage", 0, 100),
        memory_usage=fields.number_or_none("memory_usage", 0, 100),
        memory_used=fields.integer_or_none("memory_used"),
        disk_read=fields.number_or_none("disk_read", 0, _RATE),
        disk_write=fields.number_or_none("disk_write", 0, _RATE),
        network_rx=fields.number_or_none("network_rx", 0, _RATE),
        network_tx=fields.number_or_none("network_tx", 0, _RATE),
    )
