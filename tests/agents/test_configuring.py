"""Configurations by program: versions, secrets, pushing, what the host makes of it, drift, many at once."""

from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from app.agents import configuring, jobs
from app.agents.models import AgentConfig, AgentConfigText
from app.audit.models import AuditRow
from app.commands.actions import issue
from app.kernel.db import db
from app.link import jobs as link_jobs
from app.nodes.models import Node
from tests.agents.builders import NGINX, answer, check_in, command, fetch, make_host, told
from tests.factories import SYSTEM, Api

PATH, OTHER = "/etc/nginx/nginx.conf", "/etc/nginx/site.conf"
SECRET = "hunter2-and-more"
TEMPLATE = "# {{ hostname }}\nenv {{ labels.env }};\npassword {{ secret.PASSWORD }};\n"


def body(content: str = TEMPLATE, **values: Any) -> dict[str, Any]:
    return {"files": [{"path": PATH, "content": content}], "secrets": {"PASSWORD": SECRET}} | values


@pytest.fixture
def node_id(app: Flask, cast: dict[str, Api]) -> int:
    with app.app_context():
        found = make_host(app, "web-1", labels={"env": "prod"})
    assert cast["oscar"].post(f"/nodes/{found}/agents", NGINX).status_code == 201
    return found


class Config:
    """The configuration of one agent, as a program sees it."""

    def __init__(self, api: Api, node_id: int) -> None:
        self.api, self.path = api, f"/nodes/{node_id}/agents/nginx/config"

    def put(self, *given: Any, **values: Any) -> Any:
        return self.api.put(self.path, body(*given, **values))

    def get(self, rest: str = "") -> Any:
        return self.api.get(self.path + rest)

    def post(self, rest: str, given: Any = None) -> Any:
        return self.api.post(self.path + rest, given or {})

    def states(self) -> list[tuple[int, str]]:
        return [(one["version"], one["state"]) for one in self.get("/versions").json["data"]["items"]]


@pytest.fixture
def config(cast: dict[str, Api], node_id: int) -> Config:
    return Config(cast["oscar"], node_id)


def carry_out(app: Flask, node_id: int, outcome: str = "kept", **values: Any) -> dict[str, Any]:
    """The host fetches the one order that waits, and does it."""
    with app.app_context():
        (order,) = fetch(node_id)
        given = {"status": "succeeded" if outcome == "kept" else "failed"} | values
        if outcome != "kept":
            given |= {"error_code": "rolled_back" if outcome == "reverted" else "task_failed"}
        answer(node_id, order["id"], {"outcome": outcome, "detail": None, "checks": []}, **given)
    return order


def test_before_anything_was_saved_there_is_an_empty_one(config: Config) -> None:
    found = config.get().json["data"]
    assert (found["version"], found["files"], found["secrets"]) == (None, [], [])
    assert config.get("/versions").json["data"]["items"] == []


def test_a_version_reaches_the_host_with_its_facts_and_secrets(app: Flask, config: Config, node_id: int) -> None:
    saved = config.put(note="first")
    assert saved.status_code == 200, saved.text
    found = saved.json["data"]
    assert (found["version"], found["state"], found["files"][0]["content"]) == (1, "pushing", TEMPLATE)
    assert found["secrets"] == ["PASSWORD"]
    order = carry_out(app, node_id)
    assert order["files"] == [{"path": PATH, "content": f"# web-1\nenv prod;\npassword {SECRET};\n"}]
    assert (order["version"], order["apply"], order["probation_s"]) == (1, "reload", 10)
    found = config.get().json["data"]
    assert (found["state"], found["healthy"], found["host_version"]) == ("kept", True, 1)


def test_no_secret_lies_anywhere_in_the_clear(app: Flask, config: Config, node_id: int) -> None:
    config.put()
    carry_out(app, node_id, "refused", error=f"nginx: bad password {SECRET}")
    with app.app_context():
        for table in db.metadata.sorted_tables:
            for row in db.session.execute(text(f"SELECT * FROM {table.name}")):
                assert SECRET not in repr(tuple(row)), table.name
    assert SECRET not in config.get().text + config.get("/versions").text


@pytest.mark.parametrize("outcome", ["reverted", "refused"])
def test_what_the_host_did_not_keep_is_told(app: Flask, config: Config, node_id: int, outcome: str) -> None:
    config.put()
    carry_out(app, node_id)
    config.put("worker_processes banana;\n")
    with app.app_context():
        (order,) = fetch(node_id)
        data = {"outcome": outcome, "detail": "unexpected banana", "checks": []}
        answer(node_id, order["id"], data, status="failed", error_code="rolled_back", error="x")
    assert config.states() == [(2, outcome), (1, "kept")]
    found = config.get().json["data"]
    assert (found["healthy"], found["detail"], found["host_version"]) == (False, "unexpected banana", 1)


