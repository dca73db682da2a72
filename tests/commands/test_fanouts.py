"""Fan-outs step by step: windows, errors, pauses, cancels, retries, hosts that are away, silence and late words."""

from datetime import timedelta

import pytest
from sqlalchemy import delete, func, select

from app.commands import actions, dispatch, fanouts
from app.commands.fanouts import NewTarget
from app.commands.models import DONE, STOPPED, Command, Fanout, Target
from app.commands.shares import error_limit_of, window_of
from app.kernel.access import Actor, Role
from app.kernel.clock import now
from app.kernel.db import db
from app.kernel.errors import AppError, BadParameter, Conflict, Forbidden, NotFound, TooLarge
from app.nodes.errors import NodeNotFound
from app.nodes.models import OFFLINE, REVOKED, Node
from app.people.models import User
from protocol import states
from protocol.commands import Accept, Output, Start, is_genuine
from protocol.times import to_text
from tests.commands.rig import KEY, KIND, SYSTEM, Clock, Feature, Rig, now_text
from tests.factories import make_user

# What numbers mean


@pytest.mark.parametrize(
    ("given", "total", "at_once"),
    [
        (None, 7, 7),
        (3, 7, 3),
        (9, 7, 7),
        ("1%", 1, 1),
        ("1%", 199, 1),
        ("1%", 200, 2),
        ("10%", 15, 1),
        ("50%", 3, 1),
        ("99%", 10, 9),
        ("100%", 7, 7),
        ("100%", 1, 1),
    ],
)
def test_a_window_is_at_most_the_share_and_at_least_one(given: int | str | None, total: int, at_once: int) -> None:
    assert window_of(given, total) == at_once


@pytest.mark.parametrize(
    ("given", "total", "limit"),
    [
        (None, 7, None),
        (0, 7, 1),
        ("0%", 7, 1),
        (3, 7, 3),
        ("1%", 1, 1),
        ("1%", 100, 1),
        ("1%", 101, 2),
        ("10%", 15, 2),
        ("100%", 7, 7),
        ("100%", 1, 1),
    ],
)
def test_an_error_limit_is_the_first_number_that_reaches_the_share(
    given: int | str | None, total: int, limit: int | None
) -> None:
    assert error_limit_of(given, total) == limit


# The window


def test_the_first_window_leaves_with_the_request_and_each_result_brings_the_next_host(rig: Rig) -> None:
    nodes = rig.hosts(5)
    fanout = rig.start(nodes, max_parallel=2)
    assert rig.states(fanout) == ["issued", "issued", "waiting", "waiting", "waiting"]
    assert rig.run(nodes[1]) == 1
    assert rig.states(fanout) == ["issued", "success", "issued", "waiting", "waiting"]
    assert rig.run(nodes[3]) == 0, "its turn has not come"
    for node in (nodes[0], nodes[2], nodes[3], nodes[4]):
        assert rig.check(fanout).state != DONE
        assert rig.run(node) == 1
    done = rig.check(fanout)
    assert (done.status, done.success, done.in_flight) == ("success", 5, 0)
    assert rig.feature.ended == [fanout]
    assert [told.state for told in rig.feature.settled] == ["success"] * 5


def test_what_a_host_gets_is_signed_and_the_common_payload_is_kept_once(rig: Rig) -> None:
    nodes = rig.hosts(2)
    rig.start([NewTarget(nodes[0]), NewTarget(nodes[1], payload={"own": 1})])
    first, second = (rig.fetch(node)[0] for node in nodes)
    assert (first.payload, second.payload) == ('{"what":"anything"}', '{"own":1}')
    assert is_genuine(first, KEY, first.node_uuid)
    assert [command.payload for command in rig.commands()] == [None, None]


def test_one_host_may_be_several_targets_but_never_the_same_twice(rig: Rig) -> None:
    node = rig.hosts(1)[0]
    fanout = rig.start([NewTarget(node, "a"), NewTarget(node, "b"), NewTarget(node, "a")])
    assert rig.fanout(fanout).total == 2
    assert rig.run(node) == 2
    assert rig.check(fanout).state == DONE


