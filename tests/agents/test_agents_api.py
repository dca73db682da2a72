"""Agents by program: defining, ordering, the fleet's list, many at once."""

from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select

from app.agents.models import NodeAgent
from app.audit.models import AuditRow
from app.kernel.db import db
from app.nodes.models import Node
from tests.agents.builders import NGINX, answer, check_in, command, fetch, make_host, told
from tests.factories import Api

FIELDS = {
    "name", "type", "version", "status", "desired", "pid", "cpu_usage", "memory_usage", "start_time", "restart_count",
    "last_error", "health", "config_version", "drifted", "source", "updated_at",
}  # fmt: skip


@pytest.fixture
def node_id(app: Flask) -> int:
    with app.app_context():
        return make_host(app)


def audited(app: Flask, action: str) -> list[Any]:
    with app.app_context():
        return [row.detail for row in db.session.query(AuditRow).filter_by(action=action).order_by(AuditRow.id)]


def test_a_manifest_makes_an_agent_that_the_host_hears_of(app: Flask, cast: dict[str, Api], node_id: int) -> None:
    made = cast["oscar"].post(f"/nodes/{node_id}/agents", NGINX)
    assert made.status_code == 201, made.text
    agent = made.json["data"]
    assert set(agent) >= FIELDS
    assert (agent["name"], agent["status"], agent["desired"], agent["source"]) == (
        "nginx", "unknown", "running", "manager",
    )  # fmt: skip
    assert agent["manifest"] == NGINX
    with app.app_context():
        settings = check_in(node_id, []).settings
        assert settings is not None
        (entry,) = settings.agents
        assert (entry["name"], entry["desired"], entry["source"]) == ("nginx", "running", "manager")
        assert entry["manifest"] == NGINX
        assert check_in(node_id, [], settings_version=settings.version).settings is None
    assert audited(app, "agent.create")[0]["after"]["manifest"] == NGINX
    assert cast["oscar"].post(f"/nodes/{node_id}/agents", NGINX).json["code"] == 1006


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": "Nginx"}, "name"),
    ({"name": "daemon"}, "name"),
    ({"type": "nginx"}, "type"),
    ({"start": None}, "start"),
    ({"start": "/usr/sbin/nginx"}, "start"),
    ({"healt": []}, "healt"),
    ({"health": [{"kind": "process"}, {"kind": "http"}]}, "health.1.url"),
    ({"health": [{"kind": "tcp", "port": 70000}]}, "health.0.port"),
    ({"config": [{"path": "relative"}]}, "config.0.path"),
    ({"config": [{"path": "/a"}, {"path": "/a"}]}, "config"),
    ({"reload": {}}, "reload.signal"),
    ({"env": {"1X": "y"}}, "env.1X"),
    ({"adopt": {"command_line": "(a+)+"}}, "adopt.command_line"),
    ({"limits": {"memory_bytes": 5}}, "limits.memory_bytes"),
]


def test_a_wrong_manifest_names_the_field(app: Flask, cast: dict[str, Api], node_id: int) -> None:
    for change, field in WRONG:
        answered = cast["oscar"].post(f"/nodes/{node_id}/agents", NGINX | change)
        assert (answered.status_code, answered.json["code"]) == (400, 1001), (change, answered.text)
        assert answered.json["data"]["errors"][0]["field"] == field, answered.text
    with app.app_context():
        assert db.session.query(NodeAgent).count() == 0


def test_a_manifest_changes_but_not_the_name(app: Flask, cast: dict[str, Api], node_id: int) -> None:
    cast["oscar"].post(f"/nodes/{node_id}/agents", NGINX)
    with app.app_context():
        before = check_in(node_id, []).settings
    changed = NGINX | {"env": {"TZ": "UTC"}}
    assert cast["oscar"].put(f"/nodes/{node_id}/agents/nginx", changed).json["data"]["manifest"] == changed
    with app.app_context():
        after = check_in(node_id, []).settings
        assert before is not None
        assert after is not None
        assert before.version != after.version
        assert before.agents[0]["seq"] == after.agents[0]["seq"]
    renamed = cast["oscar"].put(f"/nodes/{node_id}/agents/nginx", NGINX | {"name": "apache"})
    assert renamed.json["data"]["errors"][0]["field"] == "name"


