"""Tasks and templates for people, without JavaScript: lists, the form, running, switching, deleting."""

import re
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import update
from werkzeug.test import TestResponse

from app.audit.models import AuditRow
from app.commands.models import Fanout
from app.kernel.db import db
from app.settings.actions import change_settings
from app.tasks.library import LIBRARY
from app.tasks.models import Task, TaskTemplate
from tests.commands.rig import Rig
from tests.factories import SYSTEM, Api, submit
from tests.nodes.fleet import LATER, make_group, make_node
from tests.visitors import visit

NEW = "/tasks/new"
SCRIPT = {"name": "uptime", "type": "script", "interpreter": "shell", "script": "set -eu\r\nuptime\r\n", "enabled": "1"}
TARGET = {"target_type": "selector", "selector": "env=prod"}
PARAMETERS = [
    {"name": "LIMIT", "type": "integer", "required": True, "default": 90, "minimum": 1, "maximum": 100},
    {"name": "BY", "type": "choice", "choices": ["cpu", "memory"], "required": True},
    {"name": "PATH", "type": "string", "pattern": "/.*", "description": "Where it looks"},
    {"name": "DELETE", "type": "boolean", "required": True, "default": False},
]


@pytest.fixture
def oscar(app: Flask, rig: Rig, cast: dict[str, Api]) -> FlaskClient:
    return visit(app, "oscar")


@pytest.fixture
def vera(app: Flask, rig: Rig, cast: dict[str, Api]) -> FlaskClient:
    return visit(app, "vera")


@pytest.fixture
def alice(app: Flask, rig: Rig, cast: dict[str, Api]) -> FlaskClient:
    return visit(app, "alice")


@pytest.fixture
def fleet(app: Flask) -> dict[str, int]:
    with app.app_context():
        return {
            "web": make_node("web-1", labels={"env": "prod"}, tags=["canary"], group="prod/eu"),
            "db": make_node("db-1", labels={"env": "prod"}, status="offline", group="prod"),
            "lab": make_node("lab-1", labels={"env": "lab"}),
        }


def many_hosts(app: Flask, count: int) -> None:
    with app.app_context():
        for number in range(count):
            make_node(f"host-{number:02}", labels={"env": "prod"})


def the_task(app: Flask) -> Task:
    with app.app_context():
        task = db.session.query(Task).one()
        db.session.expunge(task)
        return task


def saved(client: FlaskClient, values: dict[str, Any], path: str = NEW) -> TestResponse:
    answer = submit(client, path, values)
    assert answer.status_code == 303, "\n".join(re.findall(r'class="error".*', answer.text))
    return answer


def refused(client: FlaskClient, values: dict[str, Any], path: str = NEW) -> list[str]:
    """The fields that are complained about."""
    answer = submit(client, path, values)
    assert answer.status_code == 422, answer.status_code
    return re.findall(r'id="f-([^"]+)-error"', answer.text)


def make_template(api: Api, **values: Any) -> int:
    content = {"script": 'echo "$OPS_PARAM_LIMIT"'}
    given = {"name": "look", "type": "script", "content": content, "parameters": PARAMETERS} | values
    answer = api.post("/task-templates", given)
    assert answer.status_code == 201, answer.text
    return int(answer.json["data"]["id"])


def make_task(api: Api, **values: Any) -> int:
    given = {"name": "uptime", "type": "script", "content": {"script": "uptime"}, "target_type": "all"} | values
    answer = api.post("/tasks", given)
    assert answer.status_code == 201, answer.text
    return int(answer.json["data"]["id"])


# Lists


def test_an_empty_list_says_what_to_do(oscar: FlaskClient, vera: FlaskClient) -> None:
    html = oscar.get("/tasks").text
    assert "No tasks yet" in html
    assert 'href="/tasks/new"' in html
    assert 'href="/tasks" aria-current="page"' in html
    html = vera.get("/tasks").text
    assert 'href="/tasks/new"' not in html
    assert "Look at the templates" in html


