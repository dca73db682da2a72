"""A host's first page: how it is now, over the last day, and what it is."""

from datetime import timedelta

from flask import Flask

from app.kernel.clock import now
from app.kernel.db import db
from app.metrics.models import POINTS, epoch_ms
from tests.factories import Api
from tests.nodes.fleet import make_node
from tests.visitors import visit


def test_it_tells_what_the_host_is(app: Flask, cast: dict[str, Api]) -> None:
    at = now()
    with app.app_context():
        node_id = make_node(
            "web-1",
            group="prod/eu",
            ips=["10.0.0.7", "fd00::7"],
            macs=["52:54:00:12:34:56"],
            os_name="Debian GNU/Linux",
            os_version="12",
            kernel_version="6.1.0-26",
            arch="amd64",
            cpu_model="EPYC 7B13",
            cpu_cores=8,
            memory_total=16 * 2**30,
            swap_total=2**30,
            disk_total=500 * 2**30,
            python_version="3.11.2",
            version="1.4.2",
            virtualization="kvm",
            timezone="Europe/Berlin",
            boot_time=at - timedelta(days=41),
            certificate_expires_at=at + timedelta(days=63),
            clock_offset_ms=2500,
            dropped_points=12,
            description="The first one",
            last_heartbeat=at - timedelta(minutes=5),
            last_cpu_usage=14.0,
            last_memory_usage=50.0,
        )
    html = visit(app, "vera").get(f"/nodes/{node_id}").text
    for shown in (
        "10.0.0.7, fd00::7",
        "52:54:00:12:34:56",
        "Debian GNU/Linux 12",
        "6.1.0-26",
        "EPYC 7B13",
        "16 GiB + 1 GiB swap",
        "3.11.2",
        "kvm",
        "Europe/Berlin",
        "8 GiB of 16 GiB",
        "14%",
        "2.5 s behind ours",
        "Lost on the host",
        "The first one",
        "renews itself",
        "5 minutes ago",
    ):
        assert shown in html, shown


def test_what_is_not_known_is_a_dash_and_no_error(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node("bare", status="unknown")
    html = visit(app, "vera").get(f"/nodes/{node_id}").text
    assert "not heard yet" in html
    assert "No measurements in this time." in html
    assert "never" in html


def test_the_last_day_is_drawn(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node("web-1", created_at=now() - timedelta(days=2))
        start = epoch_ms(now())
        rows = [{"node_id": node_id, "ts": start - 60_000 * n, "cpu_usage": 42.0} for n in range(1, 120)]
        db.session.execute(POINTS.insert(), rows)
        db.session.commit()
    html = visit(app, "vera").get(f"/nodes/{node_id}").text
    assert "Last 24 hours" in html
    assert "CPU <b>42.0%</b>" in html
    assert '<path class="line s1"' in html


def test_of_a_new_host_the_last_hour_is_drawn_with_every_measurement(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id, at = make_node("web-1"), epoch_ms(now())
        db.session.execute(
            POINTS.insert(), [{"node_id": node_id, "ts": at - 1000 * n, "cpu_usage": 7.5} for n in (1, 61)]
        )
        db.session.commit()
    html = visit(app, "vera").get(f"/nodes/{node_id}").text
    assert "Last hour" in html
    assert "&#34;v&#34;:[7.5,7.5]" in html


def test_it_refreshes_itself(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node("web-1")
    headers = {"HX-Request": "true", "HX-Target": "node-overview"}
    fragment = visit(app, "vera").get(f"/nodes/{node_id}", headers=headers).text
    assert "<html" not in fragment
    assert f'hx-get="/nodes/{node_id}" hx-trigger="every 30s"' in fragment
