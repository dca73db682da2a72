"""`/api/v1/tasks`, executions, records and templates: what is accepted, what is shown, and who may what."""

from typing import Any
from urllib.parse import quote

import pytest

from app.commands.models import Command
from app.nodes.models import OFFLINE
from protocol import states
from protocol.commands import Accept, Output, Start
from tests.commands.rig import Clock, Rig, now_text
from tests.factories import Api
from tests.nodes.fleet import make_group, make_node

SCRIPT = {"script": "echo hello"}


def given(**values: Any) -> dict[str, Any]:
    return {"name": "disk usage", "type": "script", "content": SCRIPT, "target_type": "all"} | values


def made(api: Api, **values: Any) -> dict[str, Any]:
    answer = api.post("/tasks", given(**values))
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json["data"]
    return found


def shown(api: Api, path: str) -> Any:
    answer = api.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json["data"]


def started(api: Api, task_id: int) -> str:
    answer = api.post(f"/tasks/{task_id}/execute")
    assert answer.status_code == 202, answer.text
    return str(answer.json["data"]["execution_id"])


def wrong_fields(answer: Any) -> list[str]:
    assert (answer.status_code, answer.json["code"]) == (400, 1001), answer.text
    return [error["field"] for error in answer.json["data"]["errors"]]


# Definitions


def test_a_task_has_the_contract_s_fields_and_defaults(rig: Rig, cast: dict[str, Api]) -> None:
    task = made(cast["oscar"])
    expected = {
        "timeout": 300,
        "retry_count": 0,
        "retry_interval": 60,
        "max_parallel": None,
        "max_errors": None,
        "status": "enabled",
        "cron_expr": None,
        "next_run_at": None,
        "created_by": "oscar",
        "target_value": [],
    }
    assert {name: task[name] for name in expected} == expected
    assert task["content"]["interpreter"] == "shell"
    assert shown(cast["vera"], f"/tasks/{task['id']}") == task
    assert shown(cast["vera"], "/tasks?keyword=disk&type=script&status=enabled&scheduled=false")["total"] == 1
    assert shown(cast["vera"], "/tasks?scheduled=true")["total"] == 0


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"content": {}}, "content.script"),
        ({"content": {"script": "x", "cwd": "a/b"}}, "content.cwd"),
        ({"content": {"script": "x", "cwd": "/a/../b"}}, "content.cwd"),
        ({"content": {"script": "x", "interpreter": "bash"}}, "content.interpreter"),
        ({"content": {"script": "x", "env": {"A B": "c"}}}, "content.env.A B"),
        ({"content": {"script": "x", "surprise": 1}}, "content.surprise"),
        ({"type": "file", "content": {"op": "copy", "path": "/a"}}, "content.dest"),
        ({"type": "config", "content": {"op": "set", "path": "/a", "key": "k"}}, "content.value"),
        ({"type": "service", "content": {"op": "explode", "name": "nginx"}}, "content.op"),
        ({"type": "service", "content": {"op": "start", "name": "-rf"}}, "content.name"),
        ({"type": "magic"}, "type"),
        ({"type": None, "content": None}, "type"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": 86_401}, "timeout"),
        ({"retry_count": 11}, "retry_count"),
        ({"max_parallel": 0}, "max_parallel"),
        ({"max_parallel": "0%"}, "max_parallel"),
        ({"max_parallel": "101%"}, "max_parallel"),
        ({"max_errors": "-1%"}, "max_errors"),
        ({"max_errors": 1.5}, "max_errors"),
        ({"cron_expr": "* * * * * *"}, "cron_expr"),
        ({"timezone": "Nowhere/Land"}, "timezone"),
        ({"target_type": "everything"}, "target_type"),
        ({"target_type": "all", "target_value": [1]}, "target_value"),
        ({"target_type": "node"}, "target_value"),
        ({"target_type": "node", "target_value": ["x"]}, "target_value"),
        ({"target_type": "group", "target_value": [999]}, "target_value"),
        ({"target_type": "tag", "target_value": []}, "target_value"),
        ({"target_type": "label", "target_value": ["env"]}, "target_value"),
        ({"target_type": "selector", "target_value": ["env="]}, "target_value"),
        ({"target_type": "selector", "target_value": ["all", "all"]}, "target_value"),
        ({"parameters": {"a b": 1}}, "parameters.a b"),
        ({"surprise": 1}, "surprise"),
        ({"name": ""}, "name"),
    ],
)
def test_what_is_wrong_is_named(rig: Rig, cast: dict[str, Api], values: dict[str, Any], field: str) -> None:
    fields = wrong_fields(cast["oscar"].post("/tasks", given(**values)))
    assert any(found == field or found.startswith(f"{field}.") for found in fields), fields