def test_the_list_is_searched_filtered_and_downloaded(vera: FlaskClient, cast: dict[str, Api]) -> None:
    make_task(cast["oscar"], name="nightly clean-up", cron_expr="0 3 * * *")
    make_task(cast["oscar"], name="restart nginx", type="service", content={"op": "restart", "name": "nginx"})
    make_task(cast["oscar"], name="asleep", status="disabled", target_type="tag", target_value=["a", "b", "c", "d"])
    for query, names in (
        ("", ("nightly", "restart nginx", "asleep")),
        ("?keyword=nginx", ("restart nginx",)),
        ("?type=service", ("restart nginx",)),
        ("?status=disabled", ("asleep",)),
        ("?scheduled=true", ("nightly",)),
        ("?scheduled=false", ("restart nginx", "asleep")),
        ("?scheduled=false&status=enabled", ("restart nginx",)),
        ("?sort=nothing", ("nightly", "restart nginx", "asleep")),
    ):
        html = vera.get(f"/tasks{query}").text
        shown = [name for name in ("nightly", "restart nginx", "asleep") if f"<b>{name}" in html]
        assert sorted(shown) == sorted(names), query
    html = vera.get("/tasks?scheduled=false").text
    assert 'class="chip"' in html
    assert '<option value="false" selected>' in html
    assert "and 1 more" in html
    assert "Nothing matches" in vera.get("/tasks?keyword=zzz").text
    assert "execute" not in html
    lines = vera.get("/tasks?format=csv&sort=name").text.splitlines()
    assert [line.split(",")[1] for line in lines] == ["name", "asleep", "nightly clean-up", "restart nginx"]
    assert vera.get("/tasks?format=json&type=service").json[0]["content"]["name"] == "nginx"


def test_a_long_list_is_downloaded_whole(app: Flask, vera: FlaskClient, cast: dict[str, Api]) -> None:
    make_task(cast["oscar"])
    with app.app_context():
        one = db.session.query(Task).one()
        row = {column.name: getattr(one, column.name) for column in Task.__table__.columns if column.name != "id"}
        db.session.execute(Task.__table__.insert(), [row | {"name": f"task {n:03}"} for n in range(204)])
        db.session.commit()
    names = [task["name"] for task in vera.get("/tasks?format=json&sort=name").json]
    assert names == [f"task {n:03}" for n in range(204)] + ["uptime"]


# The form


def test_a_script_is_saved_as_it_was_meant(app: Flask, oscar: FlaskClient, fleet: dict[str, int]) -> None:
    more = {
        "description": "how long", "args": "-p\n a b \n", "env": "LANG=C\nEMPTY=", "user": "nobody", "cwd": "/srv",
        "max_parallel": "10%", "max_errors": "3", "timeout": "60", "retry_count": "2", "retry_interval": "5",
        "not_after_s": "120", "when": "schedule", "cron_expr": "30 3 * * 1-5", "timezone": "Europe/Berlin",
        "catch_up_s": "600",
    }  # fmt: skip
    answer = saved(oscar, SCRIPT | TARGET | more)
    task = the_task(app)
    assert answer.headers["Location"] == f"/tasks/{task.id}"
    assert task.content == {
        "interpreter": "shell", "script": "set -eu\nuptime\n", "args": ["-p", " a b "],
        "env": {"LANG": "C", "EMPTY": ""}, "user": "nobody", "cwd": "/srv",
    }  # fmt: skip
    assert (task.target_type, task.target_value) == ("selector", ["env=prod"])
    assert (task.max_parallel, task.max_errors, task.timeout, task.not_after_s) == ("10%", 3, 60, 120)
    assert (task.cron_expr, task.timezone, task.catch_up_s) == ("30 3 * * 1-5", "Europe/Berlin", 600)
    assert task.next_run_at is not None
    html = oscar.get(f"/tasks/{task.id}").text
    for words in ("Europe/Berlin", "Acts with the rights of", "oscar", "2 hosts now", "10%", "LANG=C", "-p"):
        assert words in html, words
    assert html.count("data-ago>") >= 5


