"""Runs as tests of pages need them: begun by somebody, reported on as a host's gateway would, with whatever output."""

from collections.abc import Sequence
from typing import Any

from flask import Flask

from app.commands.hooks import attach
from app.kernel.access import Actor
from app.kernel.db import db
from app.link.takers import HOOKS
from app.tasks import actions, running
from app.tasks.models import MANUAL
from app.tasks.schemas import TaskIn
from protocol import states
from protocol.commands import Accept, Output, Start
from tests.commands.rig import Feature, Rig, now_text, result

SYSTEM = Actor.system("tests")

PIECE = 60_000


class Stage:
    """An application in which tasks run, and the hosts that run them."""

    def __init__(self, app: Flask) -> None:
        self.rig = Rig(app, Feature())
        attach(app, HOOKS)

    def task(self, name: str = "disk usage", actor: Actor = SYSTEM, **values: Any) -> int:
        given = {"type": "script", "content": {"script": "df -h"}, "target_type": "all"} | values
        body = TaskIn.model_validate({"name": name} | given)
        return self.rig.do(lambda: actions.create_task(db.session(), actor, body).id)

    def begin(self, task_id: int, actor: Actor = SYSTEM, triggered_by: str = MANUAL) -> str:
        """The run's UUID."""
        return self.rig.do(lambda: str(running.execute_task(db.session(), actor, task_id, triggered_by).fanout.uuid))

    def fetch(self, node_id: int) -> str:
        """The order that waits for this host, which it begins at once."""
        (order,) = (order for order in self.rig.fetch(node_id) if order.kind == running.KIND)
        at = now_text()
        assert self.rig.report(node_id, Accept(order.id, "accept", at), Start(order.id, "start", at, 7)) == [True, True]
        return str(order.id)

    def write(self, node_id: int, order: str, *pieces: tuple[str, bytes], seq: int = 0, offset: int = 0) -> None:
        """Pieces of stdout and stderr, in this order; `offset` is where the first stream goes on."""
        ends: dict[str, int] = {}
        for stream, data in pieces:
            for first in range(0, len(data), PIECE):
                some = data[first : first + PIECE]
                at = ends.setdefault(stream, offset)
                assert self.rig.report(node_id, Output(order, "output", seq, stream, at, some, False)) == [True]
                ends[stream], seq = at + len(some), seq + 1

    def end(self, node_id: int, order: str, status: str = states.SUCCEEDED, **values: Any) -> None:
        assert self.rig.report(node_id, result(order, status, **values)) == [True]

    def play(
        self, node_id: int, out: bytes = b"", err: bytes = b"", status: str = states.SUCCEEDED, **values: Any
    ) -> None:
        """All of it on one host."""
        order = self.fetch(node_id)
        self.write(node_id, order, ("stdout", out), ("stderr", err))
        sizes = {"stdout_bytes": len(out), "stderr_bytes": len(err)}
        self.end(node_id, order, status, **(sizes | values))

    def play_all(self, nodes: Sequence[int], out: bytes = b"fine\n") -> None:
        for node_id in nodes:
            self.play(node_id, out)
