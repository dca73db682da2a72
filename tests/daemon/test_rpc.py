"""The local socket: JSON-RPC 2.0 to the letter, believed only as far as the kernel vouches for the caller, bounded."""

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import rpc
from daemon.rpc import RpcServer
from daemon.system import System
from protocol.checkin import AgentStatus
from tests.daemon.faults import FixedClocks
from tests.daemon.processes import wait_for
from tests.daemon.supervisor.box import Box, script

NOBODY = 65534


def status_of(name: str, pid: int | None) -> AgentStatus:
    return AgentStatus(
        name, "custom", "1.0", "running", "running", pid, 1.0, 1, None, 0, None, (), 3, False, "manager"
    )  # fmt: skip


class Agents:
    """The supervisor as the socket knows it: agents with the pids that a test gives them."""

    def __init__(self) -> None:
        self.pids: dict[str, int | None] = {}
        self.beats: list[tuple[str, str | None]] = []
        self.orders: list[tuple[str, str]] = []
        self.is_broken = False

    def agents(self) -> tuple[AgentStatus, ...]:
        return tuple(status_of(name, pid) for name, pid in self.pids.items())

    def find(self, name: str) -> AgentStatus | None:
        return status_of(name, self.pids[name]) if name in self.pids else None

    def note_heartbeat(self, name: str, version: str | None = None) -> None:
        if self.is_broken:
            raise RuntimeError("boom")
        self.beats.append((name, version))

    def order(self, verb: str, name: str, seq: int | None, on_end: Callable[[Any], None]) -> None:
        self.orders.append((verb, name))


class Served:
    """A server with a main loop of its own; this very process is the agent `web` unless a test says otherwise."""

    def __init__(self, path: Path, system: System | None = None) -> None:
        self.path = path
        self.agents = Agents()
        self.agents.pids["web"] = os.getpid()
        self.server = RpcServer(system or System(), self.agents)
        assert self.server.listen(str(path))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()
        self.clients: list[socket.socket] = []

    def _loop(self) -> None:
        while not self._stopping.is_set():
            if select.select([self.server.fileno()], [], [], 0.05)[0]:
                self.server.serve()

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(10)
        folder = os.open(self.path.parent, os.O_PATH)
        try:
            client.connect(f"/proc/self/fd/{folder}/{self.path.name}")
        finally:
            os.close(folder)
        self.clients.append(client)
        return client

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(10)
        for client in self.clients:
            client.close()
        self.server.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    found = Served(tmp_path / "daemon.sock")
    yield found
    found.close()


def lines_of(client: socket.socket, count: int = 1) -> list[Any]:
    raw = b""
    while raw.count(b"\n") < count:
        try:
            piece = client.recv(65536)
        except ConnectionResetError:
            break
        if not piece:
            break
        raw += piece
    return [json.loads(line) for line in raw.splitlines()]


def ask(client: socket.socket, message: Any) -> Any:
    client.sendall((message if isinstance(message, bytes) else json.dumps(message).encode()) + b"\n")
    return lines_of(client)[0]


def request(method: str, params: Any = None, request_id: Any = 1) -> dict[str, Any]:
    made = {"jsonrpc": "2.0", "method": method, "id": request_id}
    return made if params is None else {**made, "params": params}


# ---- methods


def test_an_agent_says_that_it_lives(served: Served) -> None:
    facts = {"pid": os.getpid(), "cpu": 1.5, "memory": 1024, "state": "idle", "version": "2.1"}
    answer = ask(served.connect(), request("heartbeat", facts, "a"))
    assert answer == {"jsonrpc": "2.0", "result": {"interval_s": 30}, "id": "a"}
    assert served.agents.beats == [("web", "2.1")]


def test_it_asks_how_it_stands(served: Served) -> None:
    result = ask(served.connect(), request("status"))["result"]
    assert (result["name"], result["status"], result["pid"], result["config_version"]) == (
        "web", "running", os.getpid(), 3,
    )  # fmt: skip


def test_it_has_itself_stopped(served: Served) -> None:
    assert ask(served.connect(), request("stop", {}))["result"] == {"accepted": True}
    assert served.agents.orders == [("stop", "web")]


@pytest.mark.parametrize("method", ["start", "restart", "HEARTBEAT", "rpc.discover", "", "__class__", "close", "_stop"])
def test_there_are_no_other_methods(served: Served, method: str) -> None:
    assert ask(served.connect(), request(method))["error"]["code"] == -32601