@pytest.mark.parametrize(
    ("values", "content"),
    [
        ({"interpreter": "other", "interpreter_path": "/usr/bin/perl"}, {"interpreter": "/usr/bin/perl"}),
        (
            {"type": "file", "file_op": "copy", "file_path": "/a", "file_dest": "/b", "file_mode": "0640",
             "file_recursive": "1", "file_sha256": "left from another operation"},
            {"op": "copy", "path": "/a", "dest": "/b", "mode": "0640", "recursive": True, "sha256": None},
        ),
        ({"type": "file", "file_op": "delete", "file_path": "/a", "file_dest": "/b"}, {"op": "delete", "dest": None}),
        (
            {"type": "config", "config_op": "set", "config_path": "/a", "config_format": "json", "config_key": "a.b",
             "config_value": "[1, true]"},
            {"op": "set", "value": [1, True]},
        ),
        (
            {"type": "config", "config_op": "set", "config_path": "/a", "config_format": "ini", "config_key": "a.b",
             "config_value": "5"},
            {"value": "5"},
        ),
        (
            {"type": "config", "config_op": "set", "config_path": "/a", "config_format": "yaml", "config_key": "a",
             "config_value": '"5"'},
            {"value": "5"},
        ),
        ({"type": "config", "config_op": "backup", "config_path": "/a", "config_key": "x"}, {"key": None}),
        ({"type": "service", "service_op": "stop", "service_name": "nginx"}, {"op": "stop", "name": "nginx"}),
        ({"type": "custom", "custom_plugin": "p", "custom_arguments": '{"a": [1]}'}, {"arguments": {"a": [1]}}),
        ({"args": '["two\\nlines", ""]', "env": '{"A": "x\\ny"}'}, {"args": ["two\nlines", ""], "env": {"A": "x\ny"}}),
    ],
)  # fmt: skip
def test_every_type_is_saved_and_shown_again_for_editing(
    app: Flask, oscar: FlaskClient, values: dict[str, str], content: dict[str, Any]
) -> None:
    saved(oscar, SCRIPT | {"target_type": "all"} | values)
    before = the_task(app)
    assert {name: before.content[name] for name in content} == content
    assert oscar.get(f"/tasks/{before.id}").status_code == 200
    edit = f"/tasks/{before.id}/edit"
    saved(oscar, fields_of(oscar.get(edit).text), edit)
    after = the_task(app)
    assert (after.type, after.content) == (before.type, before.content)


def fields_of(html: str) -> dict[str, Any]:
    """What a browser would send of a form that nobody touched."""
    form = html.split('class="task-form"', 1)[1].split("</form>", 1)[0]
    values: dict[str, Any] = {}

    def plain(text: str) -> str:
        for entity, char in (("&lt;", "<"), ("&gt;", ">"), ("&#34;", '"'), ("&#39;", "'"), ("&amp;", "&")):
            text = text.replace(entity, char)
        return text

    for tag in re.findall(r"<input [^>]*>", form):
        named = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        if "name" not in named or named["name"] == "csrf_token":
            continue
        if named.get("type") in ("checkbox", "radio") and " checked" not in tag:
            continue
        if named.get("type") == "checkbox":
            values.setdefault(named["name"], []).append(plain(named.get("value", "on")))
        else:
            values[named["name"]] = plain(named.get("value", ""))
    for name, text in re.findall(r'<textarea [^>]*name="([^"]+)"[^>]*>\n?(.*?)</textarea>', form, re.DOTALL):
        values[name] = plain(text).replace("\n", "\r\n")
    for name, options in re.findall(r'<select [^>]*name="([^"]+)"[^>]*>(.*?)</select>', form, re.DOTALL):
        chosen = re.findall(r'value="([^"]*)" selected', options) or re.findall(r'value="([^"]*)"', options)[:1]
        values[name] = plain(chosen[0]) if chosen else ""
    return values


def test_all_that_is_wrong_is_said_at_once_and_nothing_typed_is_lost(oscar: FlaskClient) -> None:
    typed = {
        "name": " ", "type": "script", "interpreter": "other", "interpreter_path": "perl", "script": "",
        "env": "no equals", "cwd": "a/b", "target_type": "label", "labels": "env", "max_parallel": "0",
        "max_errors": "many", "timeout": "0", "retry_count": "11", "when": "schedule", "cron_expr": "61 * * * *",
        "timezone": "Mars", "selector": "kept <too>",
    }  # fmt: skip
    answer = submit(oscar, NEW, typed)
    assert answer.status_code == 422
    wrong = set(re.findall(r'id="f-([^"]+)-error"', answer.text))
    assert wrong == {
        "name", "interpreter", "script", "env", "cwd", "labels", "max_parallel", "max_errors", "timeout",
        "retry_count", "cron_expr", "timezone",
    }  # fmt: skip
    for words in ("no equals", 'value="perl"', 'value="61 * * * *"', "kept &lt;too&gt;", 'value="many"'):
        assert words in answer.text, words


@pytest.mark.parametrize(
    ("target", "field"),
    [
        ({}, "target_type"),
        ({"target_type": "selector", "selector": "env="}, "selector"),
        ({"target_type": "selector"}, "selector"),
        ({"target_type": "group"}, "groups"),
        ({"target_type": "group", "groups": "4711"}, "groups"),
        ({"target_type": "tag"}, "tags"),
        ({"target_type": "label", "labels": "a=b\nc"}, "labels"),
        ({"target_type": "node", "nodes": "web-1 nobody"}, "nodes"),
        ({"target_type": "node"}, "nodes"),
    ],
)
def test_a_target_that_means_nothing_is_refused_where_it_was_typed(
    oscar: FlaskClient, fleet: dict[str, int], target: dict[str, str], field: str
) -> None:
    assert refused(oscar, SCRIPT | target) == [field]


