"""Files for tasks: brought by people, named by tasks, forgotten; and a whole run to take away."""

import csv
import hashlib
import io
import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from app.commands.models import Command
from app.kernel import storage
from app.kernel.clock import now
from app.kernel.db import db
from app.tasks import exporting, files
from app.tasks.file_queries import used_bytes
from app.tasks.jobs import tidy_files
from app.tasks.models import TaskFile
from protocol import states
from protocol.commands import Accept, Output
from tests.commands.rig import Rig, now_text, result
from tests.factories import Api
from tests.tasks.test_tasks_api import given, made, shown, started, wrong_fields


def send(api: Api, name: str, content: bytes, **how: Any) -> TestResponse:
    headers = {"Authorization": f"Bearer {api.token}"} | how.pop("headers", {})
    form = {"file": (io.BytesIO(content), name)} | how
    return api.app.test_client().post("/api/v1/files", data=form, headers=headers, content_type="multipart/form-data")


def brought(api: Api, name: str = "app.conf", content: bytes = b"a = 1\n") -> dict[str, Any]:
    answer = send(api, name, content)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json["data"]
    return found


def upload(file_id: int, **more: Any) -> dict[str, Any]:
    return given(type="file", content={"op": "upload", "path": "/etc/app.conf", "file_id": file_id} | more)


def bytes_on_disk(app: Flask) -> list[bytes]:
    return sorted(path.read_bytes() for path in app.extensions["ops"].settings.files_path.glob("*/*"))


@pytest.fixture(autouse=True)
def no_files(app: Flask) -> None:
    for path in app.extensions["ops"].settings.files_path.glob("*/*"):
        path.unlink()


# Brought


def test_a_file_comes_is_listed_and_goes(app: Flask, cast: dict[str, Api]) -> None:
    content = os.urandom(3_000_000)
    file = brought(cast["oscar"], "release.tar.gz", content)
    assert (file["name"], file["size"], file["sha256"]) == (
        "release.tar.gz", len(content), hashlib.sha256(content).hexdigest(),
    )  # fmt: skip
    assert (file["created_by"], file["used_by"]) == ("oscar", [])
    assert bytes_on_disk(app) == [content]
    assert shown(cast["vera"], "/files?keyword=release")["items"] == [file]
    assert shown(cast["vera"], "/files?keyword=nothing")["total"] == 0
    assert shown(cast["vera"], f"/files/{file['id']}") == file
    assert cast["vera"].delete(f"/files/{file['id']}").json["code"] == 1003
    assert send(cast["vera"], "x", b"x").json["code"] == 1003
    assert cast["oscar"].delete(f"/files/{file['id']}").status_code == 200
    assert cast["oscar"].delete(f"/files/{file['id']}").json["code"] == 1004
    audit = shown(cast["alice"], "/system/audit-logs?resource_type=task_file")["items"]
    assert [row["action"] for row in audit] == ["task_file.delete", "task_file.create"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\a b.exe", "a b.exe"),
        ("/", "file"),
        ("..", ".."),
        ("a\nb\x1b[31m.txt", "ab[31m.txt"),
        ("名前.txt", "名前.txt"),
        ("x" * 400, "x" * 255),
    ],
)
def test_a_name_is_only_ever_shown(name: str, told: str) -> None:
    assert files.shown_name(name) == told
    assert files.shown_name(name) not in storage.new_place()


def test_no_name_becomes_a_path(app: Flask, cast: dict[str, Api]) -> None:
    assert brought(cast["oscar"], "../../../escaped.txt", b"x")["name"] == "escaped.txt"
    found = list(app.extensions["ops"].settings.data_path.parent.rglob("*escaped*"))
    assert found == []
    with pytest.raises(ValueError, match="place"):
        storage.path_of(Path("/tmp"), "../x")


