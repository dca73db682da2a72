"""The dashboard: its numbers, its map, its API, what it says to those who have nothing yet."""

from datetime import timedelta

import pytest
from flask import Flask

from app.agents.models import NodeAgent
from app.events.actions import note
from app.kernel.clock import now
from app.kernel.db import db, in_transaction
from app.metrics.models import FleetPoint, epoch_ms
from app.overview import queries
from tests.factories import Api
from tests.nodes.fleet import make_node, make_waiting
from tests.visitors import visit

FIELDS = (
    "total_nodes online_nodes offline_nodes online_rate agents active_alerts node_status_distribution"
    " daemon_version_distribution agent_version_distribution resource_trend recent_alerts recent_events generated_at"
).split()


def test_it_has_every_field_of_the_contract(app: Flask, cast: dict[str, Api]) -> None:
    five_minutes = epoch_ms(now()) // 300_000 * 300_000
    with app.app_context():
        hosts = [
            make_node("a", version="1.4.2", agent_version="1.4.2"),
            make_node("b", version="1.4.2", agent_version="1.4.1"),
            make_node("c", status="offline", version="1.3.0", agent_version="1.4.2"),
            make_node("d", status="unknown"),
            make_node("e", status="revoked", version="9.9.9"),
        ]
        for host, status in zip(hosts, ("running", "backoff", "stopped", "unknown", "running"), strict=True):
            db.session.add(NodeAgent(node_id=host, name="nginx", type="custom", source="host", status=status))
        make_waiting("f")
        db.session.add(FleetPoint(ts=five_minutes, nodes=3, cpu_usage=12.5, memory_usage=50.0, disk_usage=None))
        db.session.add(FleetPoint(ts=five_minutes - 26 * 3_600_000, nodes=3, cpu_usage=1.0))
        note(db.session(), "node.approved", "", hostname="d", data={"by": "alice"})
        db.session.commit()
    data = cast["vera"].get("/system/dashboard").json["data"]
    assert list(data) == FIELDS
    assert (data["total_nodes"], data["online_nodes"], data["offline_nodes"], data["online_rate"]) == (4, 2, 1, 50.0)
    assert data["agents"] == {"running": 1, "stopped": 1, "error": 1, "total": 3}
    statuses = {"online": 2, "offline": 1, "unknown": 1, "revoked": 1, "pending": 1}
    assert data["node_status_distribution"] == statuses
    assert data["daemon_version_distribution"] == {"1.4.2": 2, "1.3.0": 1, "unknown": 1}
    assert data["agent_version_distribution"] == {"1.4.2": 2, "1.4.1": 1}
    (point,) = data["resource_trend"]
    assert (point["cpu_usage"], point["disk_usage"], point["nodes"]) == (12.5, None, 3)
    assert point["timestamp"].endswith("Z")
    assert [event["message"] for event in data["recent_events"]] == ["approved by alice"]
    assert (data["active_alerts"], data["recent_alerts"]) == (0, [])


def test_it_is_all_zeros_before_the_first_host(app: Flask, cast: dict[str, Api]) -> None:
    data = cast["vera"].get("/system/dashboard").json["data"]
    assert (data["total_nodes"], data["online_rate"], data["agents"]["total"]) == (0, 0.0, 0)
    html = visit(app, "alice").get("/dashboard").text
    assert "Bring in your first host" in html
    assert 'href="/enrollment/new"' in html
    for_viewers = visit(app, "vera").get("/dashboard").text
    assert "Ask an administrator to do it." in for_viewers
    assert "/enrollment" not in for_viewers


def test_the_map_tells_who_needs_somebody(context: Flask) -> None:
    make_node("calm", last_cpu_usage=5.0, last_memory_usage=60.0)
    make_node("busy", last_cpu_usage=84.0)
    make_node("high", last_memory_usage=85.0)
    make_node("full", last_disk_usage=95.0, last_memory_usage=86.0)
    make_node("gone", status="offline", last_disk_usage=99.0)
    make_node("silent", status="unknown")
    make_node("revoked", status="revoked")
    found = queries.fleet_map(db.session())
    states = {host.hostname: (host.state, host.quant) for host in found.hosts}
    assert states == {
        "busy": ("ok", 4),
        "calm": ("ok", 0),
        "full": ("bad", 0),
        "gone": ("off", 0),
        "high": ("warn", 0),
        "silent": ("off", 0),
    }
    assert found.states == {"ok": 2, "warn": 1, "bad": 1, "off": 2}