def test_hosts_are_named_by_name_or_number(app: Flask, oscar: FlaskClient, fleet: dict[str, int]) -> None:
    with app.app_context():
        twin = make_node("web-1")
    target = {"target_type": "node", "nodes": f"lab-1, #{fleet['web']}"}
    answer = submit(oscar, NEW, SCRIPT | {"target_type": "node", "nodes": "web-1"})
    assert f"#{fleet['web']}, #{twin}" in answer.text
    saved(oscar, SCRIPT | target)
    task = the_task(app)
    assert sorted(task.target_value) == sorted([fleet["lab"], fleet["web"]])
    html = oscar.get(f"/tasks/{task.id}/edit").text
    assert "lab-1" in html
    assert f"#{fleet['web']}" in html


def test_groups_and_tags_are_ticked(app: Flask, oscar: FlaskClient, fleet: dict[str, int]) -> None:
    with app.app_context():
        group = make_group("prod")
    saved(oscar, SCRIPT | {"target_type": "group", "groups": [str(group)]})
    task = the_task(app)
    assert task.target_value == [group]
    assert "2 hosts now" in oscar.get(f"/tasks/{task.id}").text
    edit = f"/tasks/{task.id}/edit"
    assert re.search(rf'value="{group}" checked', oscar.get(edit).text)
    saved(oscar, SCRIPT | {"target_type": "tag", "tags": ["canary"]}, edit)
    assert the_task(app).target_value == ["canary"]


# What it comes to, before it is saved


def test_the_hosts_are_shown_before_anything_is_saved(app: Flask, oscar: FlaskClient, fleet: dict[str, int]) -> None:
    answer = submit(oscar, NEW, SCRIPT | TARGET | {"step": "hosts"})
    assert answer.status_code == 200
    for words in ("2 hosts", "1 begin at once", "1 offline", "web-1", "db-1", "uptime"):
        assert words in answer.text, words
    assert "lab-1</a>" not in answer.text
    assert 'class="error"' not in submit(oscar, NEW, {"step": "hosts"}).text
    with app.app_context():
        assert db.session.query(Task).count() == 0


def test_what_queues_and_what_is_in_maintenance_is_counted(app: Flask, oscar: FlaskClient) -> None:
    many_hosts(app, 6)
    with app.app_context():
        make_node("asleep", labels={"env": "prod"}, maintenance_until=LATER)
    html = submit(oscar, NEW, SCRIPT | TARGET | {"step": "hosts", "max_parallel": "2"}).text
    for words in ("7 hosts", "2 begin at once", "4 queue behind them", "1 in maintenance"):
        assert words in html, words


def test_htmx_gets_only_the_part_it_asked_for(app: Flask, oscar: FlaskClient, fleet: dict[str, int]) -> None:
    token = re.search(r'csrf_token" value="([^"]+)"', oscar.get(NEW).text)
    assert token
    asked = {"X-CSRFToken": token[1], "HX-Request": "true", "HX-Target": "hosts"}
    html = oscar.post(NEW, data=TARGET | {"step": "hosts"}, headers=asked).text
    assert "<html" not in html
    assert "2 hosts" in html
    wrong = oscar.post(NEW, data={"target_type": "selector", "selector": "env=", "step": "hosts"}, headers=asked)
    assert (wrong.status_code, "Column" in wrong.text) == (200, True)
    times = {"cron_expr": "0 3 * * *", "timezone": "Asia/Shanghai", "step": "times"}
    html = oscar.post(NEW, data=times, headers=asked | {"HX-Target": "times"}).text
    assert "<html" not in html
    assert html.count("03:00") == 5
    assert "On the clock of Asia/Shanghai" in html
    html = oscar.post(NEW, data=times | {"cron_expr": "x"}, headers=asked | {"HX-Target": "times"}).text
    assert "Five fields of cron" in html


def test_the_next_times_are_shown_before_saving_without_script(oscar: FlaskClient) -> None:
    values = {"step": "times", "when": "schedule", "cron_expr": "0 3 * * *", "timezone": "Asia/Shanghai"}
    html = submit(oscar, NEW, SCRIPT | values).text
    assert html.count("03:00") == 5
    assert "Next times" in html


# Running


def test_saved_and_run_at_once(app: Flask, oscar: FlaskClient, fleet: dict[str, int]) -> None:
    answer = saved(oscar, SCRIPT | TARGET | {"step": "run"})
    with app.app_context():
        run = db.session.query(Fanout).one()
        assert (run.total, run.created_by) == (2, "oscar")
        assert answer.headers["Location"] == f"/executions/{run.uuid}"


