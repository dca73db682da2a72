"""Whatever happens in whatever order: never more in flight than the window, nothing handed out twice, and it ends."""

import os
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from app.commands import fanouts
from app.commands.models import DONE, PAUSED, RUNNING, Command
from app.kernel.errors import Conflict
from app.nodes.models import OFFLINE, ONLINE
from protocol import states
from protocol.commands import Accept, Start
from tests.commands.rig import KIND, Clock, Rig, now_text

HOSTS = 5
EXAMPLES = 40 * int(os.environ.get("OPS_TEST_REPEATS", "1"))
ENDS = (states.SUCCEEDED, states.SUCCEEDED, states.FAILED, states.TIMED_OUT, states.INTERRUPTED, states.CANCELLED)

hosts = some.integers(0, HOSTS - 1)
steps = some.one_of(
    some.tuples(some.just("fetch"), hosts),
    some.tuples(some.just("fetch"), hosts),
    some.tuples(some.just("begin"), hosts),
    some.tuples(some.just("begin"), hosts),
    some.tuples(some.just("end"), hosts, some.sampled_from(ENDS)),
    some.tuples(some.just("end"), hosts, some.sampled_from(ENDS)),
    some.tuples(some.just("run"), hosts, some.sampled_from(ENDS)),
    some.tuples(some.just("away"), hosts),
    some.tuples(some.just("back"), hosts),
    some.tuples(some.just("refuse"), hosts),
    some.tuples(some.just("cancel_one"), hosts),
    some.tuples(some.just("wait"), some.sampled_from([1, 20, 70, 200, 500])),
    some.tuples(some.sampled_from(["pause", "resume", "sweep", "sweep"])),
    some.tuples(some.sampled_from(["cancel", "sweep", "sweep", "sweep"])),
)
plans = some.fixed_dictionaries(
    {
        "max_parallel": some.sampled_from([None, 1, 2, "1%", "50%", "100%"]),
        "max_errors": some.sampled_from([None, 0, 1, 2, "1%", "50%", "100%"]),
        "retries": some.integers(0, 2),
        "retry_interval_s": some.sampled_from([0, 60]),
        "deadline_s": some.sampled_from([None, None, 300]),
        "deliver_within_s": some.sampled_from([50, 1000]),
        "run_within_s": some.sampled_from([30, 600]),
    }
)


class Story:
    """One fan-out, and hosts that remember what they were handed."""

    def __init__(self, rig: Rig, clock: Clock, plan: dict[str, Any]) -> None:
        self.rig, self.clock, self.nodes = rig, clock, rig.hosts(HOSTS)
        self.held: dict[int, list[str]] = {node: [] for node in self.nodes}
        self.fetched: list[str] = []
        rig.feature.refused.clear()
        self.id = rig.start(self.nodes, **plan)
        self.issued, self.state = self.count(), rig.fanout(self.id).state

    def count(self) -> int:
        return len(self.rig.commands(Command.kind == KIND, Command.node_id.in_(self.nodes)))

    def step(self, what: str, *given: Any) -> None:
        if what in ("pause", "resume", "cancel", "sweep"):
            self._control(what)
        elif what == "wait":
            self.clock.advance(seconds=given[0])
        else:
            self._host(what, self.nodes[given[0]], given[1:])
        self.check()

    def _control(self, what: str) -> None:
        actions = {"pause": fanouts.pause_fanout, "resume": fanouts.resume_fanout, "cancel": fanouts.cancel_fanout}
        try:
            if what == "sweep":
                self.rig.sweep()
            else:
                self.rig.act(actions[what], self.id)
        except Conflict:
            return
        if what == "resume":
            self.state = RUNNING

    def _host(self, what: str, node: int, given: Sequence[Any]) -> None:
        rig = self.rig
        if what == "away":
            rig.set_node(node, status=OFFLINE)
        elif what == "back":
            rig.set_node(node, status=ONLINE)
        elif what == "refuse":
            rig.feature.refused[node] = "no"
        elif what == "cancel_one":
            self._cancel_one(node)
        elif what == "fetch":
            self._fetch(node)
        elif what == "begin" and self.held[node]:
            at = now_text()
            uuid = self.held[node][-1]
            rig.report(node, Accept(uuid, "accept", at), Start(uuid, "start", at, 1))
        elif what in ("end", "run"):
            if what == "run":
                self._fetch(node)
            if self.held[node]:
                rig.end(node, self.held[node].pop(0), given[0])

    def _cancel_one(self, node: int) -> None:
        try:
            self.rig.act(fanouts.cancel_targets, self.id, [self.rig.target(self.id, node).id])
        except Conflict:
            return

    def _fetch(self, node: int) -> None:
        """Under a lease, a host may be handed the same again; that is how it knows it by its id."""
        handed = [order.id for order in self.rig.fetch(node) if order.kind == KIND]
        new = [uuid for uuid in handed if uuid not in self.fetched]
        assert not (new and self.state in ("stopped", DONE)), "a host got what had been taken back"
        self.held[node] += new
        self.fetched += new

    def check(self) -> None:
        fanout, issued = self.rig.check(self.id), self.count()
        if self.state in (PAUSED, "stopped", DONE):
            assert issued <= self.issued, "something was handed out that should not have been"
        if fanout.error_limit is not None and fanout.failed >= fanout.error_limit:
            assert fanout.state not in (RUNNING, PAUSED)
        if self.state == DONE:
            assert fanout.state == DONE
        self.issued, self.state = issued, fanout.state

    def to_the_end(self) -> None:
        """Hosts come back and do what they are told; after a while, it is over."""
        for node in self.nodes:
            self.rig.set_node(node, status=ONLINE)
        for _round in range(40):
            if self.state == DONE:
                break
            self._control("resume")
            self.step("sweep")
            for number in range(HOSTS):
                self.step("run", number, states.SUCCEEDED)
            self.step("wait", 61)
        assert self.state == DONE
        assert self.rig.feature.ended.count(self.id) == 1
        assert len(set(self.fetched)) == len(self.fetched)


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(plan=plans, story=some.lists(steps, min_size=8, max_size=30))
def test_any_interleaving_keeps_the_promises(rig: Rig, clock: Clock, plan: dict[str, Any], story: list[Any]) -> None:
    told = Story(rig, clock, plan)
    told.check()
    for step in story:
        told.step(*step)
    told.to_the_end()


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(plan=plans, story=some.lists(steps, min_size=8, max_size=30))
def test_it_ends_even_if_no_host_ever_speaks_again(
    rig: Rig, clock: Clock, plan: dict[str, Any], story: list[Any]
) -> None:
    told = Story(rig, clock, plan)
    for step in story:
        told.step(*step)
    for _round in range(60):
        if told.state == DONE:
            break
        told._control("resume")
        told.step("sweep")
        told.step("wait", 700)
    assert told.state == DONE
