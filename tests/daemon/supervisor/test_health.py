"""Health checks of all five kinds against real listeners, and what a failed one leads to."""

import http.server
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.checkin import Health
from tests.daemon.pki import Authority
from tests.daemon.supervisor.box import Box, shell, timed

SLEEP = ["/bin/sleep", "1000"]
QUICK = {"interval_s": 1, "timeout_s": 2, "failures": 2}


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = int(self.path.strip("/") or 200)
        body = b"all is well" + b"x" * 100_000
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def found(box: Box, *checks: dict[str, object]) -> list[Health]:
    """What each of these checks finds when it is made now."""
    box.add("one", SLEEP, health=[{**QUICK, **check} for check in checks])
    box.running("one")
    return list(box.supervisor.check_health("one"))


def test_pages_that_answer(box: Box, port: int) -> None:
    base = f"http://127.0.0.1:{port}"
    checks: list[dict[str, object]] = [
        {"url": base},
        {"url": f"{base}/301"},
        {"url": f"http://localhost:{port}/404", "status": 404},
        {"url": base, "contains": "is well"},
        {"url": f"{base}/500"},
        {"url": base, "status": 201},
        {"url": base, "contains": "is ill"},
    ]
    results = found(box, *({"kind": "http", "timeout_s": 30, **check} for check in checks))
    assert [result.ok for result in results] == [True] * 4 + [False] * 3
    assert [result.detail for result in results][4:] == ["HTTP 500", "HTTP 200", "HTTP 200 without the expected text"]
    assert all(result.kind == "http" for result in results)


def test_pages_that_do_not(box: Box) -> None:
    with socket.socket() as silent, socket.socket() as closed, socket.socket() as rude:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        closed.bind(("127.0.0.1", 0))
        rude.bind(("127.0.0.1", 0))
        rude.listen()

        def be_rude() -> None:
            connection, _ = rude.accept()
            connection.sendall(b"SSH-2.0-x\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=be_rude)
        thread.start()
        ports = [one.getsockname()[1] for one in (silent, closed, rude)]
        results = found(
            box,
            *({"kind": "http", "url": f"http://127.0.0.1:{number}/"} for number in ports[:2]),
            {"kind": "http", "url": f"http://127.0.0.1:{ports[2]}/", "interval_s": 100},
            {"kind": "http", "url": "http://no-such-host.invalid/"},
        )
        thread.join(5)
        if not results[2].ok and "HTTP" not in results[2].detail:
            results = list(box.supervisor.check_health("one"))
    assert not any(result.ok for result in results)
    assert "no answer in time" in results[0].detail
    assert "refused" in results[1].detail
    assert "resolved" in results[3].detail


def test_https_without_judging_the_certificate(box: Box, tmp_path: Path) -> None:
    authority = Authority()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert, key = authority.server_files(tmp_path)
    context.load_cert_chain(cert, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        results = found(
            box, {"kind": "http", "url": f"https://127.0.0.1:{server.server_port}/", "contains": "well", "timeout_s": 5}
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert [(result.ok, result.detail) for result in results] == [(True, "HTTP 200")]


def test_ports(box: Box) -> None:
    with socket.socket() as open_one, socket.socket() as closed:
        open_one.bind(("127.0.0.1", 0))
        open_one.listen()
        closed.bind(("127.0.0.1", 0))
        results = found(
            box,
            {"kind": "tcp", "port": open_one.getsockname()[1]},
            {"kind": "tcp", "host": "localhost", "port": open_one.getsockname()[1]},
            {"kind": "tcp", "port": closed.getsockname()[1]},
            {"kind": "tcp", "host": "192.0.2.1", "port": 9},
        )
    assert [result.ok for result in results] == [True, True, False, False]


def test_commands(box: Box) -> None:
    results = found(
        box,
        {"kind": "command", "command": shell("echo fine; echo more")},
        {"kind": "command", "command": shell("echo broken >&2; exit 3")},
        {"kind": "command", "command": shell("sleep 100"), "timeout_s": 0.3},
        {"kind": "command", "command": ["/nonexistent"]},
        {"kind": "command", "command": shell("test $OPS_AGENT = one")},
        {"kind": "command", "command": shell("exec >&- 2>&-; sleep 0.2")},
        {"kind": "process"},
    )
    assert [result.ok for result in results] == [True, False, False, False, True, True, True]
    assert results[0].detail == "fine"
    assert results[1].detail == "exit code 3: broken"
    assert "took longer" in results[2].detail
    assert "cannot run" in results[3].detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_command_runs_as_the_agent_s_user(box: Box) -> None:
    box.add("one", SLEEP, user="nobody", health=[{"kind": "command", "command": shell("id -un")}])
    box.running("one")
    assert [check.detail for check in box.supervisor.check_health("one")] == ["nobody"]
    assert box.supervisor.run("one", ["/usr/bin/id", "-un"], 5).out == b"nobody\n"


def test_a_check_that_fails_again_and_again_makes_an_error_and_recovers(box: Box, tmp_path: Path) -> None:
    box.add(
        "one", SLEEP, health=[{"kind": "command", "command": ["/usr/bin/test", "-e", str(tmp_path / "x")], **QUICK}]
    )
    pid = box.running("one")
    unhealthy = box.told("agent.unhealthy")
    assert "command check failed" in unhealthy.message
    assert box.status("one").status == "error"
    assert box.status("one").pid == pid
    assert not box.status("one").health[0].ok
    (tmp_path / "x").touch()
    box.told("agent.healthy")
    assert box.status("one").status == "running"
    assert box.status("one").pid == pid


def test_three_missed_heartbeats_restart_it(box: Box) -> None:
    box.add("one", SLEEP, health=[{"kind": "heartbeat", "interval_s": 1, "failures": 3}])
    pid = box.running("one")
    begun = time.monotonic()
    while time.monotonic() - begun < 5:
        box.supervisor.note_heartbeat("one", "1.2.3")
        time.sleep(0.3)
    assert box.status("one").pid == pid
    assert box.status("one").version == "1.2.3"
    assert box.book.kinds() == ["agent.started"]
    box.running("one", pid)
    assert time.monotonic() - begun > 7
    assert "no heartbeat" in box.told("agent.unhealthy").message
    assert "no heartbeat" in box.told("agent.restarting").message
    assert box.status("one").restart_count == 1


def test_slow_checks_hold_up_nobody(box: Box) -> None:
    slow = [{"kind": "command", "command": shell("sleep 100"), "interval_s": 1, "timeout_s": 60}] * 4
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        box.add("slow", SLEEP, health=[*slow, {"kind": "http", "url": url, "interval_s": 1, "timeout_s": 60}])
        box.add("one", SLEEP)
        box.running("slow")
        time.sleep(1.5)
        pid = box.running("one")
        os.kill(pid, signal.SIGKILL)
        assert timed(lambda: box.running("one", pid)) < 1.5


def test_checks_of_one_that_does_not_run(box: Box) -> None:
    box.add("one", SLEEP, desired="stopped", health=[{"kind": "process"}, {"kind": "tcp", "port": 1}])
    box.reaches("one", "stopped")
    assert [(check.kind, check.ok) for check in box.supervisor.check_health("one")] == [
        ("process", False),
        ("tcp", False),
    ]
    assert box.supervisor.check_health("nobody") == ()
