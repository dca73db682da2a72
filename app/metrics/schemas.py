"""What can be asked of measurements, and what programs are shown (contract, section 3: metric point)."""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app.kernel.api import Out


class MetricsQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    start: AwareDatetime | None = Field(None, description="Default: an hour before `end`.")
    end: AwareDatetime | None = Field(None, description="Default: now.")
    resolution: Literal["auto", "raw", "5m", "1h"] = "auto"
    detail: bool = Field(False, description="With the parts behind raw points, as long as they are kept.")


class MountOut(Out):
    mount: str
    device: str
    fstype: str
    total: int
    used: int
    usage: float


class InterfaceOut(Out):
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


class DiskIoOut(Out):
    device: str
    read_bytes: int
    write_bytes: int
    reads: int
    writes: int
    read_rate: float | None
    write_rate: float | None
    busy: float | None


class GpuOut(Out):
    card: int
    name: str
    usage: float | None
    memory_used: int | None
    memory_total: int | None
    temperature: float | None
    power: float | None


class MaximaOut(Out):
    """The highest values in a bucket whose point shows the means."""

    cpu_usage: float | None
    memory_usage: float | None
    memory_used: int | None
    memory_total: int | None
    swap_used: int | None
    disk_usage: float | None
    disk_used: int | None
    network_rx: float | None
    network_tx: float | None
    load_avg_1: float | None
    load_avg_5: float | None
    load_avg_15: float | None
    process_count: int | None
    tcp_connections: int | None


class MetricPointOut(MaximaOut):
    """A measurement, or the means over a bucket that begins at `timestamp`. The parts are there only if asked for."""

    timestamp: AwareDatetime
    max: MaximaOut | None = Field(None, description="Only with rolled-up points.")
    cores: list[float] | None = Field(None, description="Percent of each core. This and the rest only with `detail`.")
    mounts: list[MountOut] | None = None
    interfaces: list[InterfaceOut] | None = None
    disk_io: list[DiskIoOut] | None = None
    gpu: list[GpuOut] | None = None


class MetricsOut(Out):
    resolution: Literal["raw", "5m", "1h"]
    items: list[MetricPointOut]
