"""Kinds of work: the explicit registry. Each kind says how it is started; all but `script` and `service` do their work
in a short-lived child, so that the resident process needs none of what they import."""

from __future__ import annotations

from typing import Any, Callable

from agent.contents import Task
from agent.executors import custom, inner, script, service
from agent.executors.forbidden import Surroundings
from agent.processes import Launch

Plan = Callable[[Any, Task, Surroundings], Launch]

REGISTRY: dict[str, Plan] = {
    "script": script.plan,
    "file": inner.plan,
    "config": inner.plan,
    "service": service.plan,
    "custom": custom.plan,
}


def plan(task: Task, around: Surroundings) -> Launch:
    """How a task is started. Raises Forbidden, CannotStart."""
    return REGISTRY[task.kind](task.content, task, around)
