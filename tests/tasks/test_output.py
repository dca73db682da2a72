"""What hosts write: taken whatever a host says, read by offset and in order of arrival, held until there is some."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from flask import Flask
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import event, func, insert, select

from app.kernel import holding
from app.kernel.db import db
from app.nodes.models import OFFLINE
from app.tasks import following, taking
from app.tasks.models import TaskOutput
from protocol import states
from protocol.commands import Accept, Output, Start
from tests.commands.rig import Clock, Rig, now_text, result
from tests.factories import Api
from tests.services import wait_for
from tests.tasks.test_tasks_api import made, shown, started, wrong_fields


@dataclass
class Run:
    """A run with its hosts, played by the test."""

    rig: Rig
    api: Api
    id: str
    nodes: list[int]
    orders: list[str]

    def write(self, host: int, seq: int, offset: int, data: bytes, stream: str = "stdout", cut: bool = False) -> None:
        report = Output(self.orders[host], "output", seq, stream, offset, data, cut)
        assert self.rig.report(self.nodes[host], report) == [True]

    def record(self, host: int) -> int:
        records = shown(self.api, f"/executions/{self.id}")["records"]
        return int(next(row["id"] for row in records if row["node_id"] == self.nodes[host]))

    def output(self, host: int, query: str = "") -> dict[str, Any]:
        found: dict[str, Any] = shown(self.api, f"/executions/{self.id}/records/{self.record(host)}/output?{query}")
        return found

    def all(self, query: str = "") -> dict[str, Any]:
        found: dict[str, Any] = shown(self.api, f"/executions/{self.id}/output?{query}")
        return found

    def stored(self) -> list[bytes]:
        with self.rig.app.app_context():
            return list(db.session().scalars(select(TaskOutput.data).order_by(TaskOutput.offset, TaskOutput.id)))


@pytest.fixture
def begin(rig: Rig, cast: dict[str, Api]) -> Callable[..., Run]:
    def make(hosts: int = 1, **values: Any) -> Run:
        nodes = rig.hosts(hosts)
        run = started(cast["oscar"], made(cast["oscar"], **values)["id"])
        orders = [rig.fetch(node)[0].id for node in nodes]
        for node, order in zip(nodes, orders, strict=True):
            assert rig.report(node, Accept(order, "accept", now_text()), Start(order, "start", now_text(), 1))
        return Run(rig, cast["vera"], run, nodes, orders)

    return make


# Taken


def test_pieces_out_of_order_are_put_in_order(begin: Callable[..., Run]) -> None:
    run = begin()
    run.write(0, 2, 10, b"third")
    run.write(0, 0, 0, b"first")
    early = run.output(0)
    assert (early["data"], early["is_complete"]) == ("first", False), "what lies between is still to come"
    run.write(0, 1, 5, b"-two-")
    run.rig.end(run.nodes[0], run.orders[0])
    found = run.output(0)
    assert (found["data"], found["next_offset"], found["truncated"], found["is_complete"]) == (
        "first-two-third", 15, False, True,
    )  # fmt: skip


def test_repeated_and_overlapping_pieces_change_nothing(begin: Callable[..., Run]) -> None:
    run = begin()
    run.write(0, 0, 0, b"0123456789")
    run.write(0, 3, 20, b"abc")
    for seq, (offset, data) in enumerate(
        [(0, b"0123456789"), (0, b"again"), (9, b"x"), (5, b"0" * 40), (15, b"reaches"), (22, b"c")], 10
    ):
        run.write(0, seq, offset, data)
    run.write(0, 0, 50, b"the same number again")
    assert run.stored() == [b"0123456789", b"abc"]
    run.write(0, 4, 10, b"fits there")
    assert b"".join(run.stored()) == b"0123456789fits thereabc"


def test_the_end_of_too_much_is_kept_and_the_gap_is_told(
    begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As our own agent does it: the beginning, an empty piece that marks the cut, the end at its true offset."""
    monkeypatch.setattr(taking, "OUTPUT_BYTES", 100)
    monkeypatch.setattr(taking, "TAIL_BYTES", 20)
    run = begin()
    run.write(0, 0, 0, b"beginning")
    run.write(0, 1, 9, b"", cut=True)
    assert run.output(0)["truncated"]
    run.write(0, 2, 1_000_000_000, b"the end")
    run.rig.report(run.nodes[0], result(run.orders[0], truncated=True, stdout_bytes=1_000_000_007))
    first = run.output(0)
    assert (first["data"], first["skipped"], first["truncated"], first["is_complete"]) == (
        "beginning", 999_999_991, True, False,
    )  # fmt: skip
    second = run.output(0, f"offset={first['next_offset']}")
    assert (second["data"], second["skipped"], second["is_complete"]) == ("the end", 0, True)
    assert second["next_offset"] == 1_000_000_007