def test_nothing_is_saved_if_it_cannot_run(app: Flask, oscar: FlaskClient, fleet: dict[str, int]) -> None:
    assert refused(oscar, SCRIPT | {"target_type": "selector", "selector": "env=none", "step": "run"}) == ["selector"]
    with app.app_context():
        assert db.session.query(Task).count() == 0


def test_few_hosts_take_one_click(app: Flask, oscar: FlaskClient, cast: dict[str, Api], fleet: dict[str, int]) -> None:
    path = f"/tasks/{make_task(cast['oscar'])}"
    assert "Run now on 3 hosts" in oscar.get(path).text
    answer = submit(oscar, f"{path}/execute", {}, page=path)
    assert answer.headers["Location"].startswith("/executions/")
    html = oscar.get(path).text
    assert "run-list" in html
    assert f"{path}/executions" in html


def test_many_hosts_have_to_be_counted(app: Flask, oscar: FlaskClient, cast: dict[str, Api]) -> None:
    many_hosts(app, 21)
    path = f"/tasks/{make_task(cast['oscar'])}"
    assert f'action="{path}/execute"' not in oscar.get(path).text
    confirm = f"{path}/execute"
    assert 'data-confirm-words="21"' in oscar.get(confirm).text
    assert submit(oscar, confirm, {}, page=path).headers["Location"] == confirm
    assert submit(oscar, confirm, {"asked": "1", "confirm": "20"}).status_code == 422
    with app.app_context():
        assert db.session.query(Fanout).count() == 0
    assert submit(oscar, confirm, {"asked": "1", "confirm": "21"}).headers["Location"].startswith("/executions/")


def test_saving_and_running_many_asks_for_their_number_first(app: Flask, oscar: FlaskClient) -> None:
    many_hosts(app, 21)
    answer = saved(oscar, SCRIPT | TARGET | {"step": "run"})
    assert answer.headers["Location"] == f"/tasks/{the_task(app).id}/execute"
    with app.app_context():
        assert db.session.query(Fanout).count() == 0


def test_a_task_without_hosts_or_switched_off_does_not_run(oscar: FlaskClient, cast: dict[str, Api]) -> None:
    path = f"/tasks/{make_task(cast['oscar'])}"
    assert "No host fits" in oscar.get(path).text
    assert "No host fits" in submit(oscar, f"{path}/execute", {"asked": "1"}).text
    assert submit(oscar, f"{path}/switch", {}, page=path).status_code == 303
    html = oscar.get(path).text
    assert "This task is switched off" in html
    assert f'{path}/execute"' not in html.split("<main", 1)[1].split("menu", 1)[0]
    answer = submit(oscar, f"{path}/execute", {"asked": "1"}, page=path)
    assert (answer.status_code, "switched off" in answer.text) == (422, True)
    assert submit(oscar, f"{path}/switch", {"on": "1"}, page=path).status_code == 303
    assert "This task is switched off" not in oscar.get(path).text


# Changing, copying, deleting


def test_changing_a_task_changes_what_was_changed(app: Flask, oscar: FlaskClient, cast: dict[str, Api]) -> None:
    number = make_task(
        cast["oscar"], parameters={"COUNT": 5, "QUIET": True}, cron_expr="@hourly", timezone="Asia/Tokyo"
    )
    edit = f"/tasks/{number}/edit"
    values = fields_of(oscar.get(edit).text)
    assert values["parameters"] == "COUNT=5\r\nQUIET=true"
    saved(oscar, values | {"name": "another", "timeout": "9"}, edit)
    task = the_task(app)
    assert (task.name, task.timeout, task.cron_expr, task.timezone) == ("another", 9, "@hourly", "Asia/Tokyo")
    assert task.parameters == {"COUNT": 5, "QUIET": True}
    saved(oscar, values | {"when": "manual", "parameters": "COUNT=6"}, edit)
    task = the_task(app)
    assert (task.cron_expr, task.next_run_at, task.parameters) == (None, None, {"COUNT": "6"})
    assert refused(oscar, values | {"parameters": "1x=5"}, edit) == ["parameters"]


def test_the_name_alone_takes_no_responsibility(app: Flask, alice: FlaskClient, cast: dict[str, Api]) -> None:
    edit = f"/tasks/{make_task(cast['oscar'], cron_expr='@daily')}/edit"
    values = fields_of(alice.get(edit).text)
    saved(alice, values | {"name": "renamed"}, edit)
    assert the_task(app).responsible == "oscar"
    saved(alice, values | {"script": "reboot"}, edit)
    assert the_task(app).responsible == "alice"
    assert "Acts with the rights of" in alice.get(edit.removesuffix("/edit")).text