def test_an_empty_target_and_a_host_that_is_no_member_are_refused(rig: Rig) -> None:
    with pytest.raises(BadParameter):
        rig.start([])
    node = rig.hosts(1, status=REVOKED)[0]
    with pytest.raises(NodeNotFound):
        rig.start([node])
    with pytest.raises(NodeNotFound):
        rig.start([node + 999])


def test_a_payload_that_no_host_would_read_is_refused(rig: Rig) -> None:
    with pytest.raises(TooLarge):
        rig.start(rig.hosts(1), payload={"much": "x" * 300_000})


def test_more_hosts_than_one_statement_takes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "SLICE", 7)
    nodes = rig.hosts(30)
    fanout = rig.start(nodes)
    assert rig.check(fanout).in_flight == 30
    rig.act(fanouts.cancel_fanout, fanout)
    assert rig.check(fanout).cancelled == 30


# Errors


@pytest.mark.parametrize(("limit", "begun"), [(1, 2), (2, 3), ("40%", 3), ("0%", 2), ("100%", 5), (None, 5)])
def test_reaching_the_error_limit_stops_further_dispatch(rig: Rig, limit: int | str | None, begun: int) -> None:
    nodes = rig.hosts(5)
    fanout = rig.start(nodes, max_parallel=2, max_errors=limit)
    for node in nodes:
        rig.run(node, states.FAILED)
        rig.check(fanout)
    rig.run(nodes[0], states.FAILED)
    assert len(rig.commands()) == begun
    done = rig.check(fanout)
    assert done.state == DONE
    assert done.status == "failed"
    expected = [] if begun == 5 else ["errors"]
    assert [done.stopped_by] == (expected or [None])


def test_the_error_limit_takes_back_what_no_host_has_fetched_and_lets_the_others_end(rig: Rig) -> None:
    nodes = rig.hosts(4)
    fanout = rig.start(nodes, max_errors=1)
    running = rig.fetch(nodes[1])[0]
    rig.run(nodes[0], states.FAILED)
    assert rig.states(fanout) == ["failed", "issued", "cancelled", "cancelled"]
    assert rig.fetch(nodes[2]) == []
    assert rig.fanout(fanout).state == STOPPED
    assert rig.end(nodes[1], running.id)
    done = rig.check(fanout)
    assert (done.status, done.success, done.failed, done.cancelled) == ("partial", 1, 1, 2)


# Pause, resume, cancel


def test_pausing_hands_out_nothing_more_and_resuming_goes_on_at_once(rig: Rig) -> None:
    nodes = rig.hosts(3)
    fanout = rig.start(nodes, max_parallel=1)
    rig.act(fanouts.pause_fanout, fanout)
    rig.run(nodes[0])
    assert rig.states(fanout) == ["success", "waiting", "waiting"]
    assert rig.fanout(fanout).status == "paused"
    rig.sweep()
    assert rig.states(fanout)[1] == "waiting"
    rig.act(fanouts.resume_fanout, fanout)
    assert rig.states(fanout)[1] == "issued"


def test_cancelling_ends_what_waits_and_orders_hosts_to_end_the_rest(rig: Rig) -> None:
    nodes = rig.hosts(4)
    fanout = rig.start(nodes, max_parallel=3)
    order = rig.fetch(nodes[0])[0]
    rig.act(fanouts.cancel_fanout, fanout)
    assert rig.states(fanout) == ["issued", "cancelled", "cancelled", "cancelled"]
    assert rig.fetch(nodes[1]) == []
    cancel = rig.fetch(nodes[0])[0]
    assert (cancel.kind, cancel.payload) == ("test.cancel", f'{{"command":"{order.id}"}}')
    assert rig.end(nodes[0], order.id, states.CANCELLED)
    assert rig.check(fanout).status == "cancelled"
    with pytest.raises(Conflict):
        rig.act(fanouts.cancel_fanout, fanout)


def test_a_purpose_without_an_order_to_cancel_lets_hosts_end_by_themselves(rig: Rig) -> None:
    nodes = rig.hosts(2)
    fanout = rig.start(nodes, purpose="bare")
    order = rig.fetch(nodes[0])[0]
    rig.act(fanouts.cancel_fanout, fanout)
    assert rig.fetch(nodes[0]) == []
    rig.end(nodes[0], order.id)
    assert rig.check(fanout).status == "cancelled"


