"""Agents for people, without JavaScript: lists, one agent, adding, changing, configuring, logs, many at once."""

import re
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.agents import asking
from app.agents.models import AgentConfig, NodeAgent
from app.agents.ready import ORDER
from app.commands.models import Command, Fanout
from app.kernel.db import db
from app.nodes.models import Node
from tests.agents.builders import NGINX, answer, check_in, event, fetch, make_host, told
from tests.agents.test_configuring import PATH, SECRET, TEMPLATE, read_from_host
from tests.factories import Api, submit
from tests.visitors import visit

HOME = "/nodes/{}/agents/nginx"


@pytest.fixture
def node_id(app: Flask, cast: dict[str, Api]) -> int:
    with app.app_context():
        found = make_host(app, "web-1", labels={"env": "prod"})
    assert cast["oscar"].post(f"/nodes/{found}/agents", NGINX).status_code == 201
    return found


@pytest.fixture
def oscar(app: Flask, cast: dict[str, Api]) -> FlaskClient:
    return visit(app, "oscar")


@pytest.fixture
def vera(app: Flask, cast: dict[str, Api]) -> FlaskClient:
    return visit(app, "vera")


def test_an_empty_fleet_says_what_to_do(app: Flask, vera: FlaskClient) -> None:
    html = vera.get("/agents").text
    assert "No agents yet" in html
    assert 'href="/nodes"' in html
    with app.app_context():
        empty = make_host(app, "web-9")
    assert "No agents on this node" in vera.get(f"/nodes/{empty}/agents").text
    assert "agent-new" not in vera.get(f"/nodes/{empty}/agents").text


def test_the_lists_show_what_hosts_say(app: Flask, vera: FlaskClient, node_id: int) -> None:
    bad = [{"kind": "tcp", "ok": False, "detail": "refused", "checked_at": "2026-11-20T12:00:00Z"}]
    with app.app_context():
        check_in(node_id, [told(source="manager", drifted=True, config_version=3, health=bad)])
    for path in ("/agents", f"/nodes/{node_id}/agents"):
        html = vera.get(path).text
        assert "1 check fails" in html
        assert "changed on the host" in html
        assert "23.8 MiB" in html
    assert "agents-bulk" not in vera.get("/agents").text
    assert "web-1" in vera.get("/agents?selector=env%3Dprod&status=running").text
    assert "Nothing matches" in vera.get("/agents?selector=env%3Dlab").text
    assert "selector-error" in vera.get("/agents?selector=env%3D").text
    assert vera.get("/agents?format=csv").text.splitlines()[1].startswith("nginx,custom,1.22.1,running")
    assert vera.get("/agents?format=json").json[0]["hostname"] == "web-1"


def test_one_agent_with_its_crash(app: Flask, vera: FlaskClient, node_id: int) -> None:
    dossier = {
        "agent": "nginx", "exit_code": None, "signal": 11, "pid": 7, "ran_s": 90.5, "restarts": 2,
        "log": {"stderr": ["<last words>"]}, "curve": [[-20, 1.0, 1000], [-10, 5.0, 2000], [0, None, 3000]],
        "config": {"at_start_before": 1, "at_start": 2, "now": 2, "changed_at": "2026-11-20T12:00:00Z"},
    }  # fmt: skip
    with app.app_context():
        check_in(
            node_id,
            [told(source="manager", last_error="ended by signal 11", status="error", pid=None)],
            events=[event("agent.crashed", data=dossier, severity="critical", message="ended by signal 11")],
        )
    html = vera.get(HOME.format(node_id)).text
    for words in ("signal 11", "&lt;last words&gt;", "it was version 1", "nginx crashed: signal 11", "CPU before"):
        assert words in html, words
    assert "control/start" not in html
    for span in ("1h", "6h", "24h", "7d", "nonsense"):
        assert vera.get(f"{HOME.format(node_id)}?range={span}").status_code == 200
    assert vera.get(f"/nodes/{node_id}/agents/none").status_code == 404


@pytest.mark.parametrize(
    "dossier",
    [
        {"log": 5, "curve": "x", "config": [], "ran_s": "long"},
        {
            "log": {"a": "b"},
            "curve": [[1], ["x", 2, 3], [-5, None, None], [-9, None, None]],
            "config": {"changed_at": 5},
        },
        {"curve": [[-1e300, 1, 2], [-2, 1e300, 2], [-1, 1, 2]], "ran_s": 1e300},
    ],
)
def test_a_strange_dossier_breaks_no_page(app: Flask, vera: FlaskClient, node_id: int, dossier: dict[str, Any]) -> None:
    with app.app_context():
        check_in(node_id, [told()], events=[event("agent.crashed", data={"agent": "nginx"} | dossier)])
    assert vera.get(HOME.format(node_id)).status_code == 200


