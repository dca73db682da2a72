"""What is asked of a host while somebody waits: logs, and what its configuration is like."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from flask import Flask

from app.agents import asking, jobs
from app.commands.models import Command
from app.kernel import db as db_module
from app.kernel.access import Actor
from app.kernel.db import db
from app.nodes.models import Node
from tests.agents.builders import NGINX, answer, check_in, fetch, make_host, told
from tests.agents.test_configuring import PATH, SECRET, TEMPLATE, Config
from tests.factories import Api

LOG = {
    "lines": [
        {"file": "/var/log/nginx/error.log", "text": "[warn] something", "at": "2026-11-20T12:00:00Z"},
        {"file": "stderr", "text": "plain"},
        {"file": "stderr", "text": "odd", "at": "yesterday"},
        {"no": "text"},
        "nothing",
    ],
    "truncated": True,
    "files": [{"path": "/var/log/nginx/error.log", "size": 17}, {"path": 5}],
}
Answering = Callable[..., Any]


@pytest.fixture
def node_id(app: Flask) -> int:
    with app.app_context():
        found = make_host(app)
        check_in(found, [told()])
        return found


@pytest.fixture
def answering(app: Flask) -> Answering:
    """Does something while the host answers the one order that comes."""

    def run(node_id: int, data: Mapping[str, Any] | None, act: Callable[[], Any], **values: Any) -> tuple[Any, Any]:
        seen: list[dict[str, Any]] = []

        def host() -> None:
            with app.app_context():
                for _ in range(200):
                    if orders := fetch(node_id):
                        seen.append(orders[0])
                        answer(node_id, orders[0]["id"], data, **values)
                        return
                    db.session.remove()
                    time.sleep(0.02)

        thread = threading.Thread(target=host)
        thread.start()
        try:
            return act(), seen[0] if seen else None
        finally:
            thread.join()

    return run


def test_lines_come_from_the_host_and_are_checked(
    app: Flask, cast: dict[str, Api], node_id: int, answering: Answering
) -> None:
    path = f"/nodes/{node_id}/agents/nginx/logs?lines=50&query=some%20thing&since=2026-11-20T00:00:00Z&file=stderr"
    answered, order = answering(node_id, LOG, lambda: cast["vera"].get(path))
    assert answered.status_code == 200, answered.text
    assert order == order | {
        "kind": "agent.logs", "name": "nginx", "lines": 50, "query": "some thing", "since": "2026-11-20T00:00:00Z",
        "file": "stderr",
    }  # fmt: skip
    data = answered.json["data"]
    assert [(line["file"], line["text"], line["at"]) for line in data["lines"]] == [
        ("/var/log/nginx/error.log", "[warn] something", "2026-11-20T12:00:00Z"),
        ("stderr", "plain", None),
        ("stderr", "odd", None),
    ]
    assert (data["truncated"], data["files"]) == (True, [{"path": "/var/log/nginx/error.log", "size": 17}])
    with app.app_context():
        row = db.session.query(Command).filter_by(kind="agent.logs").one()
        row.issued_at = row.issued_at.replace(year=2020)
        db.session.commit()
        jobs.forget_old()
        db.session.rollback()
        assert db.session.query(Command).filter_by(kind="agent.logs").one().result is None


def test_the_daemons_own_log_is_read_alike(cast: dict[str, Api], node_id: int, answering: Answering) -> None:
    path = f"/nodes/{node_id}/agents/daemon/logs"
    answered, order = answering(node_id, LOG, lambda: cast["vera"].get(path))
    assert answered.status_code == 200
    assert order["name"] == "daemon"


def test_a_host_that_is_away_is_not_asked(app: Flask, cast: dict[str, Api], node_id: int) -> None:
    with app.app_context():
        db.session.get_one(Node, node_id).status = "offline"
        db.session.commit()
    answered = cast["vera"].get(f"/nodes/{node_id}/agents/nginx/logs")
    assert (answered.status_code, answered.json["code"]) == (409, 2003)
    with app.app_context():
        assert db.session.query(Command).count() == 0


def test_a_host_that_says_nothing_is_given_up(
    app: Flask, cast: dict[str, Api], node_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking.ask, "__defaults__", (0.3,))
    answered = cast["vera"].get(f"/nodes/{node_id}/agents/nginx/logs")
    assert (answered.status_code, answered.json["code"]) == (409, 2003)
    with app.app_context():
        assert db.session.query(Command).one().state == "cancelled"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"error": "no such file", "error_code": "task_failed"}, "no such file"),
        ({"error": "x", "error_code": "forbidden_by_host"}, "rules"),
        ({"error": None, "error_code": "unsupported_kind"}, "too old"),
    ],
)
def test_what_the_host_refuses_is_a_conflict(
    cast: dict[str, Api], node_id: int, answering: Answering, values: dict[str, Any], words: str
) -> None:
    path = f"/nodes/{node_id}/agents/nginx/logs"
    answered, _order = answering(node_id, None, lambda: cast["vera"].get(path), status="failed", **values)
    assert (answered.status_code, answered.json["code"]) == (409, 1006)
    assert words in answered.json["message"]


@pytest.mark.parametrize("is_answered", [True, False])
def test_asking_leaves_the_rest_of_a_request_reading(
    app: Flask, node_id: int, answering: Answering, is_answered: bool
) -> None:
    def act() -> None:
        with app.test_request_context(), db_module.reading():
            actor = Actor.system("tests")
            if is_answered:
                asking.ask(actor, node_id, "agent.logs", {"name": "nginx"})
            else:
                with pytest.raises(asking.NoAnswer):
                    asking.ask(actor, node_id, "agent.logs", {"name": "nginx"}, 0.1)
            assert db_module._reads_only.get()

    if is_answered:
        answering(node_id, {"lines": []}, act)
    else:
        act()


@pytest.mark.parametrize("query", ["lines=0", "lines=2001", "since=never", "colour=red", "query="])
def test_wrong_questions_are_1001(cast: dict[str, Api], node_id: int, query: str) -> None:
    assert cast["vera"].get(f"/nodes/{node_id}/agents/nginx/logs?{query}").json["code"] == 1001


def test_nothing_is_asked_about_what_is_not_there(cast: dict[str, Api], node_id: int) -> None:
    assert cast["vera"].get(f"/nodes/{node_id}/agents/redis/logs").json["code"] == 1004
    assert cast["vera"].get("/nodes/999/agents/nginx/logs").json["code"] == 2001
    assert cast["vera"].get("/nodes/999/agents/daemon/logs").json["code"] == 2001


def test_drift_is_shown_without_secrets(app: Flask, cast: dict[str, Api], answering: Answering) -> None:
    with app.app_context():
        node_id = make_host(app, "web-2", labels={"env": "prod"})
    cast["oscar"].post(f"/nodes/{node_id}/agents", NGINX)
    config = Config(cast["oscar"], node_id)
    config.put(TEMPLATE)
    with app.app_context():
        (order,) = fetch(node_id)
        answer(node_id, order["id"], {"outcome": "kept"})
    theirs = f"# web-2\nenv prod;\npassword {SECRET};\nworker_processes 4;\n"
    file = {"path": PATH, "sha256": "0" * 64, "content": theirs, "size": 9, "truncated": False, "missing": False}
    gone = {"path": "/etc/nginx/site.conf", "content": None, "missing": True, "truncated": False, "sha256": None}
    answered, _order = answering(node_id, {"files": [file, gone]}, lambda: config.get("/host"))
    assert answered.status_code == 200, answered.text
    assert SECRET not in answered.text
    first, second = answered.json["data"]["files"]
    changed = [line for line in first["diff"].splitlines()[2:] if line[0] in "+-"]
    assert changed == ["+worker_processes 4;"]
    assert (second["missing"], second["content"]) == (True, None)
    with app.app_context():
        assert db.session.query(Command).filter_by(kind="agent.read_config").one().result is None