def test_a_host_that_sends_all_of_too_much_fills_no_table(
    begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "OUTPUT_BYTES", 100)
    monkeypatch.setattr(taking, "TAIL_BYTES", 20)
    run = begin()
    for seq in range(100):
        run.write(0, seq, 7 * seq, b"%06d\n" % seq)
    kept = b"".join(run.stored())
    assert len(kept) <= 120
    assert kept.startswith(b"000000\n000001\n")
    assert kept.endswith(b"000098\n000099\n")
    run.write(0, 200, 5000, b"x" * 50 + b"y" * 20)
    assert b"".join(run.stored()).endswith(b"y" * 20)
    assert len(b"".join(run.stored())) <= 120
    run.rig.end(run.nodes[0], run.orders[0])
    offset, seen = 0, ""
    for _ in range(10):
        found = run.output(0, f"offset={offset}")
        seen, offset = seen + found["data"] + ("…" if found["skipped"] else ""), found["next_offset"]
        if found["is_complete"]:
            break
    assert found["is_complete"]
    assert seen == "".join(f"{number:06}\n" for number in range(14)) + "00…" + "y" * 20


def test_a_flood_of_small_pieces_ends_at_a_bound(begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "MOST_PIECES", 5)
    run = begin()
    for seq in range(20):
        run.write(0, seq, seq, b"x")
    assert run.stored() == [b"x"] * 5
    assert run.output(0)["truncated"]


def test_output_of_another_host_s_command_is_refused(begin: Callable[..., Run]) -> None:
    run = begin(hosts=2)
    forged = Output(run.orders[0], "output", 0, "stdout", 0, b"forged", False)
    assert run.rig.report(run.nodes[1], forged) == [False]
    assert run.rig.report(run.nodes[1], result(run.orders[0])) == [False]
    assert run.rig.report(run.nodes[1], Start(run.orders[0], "start", now_text(), 1)) == [False]
    assert (run.stored(), shown(run.api, f"/executions/{run.id}")["success"]) == ([], 0)


def test_what_comes_long_after_the_end_is_too_late(begin: Callable[..., Run], clock: Clock) -> None:
    run = begin()
    run.rig.end(run.nodes[0], run.orders[0])
    run.write(0, 0, 0, b"a little late")
    clock.advance(minutes=11)
    run.write(0, 1, 13, b"much too late")
    assert run.stored() == [b"a little late"]


# Attempts


def test_each_attempt_has_its_own_output(begin: Callable[..., Run]) -> None:
    run = begin(retry_count=1, retry_interval=0)
    run.write(0, 0, 0, b"first try")
    run.rig.end(run.nodes[0], run.orders[0], states.FAILED)
    again = run.rig.fetch(run.nodes[0])[0].id
    run.rig.report(run.nodes[0], Output(again, "output", 0, "stdout", 0, b"second", False))
    now = run.output(0)
    assert (now["data"], now["attempt"], now["attempts"], now["is_complete"]) == ("second", 2, 2, False)
    earlier = run.output(0, "attempt=1")
    assert (earlier["data"], earlier["attempt"], earlier["is_complete"]) == ("first try", 1, True)
    assert [(item["attempt"], item["data"]) for item in run.all()["items"]] == [(1, "first try"), (2, "second")]


# A whole run


def test_pieces_of_all_hosts_come_in_the_order_of_their_arrival(begin: Callable[..., Run]) -> None:
    run = begin(hosts=3)
    run.write(1, 0, 0, b"one\n")
    run.write(0, 0, 0, b"two\n", "stderr")
    run.write(1, 1, 4, b"three\n", cut=True)
    first = run.all()
    assert [(item["node_id"], item["stream"], item["data"], item["cut"]) for item in first["items"]] == [
        (run.nodes[1], "stdout", "one\n", False),
        (run.nodes[0], "stderr", "two\n", False),
        (run.nodes[1], "stdout", "three\n", True),
    ]
    assert (first["has_more"], first["is_complete"], first["running"]) == (False, False, 3)
    run.write(2, 0, 0, b"four\n")
    second = run.all(f"after={first['after']}")
    assert [item["hostname"] for item in second["items"]] == ["host-00002"]
    assert [item["data"] for item in run.all(f"record_id={run.record(1)}")["items"]] == ["one\n", "three\n"]
    newest = run.all("newest=2")
    assert [item["data"] for item in newest["items"]] == ["three\n", "four\n"]
    assert newest["skipped"]
    assert not first["skipped"]
    for node, order in zip(run.nodes, run.orders, strict=True):
        run.rig.end(node, order)
    last = run.all(f"after={second['after']}")
    assert (last["items"], last["is_complete"], last["status"], last["success"]) == ([], True, "success", 3)