def test_changing_a_task_keeps_what_is_left_out(rig: Rig, cast: dict[str, Api]) -> None:
    task = made(cast["oscar"], cron_expr="0 3 * * *", timezone="Europe/Berlin", max_errors="10%")
    path = f"/tasks/{task['id']}"
    changed = cast["oscar"].put(path, {"name": "other", "timeout": 5}).json["data"]
    kept = {name: task[name] for name in task if name not in ("name", "timeout", "updated_at")}
    assert {name: changed[name] for name in kept} == kept
    assert (changed["name"], changed["timeout"]) == ("other", 5)
    assert cast["oscar"].put(path, {"status": "disabled"}).json["data"]["next_run_at"] is None
    assert cast["oscar"].put(path, {"status": "enabled"}).json["data"]["next_run_at"] is not None
    assert cast["oscar"].put(path, {"cron_expr": None}).json["data"]["next_run_at"] is None
    assert wrong_fields(cast["oscar"].put(path, {"type": "service"}))
    assert cast["oscar"].put("/tasks/999999", {"name": "x"}).json["code"] == 4001


def test_who_may_what(rig: Rig, cast: dict[str, Api]) -> None:
    rig.hosts(1)
    task = made(cast["oscar"])
    path = f"/tasks/{task['id']}"
    vera, oscar, alice = cast["vera"], cast["oscar"], cast["alice"]
    assert vera.post("/tasks", given()).json["code"] == 1003
    assert vera.put(path, {"name": "x"}).json["code"] == 1003
    assert vera.post(f"{path}/execute").json["code"] == 1003
    assert oscar.delete(path).json["code"] == 1003
    run = started(oscar, task["id"])
    assert vera.post(f"/executions/{run}/cancel").json["code"] == 1003
    assert alice.delete(path).json["code"] == 4002, "it runs"
    rig.run(rig.commands()[0].node_id)
    answer = alice.delete(path)
    assert (answer.status_code, answer.json["data"]) == (200, None)
    assert vera.get(path).json["code"] == 4001
    assert shown(vera, f"/executions/{run}")["task_id"] is None, "its history stays"


# Targets


def test_every_way_to_name_hosts(rig: Rig, cast: dict[str, Api]) -> None:
    def fleet() -> dict[str, int]:
        return {
            "eu": make_node("eu-1", group="prod/eu", tags=["web"], labels={"env": "prod", "role": "web"}),
            "us": make_node("us-1", group="prod/us", tags=["db"], labels={"env": "prod"}),
            "lab": make_node("lab-1", status=OFFLINE),
            "new": make_node("new-1", status="pending", tags=["web"]),
        }

    with rig.app.app_context():
        nodes = fleet()
        prod = make_group("prod")
    cases: list[tuple[str, list[Any], set[str]]] = [
        ("all", [], {"eu", "us", "lab"}),
        ("node", [nodes["us"], nodes["new"]], {"us"}),
        ("group", [prod], {"eu", "us"}),
        ("tag", ["web", "db"], {"eu", "us"}),
        ("label", ["env=prod", "role=web"], {"eu"}),
        ("selector", ["status=offline or tag:db"], {"us", "lab"}),
    ]
    for type_, value, expected in cases:
        task = made(cast["oscar"], target_type=type_, target_value=value)
        preview = cast["vera"].post(f"/tasks/{task['id']}/preview").json["data"]
        assert {item["id"] for item in preview["items"]} == {nodes[name] for name in expected}, type_
    assert (preview["total"], preview["online"], preview["offline"]) == (2, 1, 1)
    assert [item["waiting_for"] for item in preview["items"]] == ["node_offline", None]


