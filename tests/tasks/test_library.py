"""The ready templates: their definitions make sense, and their scripts do on this very machine what they say."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.tasks.contents import Parameter, check_content, check_definitions, check_parameters
from app.tasks.library import BY_KEY, LIBRARY
from tests.commands.rig import Rig
from tests.factories import Api


def run(key: str, **parameters: Any) -> subprocess.CompletedProcess[str]:
    """As the task agent does: by /bin/sh, with parameters in the environment."""
    values = check_parameters(BY_KEY[key].parameters, parameters)
    shown = {
        f"OPS_PARAM_{name}": str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in values.items()
    }
    environment = {"PATH": os.environ["PATH"]} | shown
    return subprocess.run(
        ["/bin/sh", "-c", BY_KEY[key].script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("key", list(BY_KEY))
def test_definitions(sqlite_app: Any, key: str) -> None:
    ready = BY_KEY[key]
    with sqlite_app.test_request_context():
        check_content(ready.type, ready.content)
        check_definitions([Parameter.model_validate(one) for one in ready.parameters])
    assert subprocess.run(["/bin/sh", "-n", "-c", ready.script], check=False).returncode == 0


def test_disk_usage() -> None:
    assert run("disk-usage", LIMIT=100).returncode in (0, 1)
    everything = run("disk-usage", LIMIT=0)
    assert (everything.returncode, "at or above 0%" in everything.stderr) == (1, True)
    assert "/" in everything.stdout


def test_patch_level() -> None:
    found = run("patch-level")
    assert (found.returncode, "kernel: " in found.stdout) == (0, True), found.stderr


def test_collecting_logs(tmp_path: Path) -> None:
    logs = tmp_path / "my logs"
    logs.mkdir()
    (logs / "a $(touch x).log").write_text("line\n")
    found = run("collect-logs", DIRECTORY=str(logs), TARGET=str(tmp_path), DAYS=1)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("1 files in ")
    assert run("collect-logs", DIRECTORY="/nowhere", TARGET=str(tmp_path)).returncode == 2


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_rotating_a_key(tmp_path: Path) -> None:
    key = tmp_path / "id"
    first = run("rotate-key", FILE=str(key))
    second = run("rotate-key", FILE=str(key))
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert (tmp_path / "id.pub.old").read_text() == first.stdout
    assert key.stat().st_mode & 0o777 == 0o600
    assert second.stdout == (tmp_path / "id.pub").read_text() != first.stdout


def test_busiest_processes() -> None:
    found = run("busiest-processes", COUNT=3)
    assert found.returncode == 0, found.stderr
    assert len(found.stdout.splitlines()) == 5


def test_cleaning_up(tmp_path: Path) -> None:
    old, new = tmp_path / "old file", tmp_path / "new"
    for path in (old, new):
        path.write_text("x")
    os.utime(old, (0, 0))
    where = {"DIRECTORY": str(tmp_path), "DAYS": 10}
    assert "nothing was deleted" in run("clean-up", **where).stdout
    assert old.exists()
    assert run("clean-up", **where, DELETE=True).stdout == "1 files deleted\n"
    assert (old.exists(), new.exists()) == (False, True)
    for wrong in ("/etc", "/", "/tmp/../etc", "/nowhere"):
        assert run("clean-up", DIRECTORY=wrong, DAYS=10, DELETE=True).returncode == 2


def test_a_copy_of_a_ready_template_is_like_any_other(rig: Rig, cast: dict[str, Api]) -> None:
    found = cast["vera"].get("/task-templates/library").json["data"]["items"]
    assert [item["key"] for item in found] == [ready.key for ready in LIBRARY]
    path = "/task-templates/library/restart-service"
    assert cast["vera"].post(path).json["code"] == 1003
    copy = cast["oscar"].post(path)
    assert copy.status_code == 201, copy.text
    assert cast["oscar"].post(path).json["code"] == 1006
    assert cast["oscar"].post("/task-templates/library/other").json["code"] == 1004
    wanted = {"name": "t", "template_id": copy.json["data"]["id"], "target_type": "all"}
    assert cast["oscar"].post("/tasks", wanted).json["data"]["errors"][0]["field"] == "parameters.SERVICE"
    wrong = cast["oscar"].post("/tasks", wanted | {"parameters": {"SERVICE": "-x; rm"}})
    assert wrong.json["code"] == 1001
    assert cast["oscar"].post("/tasks", wanted | {"parameters": {"SERVICE": "nginx"}}).status_code == 201
