"""A run over several hosts, over real TLS: each result lets the next host's held poll go, with no worker in between."""

import base64
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flask import Flask

from app.commands import fanouts
from app.commands.fanouts import NewTarget, Plan
from app.commands.models import Fanout, Target
from app.kernel.db import db, in_transaction
from app.tasks import running
from tests.link.conftest import ADMIN
from tests.link.hosts import Host
from tests.link.test_poll import held, result


def start(app: Flask, hosts: list[Host], **values: Any) -> int:
    with app.app_context():
        plan = Plan(running.NAME, running.KIND, {"type": "script", "content": {}}, **values)
        targets = [NewTarget(host.node_id) for host in hosts]
        return in_transaction(db.session(), lambda: fanouts.start_fanout(db.session(), ADMIN, plan, targets).id)


def fanout_of(app: Flask, fanout_id: int) -> tuple[str, list[str]]:
    with app.app_context():
        rows = db.session().query(Target).filter_by(fanout_id=fanout_id).order_by(Target.id)
        return db.session().get_one(Fanout, fanout_id).status, [row.state for row in rows]


def test_each_result_wakes_the_next_host_at_once(app: Flask, new_host: Callable[..., Host]) -> None:
    hosts = [new_host(f"h{number}") for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        polls = [held(host, pool, 30) for host in hosts]
        fanout = start(app, hosts, max_parallel=1)
        for host, poll in zip(hosts, polls, strict=True):
            command = poll.result(5).body["commands"][0]["id"]
            at = time.time()
            reports = [
                {"type": "accept", "command": command, "at": result()["finished_at"]},
                {"type": "start", "command": command, "at": result()["finished_at"], "pid": 5},
                {"type": "output", "command": command, "seq": 0, "stream": "stdout", "offset": 0}
                | {"data": base64.b64encode(b"hello").decode()},
            ]
            answer = host.send("commands/reports", {"reports": reports}).body["results"]
            assert [outcome["ok"] for outcome in answer] == [True, True, True]
            assert host.send(f"commands/{command}/result", result()).status == 200
            assert time.time() - at < 5
    assert fanout_of(app, fanout) == ("success", ["success"] * 3)


def test_what_is_cancelled_reaches_no_host(app: Flask, new_host: Callable[..., Host]) -> None:
    hosts = [new_host("one"), new_host("two")]
    fanout = start(app, hosts)
    command = hosts[0].poll().body["commands"][0]["id"]
    with app.app_context():
        in_transaction(db.session(), lambda: fanouts.cancel_fanout(db.session(), ADMIN, fanout).id)
    assert hosts[1].poll().body["commands"] == []
    told = hosts[0].poll(have=[command]).body["commands"]
    assert [(order["kind"], command in order["payload"]) for order in told] == [("task.cancel", True)]
    assert hosts[0].send(f"commands/{command}/result", result(status="cancelled")).status == 200
    assert fanout_of(app, fanout) == ("cancelled", ["cancelled", "cancelled"])
