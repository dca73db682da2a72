"""Every host's newest values in Prometheus' text format, and who may read what Prometheus reads.

Written by hand: the client library takes seconds for ten thousand hosts.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from app.kernel.access import Actor, authorize
from app.kernel.context import ops
from app.kernel.edges import is_within
from app.metrics.queries import NodeNow
from app.nodes.models import ONLINE


def authorize_scrape(actor: Actor) -> None:
    """Let callers from allowed addresses pass, and others with the token of somebody who may read it."""
    if not is_within(actor.ip, ops().settings.server.metrics_allow):
        authorize(actor, "metrics.read")


class Family(NamedTuple):
    """One gauge: its name, what it means, and a host's value, None for no sample."""

    name: str
    help: str
    value: Callable[[NodeNow], Any]


def _measured(column: str) -> Callable[[NodeNow], Any]:
    return lambda node: None if node.point is None else getattr(node.point, column)


FAMILIES: Final = (
    Family("ops_node_up", "Whether the host is online.", lambda node: int(node.status == ONLINE)),
    Family("ops_node_maintenance", "Whether it is in maintenance.", lambda node: int(node.is_in_maintenance)),
    Family(
        "ops_node_last_heartbeat_timestamp_seconds",
        "When it was heard last.",
        lambda node: None if node.last_heartbeat is None else node.last_heartbeat.timestamp(),
    ),
    Family(
        "ops_node_measured_timestamp_seconds",
        "When the values below were measured; they are left out once they are old.",
        lambda node: None if node.point is None else node.point.ts / 1000,
    ),
    Family("ops_node_cpu_usage_percent", "Use of all cores together.", _measured("cpu_usage")),
    Family("ops_node_memory_usage_percent", "Memory used.", _measured("memory_usage")),
    Family("ops_node_memory_used_bytes", "Memory used.", _measured("memory_used")),
    Family("ops_node_memory_total_bytes", "Memory there is.", _measured("memory_total")),
    Family("ops_node_swap_used_bytes", "Swap used.", _measured("swap_used")),
    Family("ops_node_disk_usage_percent", "Local disk space used.", _measured("disk_usage")),
    Family("ops_node_disk_used_bytes", "Local disk space used.", _measured("disk_used")),
    Family("ops_node_network_receive_bytes_per_second", "Received, all interfaces.", _measured("network_rx")),
    Family("ops_node_network_transmit_bytes_per_second", "Sent, all interfaces.", _measured("network_tx")),
    Family("ops_node_load1", "Load over 1 minute.", _measured("load_avg_1")),
    Family("ops_node_load5", "Load over 5 minutes.", _measured("load_avg_5")),
    Family("ops_node_load15", "Load over 15 minutes.", _measured("load_avg_15")),
    Family("ops_node_processes", "Processes.", _measured("process_count")),
    Family("ops_node_tcp_connections", "Established TCP connections.", _measured("tcp_connections")),
)


def exposition(nodes: Sequence[NodeNow]) -> Iterator[str]:
    """One piece for each family, so that a large fleet is never one large string."""
    labels = [f'{{node="{_escaped(node.uuid)}",hostname="{_escaped(node.hostname)}"}}' for node in nodes]
    for family in FAMILIES:
        lines = [f"# HELP {family.name} {family.help}\n# TYPE {family.name} gauge\n"]
        for label, node in zip(labels, nodes, strict=True):
            value = family.value(node)
            if value is not None:
                lines.append(f"{family.name}{label} {value!r}\n")
        yield "".join(lines)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
