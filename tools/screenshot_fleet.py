"""A fleet that does not exist, for pictures: hosts of several kinds, a day of measurements, events, some that wait."""

import math
import random
from datetime import timedelta
from typing import Any

from app.events.actions import note
from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from app.link import live
from app.metrics.actions import store_batches
from app.metrics.models import FleetPoint, epoch_ms
from app.nodes.models import OFFLINE, ONLINE, SmartGroup
from protocol.metrics import Batch, Sample
from protocol.times import to_text
from tests.metrics.builders import DETAIL, point
from tests.nodes.fleet import make_certificate, make_group, make_node, make_waiting

GIB = 2**30
ROLES = ("web", "db", "cache", "queue")
PLACES = ("prod/eu", "prod/us", "staging")
HAPPENINGS = (
    ("node.offline", "warning", "web-eu-07", 3),
    ("spool.damaged", "warning", "db-us-02", 31),
    ("node.online", "info", "cache-eu-03", 44),
    ("audit.went_back", "critical", "web-us-05", 68),
    ("daemon.started", "info", "queue-staging-04", 95),
    ("capabilities.changed", "info", "db-eu-02", 180),
)
chance = random.Random(7)  # noqa: S311  makes pictures alike, guards nothing


def made_up_fleet(count: int) -> int:
    """Answers the number of the host that has measurements."""
    session, at = db.session(), now()
    for place in PLACES:
        make_group(place)
    numbers = [_host(number) for number in range(1, count + 1)]
    make_certificate(numbers[0], "5f" * 32)
    for number in range(2 if count < 100 else 40):
        make_waiting(f"new-{number:02d}", ip=f"10.30.1.{number}")
    in_transaction(session, lambda: session.add(SmartGroup(name="frontends", selector="env=prod role in (web,cache)")))
    in_transaction(session, lambda: _day_of(numbers[0], count))
    for kind, severity, hostname, minutes in reversed(HAPPENINGS):
        note(session, kind, "", severity=severity, hostname=hostname, occurred_at=at - timedelta(minutes=minutes))
    in_transaction(session, lambda: None)
    live.keep(numbers[0], [_sample(second) for second in range(60)])
    return numbers[0]


def _host(number: int) -> int:
    role, place, at = ROLES[number % 4], PLACES[number % 7 % 3], now()
    is_away = number % 23 == 0
    environment = "prod" if place.startswith("prod") else "staging"
    return make_node(
        f"{role}-{place.rpartition('/')[2]}-{number:02d}",
        group=place,
        tags=["canary"] if number % 9 == 0 else [],
        labels={"env": environment, "role": role},
        version="0.1.0" if number % 5 else "0.0.9",
        status=OFFLINE if is_away else ONLINE,
        ip=f"10.20.{number // 250}.{number % 250 + 1}",
        ips=[f"10.20.{number // 250}.{number % 250 + 1}"],
        os="linux",
        os_name="Debian GNU/Linux" if number % 3 else "Ubuntu",
        os_version="12" if number % 3 else "24.04",
        kernel_version="6.1.0-28-amd64",
        arch="amd64",
        cpu_model="AMD EPYC 7443",
        cpu_cores=8,
        memory_total=16 * GIB,
        swap_total=2 * GIB,
        disk_total=200 * GIB,
        agent_status="running" if number % 11 else "error",
        agent_version="0.1.0",
        created_at=at - timedelta(days=40),
        last_heartbeat=at - timedelta(minutes=17 if is_away else 0, seconds=number % 55),
        last_metrics_at=at - timedelta(seconds=number % 55),
        last_cpu_usage=round(min(99.0, abs(chance.gauss(30, 18))), 1),
        last_memory_usage=round(min(98.0, abs(chance.gauss(55, 15))), 1),
        last_disk_usage=round(min(97.0, abs(chance.gauss(45, 18))), 1),
        maintenance_until=at + timedelta(hours=2) if number % 31 == 0 else None,
    )


def _day_of(node_id: int, hosts: int) -> None:
    session, at = db.session(), now()
    points = []
    for minute in range(24 * 60, 0, -1):
        moment = at - timedelta(minutes=minute)
        cpu = max(1.0, 34 + 22 * math.sin(minute / 140) + chance.gauss(0, 4) + (40 if 300 < minute < 318 else 0))
        points.append(
            point(
                moment,
                cpu_usage=round(min(cpu, 100), 1),
                memory_usage=round(52 + 8 * math.sin(minute / 300), 1),
                disk_usage=round(44 + (1440 - minute) / 400, 1),
                network_rx=abs(chance.gauss(4e6, 1e6)),
                network_tx=abs(chance.gauss(2e6, 5e5)),
                detail=DETAIL if minute < 10 else None,
            )
        )
    for first in range(0, len(points), 100):
        store_batches(session, node_id, [Batch(f"{first:032d}", tuple(points[first : first + 100]))], at)
    for step in range(288, 0, -1):
        ts = epoch_ms(at - timedelta(minutes=5 * step)) // 300_000 * 300_000
        wave = math.sin(step / 30)
        session.add(
            FleetPoint(ts=ts, nodes=hosts, cpu_usage=31 + 12 * wave, memory_usage=55 + 4 * wave, disk_usage=45.0)
        )


def _sample(second: int) -> Sample:
    values: dict[str, Any] = dict.fromkeys(Sample._fields)
    values |= {
        "timestamp": to_text((now() - timedelta(seconds=60 - second)).timestamp()),
        "cpu_usage": 30 + 20 * math.sin(second / 6),
        "memory_usage": 52.0,
        "disk_read": abs(chance.gauss(2e6, 1e6)),
        "disk_write": abs(chance.gauss(6e6, 2e6)),
        "network_rx": abs(chance.gauss(4e6, 1e6)),
        "network_tx": abs(chance.gauss(2e6, 5e5)),
    }
    return Sample(**values)
