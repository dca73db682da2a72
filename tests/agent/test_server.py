"""The HTTP side: the envelope, the codes, and callers who are broken, slow, greedy or many."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable

import pytest

from tests.agent.processes import AgentProcess, said


def raw(agent: AgentProcess, data: bytes, timeout_s: float = 10.0) -> bytes:
    """What is answered until the connection is closed, or nothing more comes."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(timeout_s)
        channel.connect(agent.socket)
        channel.sendall(data)
        found = b""
        try:
            while piece := channel.recv(65536):
                found += piece
        except TimeoutError:
            pass
        return found


def test_the_envelope(shared_agent: AgentProcess) -> None:
    answer = shared_agent.get("health")
    assert (answer.status, answer.code, answer.message) == (200, 0, "success")
    assert shared_agent.ask("GET", "health", None, Accept_Language="zh-CN").message == "成功"
    assert shared_agent.ask("GET", "nothing", None, Accept_Language="zh").message.startswith("不存在")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "", 404, 1004),
        ("GET", "nothing", 404, 1004),
        ("GET", "task/x", 404, 1004),
        ("GET", "task/x/nothing", 404, 1004),
        ("GET", "task/x/status", 404, 4001),
        ("GET", "task/..%2f..%2fetc/status", 404, 1004),
        ("POST", "health", 405, 1007),
        ("DELETE", "task/execute", 405, 1007),
        ("GET", "task/x/cancel", 405, 1007),
        ("GET", "task/x/events?after=a", 400, 1001),
        ("GET", "task/x/events?after=1&after=2", 400, 1001),
        ("GET", "events?after=x:y", 400, 1001),
    ],
)
def test_codes(shared_agent: AgentProcess, method: str, path: str, status: int, code: int) -> None:
    answer = shared_agent.ask(method, path)
    assert (answer.status, answer.code) == (status, code)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b'{"id": NaN}', b"[" * 5000, b'{"a":' * 30 + b"1" + b"}" * 30]
)
def test_a_body_that_is_none(shared_agent: AgentProcess, body: bytes) -> None:
    answer = shared_agent.ask("POST", "task/execute", body)
    assert (answer.status, answer.code) == (400, 1001)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /x HTTP/2.0\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nbroken header\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\n folded: 1\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /x HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n" + b"x" * 100000, 413),
        (b"GET /x HTTP/1.1\r\nA: " + b"x" * 20000 + b"\r\n\r\n", 431),
        (b"GET /x HTTP/1.1\r\n" + b"A: 1\r\n" * 100 + b"\r\n", 431),
    ],
)
def test_a_request_that_is_none_is_told_so_and_closed(shared_agent: AgentProcess, request_: bytes, status: int) -> None:
    found = raw(shared_agent, request_)
    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close" in head
    assert json.loads(body)["code"] in (1001, 1008)
    assert shared_agent.get("health").status == 200


def test_requests_in_a_row_on_one_connection(shared_agent: AgentProcess) -> None:
    one = b"GET /api/v1/health HTTP/1.1\r\nHost: a\r\n\r\n"
    found = raw(shared_agent, one * 5 + one.replace(b"Host: a", b"Connection: close"))
    assert found.count(b"HTTP/1.1 200 OK") == 6
    assert raw(shared_agent, b"GET /api/v1/health HTTP/1.0\r\n\r\n").count(b"200 OK") == 1


def test_orders_in_a_row_on_one_connection_are_all_taken(shared_agent: AgentProcess) -> None:
    requests = b""
    for number in range(5):
        body = json.dumps({"id": f"row-{number}", "type": "script", "content": {"script": "true"}}).encode()
        last = b"Connection: close\r\n" if number == 4 else b""
        requests += b"POST /api/v1/task/execute HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (last, len(body), body)
    assert raw(shared_agent, requests).count(b"202 Accepted") == 5


def test_a_request_may_come_byte_by_byte(shared_agent: AgentProcess) -> None:
    body = json.dumps({"id": "slow", "type": "script", "content": {"script": "true"}}).encode()
    data = b"POST /api/v1/task/execute HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(10)
        channel.connect(shared_agent.socket)
        for index in range(len(data)):
            channel.sendall(data[index : index + 1])
        assert channel.recv(65536).startswith(b"HTTP/1.1 202 ")


def test_idle_connections_cost_no_thread_and_are_bounded(agent: AgentProcess) -> None:
    process = agent.process
    assert process is not None
    idle = []
    for _ in range(100):
        channel = socket.socket(socket.AF_UNIX)
        channel.settimeout(5)
        channel.connect(agent.socket)
        idle.append(channel)
    time.sleep(0.5)
    status = open(f"/proc/{process.pid}/status").read()  # noqa: PTH123, SIM115
    assert "Threads:\t1\n" in status or "Threads:\t2\n" in status
    closed = 0
    for channel in idle:
        channel.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            closed += channel.recv(1) == b""
        channel.close()
    assert closed == 36
    assert agent.get("health").status == 200


def test_a_caller_who_does_not_listen_holds_up_nobody(shared_agent: AgentProcess) -> None:
    name = shared_agent.script("head -c 900000 /dev/zero")
    shared_agent.wait_end(name)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(shared_agent.socket)
        deaf.sendall(f"GET /api/v1/task/{name}/status HTTP/1.1\r\n\r\n".encode())
        started = time.monotonic()
        assert shared_agent.get("health").status == 200
        assert time.monotonic() - started < 2


def test_slow_heads_are_cut_off(new_agent: Callable[..., AgentProcess]) -> None:
    agent = new_agent()
    code = (
        "import agent.server as s; s.HEAD_S = 0.5;"
        "from agent.__main__ import run; import sys; sys.exit(run(sys.argv[1:]))"
    )
    agent.start("-c", code)
    started = time.monotonic()
    assert raw(agent, b"GET /api/v1/health HTTP/1.1\r\nA: ") == b""
    assert 0.4 < time.monotonic() - started < 5


def test_expect_continue_is_honoured(shared_agent: AgentProcess) -> None:
    body = json.dumps({"id": "expected", "type": "script", "content": {"script": "true"}}).encode()
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(10)
        channel.connect(shared_agent.socket)
        head = b"POST /api/v1/task/execute HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        channel.sendall(head)
        assert channel.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        channel.sendall(body)
        assert channel.recv(4096).startswith(b"HTTP/1.1 202 ")


def test_another_user_is_not_let_in(agent: AgentProcess) -> None:
    agent.capabilities.unlink(missing_ok=True)
    os.chmod(agent.socket, 0o666)  # noqa: PTH101
    script = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('%s');"
        "s.sendall(b'GET /api/v1/health HTTP/1.1\\r\\n\\r\\n'); print(s.recv(100))"
    )
    assert "HTTP/1.1 200 OK" in agent.run(script % agent.socket, interpreter="python")["stdout"]
    found = agent.run(script % agent.socket, interpreter="python", user="nobody")
    assert "HTTP" not in found["stdout"]
    assert "is not let in" in agent.output()


def test_said_understands_the_agent(shared_agent: AgentProcess) -> None:
    connection = shared_agent.connect()
    connection.request("GET", "/api/v1/status")
    found = said(connection.getresponse())
    connection.close()
    assert found.data["max_running"] == 10
    assert found.headers["cache-control"] == "no-store"