def test_a_run_without_any_host_is_refused(rig: Rig, cast: dict[str, Api]) -> None:
    task = made(cast["oscar"], target_type="tag", target_value=["nobody"])
    assert wrong_fields(cast["oscar"].post(f"/tasks/{task['id']}/execute")) == ["target_value"]


# Runs


def test_a_run_from_the_click_to_its_end(rig: Rig, cast: dict[str, Api]) -> None:
    nodes = rig.hosts(3)
    task = made(cast["oscar"], max_parallel=2, parameters={"SIZE": 5})
    run = started(cast["oscar"], task["id"])
    order = rig.fetch(nodes[0])[0]
    assert order.kind == "task.run"
    assert '"parameters":{"SIZE":5}' in order.payload
    path = f"/executions/{run}"
    found = shown(cast["vera"], path)
    assert {name: found[name] for name in ("total", "pending", "running", "success", "failed", "cancelled")} == {
        "total": 3,
        "pending": 3,
        "running": 0,
        "success": 0,
        "failed": 0,
        "cancelled": 0,
    }
    assert (found["status"], found["triggered_by"], found["created_by"]) == ("running", "api", "oscar")
    at = now_text()
    pieces = [
        Output(order.id, "output", 0, "stdout", 0, "grüß".encode(), False),
        Output(order.id, "output", 1, "stderr", 0, b"oh\n", False),
        Output(order.id, "output", 2, "stdout", 6, b" dich\n", False),
    ]
    rig.report(nodes[0], Accept(order.id, "accept", at), Start(order.id, "start", at, 7), *pieces, *pieces)
    assert [record["status"] for record in shown(cast["vera"], path)["records"]] == ["running", "pending", "pending"]
    rig.end(nodes[0], order.id)
    rig.run(nodes[1], states.FAILED)
    rig.run(nodes[2])
    ended = shown(cast["vera"], path)
    assert (ended["status"], ended["success"], ended["failed"]) == ("partial", 2, 1)
    first, second, _third = ended["records"]
    assert (first["stdout"], first["stderr"], first["exit_code"], first["user"]) == ("grüß dich\n", "oh\n", 0, "root")
    assert (second["status"], second["error_code"], second["waiting_for"]) == ("failed", "task_failed", None)
    listed = shown(cast["vera"], f"/tasks/{task['id']}/executions")
    assert listed["items"][0]["execution_id"] == run
    assert listed["items"][0]["records"] is None
    assert shown(cast["vera"], "/executions?status=partial&triggered_by=api&keyword=disk")["total"] == 1
    assert shown(cast["vera"], "/executions?status=success")["total"] == 0


def test_the_same_click_twice_is_one_run(rig: Rig, cast: dict[str, Api]) -> None:
    rig.hosts(1)
    path = f"/tasks/{made(cast['oscar'])['id']}/execute"
    answers = [cast["oscar"].post(path, Idempotency_Key="k").json["data"] for _ in range(2)]
    assert answers[0] == answers[1]
    assert shown(cast["vera"], "/executions")["total"] == 1


def test_a_task_that_is_switched_off_does_not_run(rig: Rig, cast: dict[str, Api]) -> None:
    rig.hosts(1)
    task = made(cast["oscar"], status="disabled")
    answer = cast["oscar"].post(f"/tasks/{task['id']}/execute")
    assert (answer.status_code, answer.json["code"]) == (409, 4002)
    assert cast["oscar"].post("/tasks/999999/execute").json["code"] == 4001


