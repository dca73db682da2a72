"""/metrics/nodes: every host's newest values in a form that Prometheus reads, for those who may."""

from datetime import timedelta

import pytest
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import TestResponse

from app.kernel.clock import now
from app.metrics.models import VALUES
from app.metrics.prometheus import MEASURED, STATES
from app.nodes.models import OFFLINE, PENDING
from tests.factories import api_as, make_user
from tests.metrics.builders import batch, make_node, point, store

FOREIGN = {"REMOTE_ADDR": "203.0.113.7"}


def scrape(app: Flask, **environment: str) -> TestResponse:
    return app.test_client().get("/metrics/nodes", environ_base=environment)


def samples(answer: TestResponse) -> dict[tuple[str, str], float]:
    """By name and host."""
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, sample.labels["hostname"]): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_every_value_of_the_newest_point(app: Flask):
    present = now()
    with app.app_context():
        node_id = make_node("web-1", last_heartbeat=present)
        store(node_id, batch(point(present - timedelta(minutes=1), cpu_usage=1.0), point(present)), at=present)
    answer = scrape(app)
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    found = samples(answer)
    assert len(found) == len(STATES) + len(MEASURED)
    assert set(MEASURED) == set(VALUES)
    assert found["ops_node_up", "web-1"] == 1
    assert found["ops_node_cpu_usage_percent", "web-1"] == 12.5
    assert found["ops_node_memory_used_bytes", "web-1"] == 8 * 2**30
    assert found["ops_node_network_receive_bytes_per_second", "web-1"] == 1000.5
    assert found["ops_node_load5", "web-1"] == 0.25
    assert found["ops_node_last_heartbeat_timestamp_seconds", "web-1"] == pytest.approx(present.timestamp(), abs=0.001)
    assert found["ops_node_measured_timestamp_seconds", "web-1"] == pytest.approx(present.timestamp(), abs=0.001)


def test_what_is_old_or_unknown_is_left_out(app: Flask):
    present = now()
    with app.app_context():
        silent = make_node("silent", status=OFFLINE, last_heartbeat=present - timedelta(hours=1))
        store(silent, batch(point(present - timedelta(hours=1))), at=present)
        partial = make_node("partial")
        store(partial, batch(point(present, cpu_usage=None)), at=present)
        make_node("waiting", status=PENDING)
    found = samples(scrape(app))
    assert {name for name, host in found if host == "silent"} == {
        "ops_node_up",
        "ops_node_maintenance",
        "ops_node_last_heartbeat_timestamp_seconds",
    }
    assert found["ops_node_up", "silent"] == 0
    assert ("ops_node_cpu_usage_percent", "partial") not in found
    assert ("ops_node_memory_usage_percent", "partial") in found
    assert not any(host == "waiting" for _name, host in found)


def test_a_host_in_maintenance_says_so(app: Flask):
    with app.app_context():
        make_node("web-1", maintenance_until=now() + timedelta(hours=1))
        make_node("web-2", maintenance_until=now() - timedelta(hours=1))
    found = samples(scrape(app))
    assert (found["ops_node_maintenance", "web-1"], found["ops_node_maintenance", "web-2"]) == (1, 0)


def test_names_cannot_break_out_of_their_labels(app: Flask):
    with app.app_context():
        make_node('a"} 1\nops_node_up{b="\\')
    assert samples(scrape(app))["ops_node_up", 'a"} 1\nops_node_up{b="\\'] == 1


def test_an_empty_fleet_is_fine(app: Flask):
    assert samples(scrape(app)) == {}


def test_a_foreign_address_needs_a_token(app: Flask):
    assert scrape(app, **FOREIGN).status_code == 401
    with app.app_context():
        make_user("vera", "viewer")
    token = api_as(app, "vera").token
    client = app.test_client()
    headers = {"Authorization": f"Bearer {token}"}
    assert client.get("/metrics/nodes", headers=headers, environ_base=FOREIGN).status_code == 200
    assert client.get("/metrics/nodes", headers={"Authorization": "Bearer x"}, environ_base=FOREIGN).status_code == 401
