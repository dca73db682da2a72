"""Gateways, workers and people at the same moment; and processes killed at any statement."""

import os
import random
import threading
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from sqlalchemy import event

from app.commands import fanouts
from app.commands.models import DONE, Command
from app.kernel.db import db
from app.kernel.errors import Conflict
from app.nodes.models import OFFLINE, ONLINE
from protocol import states
from tests.commands.rig import KIND, Clock, Rig

REPEATS = int(os.environ.get("OPS_TEST_REPEATS", "1"))


def together(*works: Callable[[], object]) -> None:
    """All at once, each in a thread of its own; what one of them raises is raised."""
    gate, errors = threading.Barrier(len(works)), list[BaseException]()

    def run(work: Callable[[], object]) -> None:
        gate.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


@pytest.mark.fault
@pytest.mark.parametrize("window", [1, 3, None])
@pytest.mark.parametrize("_again", range(REPEATS))
def test_gateways_that_take_results_at_the_same_moment(rig: Rig, window: int | None, _again: int) -> None:
    nodes = rig.hosts(16)
    fanout = rig.start(nodes, max_parallel=window)

    def serve(mine: Sequence[int]) -> None:
        left = list(mine)
        for _round in range(500):
            left = [node for node in left if not rig.run(node)]
            if not left:
                return

    together(*(partial(serve, nodes[number::4]) for number in range(4)))
    done = rig.check(fanout)
    assert (done.status, done.success) == ("success", 16)
    assert len(rig.commands(Command.kind == KIND)) == 16
    assert rig.feature.ended == [fanout]
    assert len(rig.feature.results) == 16


@pytest.mark.fault
def test_the_same_result_from_two_gateways_at_the_same_moment_counts_once(rig: Rig) -> None:
    nodes = rig.hosts(6)
    fanout = rig.start(nodes, max_parallel=1)
    for node in nodes:
        order = rig.fetch(node)[0]
        together(*[partial(rig.end, node, order.id)] * 3)
        rig.check(fanout)
    assert rig.fanout(fanout).success == 6
    assert [told.node_id for told in rig.feature.settled] == nodes


@pytest.mark.fault
def test_failures_at_the_same_moment_stop_it_once_and_for_all(rig: Rig) -> None:
    nodes = rig.hosts(12)
    fanout = rig.start(nodes, max_parallel=4, max_errors=3)
    orders = [(node, rig.fetch(node)[0].id) for node in nodes[:4]]
    together(*(partial(rig.end, node, uuid, states.FAILED) for node, uuid in orders))
    done = rig.check(fanout)
    assert done.stopped_by == "errors"
    assert 3 <= done.failed <= 4
    assert done.failed + done.cancelled == 12
    assert len(rig.commands(Command.kind == KIND)) <= 6


@pytest.mark.fault
def test_workers_that_sweep_at_the_same_moment(rig: Rig, clock: Clock) -> None:
    nodes = rig.hosts(12)
    for node in nodes[8:]:
        rig.set_node(node, status=OFFLINE)
    fanout = rig.start(nodes, retries=1, retry_interval_s=60)
    for node in nodes[:8]:
        rig.run(node, states.FAILED)
    clock.advance(seconds=61)
    for node in nodes[8:]:
        rig.set_node(node, status=ONLINE)
    together(rig.sweep, rig.sweep, rig.sweep)
    assert rig.check(fanout).in_flight == 12
    assert len(rig.commands(Command.kind == KIND)) == 20
    together(*(partial(rig.run, node) for node in nodes[:4]), rig.sweep, rig.sweep)
    for node in nodes[4:]:
        rig.run(node)
    assert rig.check(fanout).status == "success"


@pytest.mark.fault
def test_a_cancel_while_hosts_fetch(rig: Rig) -> None:
    nodes = rig.hosts(10)
    fanout = rig.start(nodes)
    got: list[tuple[int, str]] = []

    def fetch(mine: Sequence[int]) -> None:
        got.extend((node, order.id) for node in mine for order in rig.fetch(node) if order.kind == KIND)

    together(
        partial(fetch, nodes[:5]), partial(fetch, nodes[5:][::-1]), partial(rig.act, fanouts.cancel_fanout, fanout)
    )
    assert rig.check(fanout).cancelled == 10 - len(got), "each either has its host or was taken back"
    for node, uuid in got:
        assert rig.end(node, uuid, states.CANCELLED)
    assert rig.check(fanout).state == DONE