def test_cancelling_a_run_and_one_of_its_records(rig: Rig, cast: dict[str, Api]) -> None:
    nodes = rig.hosts(3)
    run = started(cast["oscar"], made(cast["oscar"], max_parallel=2)["id"])
    order = rig.fetch(nodes[0])[0]
    path = f"/executions/{run}"
    records = shown(cast["vera"], path)["records"]
    one = cast["oscar"].post(f"{path}/records/{records[1]['id']}/cancel")
    assert one.json["data"]["cancelled"] == 1
    assert cast["oscar"].post(f"{path}/records/{records[1]['id']}/cancel").json["code"] == 4002
    assert cast["oscar"].post(f"{path}/records/999999/cancel").json["code"] == 1004
    assert cast["oscar"].post(f"{path}/cancel").json["data"]["cancelled"] == 2
    cancel = rig.fetch(nodes[0])[0]
    assert (cancel.kind, order.id in cancel.payload) == ("task.cancel", True)
    rig.end(nodes[0], order.id, states.CANCELLED)
    assert shown(cast["vera"], path)["status"] == "cancelled"
    assert cast["oscar"].post(f"{path}/cancel").json["code"] == 4002


def test_running_again_only_where_it_failed(rig: Rig, cast: dict[str, Api]) -> None:
    nodes = rig.hosts(2)
    run = started(cast["oscar"], made(cast["oscar"])["id"])
    assert cast["oscar"].post(f"/executions/{run}/retry", {"only": "failed"}).json["code"] == 4002
    rig.run(nodes[0], states.FAILED)
    rig.run(nodes[1])
    answer = cast["oscar"].post(f"/executions/{run}/retry", {"only": "failed"})
    assert (answer.status_code, answer.json["data"]["total_nodes"]) == (202, 1)
    again = shown(cast["vera"], f"/executions/{answer.json['data']['execution_id']}")
    assert [record["node_id"] for record in again["records"]] == [nodes[0]]


def test_why_it_has_not_run(rig: Rig, cast: dict[str, Api], clock: Clock) -> None:
    nodes = rig.hosts(2)
    rig.set_node(nodes[0], status=OFFLINE)
    run = started(cast["oscar"], made(cast["oscar"], not_after_s=60)["id"])
    records = shown(cast["vera"], f"/executions/{run}")["records"]
    assert [record["waiting_for"] for record in records] == ["node_offline", "delivery"]
    rig.run(nodes[1])
    clock.advance(seconds=61)
    rig.sweep()
    ended = shown(cast["vera"], f"/executions/{run}")
    assert [record["status"] for record in ended["records"]] == ["expired", "success"]
    assert (ended["records"][0]["error_code"], ended["failed"]) == ("not_delivered", 1)


def test_output_by_offset(rig: Rig, cast: dict[str, Api]) -> None:
    node = rig.hosts(1)[0]
    run = started(cast["oscar"], made(cast["oscar"])["id"])
    order = rig.fetch(node)[0]
    record = shown(cast["vera"], f"/executions/{run}")["records"][0]["id"]
    path = f"/executions/{run}/records/{record}/output"

    def piece(seq: int, offset: int, data: bytes, cut: bool = False) -> None:
        assert rig.report(node, Output(order.id, "output", seq, "stdout", offset, data, cut)) == [True]

    piece(0, 0, "ab€".encode()[:4])
    first = shown(cast["vera"], path)
    assert (first["data"], first["next_offset"], first["is_complete"]) == ("ab", 2, False)
    piece(1, 4, "€".encode()[2:] + b"c", cut=True)
    second = shown(cast["vera"], f"{path}?offset=2")
    assert (second["data"], second["next_offset"], second["truncated"]) == ("€c", 6, True)
    rig.end(node, order.id)
    last = shown(cast["vera"], f"{path}?offset=6&stream=stdout")
    assert (last["data"], last["is_complete"]) == ("", True)
    assert wrong_fields(cast["vera"].get(f"{path}?stream=stdin")) == ["stream"]