def test_ordering_it(app: Flask, oscar: FlaskClient, node_id: int) -> None:
    page = HOME.format(node_id)
    assert submit(oscar, f"{page}/control/stop", {}, page=page).status_code == 303
    with app.app_context():
        assert [order["kind"] for order in fetch(node_id)] == ["agent.stop"]
        assert db.session.query(NodeAgent).one().desired == "stopped"
        db.session.get_one(Node, node_id).status = "offline"
        db.session.commit()
    answered = submit(oscar, f"{page}/control/start", {"back": "node"}, page=page)
    assert answered.headers["Location"] == f"/nodes/{node_id}/agents"
    assert "The host is offline" in oscar.get(page).text
    assert submit(oscar, f"{page}/control/explode", {}, page=page).status_code == 400


def test_the_task_agent_is_stopped_with_a_warning_and_not_changed(app: Flask, oscar: FlaskClient, node_id: int) -> None:
    page = f"/nodes/{node_id}/agents/task"
    with app.app_context():
        check_in(node_id, [told("task", type="task", source="builtin")])
    html = oscar.get(page).text
    assert "Tasks for this host wait" not in html
    assert f"{page}/edit" not in html
    assert f"{page}/delete" not in html
    assert "It comes with the Daemon" in oscar.get(f"{page}/manifest").text
    assert submit(oscar, f"{page}/control/stop", {}, page=page).status_code == 303
    assert "Tasks wait until it runs." in oscar.get(page).text
    with app.app_context():
        check_in(node_id, [told("task", type="task", source="builtin", status="stopped", desired="stopped", pid=None)])
    html = oscar.get(page).text
    assert "Tasks for this host wait until it runs." in html
    assert "start it again" in html
    assert submit(oscar, f"{page}/delete", {"confirm": "task"}, page=page).status_code == 409


@pytest.mark.parametrize("key", ORDER)
def test_adding_one_from_the_catalogue(app: Flask, oscar: FlaskClient, node_id: int, key: str) -> None:
    base = f"/nodes/{node_id}/agent-new"
    assert f"{base}/{key}" in oscar.get(base).text
    wrong = submit(oscar, f"{base}/{key}", {"name": "Not A Name"})
    assert wrong.status_code == 422
    html = oscar.get(f"{base}/{key}").text
    given = dict(re.findall(r'name="(\w+)" type="text" value="([^"]*)"', html))
    answered = submit(oscar, f"{base}/{key}", given | {"name": "mine"})
    assert answered.status_code == 303, answered.text
    # The Daemon hands tasks to the one of this very name.
    name = "task" if key == "task_agent" else "mine"
    assert answered.headers["Location"] == f"/nodes/{node_id}/agents/{name}"
    assert oscar.get(f"{base}/nothing").status_code == 404
    assert oscar.get(f"{base}/manifest?from={key}").status_code == 200


def test_adding_one_by_a_manifest(app: Flask, oscar: FlaskClient, node_id: int) -> None:
    path = f"/nodes/{node_id}/agent-new/manifest"
    for text, words in (
        ("name: [", "Line 1"),
        ("name: x\ntype: custom\nstart: [/x]\nhealt: []", "healt"),
        ("name: nginx\ntype: custom\nstart: [/x]", "already"),
        ("name: x\ntype: custom\nstart: [/x]\nhealth: [{kind: http}]", "health.0.url"),
    ):
        answered = submit(oscar, path, {"manifest": text})
        assert answered.status_code == 422, text
        assert words in answered.text, text
    made = submit(oscar, path, {"manifest": '{"name": "x", "type": "custom", "start": ["/x", "5"]}'})
    assert made.status_code == 303
    with app.app_context():
        assert db.session.query(NodeAgent).filter_by(name="x").one().manifest["start"] == ["/x", "5"]