def test_one_target_is_cancelled_and_its_place_goes_to_the_next(rig: Rig) -> None:
    nodes = rig.hosts(3)
    fanout = rig.start(nodes, max_parallel=1)
    first = rig.target(fanout, nodes[0]).id
    rig.act(fanouts.cancel_targets, fanout, [first])
    assert rig.states(fanout) == ["cancelled", "issued", "waiting"]
    with pytest.raises(Conflict):
        rig.act(fanouts.cancel_targets, fanout, [first])
    rig.check(fanout)


STEPS = {"pause": fanouts.pause_fanout, "resume": fanouts.resume_fanout, "cancel": fanouts.cancel_fanout}
STEPS |= {"retry": fanouts.retry_failed}
LEGAL = {
    ("running", "pause"),
    ("running", "cancel"),
    ("paused", "resume"),
    ("paused", "cancel"),
    ("stopped", "cancel"),
    ("done", "retry"),
}


@pytest.mark.parametrize("state", ["running", "paused", "stopped", "done"])
@pytest.mark.parametrize("step", list(STEPS))
def test_steps_of_a_fanout(rig: Rig, state: str, step: str) -> None:
    nodes = rig.hosts(2)
    fanout = rig.start(nodes, max_errors=1)
    if state == "paused":
        rig.act(fanouts.pause_fanout, fanout)
    elif state in ("stopped", "done"):
        rig.fetch(nodes[1])
        rig.run(nodes[0], states.FAILED)
    if state == "done":
        rig.end(nodes[1], rig.commands()[1].uuid)
    assert rig.fanout(fanout).state == state
    if (state, step) in LEGAL:
        rig.act(STEPS[step], fanout)
    else:
        with pytest.raises(Conflict):
            rig.act(STEPS[step], fanout)
    rig.check(fanout)


@pytest.mark.parametrize("step", list(STEPS))
def test_who_may_not_do_what_it_is_for_may_not_control_it_either(rig: Rig, step: str) -> None:
    fanout = rig.start(rig.hosts(1))
    viewer = Actor("user", 7, "vera", Role.VIEWER)
    with pytest.raises(Forbidden):
        rig.act(STEPS[step], fanout, actor=viewer)
    with pytest.raises(NotFound):
        rig.act(STEPS[step], fanout + 99)


# Rights at dispatch


def test_a_target_that_the_feature_refuses_fails_and_counts_as_an_error(rig: Rig) -> None:
    nodes = rig.hosts(4)
    rig.feature.refused[nodes[1]] = "not on this one"
    fanout = rig.start(nodes, max_parallel=1)
    rig.run(nodes[0])
    assert rig.states(fanout) == ["success", "failed", "issued", "waiting"]
    assert rig.target(fanout, nodes[1]).error == "not on this one"
    assert [turn.node_id for turn in rig.feature.asked] == nodes[:3], "each is asked about when its turn comes"
    rig.check(fanout)


def test_refusals_may_reach_the_error_limit(rig: Rig) -> None:
    nodes = rig.hosts(3)
    rig.feature.refused = dict.fromkeys(nodes[:2], "no")
    fanout = rig.start(nodes, max_errors=2)
    assert rig.states(fanout) == ["failed", "failed", "cancelled"]
    assert rig.check(fanout).state == DONE


def test_who_lost_the_right_meanwhile_reaches_no_further_host(rig: Rig) -> None:
    nodes = rig.hosts(3)
    user_id = rig.do(lambda: make_user("oscar", "operator").id)
    fanout = rig.start(nodes, Actor("user", user_id, "oscar", Role.OPERATOR), max_parallel=1)
    rig.do(lambda: db.session().execute(User.__table__.update().values(role="viewer")))
    rig.run(nodes[0])
    assert rig.states(fanout) == ["success", "failed", "failed"]
    assert rig.target(fanout, nodes[1]).error == "oscar may no longer do this"
    assert rig.check(fanout).state == DONE


# Retries


