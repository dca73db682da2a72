"""Logs of agents, and of the Daemon itself, asked of the host when somebody wants to see them."""

from collections.abc import Mapping
from typing import Any

from app.agents import asking
from app.agents.actions import READ_LOGS
from app.agents.manifests import RESERVED
from app.agents.queries import agent_by_name
from app.agents.schemas import LogsQuery
from app.kernel.access import Actor
from app.kernel.clock import rfc3339
from app.kernel.db import db
from app.nodes.queries import node_by_id
from protocol.times import to_datetime


def read(actor: Actor, node_id: int, name: str, query: LogsQuery) -> dict[str, Any]:
    """Lines and files, as the contract has them. Raises NodeOffline, or Refused with what the host said."""
    if name in RESERVED:
        node_by_id(db.session(), node_id)
    else:
        agent_by_name(db.session(), node_id, name)
    payload: dict[str, Any] = {"name": name, "lines": query.lines}
    payload |= {key: value for key, value in (("query", query.query), ("file", query.file)) if value}
    if query.since is not None:
        payload["since"] = rfc3339(query.since)
    return _cleaned(asking.ask(actor, node_id, READ_LOGS, payload))


def _cleaned(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a host says is checked like anything from outside; what makes no sense is left out."""
    lines = [_line(line) for line in _list(told.get("lines")) if isinstance(line.get("text"), str)]
    files = [
        {"path": str(file["path"])[:1024], "size": file["size"]}
        for file in _list(told.get("files"))
        if isinstance(file.get("path"), str) and type(file.get("size")) is int
    ]
    return {"lines": lines, "truncated": told.get("truncated") is True, "files": files}


def _list(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _line(line: Mapping[str, Any]) -> dict[str, Any]:
    at = line.get("at")
    try:
        moment = to_datetime(at) if isinstance(at, str) else None
    except ValueError:
        moment = None
    return {"file": str(line.get("file") or ""), "text": line["text"], "at": moment}
