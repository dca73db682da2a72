"""A feature without any meaning, hosts that the test itself plays, and what must always be true of a fan-out.

Hosts speak through the very actions that the gateway calls, each time in a transaction of its own.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from flask import Flask
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from app.commands import actions, fanouts, sweeping
from app.commands.fanouts import NewTarget, Plan
from app.commands.hooks import Hooks, Purpose, Settled, Turn, attach
from app.commands.models import DONE, IN_FLIGHT, SETTLED, UNFINISHED, Command, Fanout, Target
from app.kernel import clock as real_clock
from app.kernel.access import Actor
from app.kernel.context import ops
from app.kernel.db import db, in_transaction
from app.kernel.errors import BadParameter
from app.nodes.models import ONLINE, Node
from protocol import states
from protocol.commands import Accept, Output, Result, Start
from protocol.commands import Command as Order
from protocol.times import to_text

Answer = TypeVar("Answer")
KIND, PURPOSE = "test.run", "test"
SYSTEM = Actor.system("tests")
KEY = b"k" * 32


class Clock:
    """The product's clock, ahead of the real one by as much as a test says."""

    def __init__(self) -> None:
        self._ahead = timedelta()
        self.real = real_clock.now

    def __call__(self) -> datetime:
        return self.real() + self._ahead

    def advance(self, **by: float) -> None:
        self._ahead += timedelta(**by)


@dataclass
class Feature:
    """What the fan-outs' purpose was told, and what it refuses."""

    settled: list[Settled] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    results: list[tuple[int, str]] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    asked: list[Turn] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    """Node id → why it may not be done there."""

    def hooks(self, **values: Any) -> Hooks:
        purpose = Purpose(PURPOSE, "nodes.edit", self._refuse, _cancel_order, self._on_settled, self._on_ended)
        given: dict[str, Any] = {
            "results": {KIND: self._take_result},
            "outputs": {KIND: self._take_output},
            "payloads": {"test.secret": _make_payload},
            "purposes": {PURPOSE: purpose, "bare": Purpose("bare", "nodes.edit")},
            "private": frozenset({"test.private"}),
        }
        return Hooks(**(given | values))

    def _refuse(self, session: Session, fanout: Fanout, turns: Sequence[Turn]) -> Mapping[int, str]:
        self.asked += turns
        return {turn.target_id: self.refused[turn.node_id] for turn in turns if turn.node_id in self.refused}

    def _on_settled(self, session: Session, fanout: Fanout, settled: Sequence[Settled]) -> None:
        self.settled += settled

    def _on_ended(self, session: Session, fanout: Fanout) -> None:
        self.ended.append(fanout.id)

    def _take_result(self, session: Session, command: Command, result: Result) -> None:
        self.results.append((command.id, result.status))

    def _take_output(self, session: Session, command: Command, output: Output) -> None:
        self.outputs.append(output.data)


def _cancel_order(session: Session, fanout: Fanout, command: Command) -> tuple[str, Mapping[str, Any]]:
    return "test.cancel", {"command": command.uuid}


def _make_payload(session: Session, command: Command, stored: Mapping[str, Any]) -> Mapping[str, Any]:
    if stored.get("broken"):
        raise BadParameter("the secret is gone")
    if stored.get("bug"):
        raise AttributeError("nothing is as it was")
    return {**stored, "secret": "opened"}


