"""Made-up data for the style guide: one example of every part in every state. Its page is drawn elsewhere."""

import math
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

from app.kernel.charts import Cell, Series, Threshold, build_chart, build_distribution, build_spark
from app.kernel.clock import now
from app.kernel.forms import Form
from app.kernel.paging import Column, Page

_GIB = 1024**3
_DIFF = """--- version 3
+++ version 4
@@ -1,3 +1,3 @@
 [output]
-interval = 10
+interval = 30
 hosts = [a, b]"""


@dataclass(frozen=True)
class Host:
    """A table row."""

    id: int
    name: str
    ip: str
    status: str
    state: str
    cpu: float | None
    memory: float | None
    tags: tuple[str, ...]
    version: str
    seen_s: int


def styleguide_context() -> dict[str, Any]:
    """Everything that `styleguide/index.html` shows. The same at every call but for the time."""
    random = Random(7)  # noqa: S311 - sample data
    moment = now()
    start = moment - timedelta(hours=24)
    minutes = [start + timedelta(minutes=5 * n) for n in range(289)]
    wave = [42 + 22 * math.sin(n / 34) + random.uniform(-6, 6) for n in range(289)]
    holes = [None if 90 < n < 110 or n in (140, 142) else value for n, value in enumerate(wave)]
    memory = [61 + 6 * math.sin(n / 70) + random.uniform(-0.6, 0.6) for n in range(289)]
    traffic = [max(0.0, 40e6 * (1 + math.sin(n / 20)) + random.uniform(0, 12e6)) for n in range(289)]
    zone = ZoneInfo("Europe/Berlin")
    charts = {
        "cpu": build_chart(
            [
                Series("CPU", list(zip(minutes, holes, strict=True)), area=True),
                Series("Memory", list(zip(minutes, memory, strict=True))),
            ],
            start,
            moment,
            "percent",
            zone,
            label="CPU and memory, last 24 hours",
            thresholds=[Threshold(90, "critical", "bad")],
        ),
        "network": build_chart(
            [
                Series("Received", list(zip(minutes, traffic, strict=True)), area=True),
                Series("Sent", [(at, value / 3) for at, value in zip(minutes, traffic, strict=True)], area=True),
            ],
            start,
            moment,
            "bytes_per_s",
            zone,
            label="Network",
        ),
        "disk": build_chart(
            [Series("Used", [(at, 31 * _GIB + n * 2e7) for n, at in enumerate(minutes)], slot=3)],
            start,
            moment,
            "bytes",
            zone,
            label="Disk",
        ),
        "empty": build_chart([Series("Load", [])], start, moment, "number", zone, label="Load"),
    }
    hosts = [_host(random, n) for n in range(12)]
    page = Page(hosts, 1284, 3, 50, "-name", {"q": "web", "status": "online", "sort": "-name", "page_size": 50})
    good = Form[Any]({"name": "web-1", "role": "operator", "active": True, "scopes": ["nodes:read"], "interval": 60})
    bad = Form[Any]({"name": "web 1", "role": "viewer", "interval": 5})
    bad.errors = {
        "name": ["Letters, digits and hyphens only."],
        "interval": ["Between 10 and 300."],
        "password": ["At least 12 characters."],
    }
    return {
        "charts": charts,
        "sparks": [build_spark([random.uniform(0, 10) + n / 4 for n in range(32)]) for _ in range(3)],
        "page": page,
        "nothing": Page([], 0, 1, 50, "name"),
        "nothing_found": Page([], 0, 1, 50, "name", {"q": "xyz"}),
        "columns": [
            Column("name", "Host", sortable=True),
            Column("status", "Status", sortable=True),
            Column("cpu", "CPU", sortable=True),
            Column("memory", "Memory", klass="opt"),
            Column("tags", "Tags", klass="wide"),
            Column("version", "Version"),
            Column("seen", "Heartbeat", sortable=True, numeric=True),
        ],
        "form": good,
        "form_wrong": bad,
        "shares": build_distribution(
            [("1.4.2", 961, "s1", "#"), ("1.4.1", 31, "s2", "#"), ("1.3.9", 8, "warn", "#"), ("unknown", 0, "idle")]
        ),
        "cells": [_cell(random, n) for n in range(400)],
        "feed_items": [
            {
                "state": state,
                "at": moment - timedelta(minutes=n * 7 + 1),
                "text": text,
                "detail": detail,
                "href": "#" if n == 0 else None,
            }
            for n, (state, text, detail) in enumerate(
                [
                    ("bad", "web-0417 went offline", "no check-in for 94 s"),
                    ("warn", "db-0031: /var at 91 %", "rule “disk nearly full”"),
                    ("ok", "Rollout of daemon 1.4.2 finished", None),
                    ("run", "Patch level is running on 600 hosts", None),
                    ("idle", "admin signed in", None),
                ]
            )
        ],
        "moment": moment,
        "diff_text": _DIFF,
    }


def _host(random: Random, number: int) -> Host:
    status, state = [("online", "ok"), ("offline", "bad"), ("maintenance", "warn"), ("unknown", "idle")][
        0 if number % 5 else number // 5 % 4
    ]
    known = status != "offline"
    return Host(
        id=number,
        name=f"{random.choice(['web', 'db', 'cache'])}-{number:04}",
        ip=f"10.2.{random.randrange(255)}.{random.randrange(255)}",
        status=status,
        state=state,
        cpu=random.uniform(0, 100) if known else None,
        memory=random.uniform(20, 95) if known else None,
        tags=("env=prod", "role=web", "legacy")[: number % 4],
        version="1.4.2",
        seen_s=random.randrange(900),
    )


def _cell(random: Random, number: int) -> Cell:
    load = random.betavariate(2, 3) * 100
    state = "off" if number % 97 == 3 else "bad" if load > 92 else "warn" if load > 82 else "ok"
    return Cell("#", f"web-{number:04} · CPU {load:.0f}% · {state}", state, min(4, int(load / 20)))
