"""What Prometheus reads: the names and labels of the contract, paths by their patterns, and only for those who may."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from app.kernel.broker import open_queue
from app.kernel.context import ops
from tests.factories import api_as, make_user
from tests.kernel.lab import Lab
from tests.variants import MakeApp

ELSEWHERE = {"REMOTE_ADDR": "192.0.2.1"}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(client: FlaskClient) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.mimetype == "text/plain"
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def requests_of(found: Samples, **labels: str) -> float:
    return found.get(("manager_http_requests_total", tuple(sorted(labels.items()))), 0)


def test_requests_are_counted_by_method_pattern_and_status(sqlite_app: Flask) -> None:
    client = sqlite_app.test_client()
    users = {"method": "GET", "path": "/api/v1/system/users/<id:user_id>", "status": "401"}
    before = samples(client)
    for number in (1, 2, 999):
        client.get(f"/api/v1/system/users/{number}")
    after = samples(client)
    assert requests_of(after, **users) - requests_of(before, **users) == 3
    assert not [key for key in after if any("999" in value for _name, value in key[1])]
    duration = ("manager_http_request_duration_seconds_count", (("method", "GET"), ("path", users["path"])))
    assert after[duration] - before.get(duration, 0) == 3


def test_made_up_addresses_and_methods_make_no_series_of_their_own(sqlite_app: Flask) -> None:
    client = sqlite_app.test_client()
    unknown = {"method": "GET", "path": "unknown", "status": "404"}
    other = {"method": "OTHER", "path": "unknown", "status": "405"}
    before = samples(client)
    for number in range(5):
        client.get(f"/made-up-{number}")
        client.open("/login", method=f"BREW{number}")
    after = samples(client)
    assert requests_of(after, **unknown) - requests_of(before, **unknown) == 5
    assert requests_of(after, **other) - requests_of(before, **other) == 5
    assert not [key for key in after if "made-up" in str(key) or "BREW" in str(key)]


def test_failures_are_counted_too(make_app: MakeApp) -> None:
    client = make_app(Lab().install).test_client()
    failed = {"method": "GET", "path": "/api/v1/lab/fail/<how>", "status": "500"}
    before = samples(client)
    client.get("/api/v1/lab/fail/secret")
    assert requests_of(samples(client), **failed) - requests_of(before, **failed) == 1


def test_queues_tell_how_many_jobs_wait(sqlite_app: Flask) -> None:
    depth = ("manager_queue_depth", (("queue", "default"),))
    client = sqlite_app.test_client()
    assert samples(client)[depth] == 0
    with sqlite_app.app_context():
        for _job in range(3):
            open_queue(ops().redis).enqueue_call("app.worker.run_job", args=("app.audit.jobs.write_checkpoint",))
    assert samples(client)[depth] == 3


def test_every_name_of_the_contract_is_there(sqlite_app: Flask) -> None:
    text = sqlite_app.test_client().get("/metrics").text
    for name, kind in (
        ("manager_http_requests_total", "counter"),
        ("manager_http_request_duration_seconds", "histogram"),
        ("manager_queue_depth", "gauge"),
        ("manager_daemon_requests_total", "counter"),
        ("manager_held_polls", "gauge"),
        ("manager_nodes_total", "gauge"),
    ):
        assert f"# TYPE {name} {kind}" in text, name


# Who may read them


def test_only_allowed_addresses_may_read_without_a_token(make_app: MakeApp) -> None:
    app = make_app(OPS_SERVER__METRICS_ALLOW="10.0.0.0/8")
    client = app.test_client()
    assert client.get("/metrics", environ_overrides={"REMOTE_ADDR": "10.1.2.3"}).status_code == 200
    for address in ("127.0.0.1", "192.0.2.1", "::1", ""):
        refused = client.get("/metrics", environ_overrides={"REMOTE_ADDR": address})
        assert (refused.status_code, refused.json["code"]) == (401, 1002), address


@pytest.mark.parametrize(("scopes", "status"), [(["*"], 200), (["metrics.read"], 200), (["users.read"], 403)])
def test_from_elsewhere_a_token_is_needed_that_may_read_metrics(
    sqlite_app: Flask, scopes: list[str], status: int
) -> None:
    with sqlite_app.app_context():
        make_user("ada")
    made = api_as(sqlite_app, "ada").post("/auth/tokens", {"name": "prometheus", "scopes": scopes})
    headers = {"Authorization": f"Bearer {made.json['data']['token']}"}
    answer = sqlite_app.test_client().get("/metrics", headers=headers, environ_overrides=ELSEWHERE)
    assert answer.status_code == status


def test_a_cookie_does_not_do(sqlite_app: Flask) -> None:
    client = sqlite_app.test_client()
    client.set_cookie("ops_session", "x")
    assert client.get("/metrics", environ_overrides=ELSEWHERE).status_code == 401


def test_what_a_proxy_did_not_say_opens_nothing(make_app: MakeApp) -> None:
    client = make_app(OPS_SERVER__HTTP__TRUSTED_PROXIES="10.0.0.1").test_client()
    headers = {"X-Forwarded-For": "127.0.0.1"}
    assert client.get("/metrics", headers=headers, environ_overrides=ELSEWHERE).status_code == 401
    proxied = {"REMOTE_ADDR": "10.0.0.1"}
    assert client.get("/metrics", headers=headers, environ_overrides=proxied).status_code == 200
    assert (
        client.get("/metrics", headers={"X-Forwarded-For": "192.0.2.9"}, environ_overrides=proxied).status_code == 401
    )


# Several processes


def test_processes_are_summed(tmp_path: Path) -> None:
    """Each writes to files of its own in a directory that they share."""
    program = (
        "from app.kernel.telemetry import note_request\nfor _ in range(3):\n    note_request('GET', '/x', 200, 0.01)\n"
    )
    read = (
        "import os\nfrom prometheus_client import generate_latest\nfrom app.kernel.telemetry import gathered\n"
        "print(generate_latest(gathered(os.environ['PROMETHEUS_MULTIPROC_DIR'])).decode())"
    )
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    root = Path(__file__).resolve().parents[2]
    for code in (program, program):
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=root)
    output = subprocess.run(
        [sys.executable, "-c", read], env=environment, check=True, cwd=root, capture_output=True, text=True
    ).stdout
    assert 'manager_http_requests_total{method="GET",path="/x",status="200"} 6.0' in output