def test_wrong_templates_and_paths_are_named(config: Config) -> None:
    for content, words in (
        ("x\n{{ labels.role }}", "Line 2"),
        ("{% if %}", "Line 1"),
        ("{{ secret.NOPE }}", "NOPE"),
        ("{{ ''.__class__ }}", "Line 1"),
    ):
        answered = config.put(content)
        assert answered.json["code"] == 1001, content
        (error,) = answered.json["data"]["errors"]
        assert error["field"] == "files.0.content"
        assert words in error["message"], error
    elsewhere = config.api.put(config.path, {"files": [{"path": "/etc/passwd", "content": "x"}]})
    assert elsewhere.json["data"]["errors"][0]["field"] == "files.0.path"
    twice = config.api.put(config.path, {"files": [{"path": PATH, "content": "x"}] * 2})
    assert twice.json["data"]["errors"][0]["field"] == "files.1.path"
    short = config.put("x", secrets={"A": "abc"})
    assert short.json["data"]["errors"][0]["field"] == "secrets.A"
    assert config.states() == []


def test_a_secret_stays_until_it_is_changed_or_forgotten(app: Flask, config: Config, node_id: int) -> None:
    config.put()
    carry_out(app, node_id)
    assert config.api.put(config.path, {"files": [{"path": PATH, "content": TEMPLATE}]}).status_code == 200
    assert SECRET in carry_out(app, node_id)["files"][0]["content"]
    config.put(secrets={"PASSWORD": "another-one"})
    assert "another-one" in carry_out(app, node_id)["files"][0]["content"]
    forgotten = config.put("nothing", secrets={"PASSWORD": None})
    assert forgotten.json["data"]["secrets"] == []


def test_saving_without_pushing_leaves_the_host_alone(app: Flask, config: Config, node_id: int) -> None:
    assert config.put(push=False).json["data"]["state"] == "saved"
    with app.app_context():
        assert fetch(node_id) == []
    pushed = config.post("/push", {"version": 1})
    assert (pushed.status_code, pushed.json["data"]["version"]) == (202, 1)
    carry_out(app, node_id)
    assert config.states() == [(1, "kept")]


def test_only_the_newest_of_those_that_wait_is_sent(app: Flask, config: Config, node_id: int) -> None:
    config.put("one")
    config.put("two")
    with app.app_context():
        (order,) = fetch(node_id)
        assert order["files"][0]["content"] == "two"
    assert config.states() == [(2, "pushing"), (1, "saved")]


def test_rolling_back_takes_the_last_that_proved_itself(app: Flask, config: Config, node_id: int) -> None:
    assert config.post("/rollback").json["code"] == 3005
    config.put("one")
    carry_out(app, node_id)
    answered = config.post("/rollback")
    assert (answered.status_code, answered.json["code"]) == (409, 3005)
    config.put("two")
    carry_out(app, node_id, "reverted")
    config.put("three")
    carry_out(app, node_id)
    back = config.post("/rollback")
    assert (back.status_code, back.json["data"]["version"]) == (202, 4)
    assert carry_out(app, node_id)["files"][0]["content"] == "one"
    named = config.post("/rollback", {"version": 2})
    assert named.json["data"]["version"] == 5
    assert carry_out(app, node_id)["files"][0]["content"] == "two"
    assert config.post("/rollback", {"version": 77}).json["data"]["errors"][0]["field"] == "version"
    with app.app_context():
        assert db.session.query(AuditRow).filter_by(action="agent.rollback").count() == 2
        assert db.session.query(AgentConfigText).count() == 3
        assert db.session.query(AgentConfig).count() == 5


def test_an_order_that_was_never_fetched_is_noted(app: Flask, config: Config, node_id: int) -> None:
    saved = config.put().json["data"]
    with app.app_context():
        order = command(saved["command_id"])
        order.state, order.error = "expired", None
        db.session.commit()
        jobs.settle_lost_pushes()
        db.session.commit()
    assert config.get().json["data"]["state"] == "failed"


def test_a_template_that_no_longer_fits_fails_instead_of_reaching_the_host(
    app: Flask, config: Config, cast: dict[str, Api], node_id: int
) -> None:
    saved = config.put().json["data"]
    cast["oscar"].put(f"/nodes/{node_id}", {"labels": {}})
    with app.app_context():
        assert fetch(node_id) == []
        assert "labels.env" in str(command(saved["command_id"]).error)
        jobs.settle_lost_pushes()
        db.session.commit()
    assert "labels.env" in config.get().json["data"]["detail"]


def test_a_preview_masks_secrets_and_shows_what_changes(app: Flask, config: Config, node_id: int) -> None:
    config.put()
    changed = TEMPLATE.replace("env", "environment", 1)
    found = config.post("/preview", {"files": [{"path": PATH, "content": changed}]}).json["data"]["files"][0]
    assert SECRET not in str(found)
    assert found["content"].startswith("# web-1\nenvironment prod;")
    assert "-env prod;" in found["diff"].splitlines()
    assert "+environment prod;" in found["diff"].splitlines()
    with app.app_context():
        fetch(node_id)
    assert config.states() == [(1, "pushing")]