@pytest.mark.fault
@pytest.mark.slow
def test_everything_at_once(rig: Rig) -> None:
    nodes = rig.hosts(20)
    fanout = rig.start(nodes, max_parallel=3, retries=1, retry_interval_s=0)
    is_over = threading.Event()

    def serve(mine: Sequence[int], seed: int) -> None:
        chance = random.Random(seed)
        for _round in range(400):
            node = chance.choice(mine)
            rig.run(node, chance.choice([states.SUCCEEDED, states.SUCCEEDED, states.FAILED]))
            if not rig.is_open(fanout):
                break
        is_over.set()

    def meddle() -> None:
        while not is_over.wait(0.01):
            for action in (fanouts.pause_fanout, fanouts.resume_fanout):
                try:
                    rig.act(action, fanout)
                except Conflict:
                    is_over.wait(0.01)

    def sweep() -> None:
        while not is_over.wait(0.02):
            rig.sweep()

    together(partial(serve, nodes[::2], 1), partial(serve, nodes[1::2], 2), meddle, sweep, sweep)
    bring_to_its_end(rig, fanout, nodes)
    assert rig.feature.ended == [fanout]


def bring_to_its_end(rig: Rig, fanout: int, nodes: Sequence[int]) -> None:
    for _round in range(60):
        if rig.check(fanout).state == DONE:
            return
        try:
            rig.act(fanouts.resume_fanout, fanout)
        except Conflict:
            rig.sweep()
        for node in nodes:
            rig.run(node)
    raise AssertionError("it does not end")


# Killed


def killed_at(rig: Rig, statement: int, work: Callable[[], object]) -> bool:
    """Whether a process that does this dies at its so-many-th statement; if it has fewer, the work is done."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    try:
        with rig.app.app_context():
            db.engine.dispose(close=False)
            left = [statement]

            def count(*_given: object) -> None:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

            event.listen(db.engine, "before_cursor_execute", count)
            event.listen(db.engine, "commit", count)
        work()
        os._exit(0)
    finally:
        os._exit(1)


def survive(rig: Rig, fanout: int, work: Callable[[], object]) -> int:
    """Do it, killed at every statement first. Answers how often."""
    for statement in range(200):
        if not killed_at(rig, statement, work):
            rig.check(fanout)
            return statement
        rig.check(fanout)
    raise AssertionError("endless")


@pytest.mark.fault
def test_killed_at_any_statement_nothing_is_lost_and_nothing_done_twice(rig: Rig, clock: Clock) -> None:
    nodes = rig.hosts(4)
    rig.set_node(nodes[3], status=OFFLINE)
    fanout = rig.start(nodes, max_parallel=1, retries=1, retry_interval_s=60)
    order = rig.fetch(nodes[0])[0]
    assert survive(rig, fanout, lambda: rig.end(nodes[0], order.id, states.FAILED)) > 5
    assert rig.states(fanout) == ["retrying", "issued", "waiting", "parked"] or rig.states(fanout)[1] == "issued"
    clock.advance(seconds=61)
    rig.set_node(nodes[3], status=ONLINE)
    survive(rig, fanout, rig.sweep)
    rig.run(nodes[1])
    assert rig.states(fanout)[0] == "issued", "its turn came first"
    survive(rig, fanout, lambda: rig.act(fanouts.cancel_fanout, fanout))
    assert rig.check(fanout).state == DONE
    assert len(rig.commands(Command.kind == KIND)) == 3


@pytest.mark.fault
def test_killed_while_it_is_started_there_is_all_or_nothing(rig: Rig) -> None:
    nodes = rig.hosts(3)
    times = 0
    while killed_at(rig, times, lambda: rig.start(nodes, max_parallel=2)):
        assert rig.commands() == []
        times += 1
    assert times > 4
    assert len(rig.commands()) == 2