def test_deleting_takes_it_from_the_host(app: Flask, cast: dict[str, Api], node_id: int) -> None:
    cast["oscar"].post(f"/nodes/{node_id}/agents", NGINX)
    with app.app_context():
        check_in(node_id, [told(source="manager")])
    assert cast["oscar"].delete(f"/nodes/{node_id}/agents/nginx").json["data"] is None
    assert cast["oscar"].get(f"/nodes/{node_id}/agents/nginx").json["code"] == 1004
    with app.app_context():
        settings = check_in(node_id, [told(source="manager")]).settings
        assert settings is not None
        assert settings.agents == ()
        assert db.session.query(NodeAgent).count() == 0


def test_what_the_host_declares_is_for_the_host_to_change(app: Flask, cast: dict[str, Api], node_id: int) -> None:
    with app.app_context():
        check_in(node_id, [told(source="host")])
    assert cast["oscar"].put(f"/nodes/{node_id}/agents/nginx", NGINX).json["code"] == 1006
    assert cast["oscar"].delete(f"/nodes/{node_id}/agents/nginx").json["code"] == 1006
    assert cast["oscar"].post(f"/nodes/{node_id}/agents/nginx/stop").status_code == 202


def test_the_hosts_own_agent_wins_over_ours(app: Flask, cast: dict[str, Api], node_id: int) -> None:
    cast["oscar"].post(f"/nodes/{node_id}/agents", NGINX)
    with app.app_context():
        check_in(node_id, [told(source="host", desired="stopped", status="stopped", pid=None)])
    assert cast["oscar"].get(f"/nodes/{node_id}/agents/nginx").json["data"]["source"] == "host"
    assert cast["oscar"].put(f"/nodes/{node_id}/agents/nginx", NGINX).json["code"] == 1006
    assert cast["oscar"].delete(f"/nodes/{node_id}/agents/nginx").status_code == 200
    assert cast["oscar"].get(f"/nodes/{node_id}/agents/nginx").json["data"]["manifest"] is None


@pytest.mark.parametrize(
    ("verb", "desired"), [("start", "running"), ("stop", "stopped"), ("restart", "running"), ("reload", "running")]
)
def test_an_order_reaches_the_host_and_says_what_should_be(
    app: Flask, cast: dict[str, Api], node_id: int, verb: str, desired: str
) -> None:
    cast["oscar"].post(f"/nodes/{node_id}/agents", NGINX)
    answered = cast["oscar"].post(f"/nodes/{node_id}/agents/nginx/{verb}")
    assert answered.status_code == 202
    command_id = answered.json["data"]["command_id"]
    with app.app_context():
        (order,) = fetch(node_id)
        settings = check_in(node_id, [told(source="manager", status="stopped", pid=None)]).settings
        assert settings is not None
        assert (order["kind"], order["name"]) == (f"agent.{verb}", "nginx")
        assert (settings.agents[0]["desired"], settings.agents[0]["seq"]) == (desired, order["seq"])
        ended = "stopped" if verb == "stop" else "running"
        answer(node_id, order["id"], {"status": ended, "pid": None if verb == "stop" else 99})
        assert command(command_id).state == "succeeded"
    shown = cast["vera"].get(f"/nodes/{node_id}/agents/nginx").json["data"]
    assert (shown["status"], shown["pid"]) == (ended, None if verb == "stop" else 99)
    assert len(audited(app, f"agent.{verb}")) == 1


def test_an_order_that_failed_says_why(app: Flask, cast: dict[str, Api], node_id: int) -> None:
    with app.app_context():
        check_in(node_id, [told(status="stopped", pid=None)])
    cast["oscar"].post(f"/nodes/{node_id}/agents/nginx/start")
    with app.app_context():
        (order,) = fetch(node_id)
        answer(node_id, order["id"], status="failed", error="no such program", error_code="task_failed")
    assert cast["vera"].get(f"/nodes/{node_id}/agents/nginx").json["data"]["last_error"] == "no such program"