def test_a_failure_is_tried_again_after_the_interval_and_only_so_often(rig: Rig, clock: Clock) -> None:
    node = rig.hosts(1)[0]
    fanout = rig.start([node], retries=2, retry_interval_s=60)
    for attempt in (1, 2):
        rig.run(node, states.FAILED)
        assert rig.states(fanout) == ["retrying"]
        assert rig.sweep() == []
        clock.advance(seconds=61)
        assert rig.sweep() == [fanout]
        assert rig.states(fanout) == ["issued"]
        assert rig.check(fanout).failed == 0
        assert len(rig.commands()) == attempt + 1
    rig.run(node, states.FAILED)
    assert (rig.check(fanout).status, rig.states(fanout)) == ("failed", ["failed"])


def test_without_an_interval_it_is_tried_again_at_once(rig: Rig) -> None:
    node = rig.hosts(1)[0]
    fanout = rig.start([node], retries=1, retry_interval_s=0)
    rig.run(node, states.TIMED_OUT)
    assert rig.run(node) == 1
    assert rig.check(fanout).status == "success"


@pytest.mark.parametrize("status", [states.INTERRUPTED, states.CANCELLED, states.EXPIRED])
def test_what_died_was_cancelled_or_came_too_late_is_never_tried_again(rig: Rig, status: str) -> None:
    node = rig.hosts(1)[0]
    fanout = rig.start([node], retries=3, retry_interval_s=0)
    order = rig.fetch(node)[0]
    assert rig.end(node, order.id, status)
    assert rig.check(fanout).state == DONE
    assert len(rig.commands()) == 1


def test_while_it_waits_to_be_tried_again_its_place_is_free(rig: Rig, clock: Clock) -> None:
    nodes = rig.hosts(2)
    fanout = rig.start(nodes, max_parallel=1, retries=1)
    rig.run(nodes[0], states.FAILED)
    assert rig.states(fanout) == ["retrying", "issued"]
    clock.advance(seconds=61)
    rig.sweep()
    assert rig.states(fanout) == ["waiting", "issued"]
    rig.run(nodes[1])
    assert rig.states(fanout) == ["issued", "success"]
    rig.check(fanout)


def test_cancelling_while_it_waits_to_be_tried_again_leaves_it_failed(rig: Rig) -> None:
    node = rig.hosts(1)[0]
    fanout = rig.start([node], retries=1)
    rig.run(node, states.FAILED)
    rig.act(fanouts.cancel_fanout, fanout)
    target = rig.target(fanout, node)
    assert (target.state, target.error_code) == ("failed", "task_failed")
    rig.check(fanout)


def test_only_the_failed_ones_once_more(rig: Rig) -> None:
    nodes = rig.hosts(4)
    first = rig.start([NewTarget(node, payload={"n": node}) for node in nodes], max_errors="100%")
    for node, status in zip(nodes, (states.SUCCEEDED, states.FAILED, states.INTERRUPTED, states.FAILED), strict=True):
        rig.run(node, status)
    rig.set_node(nodes[3], status=REVOKED)
    again = rig.act(fanouts.retry_failed, first)
    assert rig.fanout(again).repeats_id == first
    assert rig.fanout(again).total == 2
    assert [rig.fetch(node)[0].payload for node in nodes[1:3]] == [f'{{"n":{node}}}' for node in nodes[1:3]]
    assert rig.fetch(nodes[0]) == []


def test_there_is_nothing_to_try_again_when_nothing_failed(rig: Rig) -> None:
    node = rig.hosts(1)[0]
    fanout = rig.start([node])
    rig.run(node)
    with pytest.raises(Conflict):
        rig.act(fanouts.retry_failed, fanout)


# Hosts that are away


def test_a_host_that_is_away_takes_no_place_and_gets_its_command_when_it_comes_back(rig: Rig) -> None:
    nodes = rig.hosts(3)
    rig.set_node(nodes[0], status=OFFLINE)
    fanout = rig.start(nodes, max_parallel=1)
    assert rig.states(fanout) == ["parked", "issued", "waiting"]
    assert rig.sweep() == []
    rig.set_node(nodes[0], status="online")
    assert rig.sweep() == [fanout]
    assert rig.states(fanout) == ["waiting", "issued", "waiting"], "the window is full"
    rig.run(nodes[1])
    assert rig.states(fanout) == ["issued", "success", "waiting"], "its turn came before the third one's"
    rig.check(fanout)