def test_searching_in_what_hosts_wrote(rig: Rig, cast: dict[str, Api]) -> None:
    nodes = rig.hosts(3)
    run = started(cast["oscar"], made(cast["oscar"])["id"])
    for node, text in zip(nodes, ("all is well", "Fehler: Platte voll 100%", "fehler"), strict=True):
        order = rig.fetch(node)[0]
        rig.report(node, Output(order.id, "output", 0, "stdout", 0, text.encode(), False))
    for wanted, expected in (("Fehler", [nodes[1]]), ("ehler", nodes[1:]), ("0%", [nodes[1]]), ("_", [])):
        answer = cast["vera"].call("GET", f"/executions/{run}?output={quote(wanted)}")
        assert [record["node_id"] for record in answer.json["data"]["records"]] == expected


def test_a_payload_too_large_for_the_wire_is_refused_when_it_is_saved(rig: Rig, cast: dict[str, Api]) -> None:
    values = {"script": '"' * 190_000}
    assert cast["oscar"].post("/tasks", given(content=values)).json["code"] == 1008


# Schedules and templates


def test_the_next_times_before_saving(cast: dict[str, Api]) -> None:
    answer = cast["vera"].post("/tasks/schedule-preview", {"cron_expr": "0 3 * * *", "timezone": "Asia/Shanghai"})
    times = answer.json["data"]["times"]
    assert len(times) == 5
    assert all("T19:00:00Z" in moment for moment in times)
    assert wrong_fields(cast["vera"].post("/tasks/schedule-preview", {"cron_expr": "never"})) == ["cron_expr"]


TEMPLATE = {
    "name": "clean up",
    "type": "script",
    "content": {"script": 'find "$OPS_PARAM_PATH" -mtime +"$OPS_PARAM_DAYS" -delete'},
    "parameters": [
        {"name": "PATH", "required": True, "pattern": "/var/.+"},
        {"name": "DAYS", "type": "integer", "default": 7, "minimum": 1},
        {"name": "MODE", "type": "choice", "choices": ["soft", "hard"]},
    ],
}


def test_a_task_from_a_template(rig: Rig, cast: dict[str, Api]) -> None:
    oscar = cast["oscar"]
    template = oscar.post("/task-templates", TEMPLATE)
    assert template.status_code == 201, template.text
    assert oscar.post("/task-templates", TEMPLATE).json["code"] == 1006
    number = template.json["data"]["id"]
    wanted = {"name": "t", "template_id": number, "target_type": "all"}
    task = oscar.post("/tasks", wanted | {"parameters": {"PATH": "/var/tmp"}}).json["data"]
    assert (task["parameters"], task["type"]) == ({"PATH": "/var/tmp", "DAYS": 7}, "script")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "parameters.PATH"),
        ({"PATH": "/etc"}, "parameters.PATH"),
        ({"PATH": "/var/" + "a" * 252}, "parameters.PATH"),
        ({"PATH": "/var/a", "DAYS": "7"}, "parameters.DAYS"),
        ({"PATH": "/var/a", "DAYS": 0}, "parameters.DAYS"),
        ({"PATH": "/var/a", "DAYS": True}, "parameters.DAYS"),
        ({"PATH": "/var/a", "MODE": "wild"}, "parameters.MODE"),
        ({"PATH": "/var/a", "OTHER": 1}, "parameters.OTHER"),
    ]
    for parameters, field in wrong:
        assert wrong_fields(oscar.post("/tasks", wanted | {"parameters": parameters})) == [field]
    assert wrong_fields(oscar.post("/tasks", wanted | {"content": SCRIPT})) == ["content"]
    assert oscar.put(f"/task-templates/{number}", TEMPLATE | {"name": "other"}).json["data"]["name"] == "other"
    assert oscar.delete(f"/task-templates/{number}").json["code"] == 1003
    assert cast["alice"].delete(f"/task-templates/{number}").status_code == 200
    assert shown(cast["vera"], f"/tasks/{task['id']}")["template_id"] is None
    assert shown(cast["vera"], "/task-templates")["total"] == 0
    assert cast["vera"].get(f"/task-templates/{number}").json["code"] == 1004