def test_an_older_click_never_undoes_a_newer_one(app: Flask, cast: dict[str, Api], node_id: int) -> None:
    cast["oscar"].post(f"/nodes/{node_id}/agents", NGINX)
    for verb in ("stop", "start"):
        cast["oscar"].post(f"/nodes/{node_id}/agents/nginx/{verb}")
    with app.app_context():
        stop, start = fetch(node_id)
        assert stop["seq"] < start["seq"]
        settings = check_in(node_id, []).settings
        assert settings is not None
        assert (settings.agents[0]["desired"], settings.agents[0]["seq"]) == ("running", start["seq"])


def test_the_same_key_is_one_order(app: Flask, cast: dict[str, Api], node_id: int) -> None:
    with app.app_context():
        check_in(node_id, [told()])
    path = f"/nodes/{node_id}/agents/nginx/restart"
    first, again = (cast["oscar"].post(path, Idempotency_Key="one") for _ in range(2))
    assert first.json["data"] == again.json["data"]
    with app.app_context():
        assert len(fetch(node_id)) == 1


def test_viewers_look_and_operators_act(app: Flask, cast: dict[str, Api], node_id: int) -> None:
    with app.app_context():
        check_in(node_id, [told()])
    vera = cast["vera"]
    for path in ("/agents", f"/nodes/{node_id}/agents", f"/nodes/{node_id}/agents/nginx", "/agents/catalogue"):
        assert vera.get(path).status_code == 200, path
    assert vera.post(f"/nodes/{node_id}/agents", NGINX).json["code"] == 1003
    assert vera.post(f"/nodes/{node_id}/agents/nginx/start").json["code"] == 1003
    assert vera.post("/agents/bulk", {"action": "stop", "selector": "all"}).json["code"] == 1003
    assert vera.delete(f"/nodes/{node_id}/agents/nginx").json["code"] == 1003


def test_what_comes_with_the_daemon_is_started_and_stopped_but_not_changed(
    app: Flask, cast: dict[str, Api], node_id: int
) -> None:
    with app.app_context():
        check_in(node_id, [told("task", type="task", source="builtin", version="1.4.2")])
    path = f"/nodes/{node_id}/agents/task"
    manifest = {"name": "task", "type": "custom", "start": ["/bin/true"]}
    oscar = cast["oscar"]
    assert oscar.get(path).json["data"]["manifest"] is None
    for method, where, body in (
        ("PUT", path, manifest),
        ("DELETE", path, None),
        ("POST", f"/nodes/{node_id}/agents", manifest),
    ):
        refused = oscar.call(method, where, body)
        assert (refused.status_code, refused.json["code"]) == (409, 1006), (method, refused.text)
    for verb in ("stop", "start", "restart"):
        assert oscar.post(f"{path}/{verb}").status_code == 202
    # One that was declared before the host had told of its own has no effect, and can be taken back.
    with app.app_context():
        agent = db.session.query(NodeAgent).one()
        agent.manifest, agent.digest = manifest, "x"
        db.session.commit()
    assert oscar.put(path, manifest).status_code == 409
    assert oscar.delete(path).status_code == 200
    assert oscar.get(path).json["data"]["source"] == "builtin"


def test_the_old_path_answers_with_the_task_agent(app: Flask, cast: dict[str, Api], node_id: int) -> None:
    assert cast["vera"].get(f"/nodes/{node_id}/agent").json["code"] == 1004
    assert cast["vera"].get("/nodes/999/agent").json["code"] == 2001
    with app.app_context():
        check_in(node_id, [told("nginx"), told("task-agent", type="task", source="builtin", version="1.4.2")])
    shown = cast["vera"].get(f"/nodes/{node_id}/agent").json["data"]
    assert (shown["name"], shown["type"], shown["version"]) == ("task-agent", "task", "1.4.2")
    assert set(shown) == FIELDS
    node = cast["vera"].get(f"/nodes/{node_id}").json["data"]
    assert (node["agent_status"], node["agent_version"]) == ("running", "1.4.2")