def read_from_host(app: Flask, node_id: int, content: str, **values: Any) -> None:
    """As if the host had been asked for what it has."""
    with app.app_context():
        session = db.session()
        issue(session, SYSTEM, node_id, configuring.READ_CONFIG, {"name": "nginx"}, timedelta(seconds=10))
        session.commit()
        (order,) = fetch(node_id)
        file = {"path": PATH, "sha256": "0" * 64, "content": content, "size": len(content), "truncated": False}
        answer(node_id, order["id"], {"files": [file | {"missing": False} | values]})


def test_theirs_can_be_taken(app: Flask, config: Config, node_id: int) -> None:
    config.put()
    carry_out(app, node_id)
    assert config.post("/take").json["code"] == 1006
    theirs = f"# web-1\nenv prod;\npassword {SECRET};\nlog '{{{{ x }}}}' {{% y;\n"
    read_from_host(app, node_id, theirs)
    taken = config.post("/take")
    assert (taken.status_code, taken.json["data"]["version"]) == (202, 2), taken.text
    order = carry_out(app, node_id)
    assert (order["files"][0]["content"], order["apply"]) == (theirs, "none")
    kept = config.get().json["data"]["files"][0]["content"]
    assert SECRET not in kept
    assert kept.startswith(TEMPLATE)


def test_ours_can_be_put_back(app: Flask, config: Config, node_id: int) -> None:
    config.put()
    carry_out(app, node_id)
    with app.app_context():
        check_in(node_id, [told(source="manager", config_version=1, drifted=True)])
    assert config.get().json["data"]["drifted"] is True
    assert config.post("/push").json["data"]["version"] == 1
    carry_out(app, node_id)
    assert config.get().json["data"]["drifted"] is False


def test_a_bad_configuration_for_many_stops_itself(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        hosts = [make_host(app, f"web-{number}", labels={"env": f"e{number}"}) for number in range(5)]
    for host in hosts:
        cast["oscar"].post(f"/nodes/{host}/agents", NGINX)
    given = body(action="configure", selector="all", name="nginx", max_parallel=1, max_errors=2, note="all of them")
    answered = cast["oscar"].post("/agents/bulk", given)
    assert answered.status_code == 202, answered.text
    assert answered.json["data"]["total"] == 5
    with app.app_context():
        for number, host in enumerate(hosts[:2]):
            (order,) = fetch(host)
            assert order["files"][0]["content"] == f"# web-{number}\nenv e{number};\npassword {SECRET};\n"
            answer(host, order["id"], {"outcome": "reverted"}, status="failed", error_code="rolled_back", error="no")
        assert [fetch(host) for host in hosts[2:]] == [[], [], []]
    states = [Config(cast["vera"], host).states() for host in hosts]
    assert states == [[(1, "reverted")], [(1, "reverted")], [(1, "saved")], [(1, "saved")], [(1, "saved")]]
    with app.app_context():
        assert db.session.query(AgentConfigText).count() == 1
        assert db.session.query(AuditRow).filter_by(action="agent.bulk_configure").count() == 1


def test_a_later_version_is_not_overwritten_by_one_that_waited(
    app: Flask, cast: dict[str, Api], config: Config, node_id: int
) -> None:
    with app.app_context():
        db.session.get_one(Node, node_id).status = "offline"
        db.session.commit()
    given = {"action": "configure", "selector": "all", "files": [{"path": PATH, "content": "old"}]}
    assert cast["oscar"].post("/agents/bulk", given).status_code == 202
    with app.app_context():
        db.session.get_one(Node, node_id).status = "online"
        db.session.commit()
    config.put("new")
    with app.app_context():
        link_jobs.sweep_fanouts()
        assert [order["files"][0]["content"] for order in fetch(node_id)] == ["new"]


def test_a_push_to_many_is_tried_before_it_begins(app: Flask, cast: dict[str, Api], config: Config) -> None:
    with app.app_context():
        other = make_host(app, "web-2")
    cast["oscar"].post(f"/nodes/{other}/agents", NGINX)
    given = body(action="configure", selector="all", name="nginx")
    answered = cast["oscar"].post("/agents/bulk", given)
    assert answered.json["code"] == 1001
    assert "web-2" in answered.json["data"]["errors"][0]["message"]
    assert config.states() == []


def test_viewers_read_versions_but_nothing_of_the_host(cast: dict[str, Api], config: Config) -> None:
    config.put()
    vera = cast["vera"]
    assert vera.get(config.path).status_code == 200
    assert vera.get(config.path + "/versions").status_code == 200
    for method, rest in (
        ("PUT", ""),
        ("POST", "/rollback"),
        ("POST", "/push"),
        ("POST", "/take"),
        ("POST", "/preview"),
    ):
        assert vera.call(method, config.path + rest, body()).json["code"] == 1003, rest
    assert vera.get(config.path + "/host").json["code"] == 1003