@pytest.mark.parametrize(
    "parameter",
    [
        {"name": "A", "pattern": "("},
        {"name": "A", "type": "integer", "default": "x"},
        {"name": "1A"},
        {"name": "A", "pattern": "(a+)+b"},
        {"name": "A", "pattern": "a*a*a*b"},
        {"name": "A", "pattern": r"\\\\*" * 9 + "b"},
        {"name": "A", "pattern": "a?" * 30 + "a" * 30},
        {"name": "A", "pattern": "(a|a)" * 30 + "b"},
        {"name": "A", "pattern": r"(a*)\1b"},
        {"name": "A", "pattern": "(?=a*)b"},
        {"name": "A", "pattern": "a{99999999999999999999}"},
    ],
)
def test_definitions_of_parameters_that_make_no_sense(cast: dict[str, Api], parameter: dict[str, Any]) -> None:
    assert wrong_fields(cast["oscar"].post("/task-templates", TEMPLATE | {"parameters": [parameter]}))
    twice = [{"name": "A"}, {"name": "a"}]
    assert wrong_fields(cast["oscar"].post("/task-templates", TEMPLATE | {"parameters": twice}))


def test_patterns_that_are_harmless(cast: dict[str, Api]) -> None:
    harmless = (r"\(\*\+\?\)", "[*+?|(){}^]+", "(?:dev|test|prod)-[0-9]{1,3}", "v?[0-9]+", "[]*+{]x")
    parameters = [{"name": f"P{number}", "pattern": pattern} for number, pattern in enumerate(harmless)]
    answer = cast["oscar"].post("/task-templates", TEMPLATE | {"parameters": parameters})
    assert answer.status_code == 201, answer.text


def test_ten_thousand_hosts_share_one_payload(rig: Rig, cast: dict[str, Api]) -> None:
    rig.hosts(1000)
    run = started(cast["oscar"], made(cast["oscar"])["id"])
    assert all(command.payload is None for command in rig.commands(Command.kind == "task.run"))
    found = shown(cast["vera"], f"/executions/{run}?page=10")
    assert (found["total"], len(found["records"])) == (1000, 100)


# Root


def test_operators_name_another_user_where_root_is_for_administrators(rig: Rig, cast: dict[str, Api]) -> None:
    nodes = rig.hosts(2)
    oscar, alice = cast["oscar"], cast["alice"]
    early = made(oscar, max_parallel=1)
    run = started(oscar, early["id"])
    assert alice.put("/system/settings", {"values": {"tasks.root_requires_admin": True}}).status_code == 200
    for values in (
        {},
        {"content": SCRIPT | {"user": "root"}},
        {"type": "service", "content": {"op": "stop", "name": "x"}},
    ):
        assert oscar.post("/tasks", given(**values)).json["code"] == 1003
    assert oscar.post(f"/tasks/{early['id']}/execute").json["code"] == 1003
    assert oscar.put(f"/tasks/{early['id']}", {"content": SCRIPT}).json["code"] == 1003
    assert made(oscar, content=SCRIPT | {"user": "www"})["content"]["user"] == "www"
    theirs = f"/tasks/{made(alice)['id']}"
    for values in ({"parameters": {"LD_PRELOAD": "/tmp/x"}}, {"cron_expr": "* * * * *"}, {"status": "disabled"}):
        assert oscar.put(theirs, values).json["code"] == 1003
    assert oscar.put(theirs, {"content": SCRIPT | {"user": "www"}}).status_code == 200
    assert made(alice)["content"]["user"] is None
    rig.run(nodes[0])
    records = shown(cast["vera"], f"/executions/{run}")["records"]
    assert [record["status"] for record in records] == ["success", "failed"], "asked again when its turn came"
    assert records[1]["error"] == "oscar may not run this as root"
