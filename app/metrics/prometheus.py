"""Every host's newest values in Prometheus' text format, and who may read what Prometheus reads.

Written by hand: the client library takes seconds for ten thousand hosts.
"""

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Final

from app.kernel.access import Actor, authorize
from app.kernel.context import ops
from app.kernel.edges import is_within
from app.metrics.models import POINTS
from app.metrics.queries import NodeNow
from app.nodes.models import ONLINE


def authorize_scrape(actor: Actor) -> None:
    """Let callers from allowed addresses pass, and others with the token of somebody who may read it."""
    if not is_within(actor.ip, ops().settings.server.metrics_allow):
        authorize(actor, "metrics.read")


STATES: Final[tuple[tuple[str, str, Callable[[NodeNow], float | None]], ...]] = (
    ("ops_node_up", "Whether the host is online.", lambda node: int(node.status == ONLINE)),
    ("ops_node_maintenance", "Whether it is in maintenance.", lambda node: int(node.is_in_maintenance)),
    (
        "ops_node_last_heartbeat_timestamp_seconds",
        "When it was heard last.",
        lambda node: None if node.last_heartbeat is None else node.last_heartbeat.timestamp(),
    ),
    (
        "ops_node_measured_timestamp_seconds",
        "When the values below were measured; they are left out once they are old.",
        lambda node: None if node.point is None else node.point.ts / 1000,
    ),
)
MEASURED: Final = {
    "cpu_usage": ("ops_node_cpu_usage_percent", "Use of all cores together."),
    "memory_usage": ("ops_node_memory_usage_percent", "Memory used."),
    "memory_used": ("ops_node_memory_used_bytes", "Memory used."),
    "memory_total": ("ops_node_memory_total_bytes", "Memory there is."),
    "swap_used": ("ops_node_swap_used_bytes", "Swap used."),
    "disk_usage": ("ops_node_disk_usage_percent", "Local disk space used."),
    "disk_used": ("ops_node_disk_used_bytes", "Local disk space used."),
    "network_rx": ("ops_node_network_receive_bytes_per_second", "Received, all interfaces."),
    "network_tx": ("ops_node_network_transmit_bytes_per_second", "Sent, all interfaces."),
    "load_avg_1": ("ops_node_load1", "Load over 1 minute."),
    "load_avg_5": ("ops_node_load5", "Load over 5 minutes."),
    "load_avg_15": ("ops_node_load15", "Load over 15 minutes."),
    "process_count": ("ops_node_processes", "Processes."),
    "tcp_connections": ("ops_node_tcp_connections", "Established TCP connections."),
}
"""By column of `metric_points`: the gauge's name and what it means."""


def exposition(nodes: Sequence[NodeNow]) -> Iterator[str]:
    """One piece for each gauge, so that a large fleet is never one large string."""
    labels = [f'{{node="{_escaped(node.uuid)}",hostname="{_escaped(node.hostname)}"}}' for node in nodes]
    for name, meaning, value_of in STATES:
        yield _gauge(name, meaning, labels, [value_of(node) for node in nodes])
    measured = [(label, node.point) for label, node in zip(labels, nodes, strict=True) if node.point is not None]
    labels = [label for label, _point in measured]
    for column, (name, meaning) in MEASURED.items():
        value_in = itemgetter(POINTS.c.keys().index(column))
        yield _gauge(name, meaning, labels, [value_in(point) for _label, point in measured])


def _gauge(name: str, meaning: str, labels: Sequence[str], values: Sequence[float | None]) -> str:
    """What is unknown has no line."""
    head = f"# HELP {name} {meaning}\n# TYPE {name} gauge\n"
    lines = [f"{name}{label} {value!r}\n" for label, value in zip(labels, values, strict=True) if value is not None]
    return head + "".join(lines)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
