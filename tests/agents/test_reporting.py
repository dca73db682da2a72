"""What hosts say of their agents: taken, kept short, and only about themselves."""

from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event as sa_event
from sqlalchemy import func, select

from app.agents.models import AgentCrash, AgentPoint, NodeAgent
from app.agents.queries import node_agents
from app.events.models import Event
from app.kernel.db import db
from app.nodes.models import Node
from tests.agents.builders import check_in, event, make_host, told
from tests.factories import Api


def names(node_id: int) -> list[str]:
    db.session.rollback()
    return [agent.name for agent in node_agents(db.session(), node_id)]


def test_a_list_is_taken_changed_and_shortened(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_host(app)
        check_in(node_id, [told("nginx"), told("redis", status="stopped", pid=None, desired="stopped")])
    shown = cast["vera"].get(f"/nodes/{node_id}/agents").json["data"]["items"]
    assert [(one["name"], one["status"], one["pid"]) for one in shown] == [
        ("nginx", "running", 4711),
        ("redis", "stopped", None),
    ]
    assert (shown[0]["cpu_usage"], shown[0]["memory_usage"]) == (1.5, 25_000_000)
    assert shown[0]["health"][0]["ok"] is True
    with app.app_context():
        check_in(node_id, [told("nginx", status="error", last_error="tried too often", restart_count=6)])
    (shown,) = cast["vera"].get(f"/nodes/{node_id}/agents").json["data"]["items"]
    assert (shown["status"], shown["last_error"], shown["restart_count"]) == ("error", "tried too often", 6)
    with app.app_context():
        check_in(node_id, [])
        assert names(node_id) == []


def test_a_host_speaks_only_for_itself(app: Flask) -> None:
    with app.app_context():
        one, other = make_host(app, "a"), make_host(app, "b")
        check_in(one, [told("nginx")])
        check_in(other, [told("nginx", status="stopped", pid=None)])
        check_in(other, [])
        assert names(one) == ["nginx"]
        assert db.session.scalar(select(NodeAgent.status).where(NodeAgent.node_id == one)) == "running"


def test_what_is_told_as_ours_but_is_not_is_on_its_way_out(app: Flask) -> None:
    with app.app_context():
        node_id = make_host(app)
        check_in(node_id, [told("old", source="manager"), told("builtin", source="builtin", type="task")])
        assert names(node_id) == ["builtin"]


def test_the_same_name_twice_is_one_agent(app: Flask) -> None:
    with app.app_context():
        node_id = make_host(app)
        check_in(node_id, [told("nginx", version="1"), told("nginx", version="2")])
        assert db.session.scalars(select(NodeAgent.version)).all() == ["1"]


@pytest.fixture
def statements(app: Flask) -> list[str]:
    """What is asked of the database about agents."""
    found: list[str] = []
    with app.app_context():
        engine = db.engine

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if "agent" in statement:
            found.append(statement.split(maxsplit=1)[0])

    sa_event.listen(engine, "before_cursor_execute", note)
    yield found  # type: ignore[misc]
    sa_event.remove(engine, "before_cursor_execute", note)


def test_a_list_in_which_nothing_changed_costs_one_look_and_one_row(app: Flask, statements: list[str]) -> None:
    with app.app_context():
        node_id = make_host(app)
        agents = [told(f"agent-{number:02}") for number in range(50)]
        version = check_in(node_id, agents).settings.version  # type: ignore[union-attr]
        db.session.remove()
        statements.clear()
        moved = [agent | {"cpu_usage": 9.5, "memory_usage": 1} for agent in agents]
        assert check_in(node_id, moved, settings_version=version).settings is None
        of_agents = [word for word in statements if word != "UPDATE"]  # the node's own row has agents_hash in it
        assert sorted(of_agents) == ["INSERT", "SELECT", "SELECT"], statements  # one of the selects is the node
        assert node_agents(db.session(), node_id)[0].cpu_usage in (1.5, 9.5)


def test_measurements_are_one_row_in_ten_seconds(app: Flask) -> None:
    with app.app_context():
        node_id = make_host(app)
        for _ in range(3):
            check_in(node_id, [told("nginx"), told("redis")])
        count = db.session.scalar(select(func.count()).select_from(AgentPoint))
        assert count is not None
        assert 1 <= count <= 2


def test_a_dossier_is_kept_by_its_agent_and_the_timeline_stays_short(app: Flask) -> None:
    dossier = {"agent": "nginx", "exit_code": None, "signal": 9, "log": {"stderr": ["x"] * 50}, "curve": [[-1, 2, 3]]}
    crash = event("agent.crashed", data=dossier, severity="critical")
    with app.app_context():
        node_id = make_host(app)
        assert crash["id"] in check_in(node_id, [told()], events=[crash]).ack
        check_in(node_id, events=[crash])
        (kept,) = db.session.scalars(select(AgentCrash)).all()
        assert (kept.name, kept.signal, kept.dossier) == ("nginx", 9, dossier)
        (shown,) = db.session.scalars(select(Event).where(Event.kind == "agent.crashed")).all()
        assert shown.data == {"agent": "nginx", "signal": 9}


def test_dossiers_have_bounds(app: Flask) -> None:
    with app.app_context():
        node_id = make_host(app)
        for number in range(30):
            junk = {f"{part:03}": "y" * 900 for part in range(190)}
            data = {"agent": "nginx", "exit_code": number, "log": {"stderr": ["x" * 5000] * 60}, "junk": junk}
            check_in(node_id, events=[event("agent.crashed", data=data)])
        kept = db.session.scalars(select(AgentCrash).order_by(AgentCrash.id)).all()
        assert [one.exit_code for one in kept] == list(range(10, 30))
        assert "junk" not in kept[0].dossier
        assert kept[0].dossier["log"]["stderr"][0] == "x" * 1000


@pytest.mark.parametrize("data", [None, {}, {"agent": 5}, {"agent": ""}, {"agent": "x" * 65}])
def test_a_crash_of_nothing_is_an_event_only(app: Flask, data: Any) -> None:
    with app.app_context():
        node_id = make_host(app)
        check_in(node_id, events=[event("agent.crashed", data=data)])
        assert db.session.scalar(select(func.count()).select_from(AgentCrash)) == 0
        assert db.session.scalar(select(func.count()).select_from(Event).where(Event.kind == "agent.crashed")) == 1


def test_a_deleted_node_takes_its_agents_with_it(app: Flask, cast: dict[str, Api]) -> None:
    with app.app_context():
        node_id = make_host(app)
        check_in(node_id, [told()], events=[event("agent.crashed", data={"agent": "nginx"})])
    assert cast["alice"].delete(f"/nodes/{node_id}").status_code == 200
    with app.app_context():
        for table in (NodeAgent, AgentCrash, Node):
            assert db.session.scalar(select(func.count()).select_from(table)) == 0
