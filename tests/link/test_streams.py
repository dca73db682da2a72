"""Streams: bytes of one host for whoever looks, in order, bounded, gone with Redis, waiting without a database."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from flask import Flask
from redis.exceptions import RedisError
from sqlalchemy import select

from app.commands.actions import issue
from app.kernel import streams
from app.kernel.db import db
from app.kernel.errors import TooManyRequests
from app.kernel.streams import Piece, facts_of, open_stream, read, read_when_there, write
from app.nodes.models import ONLINE, Node
from protocol.times import to_text
from tests.daemon.processes import DaemonProcess, environment
from tests.link.conftest import ADMIN
from tests.link.hosts import Host, Reply
from tests.link.planes import Plane
from tests.link.test_poll import state_of
from tests.services import Redis, wait_for


def post(host: Host, stream: str, data: bytes, offset: int | str = 0, **how: object) -> Reply:
    end = "&end=1" if how.pop("end", False) else ""
    headers = {"Content-Type": "application/octet-stream"} | dict(how.pop("headers", {}))  # type: ignore[call-overload]
    return host.send(f"streams/{stream}?offset={offset}{end}", data, headers=headers, **how)  # type: ignore[arg-type]


@pytest.fixture
def stream(sqlite_app: Flask) -> str:
    with sqlite_app.app_context():
        return open_stream(7)


# ---- the store


def test_bytes_come_out_as_they_went_in(sqlite_app: Flask, stream: str) -> None:
    with sqlite_app.app_context():
        assert write(stream, 7, 0, b"\x00\xff\r\n") == streams.Taken(4, False)
        assert write(stream, 7, 4, "名".encode()) == streams.Taken(7, False)
        piece = read(stream, 0)
        assert (piece.data, piece.start, piece.next, piece.is_closed, piece.is_gone) == (
            b"\x00\xff\r\n\xe5\x90\x8d", 0, 7, False, False,
        )  # fmt: skip
        assert read(stream, 4).data == "名".encode()
        assert read(stream, 7).data == b""
        assert read(stream, 0, 2).data == b"\x00\xff"


def test_repeated_and_overlapping_pieces_are_harmless_and_gaps_are_not_taken(sqlite_app: Flask, stream: str) -> None:
    with sqlite_app.app_context():
        for offset, data, then in [(0, b"abc", 3), (0, b"abc", 3), (1, b"bcde", 5), (9, b"xyz", 5), (5, b"", 5)]:
            taken = write(stream, 7, offset, data)
            assert taken is not None
            assert taken.next == then
        assert read(stream, 0).data == b"abcde"


def test_only_its_node_writes(sqlite_app: Flask, stream: str) -> None:
    with sqlite_app.app_context():
        assert write(stream, 8, 0, b"forged", is_end=True) is None
        assert write("unknown", 7, 0, b"x") is None
        assert write("", 7, 0, b"x") is None
        assert read(stream, 0) == Piece(0, b"")


def test_the_end_counts_only_when_all_before_it_is_there(sqlite_app: Flask, stream: str) -> None:
    with sqlite_app.app_context():
        assert write(stream, 7, 4, b"late", is_end=True) == streams.Taken(0, False)
        write(stream, 7, 0, b"first")
        assert write(stream, 7, 4, b"late", is_end=True) == streams.Taken(8, True)
        assert not read(stream, 0, 3).is_closed
        assert read(stream, 0).is_closed
        assert read(stream, 8).is_over
        assert write(stream, 7, 8, b"more") == streams.Taken(8, True)


def test_of_the_newest_the_old_is_dropped_and_the_reader_sees_where(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        stream = open_stream(7, window=1000)
        for number in range(50):
            write(stream, 7, number * 100, b"%02d" % number * 50)
        piece = read(stream, 0)
        assert piece.next == 5000
        assert 3000 <= piece.start <= 4000
        assert len(piece.data) == 5000 - piece.start
        assert piece.data.startswith(b"%02d" % (piece.start // 100))
        client = sqlite_app.extensions["ops"].redis
        assert client.strlen(f"stream:{stream}:bytes") <= 2000


def test_of_all_nothing_is_lost_and_the_writer_waits(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        stream = open_stream(7, keep="all", window=1000)
        content = bytes(range(256)) * 40
        offset = after = 0
        found, refused = b"", 0
        while after < len(content):
            taken = write(stream, 7, offset, content[offset : offset + 300])
            assert taken is not None
            if taken.next == offset:
                refused += 1
                piece = read(stream, after, 700)
                found, after = found + piece.data, piece.next
            offset = taken.next
            if offset == len(content):
                piece = read(stream, after, 700)
                found, after = found + piece.data, piece.next
        assert found == content
        assert refused > 5
        assert sqlite_app.extensions["ops"].redis.strlen(f"stream:{stream}:bytes") <= 1000


def test_an_id_cannot_be_guessed_and_facts_come_back(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        first, second = open_stream(7, facts={"user": 3}), open_stream(7)
        assert first != second
        assert len(first) == 32
        assert set(first) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
        assert facts_of(first) == {"user": 3, "node_id": 7}
        assert facts_of("nothing") is None


def test_so_many_may_be_open(sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST_OPEN", 3)
    with sqlite_app.app_context():
        for _ in range(3):
            open_stream(7)
        with pytest.raises(TooManyRequests):
            open_stream(7)
        monkeypatch.setattr("app.kernel.streams.time.time", lambda: time.monotonic() + 1e10)
        open_stream(7)


def test_what_nobody_touches_is_forgotten(sqlite_app: Flask, stream: str) -> None:
    client = sqlite_app.extensions["ops"].redis
    with sqlite_app.app_context():
        write(stream, 7, 0, b"x")
        for key in client.keys("stream:*"):
            assert 0 < client.ttl(key) <= streams.IDLE_S


def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    moment = time.time() + seconds
    monkeypatch.setattr("app.kernel.streams.time.time", lambda: moment)


def test_only_reading_keeps_a_stream_open(sqlite_app: Flask, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = sqlite_app.extensions["ops"].redis
    names = (f"stream:{stream}", f"stream:{stream}:bytes")
    with sqlite_app.app_context():
        write(stream, 7, 0, b"abc")
        client.expire(names[0], 50)
        write(stream, 7, 3, b"def")
        assert max(map(client.ttl, names)) <= 50, "writing does not renew"
        read(stream, 0)
        assert min(map(client.ttl, names)) > 100
        at(monkeypatch, streams.IDLE_S + 1)
        assert write(stream, 7, 6, b"ghi") == streams.Taken(6, True)
        assert read(stream, 6).is_over
        client.expire(names[0], 50)
        write(stream, 7, 6, b"ghi")
        read(stream, 0)
        streams.close(stream)
        assert max(map(client.ttl, names)) <= 50, "nor does anything, once it is closed"


def test_no_stream_is_kept_open_without_end(sqlite_app: Flask, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LIFETIME_S", 100, raising=False)
    with sqlite_app.app_context():
        other = open_stream(7)
        at(monkeypatch, 99)
        write(stream, 7, 0, b"abc")
        assert not read(stream, 0).is_closed
        at(monkeypatch, 2)
        assert write(stream, 7, 3, b"def") == streams.Taken(3, True)
        assert read(other, 0).is_over


def test_so_many_may_be_open_for_one_node(sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST_OF_NODE", 2, raising=False)
    with sqlite_app.app_context():
        for node in (8, 8, 88, 88):
            open_stream(node)
        with pytest.raises(TooManyRequests):
            open_stream(8)


def test_a_reader_who_leaves_tells_the_writer(sqlite_app: Flask, stream: str) -> None:
    with sqlite_app.app_context():
        write(stream, 7, 0, b"abc")
        streams.close(stream)
        assert write(stream, 7, 3, b"def") == streams.Taken(3, True)
        streams.close("unknown")
        assert facts_of("unknown") is None


def test_a_writer_who_falls_silent_is_noticed(sqlite_app: Flask, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite_app.app_context():
        write(stream, 7, 0, b"abc")
        assert not read(stream, 3).is_silent
        later = time.time() + streams.SILENT_S + 2
        monkeypatch.setattr("app.kernel.streams.time.time", lambda: later)
        assert read(stream, 3).is_silent
        assert read_when_there(stream, 3, 5.0).is_silent


# ---- waiting


def waiting(app: Flask, stream: str, after: int, wait_s: float) -> Piece:
    with app.app_context():
        return read_when_there(stream, after, wait_s)


def test_a_reader_is_woken_promptly(sqlite_app: Flask, stream: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(waiting, sqlite_app, stream, 0, 20) for _ in range(3)]
        time.sleep(0.4)
        begun = time.monotonic()
        with sqlite_app.app_context():
            write(stream, 7, 0, b"news")
        assert [reader.result(10).data for reader in readers] == [b"news"] * 3
        assert time.monotonic() - begun < 0.5


def test_bytes_that_were_there_and_ends_are_not_waited_for(sqlite_app: Flask, stream: str) -> None:
    with sqlite_app.app_context():
        write(stream, 7, 0, b"abc", is_end=True)
        begun = time.monotonic()
        assert read_when_there(stream, 0, 20).data == b"abc"
        assert read_when_there(stream, 3, 20).is_over
        assert read_when_there("unknown", 0, 20).is_gone
        assert time.monotonic() - begun < 2


def test_the_time_is_up_when_it_is_up(sqlite_app: Flask, stream: str) -> None:
    begun = time.monotonic()
    assert waiting(sqlite_app, stream, 0, 0.3) == Piece(0, b"")
    assert 0.2 < time.monotonic() - begun < 3


def test_a_waiting_reader_owns_no_database_connection(app: Flask, stream: str) -> None:
    with app.app_context():
        db.session.connection()
        db.session.remove()
        pool = db.engine.pool
    with ThreadPoolExecutor(1) as executor:
        reader = executor.submit(waiting, app, stream, 0, 2)
        time.sleep(0.3)
        assert pool.checkedout() == 0  # type: ignore[attr-defined]
        reader.result(10)


def test_the_end_wakes_and_so_does_a_reader_who_closes(sqlite_app: Flask, stream: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(waiting, sqlite_app, stream, 0, 20)
        time.sleep(0.3)
        with sqlite_app.app_context():
            streams.close(stream)
        assert reader.result(3).is_closed


def test_a_server_that_stops_lets_readers_go(sqlite_app: Flask, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Draining:
        def is_set(self) -> bool:
            return True

    monkeypatch.setattr(streams, "draining", Draining())
    begun = time.monotonic()
    assert waiting(sqlite_app, stream, 0, 20) == Piece(0, b"")
    assert time.monotonic() - begun < 3


# ---- faults


@pytest.mark.fault
def test_a_wiped_redis_is_a_stream_that_is_gone(sqlite_app: Flask, stream: str, redis_server: Redis) -> None:
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(waiting, sqlite_app, stream, 0, 30)
        time.sleep(0.3)
        redis_server.wipe()
        begun = time.monotonic()
        assert reader.result(10).is_gone
        assert time.monotonic() - begun < 4
    with sqlite_app.app_context():
        assert write(stream, 7, 0, b"x") is None
        assert facts_of(stream) is None
        streams.close(stream)
        assert read(stream, 0).is_gone


@pytest.mark.fault
def test_a_redis_that_dies_hangs_nobody(sqlite_app: Flask, stream: str, redis_server: Redis) -> None:
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(waiting, sqlite_app, stream, 0, 60)
        time.sleep(0.3)
        redis_server.kill()
        try:
            assert isinstance(reader.exception(20), RedisError)
        finally:
            redis_server.start()
    with sqlite_app.app_context():
        assert read(stream, 0).is_gone


@pytest.mark.fault
def test_a_redis_that_says_nothing_hangs_nobody_for_long(sqlite_app: Flask, stream: str, redis_server: Redis) -> None:
    with redis_server.paused(), pytest.raises(RedisError), sqlite_app.app_context():
        read(stream, 0)


# ---- the daemon plane


def test_a_host_sends_and_a_reader_gets(app: Flask, host: Host) -> None:
    with app.app_context():
        stream = open_stream(host.node_id)
    connection = host.connect()
    reply = post(host, stream, b"\x00one\xff", connection=connection)
    assert (reply.status, reply.body["next"], reply.body["closed"]) == (200, 5, False)
    assert reply.body["server_time"].endswith("Z")
    assert post(host, stream, b"", 5, connection=connection).body["next"] == 5
    assert post(host, stream, b"two", 5, end=True, connection=connection).body["closed"]
    with app.app_context():
        assert read(stream, 0) == Piece(0, b"\x00one\xfftwo", is_closed=True)


def test_another_host_s_stream_and_none_at_all_look_the_same(app: Flask, new_host: Callable[..., Host]) -> None:
    one, other = new_host("one"), new_host("other")
    with app.app_context():
        stream = open_stream(one.node_id)
    for name in (stream, "x" * 32, "stream:..", "%2e%2e"):
        reply = post(other, name, b"forged")
        assert (reply.status, reply.reason) == (404, "unknown_stream"), name
    with app.app_context():
        assert read(stream, 0).data == b""


@pytest.mark.parametrize(
    ("offset", "size", "headers", "status"),
    [
        ("", 1, {}, 400),
        ("-1", 1, {}, 400),
        ("1e3", 1, {}, 400),
        ("9" * 16, 1, {}, 400),
        ("٣", 1, {}, 400),
        (0, 64 * 1024 + 1, {}, 413),
        (0, 10, {"Content-Encoding": "gzip"}, 400),
    ],
)
def test_pieces_have_bounds(
    app: Flask, host: Host, offset: int | str, size: int, headers: dict[str, str], status: int
) -> None:
    with app.app_context():
        stream = open_stream(host.node_id)
    quoted = str(offset).encode().decode("latin-1") if str(offset).isascii() else "%D9%A3"
    assert post(host, stream, b"x" * size, quoted, headers=headers).status == status
    assert post(host, stream, b"x" * 64 * 1024).body["next"] == 64 * 1024


def test_without_a_certificate_there_are_no_streams(app: Flask, host: Host) -> None:
    with app.app_context():
        stream = open_stream(host.node_id)
    reply = post(host, stream, b"x", with_certificate=False)
    assert (reply.status, reply.reason) == (401, "certificate_required")


def test_a_stream_has_a_pace(app: Flask, host: Host) -> None:
    with app.app_context():
        stream = open_stream(host.node_id)
    connection = host.connect()
    statuses = [post(host, stream, b"", connection=connection).status for _ in range(300)]
    assert set(statuses) == {200, 429} or set(statuses) == {200}
    assert statuses[:100] == [200] * 100


@pytest.mark.fault
def test_an_answer_that_was_lost_costs_nothing(app: Flask, host: Host) -> None:
    with app.app_context():
        stream = open_stream(host.node_id)
    connection = host.connect()
    connection.connect()
    body = b"piece one;"
    path = f"/daemon/v1/streams/{stream}?offset=0"
    connection.request("POST", path, body, {"X-Ops-Wire": "1.0", "X-Ops-Instance": host.instance})
    connection.close()

    def is_there() -> bool:
        with app.app_context():
            return read(stream, 0).data == body

    wait_for(is_there, 10, "the piece whose answer was lost")
    assert post(host, stream, body + b"piece two;").body["next"] == 20
    with app.app_context():
        assert read(stream, 0).data == b"piece one;piece two;"


@pytest.mark.fault
def test_the_plane_says_so_when_redis_is_away(app: Flask, host: Host, redis_server: Redis) -> None:
    with app.app_context():
        stream = open_stream(host.node_id)
    redis_server.kill()
    try:
        reply = post(host, stream, b"x")
        assert (reply.status, reply.reason) == (503, "busy")
    finally:
        redis_server.start()
    assert post(host, stream, b"x").reason == "unknown_stream"
    assert reply.body["code"] == 5002


def test_many_readers_and_a_writer(sqlite_app: Flask) -> None:
    content = b"".join(b"line %d\n" % number for number in range(20_000))
    with sqlite_app.app_context():
        stream = open_stream(7)
    found: list[bytes] = []

    def follow() -> None:
        mine, after = b"", 0
        with sqlite_app.app_context():
            while True:
                piece = read_when_there(stream, after, 10)
                mine, after = mine + piece.data, piece.next
                if piece.is_closed:
                    break
        found.append(mine)

    readers = [threading.Thread(target=follow) for _ in range(4)]
    for reader in readers:
        reader.start()
    with sqlite_app.app_context():
        for offset in range(0, len(content), 5000):
            write(stream, 7, offset, content[offset : offset + 5000], is_end=offset + 5000 >= len(content))
    for reader in readers:
        reader.join(30)
    assert found == [content] * 4


# ---- both halves


@pytest.fixture
def real_daemon(app: Flask, gateway: Plane, join: Callable[..., str], tmp_path: Path) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(tmp_path / "host")
    argv = ["enroll", "--server", f"https://127.0.0.1:{gateway.port}", "--state-dir", str(daemon.state_dir)]
    argv += ["--ca-file", str(gateway.ca_path), "--token-env", "JOIN"]
    subprocess.run([sys.executable, "-m", "daemon", *argv], env=environment(JOIN=join()), timeout=60, check=True)
    daemon.start()
    yield daemon
    daemon.stop(signal.SIGKILL)


def test_a_real_daemon_s_log_is_followed_through_a_real_gateway(app: Flask, real_daemon: DaemonProcess) -> None:
    def node_id() -> int | None:
        with app.app_context():
            return db.session.scalar(select(Node.id).where(Node.status == ONLINE))

    node = wait_for(node_id, 30, "the host to be online")

    def ask(kind: str, **payload: object) -> str:
        with app.app_context():
            uuid = issue(db.session(), ADMIN, node, kind, payload, timedelta(seconds=60)).uuid
            db.session.commit()
            return uuid

    with app.app_context():
        stream = open_stream(node)
    until = to_text(time.time() + 60)
    command = ask("agent.stream_logs", name="daemon", stream=stream, lines=50, max_bytes=1 << 20, until=until)
    found, after = b"", 0
    with app.app_context():
        while b"runs, instance" not in found:
            piece = read_when_there(stream, after, 20)
            assert piece.data, (piece, real_daemon.output())
            found, after = found + piece.data, piece.next
    # Whatever the Daemon does next stands in its log, and so in the stream.
    begun = time.monotonic()
    ping = ask("ping")
    while b"done" not in found:
        with app.app_context():
            piece = read_when_there(stream, after, 20)
        assert piece.data
        found, after = found + piece.data, piece.next
    assert time.monotonic() - begun < 10
    with app.app_context():
        streams.close(stream)
    wait_for(lambda: state_of(app, command).state == "succeeded", 30, "the end of the command")
    assert state_of(app, command).result == {"bytes": after, "reason": "closed"}
    assert state_of(app, ping).state == "succeeded"
