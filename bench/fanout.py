"""What fan-outs cost: `python -m bench.fanout`.

One command for ten thousand hosts: started with and without a window, one host's part from delivery to result, several
gateways at once, cancelled, swept, read; on SQLite and on a private MariaDB that syncs every commit, without HTTP.
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TypeVar
from uuid import uuid4

from flask import Flask
from sqlalchemy import delete, event, insert, select, text, update

from app.commands import actions, fanouts, queries, sweeping
from app.commands.fanouts import NewTarget, Plan
from app.commands.hooks import Hooks, Purpose, attach
from app.commands.models import Command, Fanout, Target
from app.commands.schemas import TargetQuery
from app.kernel.access import Actor
from app.kernel.broker import connect_redis
from app.kernel.clock import now
from app.kernel.context import ops
from app.kernel.db import db, in_transaction, reading
from app.nodes.models import OFFLINE, ONLINE, Node
from bench.foundation import machine
from bench.metrics import application, measured, say
from protocol.commands import Accept, Result, Start
from protocol.times import to_text
from tests.services import MariaDb, Redis

Answer = TypeVar("Answer")
ACTOR = Actor.system("bench")
SCRIPT = {"interpreter": "shell", "script": "echo hello\n" * 100, "args": [], "env": {}}
HOOKS = Hooks(purposes={"bench": Purpose("bench", "nodes.edit")})


def make_nodes(count: int) -> list[int]:
    """Hosts with keys, since their commands are signed."""
    session, key = db.session(), b"k" * 32
    rows = []
    for number in range(count):
        uuid = str(uuid4())
        sealed = ops().keys.box.encrypt(key, f"command-key:{uuid}")
        rows.append({"uuid": uuid, "hostname": f"host-{number:05}", "status": ONLINE, "command_key": sealed})
    in_transaction(session, lambda: session.execute(insert(Node), rows))
    found = list(session.scalars(select(Node.id).order_by(Node.id)))
    session.rollback()
    return found


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many statements go to the database meanwhile."""
    seen = [0]

    def count(*_given: object) -> None:
        seen[0] += 1

    event.listen(db.engine, "before_cursor_execute", count)
    try:
        yield seen
    finally:
        event.remove(db.engine, "before_cursor_execute", count)


def timed(what: str, work: Callable[[], Answer], rows: int) -> Answer:
    """One thing that takes long enough to be measured once."""
    cpu, began = time.process_time(), time.perf_counter()
    with counted() as seen:
        answer = work()
    taken, cpu = time.perf_counter() - began, time.process_time() - cpu
    rate = f"{rows / taken:9,.0f} rows/s" if rows else ""
    print(f"  {what:62}{1000 * taken:8.0f} ms{1000 * cpu:8.0f} cpu{seen[0]:6} statements{rate}", flush=True)
    return answer


def start(nodes: Sequence[int], **values: object) -> int:
    plan = Plan("bench", "bench.run", SCRIPT, **values)  # type: ignore[arg-type]
    session = db.session()
    targets = [NewTarget(node) for node in nodes]
    return in_transaction(session, lambda: fanouts.start_fanout(session, ACTOR, plan, targets).id)


def forget() -> None:
    """So that every run starts with empty tables."""
    session = db.session()
    for table in (Command, Target, Fanout):
        in_transaction(session, partial(session.execute, delete(table)))


def serve(node_id: int) -> None:
    """All that a host's part takes: the poll that fetches it, its beginning, its end; each with its commit."""
    session = db.session()

    def fetch() -> list[str]:
        node = session.get_one(Node, node_id)
        return [order.id for order in actions.deliver(session, node, [])]

    for uuid in in_transaction(session, fetch):
        at = to_text(now().timestamp())
        begun = (Accept(uuid, "accept", at), Start(uuid, "start", at, 1))
        in_transaction(session, partial(actions.take_reports, session, node_id, begun))
        end(node_id, uuid)


def end(node_id: int, uuid: str) -> None:
    session, at = db.session(), to_text(now().timestamp())
    told = Result(uuid, "result", "succeeded", 0, None, "root", at, at, 5, None, None, 6, 0, False, None)
    in_transaction(session, lambda: actions.take_reports(session, node_id, (told,)))


def fetched(fanout: int) -> Iterator[tuple[int, str]]:
    """Commands that hosts have and have not reported on."""
    session = db.session()
    asked = select(Command.node_id, Command.uuid).join(Target, Target.id == Command.target_id)
    rows = session.execute(asked.where(Target.fanout_id == fanout).order_by(Command.id)).all()
    mine = update(Command).where(Command.uuid.in_([row.uuid for row in rows[:2000]]))
    in_transaction(session, lambda: session.execute(mine.values(state="started", delivered_at=now(), started_at=now())))
    return ((row.node_id, row.uuid) for row in rows[:2000])


def creation(nodes: Sequence[int]) -> None:
    for window in (None, "10%", 1):
        name = "all at once" if window is None else f"{window} at once"
        created = 2 * len(nodes) if window is None else len(nodes)
        timed(f"start for {len(nodes):,} hosts, {name}", partial(start, nodes, max_parallel=window), created)
        forget()