def test_of_very_many_it_shows_those_who_need_somebody_and_then_the_busiest(
    context: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MOST_CELLS", 4)
    for number in range(6):
        make_node(f"ok-{number}", last_cpu_usage=float(number))
    make_node("bad", last_disk_usage=99.0)
    make_node("off", status="offline")
    found = queries.fleet_map(db.session())
    assert [host.hostname for host in found.hosts] == ["bad", "off", "ok-4", "ok-5"]
    assert found.total == 8


def test_few_hosts_are_cards_and_many_are_cells(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        for number in range(12):
            make_node(f"web-{number}", last_cpu_usage=50.0)
    browser = visit(app, "vera")
    html = browser.get("/dashboard").text
    assert html.count('class="host-card"') == 12
    with app.app_context():
        one = make_node("web-12", last_cpu_usage=97.0, last_memory_usage=20.0)
    html = browser.get("/dashboard").text
    assert 'class="host-card"' not in html
    assert f'<a class="bad" href="/nodes/{one}" title="web-12 · CPU 97% · memory 20% · very high"></a>' in html


def test_it_refreshes_itself_as_often_as_the_settings_say(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        make_node()
    assert cast["alice"].put("/system/settings", {"values": {"ui.refresh_interval": "45s"}}).status_code == 200
    app.extensions.pop("live_settings", None)
    browser = visit(app, "vera")
    html = browser.get("/dashboard").text
    assert 'hx-get="/dashboard" hx-trigger="every 45s"' in html
    fragment = browser.get("/dashboard?hours=6", headers={"HX-Request": "true", "HX-Target": "dashboard"}).text
    assert "<html" not in fragment
    assert 'hx-get="/dashboard?hours=6"' in fragment


def test_warnings_stand_in_the_tail_with_their_host(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_node("web-1")
        session = db.session()
        event = {"node_id": node_id, "hostname": "web-1"}
        in_transaction(session, lambda: note(session, "spool.damaged", "x", severity="warning", **event))
        in_transaction(
            session, lambda: note(session, "node.cloned", "", severity="critical", data={"ip": "1.2.3.4"}, **event)
        )
        in_transaction(session, lambda: note(session, "node.online", "only a note", **event))
    html = visit(app, "vera").get("/dashboard").text
    tail = html.split('<ol class="out tail"')[1].split("</ol>")[0]
    assert tail.index("two machines use this identity") < tail.index("spool was damaged")
    assert "only a note" not in tail
    assert "1 critical · 1 warnings" in html


def test_the_means_are_of_now_or_not_there(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        make_node()
        old = FleetPoint(ts=epoch_ms(now() - timedelta(hours=1)), nodes=1, cpu_usage=77.7)
        db.session.add(old)
        db.session.commit()
    assert "no recent measurements" in visit(app, "vera").get("/dashboard").text
    with app.app_context():
        db.session.add(FleetPoint(ts=epoch_ms(now()), nodes=1, cpu_usage=33.3, memory_usage=44.4, disk_usage=55.5))
        db.session.commit()
    html = visit(app, "vera").get("/dashboard").text
    assert "33.3 %" in html
    assert "memory 44.4 % · disk 55.5 %" in html


def test_the_trend_is_of_a_day_once_there_is_that_much(app: Flask, cast: dict[str, Api]) -> None:
    def shown() -> str:
        html = visit(app, "vera").get("/dashboard").text
        return html.split('aria-current="true">')[1].split("<")[0]

    with app.app_context():
        make_node()
        db.session.add(FleetPoint(ts=epoch_ms(now() - timedelta(hours=5)), nodes=1, cpu_usage=1.0))
        db.session.commit()
    assert shown() == "6 h"
    with app.app_context():
        db.session.add(FleetPoint(ts=epoch_ms(now() - timedelta(hours=7)), nodes=1, cpu_usage=1.0))
        db.session.commit()
    assert shown() == "24 h"
    html = visit(app, "vera").get("/dashboard?hours=168").text
    assert 'aria-current="true">7 d<' in html
    assert 'hx-get="/dashboard?hours=168"' in html


def test_home_is_the_dashboard(app: Flask, cast: dict[str, Api]) -> None:
    assert visit(app, "vera").get("/").headers["Location"] == "/dashboard"
