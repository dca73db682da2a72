"""Agents as tests need them: manifests, what hosts say of them, and what hosts answer to orders."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from flask import Flask
from sqlalchemy import select

from app.commands import actions as commands
from app.commands.models import Command
from app.kernel.db import db, in_transaction
from app.link.checkin import standing, take_checkin
from app.nodes.models import Node
from protocol.checkin import CheckInAnswer, parse_checkin
from protocol.commands import Result
from protocol.fields import Fields
from protocol.times import to_text
from tests.nodes.fleet import make_node

NGINX: dict[str, Any] = {
    "name": "nginx",
    "type": "custom",
    "start": ["/usr/sbin/nginx", "-g", "daemon off;"],
    "reload": {"signal": "HUP"},
    "validate": ["/usr/sbin/nginx", "-t", "-c", "{config}"],
    "config": [{"path": "/etc/nginx/nginx.conf", "mode": "0644"}, {"path": "/etc/nginx/site.conf"}],
    "health": [{"kind": "process"}, {"kind": "http", "url": "http://127.0.0.1/"}],
}
NO_HASH = "0" * 64


def told(name: str = "nginx", **values: Any) -> dict[str, Any]:
    """An agent as its host tells of it."""
    return {
        "name": name,
        "type": "custom",
        "version": "1.22.1",
        "status": "running",
        "desired": "running",
        "pid": 4711,
        "cpu_usage": 1.5,
        "memory_usage": 25_000_000,
        "start_time": "2026-11-20T12:00:00Z",
        "restart_count": 0,
        "last_error": None,
        "health": [{"kind": "process", "ok": True, "detail": "", "checked_at": moment()}],
        "config_version": None,
        "drifted": False,
        "source": "host",
    } | values


def moment() -> str:
    return to_text(datetime.now(UTC).timestamp())


def event(kind: str, **values: Any) -> dict[str, Any]:
    return {
        "id": uuid4().hex,
        "timestamp": moment(),
        "kind": kind,
        "severity": "warning",
        "message": "the host's own words",
        "data": None,
    } | values


def check_in(node_id: int, agents: Sequence[Mapping[str, Any]] | None = None, **values: Any) -> CheckInAnswer:
    """A check-in of this host, taken as the gateway takes it. Needs an application context."""
    session = db.session()
    before = standing(session, node_id)
    node = before.node
    message = {
        "instance_id": node.instance_id or uuid4().hex,
        "generation": 1,
        "sequence": node.sequence + 1,
        "lease": node.lease,
        "machine": {"machine_id": uuid4().hex * 2, "hardware_id": uuid4().hex * 2, "boot_id": uuid4().hex},
        "sent_at": moment(),
        "uptime_s": 100,
        "daemon_version": "1.2.3",
        "settings_version": 0,
        "inventory_hash": NO_HASH,
        "metrics": [],
        "pending_points": 0,
        "dropped": {"epoch": "e1", "points": 0, "since": None},
        "events": [],
        "agents_hash": uuid4().hex * 2,
        "agents": None if agents is None else list(agents),
        "capabilities": {
            "state": "missing", "scripts": True, "terminal": True, "packages": True, "config": True,
            "run_as": ["*"], "files": ["/**"],
        },
        "clock": {},
    } | values  # fmt: skip
    parsed = parse_checkin(Fields(message))
    return in_transaction(session, lambda: take_checkin(session, before, parsed, "192.0.2.7"))


def fetch(node_id: int) -> list[dict[str, Any]]:
    """The orders that a poll of this host brings, with what is in them. Needs an application context."""
    session = db.session()
    orders = in_transaction(session, lambda: commands.deliver(session, session.get_one(Node, node_id), ()))
    return [{"id": order.id, "kind": order.kind, **json.loads(order.payload)} for order in orders]


def answer(node_id: int, order: str, data: Mapping[str, Any] | None = None, **values: Any) -> None:
    """What the host says came of an order. Needs an application context."""
    session = db.session()
    given = {
        "command": order, "type": "result", "status": "succeeded", "exit_code": None, "signal": None, "user": None,
        "started_at": moment(), "finished_at": moment(), "duration_ms": 5, "error_code": None, "error": None,
        "stdout_bytes": 0, "stderr_bytes": 0, "truncated": False, "data": None if data is None else dict(data),
    } | values  # fmt: skip
    outcome = in_transaction(session, lambda: commands.take_reports(session, node_id, [Result(**given)]))
    assert outcome[0].ok, outcome


def command(command_id: int) -> Command:
    db.session.rollback()
    return db.session.scalars(select(Command).where(Command.id == command_id)).one()


def make_host(app: Flask, hostname: str = "web-1", **values: Any) -> int:
    """A node that orders can be signed for."""
    node_id = make_node(hostname, **values)
    node = db.session.get_one(Node, node_id)
    node.command_key = app.extensions["ops"].keys.box.encrypt(b"k" * 32, f"command-key:{node.uuid}")
    db.session.commit()
    return node_id