def results(nodes: Sequence[int], times: int) -> None:
    """What one report of a result costs; beside it the same command without a fan-out."""
    session = db.session()
    alone = []
    for node in nodes[:times]:
        work = partial(actions.issue, session, ACTOR, node, "bench.run", SCRIPT, timedelta(minutes=5))
        alone.append((node, in_transaction(session, work).uuid))
    in_transaction(session, lambda: session.execute(update(Command).values(state="started")))
    orders = iter(alone)
    say("the result of a command without a fan-out, and commit", measured(lambda: end(*next(orders)), times))
    forget()
    for window in (None, times + 10):
        orders = fetched(start(nodes, max_parallel=window))
        name = "the last window" if window is None else "each bringing the next host"
        say(f"the result of a target, {name}, and commit", measured(partial(_end_next, orders), times))
        forget()
    start(nodes, max_parallel=100)
    waiting = iter(nodes)
    say("a host's whole part: fetched, begun, ended", measured(lambda: serve(next(waiting)), times))
    forget()


def _end_next(orders: Iterator[tuple[int, str]]) -> None:
    end(*next(orders))


def together(app: Flask, nodes: Sequence[int], times: int, gateways: int) -> None:
    """Threads that report results of one fan-out as gateways do."""
    orders = list(fetched(start(nodes, max_parallel=times + 10)))[:times]
    parts = [orders[number::gateways] for number in range(gateways)]

    def run(part: Sequence[tuple[int, str]]) -> None:
        with app.app_context():
            for node_id, uuid in part:
                end(node_id, uuid)
            db.session.remove()

    threads = [threading.Thread(target=run, args=(part,)) for part in parts]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - began
    print(f"  results of one fan-out by {gateways} threads{'':32}{times / taken:8.0f} a second", flush=True)
    forget()


def reading_and_sweeping(nodes: Sequence[int]) -> None:
    session = db.session()
    fanout_id = start(nodes, deliver_within_s=1000)
    say("look which fan-outs are due, 10,000 in flight", measured(_look, 20))
    with reading():
        fanout = session.get_one(Fanout, fanout_id)
        say("read its progress", measured(lambda: queries.progress(session, fanout), 20))
        page = TargetQuery(page=50, page_size=100)
        say("read a page of a hundred targets", measured(lambda: queries.targets(session, fanout, page), 20))
        session.rollback()
    timed("cancel it", lambda: _act(fanouts.cancel_fanout, fanout_id), 2 * len(nodes))
    forget()
    away = update(Node).values(status=OFFLINE)
    in_transaction(session, lambda: session.execute(away))
    fanout_id = timed("start for as many hosts that are away", lambda: start(nodes), len(nodes))
    say("look which fan-outs are due, 10,000 parked", measured(_look, 20))
    in_transaction(session, lambda: session.execute(update(Node).values(status=ONLINE)))
    for number in (1, 2):
        sweep = partial(sweeping.sweep_fanout, session, fanout_id, now() - timedelta(hours=1))
        timed(f"they come back: sweep {number}", lambda work=sweep: in_transaction(session, work), 5000)  # type: ignore[misc]
    forget()
    for _ in range(100):
        start(nodes[:1], max_parallel=1, deliver_within_s=1000)
    say("look which fan-outs are due, a hundred open", measured(_look, 20))
    forget()


def _look() -> None:
    with reading():
        session = db.session()
        in_transaction(session, lambda: sweeping.fanouts_to_sweep(session, now()))


def _act(action: Callable[..., Fanout], fanout_id: int) -> None:
    session = db.session()
    in_transaction(session, lambda: action(session, ACTOR, fanout_id))


def run(kind: str, hosts: int, times: int) -> None:
    with Redis() as redis, application(kind) as app:
        app.extensions["ops"] = replace(ops(), redis=connect_redis(redis.url))
        attach(app, HOOKS)
        version = db.session.scalar(text("SELECT VERSION()" if kind == "mariadb" else "SELECT sqlite_version()"))
        print(f"\n{kind} {version}")
        nodes = make_nodes(hosts)
        creation(nodes)
        print(f"{'':60}{'cpu ms':>9}{'p50 ms':>9}{'p95 ms':>9}{'most':>9}")
        results(nodes, times)
        for gateways in (1, 2, 4):
            together(app, nodes, times, gateways)
        reading_and_sweeping(nodes)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fanout", description=__doc__)
    parser.add_argument("--hosts", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=500, help="results of each kind, at most 2,000")
    parser.add_argument("--database", choices=("sqlite", "mariadb", "both"), default="both")
    options = parser.parse_args(arguments)
    print(machine())
    for kind in ("sqlite", "mariadb") if options.database == "both" else (options.database,):
        if kind == "mariadb" and (reason := MariaDb.why_unavailable()):
            print(f"\nmariadb: left out, {reason}")
            continue
        run(kind, options.hosts, min(options.times, 2000))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
