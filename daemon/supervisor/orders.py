"""The commands that start, stop, restart and reload agents: kind to handler, for the table of the main thread."""

from __future__ import annotations

from collections.abc import Mapping

from daemon.commands import Call, Handler, Later
from daemon.supervisor.program import Answer
from daemon.supervisor.supervisor import VERBS, Supervisor
from protocol.errors import TASK_FAILED
from protocol.fields import Fields
from protocol.manifests import NAME


def agent_handlers(supervisor: Supervisor) -> Mapping[str, Handler]:
    """`agent.start` and its like. They succeed when the agent is as it was ordered, which may take its stop timeout."""
    return {f"agent.{verb}": _handler(supervisor, verb) for verb in VERBS}


def _handler(supervisor: Supervisor, verb: str) -> Handler:
    def handle(payload: Fields) -> Later:
        name = payload.text("name", 64, 1, NAME)
        seq = payload.integer_or_none("seq")

        def begin(call: Call) -> None:
            def end(answer: Answer) -> None:
                data = {"status": answer.status, "pid": answer.pid}
                if answer.problem is None:
                    call.succeed(data)
                else:
                    call.fail(TASK_FAILED, answer.problem, data)

            supervisor.order(verb, name, seq, end)

        return Later(begin)

    return handle