def test_a_copy_begins_with_everything_but_the_name(oscar: FlaskClient, cast: dict[str, Api]) -> None:
    number = make_task(cast["oscar"], max_parallel="5%", cron_expr="@daily")
    values = fields_of(oscar.get(f"{NEW}?copy={number}").text)
    assert (values["name"], values["max_parallel"], values["cron_expr"]) == ("Copy of uptime", "5%", "@daily")
    assert values["target_type"] == "all"
    assert oscar.get(f"{NEW}?copy=9999&template=x").status_code == 200


def test_deleting_asks_for_the_name(app: Flask, alice: FlaskClient, oscar: FlaskClient, cast: dict[str, Api]) -> None:
    path = f"/tasks/{make_task(cast['oscar'])}"
    assert f"{path}/delete" not in oscar.get(path).text
    assert oscar.get(f"{path}/delete").status_code == 403
    assert submit(alice, f"{path}/delete", {"confirm": "up"}).status_code == 422
    assert submit(alice, f"{path}/delete", {"confirm": "uptime"}).headers["Location"] == "/tasks"
    assert alice.get(path).status_code == 404


def test_a_running_task_is_not_deleted(alice: FlaskClient, cast: dict[str, Api], fleet: dict[str, int]) -> None:
    number = make_task(cast["oscar"])
    assert cast["oscar"].post(f"/tasks/{number}/execute").status_code == 202
    answer = submit(alice, f"/tasks/{number}/delete", {"confirm": "uptime"})
    assert (answer.status_code, "still runs" in answer.text) == (422, True)


# Rights


def test_who_may_only_look_sees_no_buttons(vera: FlaskClient, cast: dict[str, Api], fleet: dict[str, int]) -> None:
    number, template = make_task(cast["oscar"]), make_template(cast["oscar"])
    for path in ("/tasks", f"/tasks/{number}", "/tasks/templates", f"/tasks/templates/{template}"):
        html = vera.get(path).text.split("<main", 1)[1].split("</main>", 1)[0]
        for word in ("/new", "/edit", "/execute", "/switch", "/delete", 'method="post"'):
            assert word not in html, (path, word)
    for path in (NEW, f"/tasks/{number}/edit", f"/tasks/{number}/execute", "/tasks/templates/new"):
        assert vera.get(path).status_code == 403, path


def test_root_is_refused_at_the_field(
    app: Flask, oscar: FlaskClient, alice: FlaskClient, fleet: dict[str, int]
) -> None:
    with app.app_context():
        change_settings(db.session(), SYSTEM, {"tasks.root_requires_admin": True})
        db.session.commit()
    answer = submit(oscar, NEW, SCRIPT | TARGET)
    assert answer.status_code == 403
    assert re.findall(r'id="f-([^"]+)-error"', answer.text) == ["user"]
    assert "Only administrators may run this as root" in answer.text
    assert 'value="uptime"' in answer.text
    with app.app_context():
        assert db.session.query(Task).count() == 0
        assert db.session.query(AuditRow).filter_by(action="access.refused").count() == 1
    answer = submit(oscar, NEW, TARGET | {"name": "x", "type": "service", "service_op": "stop", "service_name": "x"})
    assert (answer.status_code, "error-summary" in answer.text) == (403, True)
    saved(oscar, SCRIPT | TARGET | {"user": "nobody"})
    edit = f"/tasks/{the_task(app).id}/edit"
    answer = submit(oscar, edit, SCRIPT | TARGET | {"user": "root", "name": "changed"})
    assert answer.status_code == 403
    assert the_task(app).name == "uptime"
    saved(alice, SCRIPT | TARGET, edit)


# From other rooms


def test_the_form_begins_with_what_was_chosen_elsewhere(oscar: FlaskClient, fleet: dict[str, int]) -> None:
    ids = f"{fleet['web']},{fleet['lab']}"
    answer = submit(oscar, "/nodes/bulk", {"ids": ids.split(","), "action": "run"}, page="/nodes")
    html = oscar.get(answer.headers["Location"]).text
    values = fields_of(html)
    assert (values["target_type"], sorted(values["nodes"].split())) == ("node", ["lab-1", "web-1"])
    assert "2 hosts" in html
    assert f"{NEW}?target_type=node&amp;target_value={fleet['web']}" in oscar.get(f"/nodes/{fleet['web']}").text
    html = oscar.get("/nodes?selector=env%3Dprod").text
    assert "Run a task on all that this selector means" in html
    values = fields_of(oscar.get(f"{NEW}?target_type=selector&target_value={quote('env=prod')}").text)
    assert (values["target_type"], values["selector"]) == ("selector", "env=prod")
    for odd in ("target_type=group&target_value=x", "target_type=node&target_value=0", "target_type=tag"):
        assert oscar.get(f"{NEW}?{odd}").status_code == 200