def test_other_runs_stay_out_of_it(begin: Callable[..., Run]) -> None:
    one, other = begin(), begin()
    one.write(0, 0, 0, b"mine")
    other.write(0, 0, 0, b"not mine")
    assert [item["data"] for item in one.all()["items"]] == ["mine"]


def test_a_character_in_two_pieces_is_shown_whole(begin: Callable[..., Run]) -> None:
    run, euro = begin(), "€".encode()
    run.write(0, 0, 0, b"a" + euro[:1])
    first = run.all()
    assert [item["data"] for item in first["items"]] == ["a"]
    run.write(0, 1, 2, euro[1:] + b"b")
    assert [item["data"] for item in run.all(f"after={first['after']}")["items"]] == ["€b"]
    assert [item["data"] for item in run.all()["items"]] == ["a", "€b"]


def test_much_of_it_comes_in_parts(begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PIECES_AT_ONCE", 4)
    run, seen, after = begin(), [], ""
    for seq in range(10):
        run.write(0, seq, seq, b"%d" % seq)
    for _ in range(4):
        found = run.all(f"after={after}")
        seen, after = seen + [item["data"] for item in found["items"]], found["after"]
        if not found["has_more"]:
            break
    assert "".join(seen) == "0123456789"


@pytest.mark.mariadb
@pytest.mark.parametrize("app", ["mariadb"], indirect=True)
def test_what_is_committed_later_than_what_follows_it_is_not_lost(begin: Callable[..., Run]) -> None:
    """Numbers are given out before the commit, and two gateways do not commit in the order of their numbers."""
    run = begin(hosts=2)
    run.write(1, 0, 0, b"before")
    after = run.all()["after"]
    with run.rig.app.app_context():
        slow = db.engine.connect()
        with slow.begin() as transaction:
            row = dict(slow.execute(select(TaskOutput.__table__)).mappings().one())
            del row["id"]
            more = {"seq": 1, "offset": 6, "size": 4, "data": b"slow"}
            slow.execute(insert(TaskOutput.__table__).values(row | more))
            run.write(0, 0, 0, b"quick")
            quick = run.all(f"after={after}")
            assert [item["data"] for item in quick["items"]] == ["quick"]
            transaction.commit()
        slow.close()
    late = run.all(f"after={quick['after']}")
    assert [item["data"] for item in late["items"]] == ["slow"]
    assert run.all(f"after={late['after']}")["items"] == []


@pytest.mark.parametrize("after", ["x", "1~", "1~2", "1~2.x", "-1", "1" * 30])
def test_a_cursor_that_nobody_gave(begin: Callable[..., Run], after: str) -> None:
    run = begin()
    assert wrong_fields(run.api.get(f"/executions/{run.id}/output?after={after}")) == ["after"]


# Held


class Held(threading.Thread):
    """A request that waits, and how long it did."""

    def __init__(self, ask: Callable[[], dict[str, Any]]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.found: dict[str, Any] = {}
        self.ended_at = 0.0
        self.start()

    def run(self) -> None:
        self.found = self._ask()
        self.ended_at = time.monotonic()

    def ended(self) -> dict[str, Any]:
        self.join(30)
        assert not self.is_alive()
        return self.found


@contextmanager
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """Counts requests that have looked and now wait."""
    seen, real = threading.Semaphore(0), holding._is_told

    def told(channel: Any, most_s: float) -> bool:
        seen.release()
        return real(channel, most_s)

    monkeypatch.setattr(holding, "_is_told", told)
    yield seen


def test_a_held_request_is_woken_by_what_comes(begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "LOOK_S", 25.0)  # so that only the message can have woken it
    run = begin()
    with waiting(monkeypatch) as seen:
        one, all_ = Held(lambda: run.output(0, "wait_s=20")), Held(lambda: run.all("wait_s=20"))
        assert seen.acquire(timeout=20)
        assert seen.acquire(timeout=20)
        written_at = time.monotonic()
        run.write(0, 0, 0, b"news")
        assert one.ended()["data"] == "news"
        assert [item["data"] for item in all_.ended()["items"]] == ["news"]
        assert max(one.ended_at, all_.ended_at) - written_at < 10


def test_a_held_request_ends_with_its_record(begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "LOOK_S", 25.0)
    run = begin(hosts=2)
    with waiting(monkeypatch) as seen:
        one, all_ = Held(lambda: run.output(0, "wait_s=20")), Held(lambda: run.all("wait_s=20"))
        assert seen.acquire(timeout=20)
        assert seen.acquire(timeout=20)
        ended_at = time.monotonic()
        run.rig.end(run.nodes[0], run.orders[0])
        assert one.ended()["is_complete"]
        found = all_.ended()
        assert max(one.ended_at, all_.ended_at) - ended_at < 10
        assert (found["items"], found["is_complete"], found["success"]) == ([], False, 1)


def test_without_redis_it_is_looked_each_second(begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin()

    def away(*_given: Any, **_named: Any) -> None:
        raise RedisConnectionError

    monkeypatch.setattr("redis.client.PubSub.subscribe", away)
    with waiting(monkeypatch) as seen:
        held = Held(lambda: run.output(0, "wait_s=20"))
        assert seen.acquire(timeout=20)
        run.write(0, 0, 0, b"news")
        assert held.ended()["data"] == "news"


def test_a_held_request_that_hears_nothing_ends_in_time(begin: Callable[..., Run]) -> None:
    run, began = begin(), time.monotonic()
    assert run.output(0, "wait_s=1")["data"] == ""
    assert 1 <= time.monotonic() - began < 15
    assert wrong_fields(run.api.get(f"/executions/{run.id}/output?wait_s=51")) == ["wait_s"]


def test_a_held_request_owns_no_connection(begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin()
    with run.rig.app.app_context():
        engine = db.engine
    taken = set[int]()
    for name, change in (("checkout", taken.add), ("checkin", taken.discard)):
        event.listen(engine, name, lambda dbapi, *_rest, change=change: change(id(dbapi)))
    with waiting(monkeypatch) as seen:
        held = [Held(lambda: run.all("wait_s=30")) for _ in range(5)]
        for _ in held:
            assert seen.acquire(timeout=20)
        wait_for(lambda: not taken, 10, "no connection is taken while requests wait")
        assert all(one.is_alive() for one in held)
        run.write(0, 0, 0, b"enough")
        for one in held:
            one.ended()


def test_there_is_a_bound_to_held_requests(begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_places", threading.BoundedSemaphore(1))
    run = begin()
    with waiting(monkeypatch) as seen:
        first = Held(lambda: run.all("wait_s=10"))
        assert seen.acquire(timeout=20)
        refused = run.api.get(f"/executions/{run.id}/output?wait_s=10")
        assert (refused.status_code, "Retry-After" in refused.headers) == (429, True)
        run.write(0, 0, 0, b"x")
        first.ended()
    assert run.all("wait_s=10")["items"], "its place is free again"


def test_one_person_does_not_hold_all_places(
    begin: Callable[..., Run], cast: dict[str, Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "MOST_OF_ONE", 1)
    run = begin()
    with waiting(monkeypatch) as seen:
        first = Held(lambda: run.all("wait_s=10"))
        assert seen.acquire(timeout=20)
        assert run.api.get(f"/executions/{run.id}/output?wait_s=10").status_code == 429
        another = Held(lambda: shown(cast["oscar"], f"/executions/{run.id}/output?wait_s=10"))
        assert seen.acquire(timeout=20)
        run.write(0, 0, 0, b"x")
        assert first.ended()["items"]
        assert another.ended()["items"]
    assert not holding._taken


def test_records_that_wait_are_held_too(rig: Rig, cast: dict[str, Api], monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = rig.hosts(1, status=OFFLINE)
    run = started(cast["oscar"], made(cast["oscar"])["id"])
    record = shown(cast["vera"], f"/executions/{run}")["records"][0]["id"]
    found = shown(cast["vera"], f"/executions/{run}/records/{record}/output?wait_s=1")
    assert (found["data"], found["is_complete"], found["status"], found["attempts"]) == ("", False, "pending", 0)
    assert rig.fetch(nodes[0]) == []
    assert cast["vera"].get(f"/executions/{run}/records/999999/output").json["code"] == 1004
    assert cast["vera"].get("/executions/6f1c1a52-0000-4000-8000-000000000000/output").json["code"] == 1004


@pytest.mark.parametrize("offset", [2**53 + 1, 2**63 - 3, 2**63 - 1])
def test_no_offset_is_beyond_what_can_be_added_to(begin: Callable[..., Run], offset: int) -> None:
    """One host's nonsense would else spoil what is shown of all the others."""
    run = begin(hosts=2)
    run.write(0, 0, offset, b"\x80far away")
    run.write(1, 0, 0, b"near")
    assert [item["data"] for item in run.all()["items"]] == ["near"]
    assert run.output(0)["data"] == ""


def test_one_question_is_asked_for_a_piece(begin: Callable[..., Run], app: Flask) -> None:
    """Output of a thousand hosts arrives at once: each piece costs its lock, one look, its row and the commit."""
    run = begin()
    run.write(0, 0, 0, b"x")
    with app.app_context():
        engine = db.engine
        statements: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda _c, _k, statement, *_r: statements.append(statement))
    run.write(0, 1, 1, b"y")
    with app.app_context():
        assert db.session().scalar(select(func.count()).select_from(TaskOutput)) == 2
    assert len([one for one in statements if "task_outputs" in one and "count(" not in one]) == 2
