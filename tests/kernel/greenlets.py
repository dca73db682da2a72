"""What the database layer does among greenlets: run as a program of its own, since it patches the standard library.

`python -m tests.kernel.greenlets SCENARIO URL` prints one JSON object; tests judge it.
"""

from gevent import monkey

monkey.patch_all()  # before anything else is imported

import json  # noqa: E402
import random  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from sqlalchemy import Engine, create_engine, text  # noqa: E402
from sqlalchemy.orm import Session  # noqa: E402

from app.kernel import db  # noqa: E402
from app.kernel.db import engine_options, in_transaction, prepare_engine, reading  # noqa: E402
from app.kernel.errors import DatabaseAway  # noqa: E402
from config import load_settings  # noqa: E402

WRITERS = 100
EACH = 3


class Heartbeat:
    """A greenlet that wants to run every few milliseconds; how long it was kept from it at the worst."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._greenlet = gevent.spawn(self._beat)

    def _beat(self) -> None:
        last = time.monotonic()
        while True:
            gevent.sleep(0.002)
            present = time.monotonic()
            self.longest_s = max(self.longest_s, present - last)
            last = present

    def stop(self) -> float:
        self._greenlet.kill()
        return self.longest_s


def increment(engine: Engine, row: int = 1, *, between: Callable[[], None] = lambda: None) -> None:
    """Read first, write later: the order in which SQLite refuses a transaction that began without the lock."""
    with Session(engine) as session:

        def work() -> None:
            number = session.scalar(text("SELECT n FROM counters WHERE id = :id"), {"id": row})
            between()
            session.execute(text("UPDATE counters SET n = :n WHERE id = :id"), {"n": number + 1, "id": row})

        in_transaction(session, work)


def total(engine: Engine) -> int:
    with reading(), engine.connect() as connection:
        return int(connection.scalar(text("SELECT SUM(n) FROM counters")) or 0)


def writers(engine: Engine) -> dict[str, Any]:
    """All of them at once, and readers among them."""
    heartbeat = Heartbeat()

    def write(_number: int) -> None:
        for _time in range(EACH):
            increment(engine, between=lambda: gevent.sleep(0))
            total(engine)

    jobs = [gevent.spawn(write, number) for number in range(WRITERS)]
    gevent.joinall(jobs)
    failures = [repr(job.exception) for job in jobs if job.exception is not None]
    return {"stall_s": heartbeat.stop(), "failures": failures, "total": total(engine)}


def killed(engine: Engine) -> dict[str, Any]:
    """Greenlets that are killed wherever they are: waiting for a turn, inside a transaction, at its end."""
    generator = random.Random(7)
    for _round in range(10):
        jobs = [gevent.spawn(increment, engine, between=lambda: gevent.sleep(0.001)) for _job in range(10)]
        gevent.sleep(generator.random() * 0.008)
        gevent.killall(jobs)
    started, before = time.monotonic(), total(engine)
    increment(engine)
    return {"waited_s": time.monotonic() - started, "written": total(engine) - before}


def patient(engine: Engine) -> dict[str, Any]:
    """Another process holds the file, lets go of it after a while, and nobody else was kept from running meanwhile."""
    say("ready")
    heartbeat, started = Heartbeat(), time.monotonic()
    read = total(engine)
    read_s = time.monotonic() - started
    increment(engine)
    waited_s = time.monotonic() - started
    return {"stall_s": heartbeat.stop(), "waited_s": waited_s, "read_s": read_s, "total": total(engine) - read}


def impatient(engine: Engine) -> dict[str, Any]:
    """Another process holds the file and does not let go."""
    db.SQLITE_PATIENCE_S = 0.5
    say("ready")
    heartbeat, started, refusals = Heartbeat(), time.monotonic(), []

    def write() -> None:
        try:
            increment(engine)
        except DatabaseAway as error:
            refusals.append([error.code, int(error.status), error.retry_after_s])

    gevent.joinall([gevent.spawn(write) for _number in range(5)])
    return {"stall_s": heartbeat.stop(), "waited_s": time.monotonic() - started, "refusals": refusals}


def naive(url: str) -> dict[str, Any]:
    """The harm: a time-out inside SQLite. Whoever holds the lock cannot let go of it while somebody waits for it."""
    engine = create_engine(url, connect_args={"timeout": 1, "check_same_thread": False})
    heartbeat = Heartbeat()

    def write() -> None:
        with engine.begin() as connection:
            connection.execute(text("UPDATE counters SET n = n + 1"))
            gevent.sleep(0.001)

    jobs = [gevent.spawn(write) for _job in range(3)]
    gevent.joinall(jobs)
    return {"stall_s": heartbeat.stop(), "failures": [repr(job.exception) for job in jobs if job.exception]}


def say(line: str) -> None:
    print(line, flush=True)


def main(scenario: str, url: str) -> None:
    if scenario == "naive":
        say(json.dumps(naive(url)))
        return
    settings = load_settings([], {"OPS_DATABASE_URL": url})
    engine = create_engine(settings.database_url, **engine_options(settings))
    prepare_engine(engine)
    scenarios = {"writers": writers, "killed": killed, "patient": patient, "impatient": impatient}
    say(json.dumps(scenarios[scenario](engine)))


if __name__ == "__main__":
    main(*sys.argv[1:])
