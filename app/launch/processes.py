"""Which processes make up a running Manager: the one table that says what is started and in which order."""

import sys
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple


class Stage(IntEnum):
    """The order of starting; stopping is the other way round. HOST begins when the Manager answers."""

    REDIS = 0
    GATEWAY = 1
    WEB = 2
    JOBS = 3
    HOST = 4


class Process(NamedTuple):
    """One process to keep running."""

    name: str
    """As it stands before its lines."""
    command: tuple[str, ...]
    stage: Stage
    grace_s: float
    """How long it may take to stop before it is killed."""
    hidden: tuple[str, ...] = ()
    """Lines with one of these texts tell nobody anything and are not shown."""


class Plan(NamedTuple):
    """What the settings make of a start: everything the launcher knows about them."""

    data_path: str
    environment: Mapping[str, str]
    """What children get beyond the launcher's own environment."""
    addresses: Mapping[str, tuple[str, int]]
    """Host and port of `web` and `gateway`, of those that have one."""
    web_url: str
    """What people call."""
    gateway_url: str
    redis: tuple[str, ...]
    """The command of the embedded Redis; empty if there is one elsewhere."""
    redis_socket: str
    gateway_address: str
    """Host and port, or the path of a socket."""
    health_url: str
    """Where the launcher itself asks the web plane how it is."""
    job_workers: int


COUNTERS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the directory in which all processes count, so that /metrics can add them up. Each start begins at zero."""
TERMINAL_VARIABLE = "OPS_LAUNCH_TERMINAL"
"""Tells the process that plans whether people look at the output."""
READY, NOT_READY, UNHEALTHY = 0, 1, 3
"""How the process ends that waits for the Manager to answer."""

# A request or job that runs gets eight to ten seconds from its own process, the gateway's twenty; the launcher waits a
# little longer.
GRACE_S = 12.0
GATEWAY_GRACE_S = 24.0
REDIS_GRACE_S = 5.0
# What a Redis that keeps nothing on disk has to say about memory and about its start and end.
REDIS_SMALL_TALK = ("oO0Oo", "just started", "Configuration loaded", "Server initialized", "overcommit", "bye bye",
                    "User requested shutdown", "Received SIGTERM", "Redis version=", "Valkey version=")  # fmt: skip


def manager_processes(plan: Plan) -> list[Process]:
    """The Manager, and this machine as its first node."""
    jobs = [
        Process(f"worker-{number}" if plan.job_workers > 1 else "worker", _module("app.worker"), Stage.JOBS, GRACE_S)
        for number in range(1, plan.job_workers + 1)
    ]
    return [
        *([Process("redis", plan.redis, Stage.REDIS, REDIS_GRACE_S, REDIS_SMALL_TALK)] if plan.redis else []),
        Process("gateway", _module("gunicorn", "-c", "python:app.servers.gateway"), Stage.GATEWAY, GATEWAY_GRACE_S),
        Process("web", _module("gunicorn", "-c", "python:app.servers.web"), Stage.WEB, GRACE_S),
        *jobs,
        Process("scheduler", _module("app.scheduler"), Stage.JOBS, GRACE_S),
        Process("host", _module("app.launch.host"), Stage.HOST, GRACE_S),
    ]


def plan_command(arguments: list[str]) -> tuple[str, ...]:
    """Reads the settings in a process of its own, which leaves the launcher without their libraries."""
    return _module("app.launch.plan", *arguments)


def init_command() -> tuple[str, ...]:
    """Keys, migrations, the first administrator; tells what it did as one line of JSON."""
    return _module("flask", "--app", "wsgi", "ops", "init", "--json")


def ready_command(plan: Plan) -> tuple[str, ...]:
    """Ends when the Manager answers."""
    return _module("app.launch.ready", plan.health_url, plan.gateway_address)


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *arguments)