def test_the_fleets_list_is_filtered_sorted_and_paged(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        one, two = make_host(app, "a", labels={"env": "prod"}), make_host(app, "b")
        check_in(one, [told("nginx"), told("redis", status="error")])
        check_in(two, [told("nginx", type="filebeat", drifted=True)])
        gone = make_host(app, "c")
        check_in(gone, [told("nginx")])
        db.session.get_one(Node, gone).status = "revoked"
        db.session.commit()

    def listed(query: str) -> list[tuple[str, str]]:
        data = cast["vera"].get(f"/agents?{query}").json["data"]
        assert data["total"] >= len(data["items"])
        return [(item["hostname"], item["name"]) for item in data["items"]]

    assert listed("sort=hostname") == [("a", "nginx"), ("a", "redis"), ("b", "nginx")]
    assert listed("status=error") == [("a", "redis")]
    assert listed("name=nginx&sort=-hostname") == [("b", "nginx"), ("a", "nginx")]
    assert listed("type=filebeat") == [("b", "nginx")]
    assert listed("drifted=true") == [("b", "nginx")]
    assert listed("selector=env%3Dprod&name=nginx") == [("a", "nginx")]
    assert listed("keyword=red") == [("a", "redis")]
    assert listed(f"node_id={two}") == [("b", "nginx")]
    assert listed("page_size=1&page=2&sort=hostname") == [("a", "redis")]
    assert cast["vera"].get("/agents?sort=colour").json["code"] == 1001
    dashboard = cast["vera"].get("/system/dashboard").json["data"]["agents"]
    assert dashboard == {"running": 2, "stopped": 0, "error": 1, "total": 3}


def test_many_at_once_is_one_batch_and_one_audit_row(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        hosts = [make_host(app, f"web-{number}", labels={"env": "prod"}) for number in range(3)]
        for host in hosts:
            check_in(host, [told("nginx"), told("redis")])
    body = {"action": "restart", "selector": "env=prod", "name": "nginx", "max_parallel": 1, "max_errors": 1}
    answered = cast["oscar"].post("/agents/bulk", body)
    assert answered.status_code == 202, answered.text
    assert (answered.json["data"]["total"], answered.json["data"]["total_nodes"]) == (3, 3)
    with app.app_context():
        (order,) = fetch(hosts[0])
        assert fetch(hosts[1]) == []
        answer(hosts[0], order["id"], {"status": "running", "pid": 5})
        (order,) = fetch(hosts[1])
        assert order["name"] == "nginx"
        answer(hosts[1], order["id"], status="failed", error="x", error_code="task_failed")
        assert fetch(hosts[2]) == []
    (row,) = audited(app, "agent.bulk_restart")
    assert row["after"]["total"] == 3


def test_what_should_be_changes_when_an_agents_turn_comes(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        hosts = [make_host(app, f"web-{number}") for number in range(2)]
    for host in hosts:
        cast["oscar"].post(f"/nodes/{host}/agents", NGINX)
    cast["oscar"].post("/agents/bulk", {"action": "stop", "selector": "all", "max_parallel": 1})

    def desired() -> list[str]:
        db.session.rollback()
        return list(db.session.scalars(select(NodeAgent.desired).order_by(NodeAgent.node_id)))

    with app.app_context():
        assert desired() == ["running", "running"]
        (order,) = fetch(hosts[0])
        assert desired() == ["stopped", "running"]
        answer(hosts[0], order["id"], {"status": "stopped", "pid": None})
        fetch(hosts[1])
        assert desired() == ["stopped", "stopped"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"action": "stop"}, "selector"),
        ({"action": "stop", "selector": "all", "node_ids": [1]}, "selector"),
        ({"action": "explode", "selector": "all"}, "action"),
        ({"action": "stop", "selector": "env="}, "selector"),
        ({"action": "configure", "selector": "all"}, "files"),
        ({"action": "stop", "selector": "all", "max_parallel": "0%"}, "max_parallel"),
        ({"action": "stop", "selector": "all", "max_errors": "x"}, "max_errors"),
    ],
)
def test_a_bulk_that_lacks_something_is_1001(
    app: Flask, cast: dict[str, Api], body: dict[str, Any], field: str
) -> None:
    answered = cast["oscar"].post("/agents/bulk", body)
    assert answered.json["code"] == 1001, answered.text
    assert answered.json["data"]["errors"][0]["field"] == field


def test_a_bulk_of_nothing_is_1001(app: Flask, cast: dict[str, Api], node_id: int) -> None:
    assert cast["oscar"].post("/agents/bulk", {"action": "stop", "selector": "all"}).json["code"] == 1001