def test_what_is_too_large_leaves_nothing_behind(
    app: Flask, cast: dict[str, Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.tasks.receiving.largest_file", lambda: 1000)
    monkeypatch.setattr("app.tasks.files.largest_file", lambda: 1000)
    assert send(cast["oscar"], "a", b"x" * 1001).json["code"] == 1008
    assert send(cast["oscar"], "a", b"x" * 200_000).json["code"] == 1008
    assert bytes_on_disk(app) == []
    assert send(cast["oscar"], "a", b"x" * 1000).status_code == 201


def test_all_of_them_together_have_a_bound(app: Flask, cast: dict[str, Api], monkeypatch: pytest.MonkeyPatch) -> None:
    brought(cast["oscar"], content=b"x" * 600)
    settings = app.extensions["ops"].settings
    tight = settings.tasks.model_copy(update={"files_quota": 1000})
    monkeypatch.setitem(settings.__dict__, "tasks", tight)
    assert send(cast["oscar"], "b", b"x" * 500).json["code"] == 1008
    assert len(bytes_on_disk(app)) == 1


@pytest.mark.parametrize("form", ["nothing", "text", "another field"])
def test_a_form_without_a_file(app: Flask, cast: dict[str, Api], form: str) -> None:
    forms = {"nothing": {}, "text": {"file": "no file"}, "another field": {"other": (io.BytesIO(b"x"), "x")}}
    headers = {"Authorization": f"Bearer {cast['oscar'].token}"}
    answer = app.test_client().post(
        "/api/v1/files", data=forms[form], headers=headers, content_type="multipart/form-data"
    )
    assert wrong_fields(answer) == ["file"]
    assert wrong_fields(cast["oscar"].post("/files", {"file": "x"})) == ["file"]
    two = {"file": [(io.BytesIO(b"x"), "x"), (io.BytesIO(b"y"), "y")]}
    answer = app.test_client().post("/api/v1/files", data=two, headers=headers, content_type="multipart/form-data")
    assert wrong_fields(answer) == ["file"]
    assert bytes_on_disk(app) == []


def test_the_same_request_twice_is_one_file(cast: dict[str, Api]) -> None:
    headers = {"Idempotency-Key": "k"}
    first, again = (send(cast["oscar"], "a", b"abc", headers=headers).json["data"] for _ in range(2))
    assert first == again
    assert shown(cast["vera"], "/files")["total"] == 1
    assert send(cast["oscar"], "a", b"another", headers=headers).json["code"] == 1006


# Named


def test_a_task_takes_over_the_file_s_hash_and_tells_the_host_of_it(rig: Rig, cast: dict[str, Api]) -> None:
    node, file = rig.hosts(1)[0], brought(cast["oscar"])
    task = cast["oscar"].post("/tasks", upload(file["id"])).json["data"]
    assert task["content"]["sha256"] == file["sha256"]
    assert shown(cast["vera"], f"/files/{file['id']}")["used_by"] == [{"id": task["id"], "name": task["name"]}]
    started(cast["oscar"], task["id"])
    payload = json.loads(rig.fetch(node)[0].payload)
    assert payload["file"] == {"id": file["id"], "size": 6, "sha256": file["sha256"]}
    assert payload["content"]["sha256"] == file["sha256"]


def test_a_file_that_is_not_there_or_is_another_one(rig: Rig, cast: dict[str, Api]) -> None:
    file = brought(cast["oscar"])
    assert wrong_fields(cast["oscar"].post("/tasks", upload(999999))) == ["content.file_id"]
    assert wrong_fields(cast["oscar"].post("/tasks", upload(file["id"], sha256="0" * 64))) == ["content.sha256"]
    template = {"name": "t", "type": "file", "content": upload(999999)["content"]}
    assert wrong_fields(cast["oscar"].post("/task-templates", template)) == ["content.file_id"]


def test_what_is_needed_cannot_be_deleted(rig: Rig, cast: dict[str, Api]) -> None:
    node, oscar = rig.hosts(1)[0], cast["oscar"]
    file = brought(oscar)
    path = f"/files/{file['id']}"
    task = oscar.post("/tasks", upload(file["id"])).json["data"]
    template = oscar.post("/task-templates", {"name": "t", "type": "file", "content": task["content"]}).json["data"]
    run = started(oscar, task["id"])
    assert oscar.put(f"/tasks/{task['id']}", {"type": "script", "content": {"script": "true"}}).status_code == 200
    assert oscar.delete(path).json["code"] == 1006
    assert cast["alice"].delete(f"/task-templates/{template['id']}").status_code == 200
    assert oscar.delete(path).json["code"] == 1006, "a run has not ended"
    rig.run(node, states.FAILED)
    assert oscar.delete(path).status_code == 200
    assert oscar.post(f"/executions/{run}/retry", {"only": "failed"}).json["code"] == 4002


def test_what_nobody_names_any_more_is_forgotten(rig: Rig, app: Flask, cast: dict[str, Api]) -> None:
    kept, gone, recent = (brought(cast["oscar"], name, name.encode()) for name in ("kept", "gone", "recent"))
    assert cast["oscar"].post("/tasks", upload(kept["id"])).status_code == 201
    old = update(TaskFile).where(TaskFile.id.in_([kept["id"], gone["id"]]))
    rig.do(lambda: db.session().execute(old.values(last_used_at=now() - timedelta(days=31))))
    for path in app.extensions["ops"].settings.files_path.glob("*/*"):
        os.utime(path, (time.time() - 7200,) * 2)
    _tidy(app)
    assert [file["name"] for file in shown(cast["vera"], "/files?sort=id")["items"]] == ["kept", "recent"]
    assert bytes_on_disk(app) == [b"kept", b"recent"]
    assert recent["id"] > gone["id"]


def test_what_a_host_began_to_bring_and_left_takes_no_room(rig: Rig, app: Flask, cast: dict[str, Api]) -> None:
    (node,) = rig.hosts(1)
    for _ in range(2):
        started(cast["oscar"], made(cast["oscar"], type="file", content={"op": "download", "path": "/tmp/x"})["id"])
    over, open_ = (order.id for order in rig.fetch(node))

    def begin() -> None:
        for uuid in (over, open_):
            command = db.session.scalars(select(Command).where(Command.uuid == uuid)).one()
            files.begin_fetched(db.session(), command, 1_000_000)

    rig.do(begin)
    assert rig.report(node, Accept(over, "accept", now_text()), result(over)) == [True, True]
    _tidy(app)
    assert rig.do(lambda: used_bytes(db.session())) == 2_000_000, "what is late is still taken for a while"
    ended = update(Command).where(Command.uuid == over)
    rig.do(lambda: db.session().execute(ended.values(finished_at=now() - timedelta(hours=1))))
    _tidy(app)
    assert rig.do(lambda: used_bytes(db.session())) == 1_000_000


def _tidy(app: Flask) -> None:
    with app.app_context():
        tidy_files()
        db.session.remove()


def test_bytes_that_no_row_knows_go_after_a_while(rig: Rig, app: Flask, cast: dict[str, Api]) -> None:
    brought(cast["oscar"], "known", b"known")
    root = app.extensions["ops"].settings.files_path
    for age_s, content in ((7200, b"old"), (60, b"on its way")):
        path = storage.path_of(root, storage.new_place())
        storage.write_at(path, 0, content)
        os.utime(path, (time.time() - age_s,) * 2)
    for path in root.glob("*/*"):
        if path.read_bytes() == b"known":
            os.utime(path, (time.time() - 7200,) * 2)
    _tidy(app)
    assert bytes_on_disk(app) == [b"known", b"on its way"]


# Taken away


def test_a_run_is_exported_whole(rig: Rig, cast: dict[str, Api], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "RECORDS_AT_ONCE", 2)
    monkeypatch.setattr(exporting, "BYTES_AT_ONCE", 10)
    nodes = rig.hosts(5)
    run = started(cast["oscar"], made(cast["oscar"])["id"])
    for number, node in enumerate(nodes):
        order = rig.fetch(node)[0].id
        pieces = [
            Output(order, "output", 0, "stdout", 0, f"=host {number}\n".encode(), False),
            Output(order, "output", 1, "stderr", 0, b"\xffoh", True),
            Output(order, "output", 2, "stdout", 1000, b"end", False),
        ]
        rig.report(node, *pieces, result(order, states.SUCCEEDED))
    answer = cast["vera"].get(f"/executions/{run}/export")
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert [row["node_id"] for row in rows] == nodes
    assert list(rows[0]) == list(exporting.FIELDS)
    assert rows[3]["stdout"] == "=host 3\n\n[… 992 bytes were left out …]\nend"
    assert rows[3]["stderr"] == "\ufffdoh\n[… something was left out …]\n"
    table = list(csv.DictReader(io.StringIO(cast["vera"].get(f"/executions/{run}/export?format=csv").text)))
    assert [row["status"] for row in table] == ["success"] * 5
    assert table[0]["stdout"].startswith("'=host 0"), "no spreadsheet takes it for a formula"
    assert wrong_fields(cast["vera"].get(f"/executions/{run}/export?format=xml")) == ["format"]