class Rig:
    """A fleet and its fan-outs in one application."""

    def __init__(self, app: Flask, feature: Feature) -> None:
        self.app, self.feature = app, feature
        attach(app, feature.hooks())

    def hosts(self, count: int, **values: Any) -> list[int]:
        """So many online hosts, in the order of their names."""
        given = {"status": ONLINE, "last_heartbeat": real_clock.now()} | values

        def make() -> list[int]:
            session, rows = db.session(), []
            have = session.scalar(select(func.count()).select_from(Node)) or 0
            for number in range(have, have + count):
                uuid = str(uuid4())
                key = ops().keys.box.encrypt(KEY, f"command-key:{uuid}")
                rows.append({"uuid": uuid, "hostname": f"host-{number:05}", "command_key": key} | given)
            session.execute(insert(Node), rows)
            return list(session.scalars(select(Node.id).order_by(Node.id.desc()).limit(count)))[::-1]

        return self.do(make)

    def set_node(self, node_id: int, **values: Any) -> None:
        self.do(lambda: db.session().execute(update(Node).where(Node.id == node_id).values(values)))

    def do(self, work: Callable[[], Answer]) -> Answer:
        """In a context and a transaction of its own, as a request or job would."""
        with self.app.app_context():
            return in_transaction(db.session(), work)

    def start(self, targets: Sequence[int | NewTarget], actor: Actor = SYSTEM, **values: Any) -> int:
        new = [target if isinstance(target, NewTarget) else NewTarget(target) for target in targets]
        given = {"purpose": PURPOSE, "kind": KIND, "payload": {"what": "anything"}} | values
        return self.do(lambda: fanouts.start_fanout(db.session(), actor, Plan(**given), new).id)

    def act(self, action: Callable[..., Fanout], fanout_id: int, *given: Any, actor: Actor = SYSTEM) -> int:
        return self.do(lambda: action(db.session(), actor, fanout_id, *given).id)

    def fetch(self, node_id: int) -> list[Order]:
        """What a poll of this host brings."""

        def look() -> list[Order]:
            node = db.session().get_one(Node, node_id)
            return actions.deliver(db.session(), node, [])

        return self.do(look)

    def report(self, node_id: int, *reports: Any) -> list[bool]:
        taken = self.do(partial(self._take, node_id, reports))
        return [outcome.ok for outcome in taken]

    def _take(self, node_id: int, reports: Sequence[Any]) -> Any:
        return actions.take_reports(db.session(), node_id, reports)

    def end(self, node_id: int, uuid: str, status: str = states.SUCCEEDED, **values: Any) -> bool:
        return self.report(node_id, result(uuid, status, **values))[0]

    def run(self, node_id: int, status: str = states.SUCCEEDED) -> int:
        """The host does all that waits for it. Answers how many commands that were."""
        orders = [order for order in self.fetch(node_id) if not order.kind.endswith(".cancel")]
        for order in orders:
            at = now_text()
            assert self.report(node_id, Accept(order.id, "accept", at), Start(order.id, "start", at, 1)) == [True, True]
            assert self.end(node_id, order.id, status)
        return len(orders)

    def sweep(self, *, heard_for_s: float = 3600) -> list[int]:
        """As the job does it. Answers which fan-outs were due."""
        at = sweeping.now()  # type: ignore[attr-defined]  # the clock that a test set
        due = self.do(lambda: sweeping.fanouts_to_sweep(db.session(), at))
        for fanout_id in due:
            since = at - timedelta(seconds=heard_for_s)
            self.do(partial(self._sweep, fanout_id, since))
        return due

    def _sweep(self, fanout_id: int, since: datetime) -> None:
        sweeping.sweep_fanout(db.session(), fanout_id, since)

    def fanout(self, fanout_id: int) -> Fanout:
        with self.app.app_context():
            found = db.session().get_one(Fanout, fanout_id)
            db.session().expunge(found)
            return found

    def target(self, fanout_id: int, node_id: int) -> Target:
        with self.app.app_context():
            asked = select(Target).where(Target.fanout_id == fanout_id, Target.node_id == node_id)
            found = db.session().scalars(asked).one()
            db.session().expunge(found)
            return found

    def states(self, fanout_id: int) -> list[str]:
        """Of the targets, in their order."""
        with self.app.app_context():
            asked = select(Target.state).where(Target.fanout_id == fanout_id).order_by(Target.id)
            return list(db.session().scalars(asked))

    def commands(self, *conditions: Any) -> list[Command]:
        with self.app.app_context():
            found = list(db.session().scalars(select(Command).where(*conditions).order_by(Command.id)))
            for command in found:
                db.session().expunge(command)
            return found

    def check(self, fanout_id: int) -> Fanout:
        """Everything that is true of a fan-out at any moment between transactions."""
        with self.app.app_context():
            session = db.session()
            fanout = session.get_one(Fanout, fanout_id)
            rows = session.scalars(select(Target).where(Target.fanout_id == fanout_id)).all()
            orders = session.scalars(select(Command).where(Command.target_id.in_([row.id for row in rows]))).all()
            counted = Counter(row.state for row in rows)
            errors = sum(counted[state] for state in ("failed", "timeout", "interrupted", "expired"))
            assert (fanout.success, fanout.failed, fanout.cancelled) == (
                counted["success"],
                errors,
                counted["cancelled"],
            )
            assert fanout.in_flight == sum(counted[state] for state in IN_FLIGHT) <= fanout.max_in_flight
            assert len(rows) == fanout.total
            assert (fanout.state == DONE) == (fanout.settled == fanout.total)
            assert (fanout.finished_at is not None) == (fanout.state == DONE)
            attempts = Counter(order.target_id for order in orders)
            open_orders = {order.target_id for order in orders if order.state in states.OPEN}
            for row in rows:
                assert attempts[row.id] == row.attempt <= fanout.retries + 1
                assert (row.id in open_orders) == (row.state in IN_FLIGHT) or row.is_presumed
                assert (row.finished_at is not None) == (row.state in SETTLED)
            session.expunge(fanout)
            return fanout

    def is_open(self, fanout_id: int) -> bool:
        return self.fanout(fanout_id).state in UNFINISHED


def result(uuid: str, status: str = states.SUCCEEDED, **values: Any) -> Result:
    at = now_text()
    given = {
        "command": uuid,
        "type": "result",
        "status": status,
        "exit_code": 0 if status == states.SUCCEEDED else 1,
        "signal": None,
        "user": "root",
        "started_at": at,
        "finished_at": at,
        "duration_ms": 5,
        "error_code": None,
        "error": None,
        "stdout_bytes": 3,
        "stderr_bytes": 0,
        "truncated": False,
        "data": {"seen": True},
    }
    return Result(**(given | values))


def now_text() -> str:
    return to_text(real_clock.now().timestamp())