def test_changing_and_deleting_it(app: Flask, oscar: FlaskClient, node_id: int) -> None:
    page = HOME.format(node_id)
    assert "daemon off;" in oscar.get(f"{page}/manifest").text
    assert submit(oscar, f"{page}/edit", {"manifest": "name: other\ntype: custom\nstart: [/x]"}).status_code == 422
    assert submit(oscar, f"{page}/edit", {"manifest": "name: nginx\ntype: custom\nstart: [/x]"}).status_code == 303
    assert submit(oscar, f"{page}/delete", {"confirm": "no"}).status_code == 422
    assert submit(oscar, f"{page}/delete", {"confirm": "nginx"}).status_code == 303
    with app.app_context():
        assert db.session.query(NodeAgent).count() == 0


def test_a_configuration_is_looked_at_before_it_is_sent(app: Flask, oscar: FlaskClient, node_id: int) -> None:
    base = f"{HOME.format(node_id)}/config"
    assert "No version yet" in oscar.get(base).text
    assert "worker_processes" in oscar.get(f"{base}/edit").text
    given = {"with-0": "1", "content-0": TEMPLATE.replace("\n", "\r\n"), "apply": "reload", "note": "first"}
    lacking = submit(oscar, f"{base}/edit", given | {"step": "preview"})
    assert lacking.status_code == 422
    assert 'name="secret-PASSWORD"' in lacking.text
    shown = submit(oscar, f"{base}/edit", given | {"secret-PASSWORD": SECRET, "step": "preview"})
    assert shown.status_code == 200
    assert "+env prod;" in shown.text
    assert SECRET not in shown.text
    with app.app_context():
        assert db.session.query(AgentConfig).count() == 0
    saved = submit(oscar, f"{base}/edit", given | {"secret-PASSWORD": SECRET, "step": "push"})
    assert saved.status_code == 303
    with app.app_context():
        (order,) = fetch(node_id)
        assert order["files"] == [{"path": PATH, "content": f"# web-1\nenv prod;\npassword {SECRET};\n"}]
        answer(node_id, order["id"], {"outcome": "reverted", "detail": "no good"}, status="failed", error="x")
    html = oscar.get(base).text
    assert "no good" in html
    assert SECRET not in html
    assert submit(oscar, f"{base}/edit", {"step": "save"}).status_code == 422


def test_versions_are_shown_and_taken_again(app: Flask, oscar: FlaskClient, node_id: int) -> None:
    base = f"{HOME.format(node_id)}/config"
    for content in ("one\n", "two\n"):
        submit(oscar, f"{base}/edit", {"with-0": "1", "content-0": content, "apply": "none", "step": "push"})
        with app.app_context():
            (order,) = fetch(node_id)
            answer(node_id, order["id"], {"outcome": "kept"})
    html = oscar.get(f"{base}/versions/2").text
    assert "-one" in html
    assert "+two" in html
    assert oscar.get(f"{base}/versions/9").status_code == 404
    assert submit(oscar, f"{base}/rollback", {"version": "1"}, page=base).status_code == 303
    with app.app_context():
        (order,) = fetch(node_id)
        assert order["files"][0]["content"] == "one\n"
    assert submit(oscar, f"{base}/push", {}, page=base).status_code == 303


def test_drift_is_taken_or_put_back(
    app: Flask, oscar: FlaskClient, node_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking.ask, "__defaults__", (0.1,))
    base = f"{HOME.format(node_id)}/config"
    submit(oscar, f"{base}/edit", {"with-0": "1", "content-0": "one\n", "apply": "none", "step": "push"})
    with app.app_context():
        (order,) = fetch(node_id)
        answer(node_id, order["id"], {"outcome": "kept"})
        check_in(node_id, [told(source="manager", drifted=True, config_version=1)])
    read_from_host(app, node_id, "one\nby hand\n")
    html = oscar.get(f"{base}/host").text
    assert "did not answer in time" in html
    assert "+by hand" in html
    assert submit(oscar, f"{base}/take", {}, page=f"{base}/host").status_code == 303
    with app.app_context():
        assert [config.version for config in db.session.query(AgentConfig)] == [1, 2]


