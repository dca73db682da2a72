"""Short-lived threads: so many at once, so many in turn, none left over; whatever goes wrong ends its command alone."""

import threading
from typing import Any

import pytest

from daemon.commands import Call, Failed
from daemon.errands import Errands
from protocol.errors import ProtocolError
from tests.daemon.processes import wait_for


class Ended:
    def __init__(self) -> None:
        self.results: list[tuple[str, str | None]] = []

    def end(self, call: Call, status: str, code: str | None, words: str | None, data: dict[str, Any] | None) -> None:
        self.results.append((status, code))


def call_for(ended: Ended) -> Call:
    call = Call.__new__(Call)
    call.id, call.kind, call.is_resumed, call.started, call.begun = "c", "test", False, 0.0, 0.0
    call._runner, call._is_over = ended, False  # type: ignore[assignment]
    return call


def threads_of(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def test_so_many_at_once_and_so_many_in_turn() -> None:
    errands, hold, done = Errands("bounded", 2, 3), threading.Event(), list[int]()
    for number in range(5):
        assert errands.start(lambda mine=number: (hold.wait(10), done.append(mine)))  # type: ignore[misc]
    assert not errands.start(lambda: done.append(99))
    assert threads_of("bounded") == 2
    hold.set()
    wait_for(lambda: len(done) == 5, "all of them")
    wait_for(lambda: threads_of("bounded") == 0, "no thread")
    assert errands.start(lambda: done.append(5))
    wait_for(lambda: 5 in done, "one more")


def test_one_that_fails_does_not_take_the_next_along() -> None:
    errands, done = Errands("failing", 1, 5), threading.Event()

    def fail() -> None:
        raise RuntimeError("boom")

    errands.start(fail)
    errands.start(done.set)
    assert done.wait(10)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Failed("forbidden_by_host", "no"), "forbidden_by_host"),
        (ProtocolError("payload.x", "is wrong"), "bad_payload"),
        (ValueError("boom"), "task_failed"),
    ],
)
def test_what_a_command_raises_ends_it(error: Exception, code: str) -> None:
    def work(_: Call) -> None:
        raise error

    ended = Ended()
    Errands("commands", 1, 1).later(work).begin(call_for(ended))
    wait_for(lambda: ended.results, "the end")
    assert ended.results == [("failed", code)]


def test_a_command_ends_once() -> None:
    ended = Ended()
    call = call_for(ended)
    call.succeed({})
    call.fail("task_failed", "late")
    call.succeed({})
    assert ended.results == [("succeeded", None)]


def test_nothing_begins_after_the_stop() -> None:
    errands, begun, done = Errands("stopped", 1, 5), threading.Event(), list[int]()
    errands.start(lambda: (begun.set(), errands.stopping.wait(10))[0])
    errands.start(lambda: done.append(1))
    assert begun.wait(10)
    errands.stop(10)
    ended = Ended()
    errands.later(lambda call: call.succeed({})).begin(call_for(ended))
    assert ended.results == [("failed", "agent_busy")]
    assert (done, threads_of("stopped")) == ([], 0)