# Templates


def test_the_ready_ones_are_looked_at_and_copied(app: Flask, oscar: FlaskClient, vera: FlaskClient) -> None:
    html = vera.get("/tasks/templates").text
    assert "No templates of your own yet" in html
    for ready in LIBRARY:
        assert f"/tasks/templates/library/{ready.key}" in html
        assert ready.script.splitlines()[0] in vera.get(f"/tasks/templates/library/{ready.key}").text
    assert vera.get("/tasks/templates/library/none").status_code == 404
    path = "/tasks/templates/library/clean-up"
    answer = submit(oscar, path, {}, page=path)
    with app.app_context():
        copy = db.session.query(TaskTemplate).one()
    assert answer.headers["Location"] == f"/tasks/templates/{copy.id}"
    assert "Open your copy" in oscar.get(path).text
    again = submit(oscar, path, {}, page="/tasks/templates/new")
    assert again.headers["Location"] == f"/tasks/templates/{copy.id}"


def test_a_template_is_filled_in(app: Flask, oscar: FlaskClient, cast: dict[str, Api], fleet: dict[str, int]) -> None:
    number = make_template(cast["oscar"])
    html = oscar.get(f"{NEW}?template={number}").text
    values = fields_of(html)
    assert (values["name"], values["type"], values["p_LIMIT"]) == ("look", "template", "90")
    for words in ('min="1"', "Where it looks", "1 to 100", '<option value="memory"'):
        assert words in html, words
    wrong = values | TARGET | {"p_LIMIT": "101", "p_BY": "", "p_PATH": "relative"}
    assert sorted(refused(oscar, wrong)) == ["p_BY", "p_LIMIT", "p_PATH"]
    assert refused(oscar, values | TARGET | {"p_LIMIT": "many", "p_BY": "cpu"}) == ["p_LIMIT"]
    assert refused(oscar, values | TARGET | {"p_LIMIT": "", "p_BY": "cpu"}) == ["p_LIMIT"]
    saved(oscar, values | TARGET | {"p_BY": "memory", "p_PATH": "/srv", "p_DELETE": "1"})
    task = the_task(app)
    assert task.parameters == {"LIMIT": 90, "BY": "memory", "PATH": "/srv", "DELETE": True}
    assert task.content["script"] == 'echo "$OPS_PARAM_LIMIT"'
    assert "from the template" in oscar.get(f"/tasks/{task.id}").text


def test_a_task_of_a_template_keeps_it_until_it_gets_its_own_content(
    app: Flask, oscar: FlaskClient, cast: dict[str, Api]
) -> None:
    number = make_template(cast["oscar"])
    body = {"template_id": number, "type": None, "content": None, "parameters": {"BY": "cpu"}}
    edit = f"/tasks/{make_task(cast['oscar'], **body)}/edit"
    values = fields_of(oscar.get(edit).text)
    assert (values["type"], values["p_LIMIT"], "p_DELETE" in values) == ("template", "90", False)
    saved(oscar, values | {"p_LIMIT": "50"}, edit)
    task = the_task(app)
    assert (task.template_id, task.parameters["LIMIT"]) == (number, 50)
    assert refused(oscar, values | {"p_LIMIT": "500"}, edit) == ["p_LIMIT"]
    saved(oscar, values | SCRIPT, edit)
    task = the_task(app)
    assert (task.template_id, task.content["script"]) == (None, "set -eu\nuptime\n")


def test_choosing_a_template_shows_what_it_asks_for(oscar: FlaskClient, cast: dict[str, Api]) -> None:
    number = make_template(cast["oscar"])
    values = {"type": "template", "template_id": str(number), "name": "typed before", "step": "parameters"}
    html = submit(oscar, NEW, values).text
    assert 'name="p_LIMIT"' in html
    assert 'value="typed before"' in html
    assert refused(oscar, TARGET | {"type": "template", "name": "x"}) == ["template_id"]
    assert refused(oscar, TARGET | {"type": "template", "name": "x", "template_id": "4711"}) == ["template_id"]