def test_a_host_that_comes_back_too_late_has_expired(rig: Rig, clock: Clock) -> None:
    nodes = rig.hosts(2)
    rig.set_node(nodes[0], status=OFFLINE)
    fanout = rig.start(nodes, deliver_within_s=100)
    rig.run(nodes[1])
    clock.advance(seconds=101)
    rig.set_node(nodes[0], status="online")
    rig.sweep()
    target = rig.target(fanout, nodes[0])
    assert (target.state, target.error_code, target.attempt) == ("expired", "not_delivered", 0)
    assert rig.check(fanout).status == "partial"


def test_maintenance_is_waited_for_unless_the_plan_says_otherwise(rig: Rig, clock: Clock) -> None:
    node = rig.hosts(1, maintenance_until=now() + timedelta(seconds=50))[0]
    waits, goes = rig.start([node]), rig.start([node], waits_for_maintenance=False)
    assert (rig.states(waits), rig.states(goes)) == (["parked"], ["issued"])
    clock.advance(seconds=51)
    rig.sweep()
    assert rig.states(waits) == ["issued"]


def test_a_host_that_went_away_before_it_fetched_gives_its_place_to_another(rig: Rig) -> None:
    nodes = rig.hosts(3)
    fanout = rig.start(nodes, max_parallel=1)
    rig.set_node(nodes[0], status=OFFLINE)
    assert rig.sweep() == [fanout]
    assert rig.states(fanout) == ["parked", "issued", "waiting"]
    rig.check(fanout)
    rig.set_node(nodes[0], status="online")
    assert rig.fetch(nodes[0]) == [], "its command was taken back"
    for node in (nodes[1], nodes[0], nodes[2]):
        rig.sweep()
        assert rig.run(node) == 1
    assert rig.check(fanout).status == "success"


def test_with_room_for_all_a_command_stays_where_its_host_will_look_for_it(rig: Rig) -> None:
    nodes = rig.hosts(2)
    rig.start(nodes)
    rig.set_node(nodes[0], status=OFFLINE)
    assert rig.sweep() == []
    assert len(rig.fetch(nodes[0])) == 1


def test_a_deleted_and_a_revoked_host_hold_nothing_up(rig: Rig) -> None:
    nodes = rig.hosts(6)
    rig.set_node(nodes[4], status=OFFLINE)
    fanout = rig.start([nodes[4], *nodes[:4], nodes[5]], max_parallel=3)
    order = rig.fetch(nodes[1])[0]
    rig.report(nodes[1], Start(order.id, "start", now_text(), 1))
    rig.fetch(nodes[2])
    rig.set_node(nodes[2], status=REVOKED)
    gone = [nodes[0], nodes[1], nodes[4], nodes[5]]
    rig.do(lambda: db.session().execute(delete(Node).where(Node.id.in_(gone))))
    rig.sweep()
    assert rig.states(fanout) == ["expired", "expired", "interrupted", "expired", "issued", "expired"]
    rig.run(nodes[3])
    assert rig.fanout(fanout).state == DONE


# Silence, and words that come late


def test_a_command_that_nobody_fetched_expires_on_time(rig: Rig, clock: Clock) -> None:
    node = rig.hosts(1)[0]
    fanout = rig.start([node], deliver_within_s=100)
    clock.advance(seconds=101)
    assert rig.fetch(node) == []
    rig.sweep()
    assert (rig.states(fanout), rig.commands()[0].state) == (["expired"], states.EXPIRED)
    rig.check(fanout)


def silent(rig: Rig, clock: Clock, *, started: bool) -> tuple[int, int, str]:
    node = rig.hosts(1)[0]
    fanout = rig.start([node], deliver_within_s=100, run_within_s=1000, retries=3)
    order = rig.fetch(node)[0]
    rig.report(node, Accept(order.id, "accept", now_text()))
    if started:
        rig.report(node, Start(order.id, "start", now_text(), 1))
    clock.advance(seconds=(1000 if started else 100) + 30)
    rig.sweep()
    assert rig.is_open(fanout), "it may still be on its way"
    clock.advance(seconds=31)
    return fanout, node, order.id