@pytest.mark.parametrize(
    "params",
    [["web"], {"version": 5}, {"pid": "7"}, {"cpu": -1}, {"version": "x" * 65}, {"memory": True}, {"name": 5}],
)
def test_wrong_parameters_are_told(served: Served, params: Any) -> None:
    answer = ask(served.connect(), request("heartbeat", params))
    assert (answer["error"]["code"], answer["id"]) == (-32602, 1)
    assert served.agents.beats == []


def test_a_method_that_breaks_is_an_internal_error(served: Served) -> None:
    served.agents.is_broken = True
    client = served.connect()
    assert ask(client, request("heartbeat"))["error"] == {"code": -32603, "message": "something went wrong"}
    assert "result" in ask(client, request("status"))


# ---- the standard


@pytest.mark.parametrize(
    "line",
    [b"{", b'{"jsonrpc":"2.0"', b"\xff\xfe", b"NaN", b'{"a":Infinity}', b"[" * 60_000, b"nonsense", b"1" * 5000],
)
def test_what_cannot_be_parsed(served: Served, line: bytes) -> None:
    client = served.connect()
    answer = ask(client, line)
    assert (answer["error"]["code"], answer["id"]) == (-32700, None)
    assert "result" in ask(client, request("status"))


@pytest.mark.parametrize(
    ("message", "request_id"),
    [
        (1, None),
        ("x", None),
        (None, None),
        ({}, None),
        ({"method": "status", "id": 1}, 1),
        ({"jsonrpc": "1.0", "method": "status", "id": 1}, 1),
        ({"jsonrpc": 2.0, "method": "status", "id": 1}, 1),
        ({"jsonrpc": "2.0", "method": 1, "id": 1}, 1),
        ({"jsonrpc": "2.0", "method": "status", "params": "x", "id": 1}, 1),
        ({"jsonrpc": "2.0", "method": "status", "params": None, "id": 1}, 1),
        ({"jsonrpc": "2.0", "method": "status", "id": {}}, None),
        ({"jsonrpc": "2.0", "method": "status", "id": True}, None),
        ([], None),
    ],
)
def test_what_is_no_request(served: Served, message: Any, request_id: Any) -> None:
    answer = ask(served.connect(), message)
    assert (answer["jsonrpc"], answer["error"]["code"], answer["id"]) == ("2.0", -32600, request_id)


@pytest.mark.parametrize("request_id", [0, -1, 1.5, "", "x", None])
def test_ids_come_back_as_they_were(served: Served, request_id: Any) -> None:
    assert ask(served.connect(), request("status", None, request_id))["id"] == request_id


def test_notifications_are_not_answered(served: Served) -> None:
    client = served.connect()
    for message in (
        {"jsonrpc": "2.0", "method": "heartbeat", "params": {"version": "n"}},
        {"jsonrpc": "2.0", "method": "nothing"},
        {"jsonrpc": "2.0", "method": "heartbeat", "params": [1]},
    ):
        client.sendall(json.dumps(message).encode() + b"\n")
    client.sendall(b"\n  \n")
    assert ask(client, request("status", None, 9))["id"] == 9
    assert served.agents.beats == [("web", "n")]


def test_a_batch_as_in_the_standard_s_examples(served: Served) -> None:
    client = served.connect()
    answer = ask(
        client,
        [
            request("status", None, "1"),
            {"jsonrpc": "2.0", "method": "heartbeat"},
            {"foo": "boo"},
            request("foo.get", {"name": "myself"}, "5"),
            request("heartbeat", None, "9"),
        ],
    )
    assert [(item["id"], item.get("error", {}).get("code")) for item in answer] == [
        ("1", None), (None, -32600), ("5", -32601), ("9", None),
    ]  # fmt: skip
    assert [item["error"]["code"] for item in ask(client, [1, 2, 3])] == [-32600] * 3
    client.sendall(json.dumps([{"jsonrpc": "2.0", "method": "heartbeat"}] * 2).encode() + b"\n")
    assert ask(client, request("status", None, 2))["id"] == 2
    assert ask(client, [request("status")] * 51)["error"]["code"] == -32600


def test_requests_come_in_pieces_or_many_at_once(served: Served) -> None:
    client = served.connect()
    raw = json.dumps(request("status")).encode() + b"\n"
    for at in range(len(raw)):
        client.sendall(raw[at : at + 1])
    assert lines_of(client)[0]["id"] == 1
    client.sendall(b"".join(json.dumps(request("status", None, n)).encode() + b"\n" for n in range(30)))
    assert [answer["id"] for answer in lines_of(client, 30)] == list(range(30))


