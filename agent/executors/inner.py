"""Work that a child of our own package does: how it is started, what it is told, and how it says how it went."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Callable, NamedTuple

from agent.contents import ConfigWork, FileWork, Task
from agent.executors.forbidden import FORBIDDEN_EXIT, Forbidden, Surroundings
from agent.processes import CannotStart, Launch, account_of, environment

FAILED_EXIT = 1


class WorkFailed(Exception):
    """Why it could not be done, in words for people."""


class Given(NamedTuple):
    """What the child is told. `files`: the patterns of the host's capability file."""

    id: str
    content: dict[str, Any]
    files: tuple[str, ...]
    state_dir: str


def plan(content: FileWork | ConfigWork, task: Task, around: Surroundings) -> Launch:
    """How the child for a task is started. Raises Forbidden."""
    if task.kind == "config" and not around.capabilities.config:
        raise Forbidden("this host does not allow changing configuration")
    given = Given(task.id, content._asdict(), around.capabilities.files, around.state_dir)
    return launch(task.kind, given, task.id)


def launch(kind: str, given: Given, mark: str) -> Launch:
    """A child for `agent.executors.<kind>`."""
    account = account_of(None)
    extra = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PYTHONDONTWRITEBYTECODE": "1"}
    return Launch(
        argv=(sys.executable, "-m", f"agent.executors.{kind}"),
        env=environment(account, mark, extra),
        account=account,
        cwd="/",
        stdin=json.dumps(given._asdict()).encode("utf-8"),
    )


def run(work: Callable[[Given], str]) -> int:
    """The child's whole life: what it is told on stdin, what came of it on stdout, complaints on stderr."""
    told = json.loads(sys.stdin.buffer.read())
    given = Given(told["id"], told["content"], tuple(told["files"]), told["state_dir"])
    try:
        text = work(given)
    except Forbidden as error:
        sys.stderr.write(f"{error}\n")
        return FORBIDDEN_EXIT
    except (WorkFailed, CannotStart) as error:
        sys.stderr.write(f"{error}\n")
        return FAILED_EXIT
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"{place}{error.strerror or error}\n")
        return FAILED_EXIT
    sys.stdout.write(text)
    return 0