@pytest.mark.parametrize(
    ("started", "state", "code"), [(False, "expired", "not_delivered"), (True, "timeout", "task_timeout")]
)
def test_silence_counts_as_failure_and_is_not_tried_again(
    rig: Rig, clock: Clock, started: bool, state: str, code: str
) -> None:
    fanout, node, _uuid = silent(rig, clock, started=started)
    rig.sweep()
    target = rig.target(fanout, node)
    assert (target.state, target.error_code, target.is_presumed) == (state, code, True)
    assert rig.check(fanout).status == "failed"


@pytest.mark.parametrize("started", [False, True])
def test_a_host_s_own_late_word_corrects_what_was_presumed_of_it(rig: Rig, clock: Clock, started: bool) -> None:
    fanout, node, uuid = silent(rig, clock, started=started)
    rig.sweep()
    assert rig.report(node, Start(uuid, "start", now_text(), 1)) == [True]
    assert rig.end(node, uuid)
    corrected = rig.check(fanout)
    assert (corrected.status, corrected.success, corrected.failed) == ("success", 1, 0)
    assert [told.state for told in rig.feature.settled][-1] == "success"
    assert rig.feature.ended == [fanout], "it ended once"
    assert rig.end(node, uuid), "told again"
    assert rig.check(fanout).success == 1


def test_nobody_is_silent_while_we_could_not_be_reached(rig: Rig, clock: Clock) -> None:
    fanout, _node, _uuid = silent(rig, clock, started=True)
    rig.sweep(heard_for_s=10)
    assert rig.is_open(fanout)
    rig.sweep(heard_for_s=61)
    assert not rig.is_open(fanout)


def test_the_deadline_of_the_whole_ends_what_has_not_begun(rig: Rig, clock: Clock) -> None:
    nodes = rig.hosts(4)
    rig.set_node(nodes[0], status=OFFLINE)
    fanout = rig.start(nodes, max_parallel=2, deadline_s=50, deliver_within_s=10_000)
    order = rig.fetch(nodes[1])[0]
    clock.advance(seconds=51)
    assert rig.sweep() == [fanout]
    assert rig.states(fanout) == ["expired", "issued", "expired", "expired"]
    assert rig.end(nodes[1], order.id)
    done = rig.check(fanout)
    assert (done.state, done.stopped_by, done.status) == (DONE, "deadline", "partial")


# Reports


def test_output_goes_to_the_feature_that_keeps_it_and_nowhere_else(rig: Rig) -> None:
    node = rig.hosts(1)[0]
    rig.start([node])
    rig.start([node], kind="test.silent")
    loud, quiet = sorted(rig.fetch(node), key=lambda order: order.kind != KIND)
    piece = Output(loud.id, "output", 0, "stdout", 0, b"hello", False)
    assert rig.report(node, piece, piece, piece._replace(command=quiet.id)) == [True, True, False]
    assert rig.end(node, loud.id)
    assert rig.report(node, piece) == [True], "late, or told again"
    assert rig.feature.outputs == [b"hello"] * 3


def test_output_of_what_was_never_handed_out_is_refused(rig: Rig) -> None:
    node = rig.hosts(1)[0]
    rig.start([node])
    uuid = rig.commands()[0].uuid
    assert rig.report(node, Output(uuid, "output", 0, "stdout", 0, b"x", False)) == [False]


def test_a_result_told_twice_counts_once(rig: Rig) -> None:
    nodes = rig.hosts(3)
    fanout = rig.start(nodes, max_parallel=1)
    order = rig.fetch(nodes[0])[0]
    assert [rig.end(nodes[0], order.id) for _ in range(3)] == [True, True, True]
    assert not rig.end(nodes[0], order.id, states.FAILED)
    assert len(rig.feature.results) == 1
    assert rig.states(fanout) == ["success", "issued", "waiting"]
    rig.check(fanout)


def test_what_the_host_says_of_its_run_is_kept(rig: Rig) -> None:
    node = rig.hosts(1)[0]
    fanout = rig.start([node])
    order = rig.fetch(node)[0]
    rig.end(node, order.id, states.FAILED, exit_code=3, error="it said no", truncated=True, user="www")
    command, target = rig.commands()[0], rig.target(fanout, node)
    assert (command.exit_code, command.run_as, command.is_truncated, command.stdout_bytes) == (3, "www", True, 3)
    assert (target.error, target.error_code) == ("it said no", "task_failed")


# Payloads that features complete


