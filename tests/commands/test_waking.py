"""Many hosts that are woken together: told in slices, let go a few at a time, and nobody is forgotten."""

import json

from app.kernel.context import ops
from app.kernel.db import db, in_transaction
from app.kernel.wake import CHANNEL, COMMAND, NODES_IN_MESSAGE, REVOKED, wake_after_commit
from app.link.waiting import ANSWERED_AT_ONCE, Waiters
from tests.commands.rig import Rig

MANY = 3 * ANSWERED_AT_ONCE


def test_a_large_fleet_is_told_in_slices_after_the_commit(rig: Rig) -> None:
    count = 2 * NODES_IN_MESSAGE + 7
    with rig.app.app_context():
        channel = ops().redis.pubsub(ignore_subscribe_messages=True)
        channel.subscribe(CHANNEL)
        channel.get_message(timeout=1)
        session = db.session()
        in_transaction(session, lambda: [wake_after_commit(session, node, COMMAND) for node in range(count)])
        found = [json.loads(channel.get_message(timeout=2)["data"])["nodes"] for _ in range(3)]
        channel.close()
    assert [len(nodes) for nodes in found] == [NODES_IN_MESSAGE, NODES_IN_MESSAGE, 7]
    assert sorted(node for nodes in found for node in nodes) == list(range(count))


def test_a_few_hosts_are_woken_at_once() -> None:
    waiters = Waiters()
    held = [waiters.enter(node, "i") for node in range(ANSWERED_AT_ONCE)]
    waiters.wake(range(MANY), COMMAND)
    assert all(waiter.signal.is_set() for waiter in held)
    assert not waiters.has_backlog.is_set()


def test_many_hosts_are_woken_as_fast_as_they_are_answered() -> None:
    waiters = Waiters()
    held = [waiters.enter(node, "i") for node in range(MANY)]

    def awake() -> int:
        return sum(waiter.signal.is_set() for waiter in held)

    for _twice in range(2):
        waiters.wake(range(MANY), COMMAND)
        waiters.wake_some()
        assert awake() == ANSWERED_AT_ONCE, "the others would only wait for the database"
    for waiter in held[:10]:
        waiters.leave(waiter)
    waiters.wake_some()
    assert awake() == ANSWERED_AT_ONCE + 10
    while waiters.has_backlog.is_set():
        for waiter in held:
            if waiter.signal.is_set():
                waiters.leave(waiter)
        waiters.wake_some()
    assert awake() == MANY


def test_revoked_hosts_wait_for_nobody() -> None:
    waiters = Waiters()
    held = [waiters.enter(node, "i") for node in range(MANY)]
    waiters.wake(range(MANY), REVOKED)
    assert all(waiter.signal.is_set() for waiter in held)


def test_who_left_meanwhile_holds_nobody_up() -> None:
    waiters = Waiters()
    held = [waiters.enter(node, "i") for node in range(MANY)]
    waiters.wake(range(MANY), COMMAND)
    for waiter in held[: MANY - 5]:
        waiters.leave(waiter)
    waiters.wake_some()
    assert [waiter.signal.is_set() for waiter in held[-5:]] == [True] * 5
    assert not waiters.has_backlog.is_set()


def test_it_is_known_when_all_have_been_handed_their_commands() -> None:
    """Reports give way until then."""
    waiters = Waiters()
    held = [waiters.enter(node, "i") for node in range(MANY)]
    assert waiters.has_none.is_set()
    waiters.wake(range(MANY), COMMAND)
    waiters.wake_some()
    assert not waiters.has_none.is_set()
    for _ in range(MANY):
        for waiter in held:
            if waiter.signal.is_set():
                waiters.leave(waiter)
        waiters.wake_some()
    assert waiters.has_none.is_set()