def test_the_same_configuration_for_others(app: Flask, oscar: FlaskClient, cast: dict[str, Api], node_id: int) -> None:
    base = f"{HOME.format(node_id)}/config"
    assert "No version yet" in oscar.get(f"{base}/spread").text
    with app.app_context():
        other = make_host(app, "web-2", labels={"env": "prod"})
    cast["oscar"].post(f"/nodes/{other}/agents", NGINX)
    given = {"with-0": "1", "content-0": TEMPLATE, "apply": "reload", "secret-PASSWORD": SECRET, "step": "spread"}
    assert submit(oscar, f"{base}/edit", given).headers["Location"].endswith("/spread")
    assert "web-2" in oscar.get(f"{base}/spread?selector=env%3Dprod").text
    for wrong in ({}, {"selector": "env="}, {"selector": "all", "max_parallel": "x"}, {"selector": "tag:none"}):
        assert submit(oscar, f"{base}/spread", wrong).status_code == 422, wrong
    started = submit(oscar, f"{base}/spread", {"selector": "env=prod", "max_parallel": "100%", "max_errors": "1"})
    assert started.status_code == 303, started.text
    with app.app_context():
        orders = [order for host in (node_id, other) for order in fetch(host)]
        assert [order["files"][0]["content"].splitlines()[0] for order in orders] == ["# web-1", "# web-2"]
        assert all(SECRET in order["files"][0]["content"] for order in orders)
    assert "web-2" in oscar.get(started.headers["Location"]).text


def test_many_at_once_with_a_preview(app: Flask, oscar: FlaskClient, node_id: int) -> None:
    with app.app_context():
        hosts = [make_host(app, f"db-{number:02}") for number in range(22)]
        for host in hosts:
            check_in(host, [told("redis")])
        ids = [row.id for row in db.session.query(NodeAgent).filter_by(name="redis").order_by(NodeAgent.id)]
    assert submit(oscar, "/agents/bulk", {"action": "restart"}, page="/agents").headers["Location"] == "/agents"
    chosen = submit(oscar, "/agents/bulk", {"ids": ids[:2], "action": "restart", "query": "name=redis"}, page="/agents")
    page = chosen.headers["Location"]
    html = oscar.get(page).text
    assert "db-00" in html
    assert "Take all 22 agents" in html
    wrong = submit(oscar, "/agents/bulk/restart", {"ids": ids[0], "max_parallel": "half"}, page=page)
    assert wrong.status_code == 422
    started = submit(oscar, "/agents/bulk/restart", {"ids": f"{ids[0]},{ids[1]}", "max_parallel": "1"}, page=page)
    batch = started.headers["Location"]
    assert oscar.get(batch).status_code == 200
    everything = {"everything": "1", "query": "name=redis"}
    page = "/agents/bulk/restart?everything=1&query=name%3Dredis"
    assert submit(oscar, "/agents/bulk/restart", everything, page=page).status_code == 422
    assert submit(oscar, "/agents/bulk/restart", everything | {"confirm": "22"}, page=page).status_code == 303
    assert oscar.get("/agents/bulk/explode?ids=1").status_code == 400
    for step in ("pause", "resume", "cancel"):
        assert submit(oscar, f"{batch}/{step}", {}, page=batch).status_code == 303, step
    assert submit(oscar, f"{batch}/explode", {}, page="/agents").status_code == 404
    with app.app_context():
        assert db.session.query(Fanout).count() == 2


def test_a_batch_of_somebody_else_is_not_shown_here(app: Flask, oscar: FlaskClient, node_id: int) -> None:
    with app.app_context():
        check_in(node_id, [told("redis")])
        ids = db.session.query(NodeAgent).filter_by(name="redis").one().id
    submit(oscar, "/agents/bulk/stop", {"ids": ids}, page=f"/agents/bulk/stop?ids={ids}")
    with app.app_context():
        fanout = db.session.query(Fanout).one()
        uuid, fanout.purpose = fanout.uuid, "tasks"
        db.session.commit()
    assert oscar.get(f"/agents/batches/{uuid}").status_code == 404


def test_logs_say_why_there_are_none(app: Flask, vera: FlaskClient, node_id: int) -> None:
    with app.app_context():
        db.session.get_one(Node, node_id).status = "offline"
        db.session.commit()
    for name in ("nginx", "daemon"):
        page = vera.get(f"/nodes/{node_id}/agents/{name}/logs?query=x&lines=nonsense")
        assert page.status_code == 200
        assert "The node is offline" in page.text
    with app.app_context():
        assert db.session.query(Command).count() == 0
    assert vera.get(f"/nodes/{node_id}/agents/none/logs").status_code == 404


def test_viewers_find_no_buttons(app: Flask, vera: FlaskClient, node_id: int) -> None:
    page = HOME.format(node_id)
    for rest in ("", "/config", "/manifest"):
        html = vera.get(page + rest).text
        assert f"{page}/edit" not in html
        assert "/control/" not in html
    for rest in ("/edit", "/delete", "/config/edit", "/config/host", "/config/spread"):
        assert vera.get(page + rest).status_code == 403, rest