def test_a_secret_is_put_in_at_delivery_and_is_in_no_table(rig: Rig) -> None:
    node = rig.hosts(1)[0]
    rig.start([node], kind="test.secret", payload={"a": 1})
    assert rig.fetch(node)[0].payload == '{"a":1,"secret":"opened"}'
    with rig.app.app_context():
        kept = db.session().scalars(select(Fanout.payload)).all()
    assert kept == ['{"a":1}']


def test_what_cannot_be_said_to_the_host_has_failed(rig: Rig) -> None:
    nodes = rig.hosts(2)
    fanout = rig.start(
        [NewTarget(nodes[0], payload={"broken": True}), NewTarget(nodes[1])], kind="test.secret", max_parallel=1
    )
    assert rig.fetch(nodes[0]) == []
    target = rig.target(fanout, nodes[0])
    assert (target.state, target.error) == ("failed", "the secret is gone")
    assert rig.states(fanout) == ["failed", "issued"]
    rig.check(fanout)


def test_what_is_stopped_by_such_a_failure_is_not_handed_out_beside_it(rig: Rig) -> None:
    node = rig.hosts(1)[0]
    targets = [NewTarget(node, "a", {"broken": True}), NewTarget(node, "b"), NewTarget(node, "c")]
    fanout = rig.start(targets, kind="test.secret", max_errors=1)
    assert rig.fetch(node) == []
    assert rig.states(fanout) == ["failed", "cancelled", "cancelled"]
    rig.check(fanout)


def test_one_answer_holds_no_more_than_a_host_can_read(rig: Rig) -> None:
    node = rig.hosts(1)[0]
    for _ in range(8):
        rig.start([node], payload={"much": '"' * 100_000})
    found = [len(rig.fetch(node)) for _ in range(8)]
    assert sum(found) == 8
    assert max(found) < 8


# Counting targets is the database's word, not ours


def test_the_database_itself_refuses_a_second_command_for_the_same_attempt(rig: Rig) -> None:
    node = rig.hosts(1)[0]
    fanout = rig.start([node])
    target = rig.target(fanout, node)
    again = Command(
        uuid="x" * 36, node_id=node, target_id=target.id, attempt=1, kind=KIND, payload=None, not_after=now()
    )
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        rig.do(lambda: db.session().add(again))
    with rig.app.app_context():
        assert db.session().scalar(select(func.count()).select_from(Target)) == 1


def test_an_error_in_a_feature_undoes_the_whole_step(
    rig: Rig, feature: Feature, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = rig.hosts(2)
    fanout = rig.start(nodes, max_parallel=1)
    order = rig.fetch(nodes[0])[0]

    def fail(*_given: object) -> None:
        raise AppError("no")

    monkeypatch.setitem(rig.app.extensions, "command_hooks", feature.hooks(results={KIND: fail}))
    with pytest.raises(AppError):
        rig.end(nodes[0], order.id)
    assert rig.states(fanout) == ["issued", "waiting"]
    rig.check(fanout)
    monkeypatch.setitem(rig.app.extensions, "command_hooks", feature.hooks())
    assert rig.end(nodes[0], order.id)
    assert rig.states(fanout) == ["success", "issued"]


# Forgetting


def test_what_ended_long_ago_is_forgotten_and_nothing_else(rig: Rig, clock: Clock) -> None:
    nodes = rig.hosts(3)
    old = rig.start(nodes)
    for node in nodes:
        rig.run(node)
    rig.do(lambda: actions.issue(db.session(), SYSTEM, nodes[0], "ping", {}, timedelta(seconds=5)))
    rig.end(nodes[0], rig.fetch(nodes[0])[0].id)
    clock.advance(days=10)
    young, still_open = rig.start(nodes[:1]), rig.start(nodes[:1])
    order, _other = rig.fetch(nodes[0])
    at = to_text(clock().timestamp())
    rig.end(nodes[0], order.id, started_at=at, finished_at=at)
    before = clock() - timedelta(days=5)
    while rig.do(lambda: actions.forget_old(db.session(), before, most=2)):
        pass
    with rig.app.app_context():
        assert list(db.session().scalars(select(Fanout.id).order_by(Fanout.id))) == [young, still_open]
        assert old not in db.session().scalars(select(Target.fanout_id)).all()
    assert len(rig.commands()) == 2