def test_a_template_is_written_row_by_row(app: Flask, oscar: FlaskClient) -> None:
    new = "/tasks/templates/new"
    values = {"name": "clean", "type": "script", "interpreter": "shell", "script": "ls", "rows": "0"}
    html = submit(oscar, new, values | {"step": "add"}).text
    assert 'name="parameters.0.name"' in html
    assert "\nls</textarea>" in html
    row = {"parameters.0.name": "DAYS", "parameters.0.type": "integer", "parameters.0.default": "x"}
    html = submit(oscar, new, values | row | {"rows": "1", "step": "add"}).text
    assert 'name="parameters.1.name"' in html
    second = {"parameters.1.name": "BY", "parameters.1.type": "choice", "parameters.1.required": "1"}
    wrong = refused(oscar, values | row | second | {"rows": "2"}, new)
    assert sorted(wrong) == ["parameters.0.default", "parameters.1.choices"]
    html = submit(oscar, new, values | row | second | {"rows": "2", "step": "remove:1"}).text
    assert 'name="parameters.0.name" type="text" value="BY"' in html
    assert 'name="parameters.1.name"' not in html
    assert 'name="parameters.0.required" value="1" checked' in html
    choices = {"parameters.1.choices": "name\r\nage\r\n", "parameters.1.default": "age"}
    good = values | row | second | choices | {"rows": "2", "parameters.0.default": "30", "parameters.0.minimum": "1"}
    answer = saved(oscar, good, new)
    with app.app_context():
        template = db.session.query(TaskTemplate).one()
        assert answer.headers["Location"] == f"/tasks/templates/{template.id}"
        first, last = template.parameters
        assert (first["default"], first["minimum"], first["required"]) == (30, 1.0, False)
        assert (last["choices"], last["default"], last["required"]) == (["name", "age"], "age", True)
        edit = f"/tasks/templates/{template.id}/edit"
    kept = fields_of(oscar.get(edit).text)
    saved(oscar, kept, edit)
    with app.app_context():
        assert db.session.query(TaskTemplate).one().parameters == [first, last]
    assert refused(oscar, good, new) == ["name"]
    html = oscar.get("/tasks/templates?keyword=clean").text
    assert "<b>clean</b>" in html
    assert oscar.get("/tasks/templates?format=csv").text.splitlines()[1].startswith(f"{template.id},clean")


def test_wrong_definitions_are_shown_at_their_rows(oscar: FlaskClient) -> None:
    rows = {
        "parameters.0.name": "A", "parameters.0.type": "string", "parameters.0.pattern": "(a+)+",
        "parameters.1.name": "a", "parameters.1.type": "number", "parameters.1.minimum": "low",
        "parameters.2.name": "9", "parameters.2.type": "nothing",
    }  # fmt: skip
    values = {"name": "x", "type": "script", "script": "ls", "rows": "3"} | rows
    wrong = refused(oscar, values, "/tasks/templates/new")
    assert sorted(wrong) == ["parameters.1.minimum", "parameters.2.name", "parameters.2.type"]
    fixed = values | {"parameters.1.minimum": "1", "parameters.2.name": "B", "parameters.2.type": "string"}
    wrong = refused(oscar, fixed, "/tasks/templates/new")
    assert sorted(wrong) == ["parameters.0.pattern", "parameters.1.name"]


def test_deleting_a_template_leaves_its_tasks(
    app: Flask, alice: FlaskClient, oscar: FlaskClient, cast: dict[str, Api]
) -> None:
    number = make_template(cast["oscar"])
    body = {"template_id": number, "type": None, "content": None, "parameters": {"BY": "cpu"}}
    task = make_task(cast["oscar"], **body)
    path = f"/tasks/templates/{number}/delete"
    assert "1 task was made from it" in alice.get(path).text
    assert submit(oscar, path, {"confirm": "look"}, page="/tasks/templates/new").status_code == 403
    assert submit(alice, path, {"confirm": ""}).status_code == 422
    assert submit(alice, path, {"confirm": "look"}).status_code == 303
    values = fields_of(oscar.get(f"/tasks/{task}/edit").text)
    assert values["script"] == 'echo "$OPS_PARAM_LIMIT"'
    assert "LIMIT=90" in values["parameters"]
    saved(oscar, values, f"/tasks/{task}/edit")
    assert the_task(app).parameters["LIMIT"] == 90


def test_a_group_that_is_gone_breaks_no_page(app: Flask, oscar: FlaskClient, fleet: dict[str, int]) -> None:
    with app.app_context():
        group = make_group("prod")
    saved(oscar, SCRIPT | {"target_type": "group", "groups": [str(group)]})
    with app.app_context():
        db.session.execute(update(Task).values(target_value=[4711]))
        db.session.commit()
    path = f"/tasks/{the_task(app).id}"
    for page in (path, f"{path}/edit", f"{path}/execute", "/tasks"):
        assert oscar.get(page).status_code == 200, page
    assert "Where it runs cannot be made out" in oscar.get(path).text