# ---- who may speak


def refused(client: socket.socket) -> dict[str, Any]:
    (answer,) = lines_of(client)
    assert client.recv(10) == b""
    return answer["error"]  # type: ignore[no-any-return]


def test_a_stranger_is_told_why_and_shut_out(served: Served) -> None:
    served.agents.pids = {"web": None}
    assert refused(served.connect())["code"] == -32001
    served.agents.pids = {}
    assert refused(served.connect())["code"] == -32001


def test_nobody_speaks_for_another(served: Served) -> None:
    served.agents.pids["other"] = 1
    client = served.connect()
    answer = ask(client, request("stop", {"name": "other"}))
    assert answer["error"]["code"] == -32001
    assert "result" in ask(client, request("heartbeat", {"name": "web"}))
    assert served.agents.orders == []


TALK = """
import os, socket, sys
if {new_session}: os.setsid()
if {uid}: os.setgroups([]); os.setgid({uid}); os.setuid({uid})
client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
client.settimeout(10)
client.connect("{path}")
try:
    client.sendall(b'{{"jsonrpc":"2.0","method":"heartbeat","id":1}}\\n')
except BrokenPipeError:
    pass
print(client.recv(4096).decode(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def talk(served: Served) -> Iterator[Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]]]:
    made: list[subprocess.Popen[str]] = []

    def begin(uid: int = 0, new_session: bool = False) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        for folder in [served.path.parent, *served.path.parent.parents][:-2]:
            folder.chmod(0o755)
        code = TALK.format(uid=uid, path=served.path, new_session=new_session)
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        made.append(child)
        assert child.stdout is not None
        return child, json.loads(child.stdout.readline())

    yield begin
    for child in made:
        child.kill()
        child.communicate()


def test_children_and_the_group_of_an_agent_speak_for_it(
    served: Served, talk: Callable[..., tuple[Any, dict[str, Any]]]
) -> None:
    assert "result" in talk()[1]
    # Even a child in a session of its own descends from the agent.
    assert "result" in talk(new_session=True)[1]
    assert len(served.agents.beats) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_does_not_even_in_the_same_group(
    served: Served, talk: Callable[..., tuple[Any, dict[str, Any]]]
) -> None:
    assert talk(uid=NOBODY)[1]["error"]["code"] == -32001
    assert served.agents.beats == []


def test_a_process_of_another_agent_is_that_agent_s(
    served: Served, talk: Callable[..., tuple[Any, dict[str, Any]]]
) -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, start_new_session=True) as cat:
        served.agents.pids = {"web": cat.pid}
        answer = talk()[1]
        cat.kill()
    assert answer["error"]["code"] == -32001


def test_after_a_restart_of_the_agent_the_old_connection_is_worth_nothing(served: Served) -> None:
    client = served.connect()
    assert "result" in ask(client, request("status"))
    served.agents.pids["web"] = 1
    client.sendall(json.dumps(request("stop")).encode() + b"\n")
    assert refused(client)["code"] == -32001
    assert served.agents.orders == []


# ---- bounds


def test_a_line_has_a_length(served: Served) -> None:
    client = served.connect()
    client.sendall(b"x" * 70_000)
    assert refused(client)["code"] == -32600
    other = served.connect()
    big = json.dumps(request("heartbeat", {"state": "s" * 60, "pad": "x" * 60_000})).encode()
    assert "result" in ask(other, big)


def test_connections_have_a_number(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [served.connect() for _ in range(rpc.PER_AGENT)]
    assert "result" in ask(clients[-1], request("status"))
    assert refused(served.connect())["code"] == -32002
    clients[0].close()
    wait_for(lambda: len(served.server._connections) < rpc.PER_AGENT, "the end of one")
    assert "result" in ask(served.connect(), request("status"))


def test_too_fast_is_told_then_closed(served: Served) -> None:
    client = served.connect()
    raw = "".join(json.dumps(request("status", None, number)) + "\n" for number in range(1000))
    client.sendall(raw.encode())
    codes = [answer.get("error", {}).get("code") for answer in lines_of(client, 1000)]
    assert codes.count(None) < 200
    assert set(codes) == {None, -32002}
    assert "result" in ask(served.connect(), request("status"))


def test_answers_that_nobody_reads_are_not_kept_for_ever(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "BURST", 1e9)
    monkeypatch.setattr(rpc, "PER_S", 1e9)
    client = served.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    other = served.connect()
    assert "result" in ask(other, request("status"))
    client.settimeout(0.5)
    raw = (json.dumps(request("status")) + "\n").encode() * 100_000
    with pytest.raises(OSError, match=r"timed out|Broken pipe|reset"):
        client.sendall(raw)
    assert "result" in ask(other, request("status"))
    assert all(len(held.outgoing) <= rpc.OUTPUT_BYTES for held in served.server._connections.values())


def test_silence_ends_a_connection(tmp_path: Path) -> None:
    clocks = FixedClocks()
    served = Served(tmp_path / "daemon.sock", clocks)
    try:
        silent, lively = served.connect(), served.connect()
        assert "result" in ask(silent, request("status"))
        clocks.forward(rpc.IDLE_S - 1)
        assert "result" in ask(lively, request("status"))
        clocks.forward(2)
        served.server.tend()
        assert silent.recv(10) == b""
        assert "result" in ask(lively, request("status"))
    finally:
        served.close()


def test_clients_that_vanish_leave_nothing(served: Served) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(100):
        client = served.connect()
        if number % 3:
            client.sendall(b'{"jsonrpc":"2.0","method":"status","id":1}\n' * (number % 3))
        if number % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        if number % 10 == 9:
            wait_for(lambda: not served.server._connections, "the end of them")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
    assert "result" in ask(served.connect(), request("status"))


def test_random_bytes_do_no_harm(served: Served) -> None:
    for _ in range(30):
        client = served.connect()
        client.sendall(os.urandom(5000) + b"\n")
        client.close()
        wait_for(lambda: len(served.server._connections) < rpc.PER_AGENT, "room")
    assert "result" in ask(served.connect(), request("status"))


# ---- the place


def test_a_dead_daemon_s_socket_is_taken_over_a_living_one_s_is_not(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    served = Served(path)
    try:
        assert path.stat().st_mode & 0o777 == 0o666
        second = RpcServer(System(), Agents())
        assert not second.listen(str(path))
        second.close()
        assert "result" in ask(served.connect(), request("status"))
    finally:
        served.close()
    assert not path.exists()


def test_something_else_in_its_place_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    path.write_text("precious")
    server = RpcServer(System(), Agents())
    assert not server.listen(str(path))
    server.close()
    assert path.read_text() == "precious"


def test_a_place_that_was_cleared_away_is_taken_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    served = Served(folder / "daemon.sock")
    try:
        client = served.connect()
        served.server.tend()
        assert "result" in ask(client, request("status"))
        served.path.unlink()
        folder.rmdir()
        served.server.tend()
        assert "result" in ask(served.connect(), request("status"))
        assert "result" in ask(client, request("status", None, 2))
    finally:
        served.close()


def test_a_place_that_was_not_free_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    path.mkdir()
    server = RpcServer(System(), Agents())
    assert not server.listen(str(path))
    path.rmdir()
    server.tend()
    assert path.is_socket()
    server.close()
    assert not path.exists()


def test_a_path_may_be_long(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    served = Served(folder / "daemon.sock")
    try:
        assert "result" in ask(served.connect(), request("status"))
    finally:
        served.close()
    assert not (folder / "daemon.sock").exists()


# ---- with the real supervisor


BEAT = """
import os, socket, time
while True:
    try:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(os.environ["SOCKET"])
        client.sendall(b'{"jsonrpc":"2.0","method":"heartbeat","params":{"version":"7.7"},"id":1}\\n')
        print(client.recv(1000).decode(), flush=True)
        while not os.path.exists(os.environ["SOCKET"] + ".stop"): time.sleep(0.05)
        client.sendall(b'{"jsonrpc":"2.0","method":"stop","id":2}\\n')
        print(client.recv(1000).decode(), flush=True)
        time.sleep(100)
    except OSError as error:
        print(error, flush=True)
    time.sleep(0.1)
"""


def test_a_real_agent_beats_and_stops_itself(tmp_path: Path) -> None:
    box = Box(tmp_path / "state")
    path = tmp_path / "daemon.sock"
    served = Served(path)
    served.server._agents = box.supervisor
    try:
        box.add("web", script(BEAT), env={"SOCKET": str(path)}, health=[{"kind": "heartbeat", "interval_s": 5}])
        pid = box.running("web")
        wait_for(lambda: box.status("web").version == "7.7", "a heartbeat")
        (tmp_path / "daemon.sock.stop").touch()
        box.reaches("web", "stopped")
        assert box.status("web").desired == "stopped"
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        time.sleep(0.3)
        assert box.status("web").pid is None
    finally:
        served.close()
        box.close()
