"""`python -m app.launch` as people run it: the whole Manager, with its real processes."""

import contextlib
import ctypes
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from agent.version import VERSION
from app.launch.checks import NotPossibleError, check_ports, claim_data_directory
from tests.launch.served import free_port
from tests.launch.started import Started, module
from tests.services import ROOT, Redis, wait_for

PASSWORD = "correct-horse-battery-staple"
NOBODY = 65534
PR_CAPBSET_DROP = 24


class Manager(Started):
    """A Manager on ports of its own."""

    def __init__(
        self, data: Path, python: list[str] | None = None, arguments: tuple[str, ...] = (), **more: object
    ) -> None:
        self.data = data
        self.further_marks = (f"unixsocket:{data}/", f"{data}/host/")
        self.web, self.gateway = free_port(), free_port()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OPS_")}
        environment |= {"OPS_DATA_DIR": str(data), "OPS_WEB_PORT": str(self.web), "OPS_GATEWAY_PORT": str(self.gateway)}
        environment |= more.pop("environment", {})
        super().__init__(module("app.launch", *arguments), environment, uuid4().hex, **more)

    def wait_until_it_runs(self) -> None:
        self.wait_for_line("Stop      ", timeout=120)

    def wait_until_its_host_runs(self) -> None:
        """The Daemon of this very machine, and the task agent that comes with it."""
        place = self.data / "host" / "daemon" / "agents" / "task" / "agent.sock"

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as channel:
                channel.connect(str(place))
                return True
            return False

        wait_for(answers, 60, "the task agent", 0.1)

    def health(self) -> tuple[int, dict[str, object]]:
        return self.get("/health")

    def get(
        self, path: str, method: str = "GET", body: object = None, token: str = ""
    ) -> tuple[int, dict[str, object]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.web, timeout=20)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"} if body else {}
            headers |= {"Authorization": f"Bearer {token}"} if token else {}
            connection.request(method, path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")

    def is_healthy(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            return self.health()[0] == 200
        return False

    def sign_in(self, password: str) -> int:
        return self.get("/api/v1/auth/login", "POST", {"username": "admin", "password": password})[0]

    def password(self) -> str:
        found = re.search(r"admin with password (\S+)", self.output)
        assert found, self.output
        return found[1]

    def ports_are_free(self) -> bool:
        with contextlib.suppress(NotPossibleError):
            check_ports({"web": ("127.0.0.1", self.web), "gateway": ("127.0.0.1", self.gateway)})
            return True
        return False


@pytest.fixture
def data() -> Iterator[Path]:
    """Not pytest's directory: the path of Redis's socket must be short."""
    path = Path(tempfile.mkdtemp(prefix="ops-", dir="/tmp"))
    yield path / "var"
    shutil.rmtree(path, ignore_errors=True)


Start = Callable[..., Manager]


@pytest.fixture
def start(data: Path) -> Iterator[Start]:
    started: list[Manager] = []

    def start_one(where: Path = data, **more: object) -> Manager:
        made = Manager(where, **more)
        started.append(made)
        return made

    yield start_one
    for made in started:
        made.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Manager]:
    """One that runs, for tests that leave it running."""
    path = Path(tempfile.mkdtemp(prefix="ops-", dir="/tmp"))
    made = Manager(path / "var", arguments=("--audit.checkpoint_interval", "10s"))
    try:
        made.wait_until_it_runs()
        yield made
    finally:
        made.close()
        shutil.rmtree(path, ignore_errors=True)


# A Manager that runs


def test_it_says_where_it_is_and_how_to_sign_in(running):
    for text in (f"http://127.0.0.1:{running.web}", f"https://127.0.0.1:{running.gateway}", str(running.data)):
        assert text in running.output
    assert running.sign_in(running.password()) == 200
    assert running.output.count(running.password()) == 1


def test_everything_is_well(running):
    assert running.health() == (200, {"status": "ok", "checks": {"database": "ok", "redis": "ok"}})


def test_every_process_is_there_and_says_who_it_is(running):
    commands = " ".join(running.processes().values())
    for part in ("redis-server", "app.servers.gateway", "app.servers.web", "app.worker", "app.scheduler"):
        assert part in commands
    for name in ("gateway", "web", "worker", "scheduler"):
        assert f"\n{name:<9} | {{" in "\n" + running.output


def test_this_very_host_runs_a_task_agent(running):
    running.wait_until_its_host_runs()
    answer = running.get("/api/v1/auth/login", "POST", {"username": "admin", "password": running.password()})[1]
    token = answer["data"]["access_token"]

    def node() -> dict[str, object] | None:
        found = running.get("/api/v1/nodes", token=token)[1]["data"]["items"]
        return found[0] if found and found[0]["agent_version"] else None

    shown = wait_for(node, 60, "the agent's version", 0.2)
    assert (shown["agent_status"], shown["agent_version"]) == ("running", VERSION)
    (agent,) = running.get(f"/api/v1/nodes/{shown['id']}/agents", token=token)[1]["data"]["items"]
    assert (agent["name"], agent["type"], agent["source"]) == ("task", "task", "builtin")


def test_the_gateway_shows_a_certificate_of_our_authority(running):
    context = ssl.create_default_context(cafile=str(running.data / "keys" / "ca.pem"))
    with (
        socket.create_connection(("127.0.0.1", running.gateway), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        assert client.version() == "TLSv1.3"


def test_background_jobs_are_done(running):
    """The head of the audit log gets signed although nobody asked."""
    running.sign_in(running.password())
    wait_for((running.data / "audit-checkpoints.jsonl").exists, 60, "a checkpoint", 0.2)


def test_nobody_else_can_read_the_data(running):
    for path in [running.data, *running.data.rglob("*")]:
        # What is being written is renamed into its place.
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat().st_mode
            # At the Daemon's socket agents of every user may knock, where its directory lets them; here it does not.
            is_free = stat.S_ISLNK(found) or path.name == "daemon.sock"
            assert is_free or stat.S_IMODE(found) & 0o077 == 0, path


def test_the_launcher_stays_small(running):
    """It must not come to import Flask, the database or the settings' libraries."""
    maps = Path(f"/proc/{running.process.pid}/maps").read_text()
    assert not re.search(r"sqlalchemy|pydantic|greenlet|cryptography", maps)
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    assert int(re.search(r"VmRSS:\s+(\d+)", status)[1]) < 30_000
    assert re.search(r"Threads:\s+1\n", status)


def test_a_second_one_on_the_same_data_is_refused(running, start):
    second = start(running.data)
    assert second.wait() == 1
    assert second.lines == [f"another Manager (process {running.process.pid}) already uses {running.data}"]
    assert running.is_healthy()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(
    "part", ["app.servers.web", "app.servers.gateway", "app.worker", "app.scheduler", "redis-server"]
)
@pytest.mark.fault
def test_what_dies_is_started_again(running, part, number):
    first = running.pid_of(part)
    os.kill(first, number)
    wait_for(
        lambda: [pid for pid, command in running.processes().items() if part in command and pid != first], 60, part
    )
    wait_for(running.is_healthy, 60, "everything to be well again", 0.2)
    assert "starting it again in" in running.output


# Starting


def test_it_can_be_configured_in_every_way(start, tmp_path):
    """The file, the environment and the command line, a Redis of one's own, and the first password."""
    port = free_port()
    (tmp_path / "manager.yaml").write_text("server:\n  job_workers: 2\nlog:\n  format: text\n")
    arguments = ("--config", str(tmp_path / "manager.yaml"), "--server.http.addr", f"127.0.0.1:{port}")
    given = {"OPS_ADMIN_PASSWORD": PASSWORD, "GUNICORN_CMD_ARGS": "--bind=127.0.0.1:1", "FLASK_DEBUG": "1"}
    with Redis() as redis:
        manager = start(arguments=arguments, environment=given | {"OPS_REDIS_URL": redis.url})
        manager.web = port
        manager.wait_until_it_runs()

        assert f"http://127.0.0.1:{port}" in manager.output
        assert manager.health() == (200, {"status": "ok", "checks": {"database": "ok", "redis": "ok"}})
        assert not any("redis-server" in command for command in manager.processes().values())
        wait_for(lambda: len(redis.client().smembers("rq:workers")) == 2, 60, "both workers")
        assert re.search(r"\nworker-2  \| \S+Z info ", manager.output)

        assert manager.sign_in(PASSWORD) == 200
        assert PASSWORD not in manager.output
        assert "admin with the password from OPS_ADMIN_PASSWORD" in manager.output
        for pid in manager.processes().keys() - {manager.process.pid}:
            with contextlib.suppress(FileNotFoundError):
                assert PASSWORD.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def is_untouched(data: Path) -> bool:
    """Nothing but the place itself and the lock was made."""
    return not data.exists() or {path.name for path in data.rglob("*")} <= {"run", "manager.lock"}


def test_a_used_port_is_said_in_one_line(start, data):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        manager = start(environment={"OPS_WEB_PORT": str(port)})
        assert manager.wait() == 1
    assert manager.lines == [f"port {port} is in use: choose another with OPS_WEB_PORT"]
    assert manager.processes() == {}
    assert is_untouched(data)


def test_both_used_ports_are_said(start, data):
    with socket.socket() as one, socket.socket() as two:
        for other in (one, two):
            other.bind(("0.0.0.0", 0))
            other.listen(1)
        web, gateway = one.getsockname()[1], two.getsockname()[1]
        manager = start(environment={"OPS_WEB_PORT": str(web), "OPS_GATEWAY_PORT": str(gateway)})
        assert manager.wait() == 1
    assert manager.lines == [
        f"port {web} is in use: choose another with OPS_WEB_PORT",
        f"port {gateway} is in use: choose another with OPS_GATEWAY_PORT",
    ]


def test_an_address_that_is_not_ours_is_said(start):
    manager = start(environment={"OPS_WEB_HOST": "192.0.2.1"})
    assert manager.wait() == 1
    assert len(manager.lines) == 1
    assert manager.lines[0].startswith("192.0.2.1 cannot be listened on")
    assert manager.lines[0].endswith("OPS_WEB_HOST")


def test_wrong_settings_are_all_said(start, data):
    manager = start(environment={"OPS_NODE__HEARTBEAT_INTERVAL": "5s", "OPS_LOG__LEVEL": "loud", "OPS_NO__SUCH": "1"})
    assert manager.wait() == 2
    assert sorted(line.split(":")[0] for line in manager.lines) == [
        "OPS_NO__SUCH",
        "log.level",
        "node.heartbeat_interval",
    ]
    assert not data.exists()


def test_wrong_words_on_the_command_line_are_said(start, data):
    manager = start(arguments=("--web-port", "8081", "--log.level"))
    assert manager.wait() == 2
    assert len(manager.lines) >= 2
    assert manager.lines[0].startswith("--web-port: not an option")


def test_tls_without_a_usable_certificate_is_said(start):
    given = {"OPS_TLS__ENABLED": "true", "OPS_TLS__CERT_FILE": "/nonexistent", "OPS_TLS__KEY_FILE": "/nonexistent"}
    manager = start(environment=given)
    assert manager.wait() == 2
    assert manager.lines == ["tls.cert_file, tls.key_file: cannot be used: No such file or directory"]


def test_one_port_for_both_planes_is_refused(start):
    port = str(free_port())
    manager = start(environment={"OPS_WEB_PORT": port, "OPS_GATEWAY_PORT": port})
    assert manager.wait() == 2
    assert manager.lines == [f"server.http.addr, server.gateway.addr: both are given port {port}"]


def test_a_path_that_is_too_long_for_a_socket_is_said(start, tmp_path):
    manager = start(tmp_path / ("x" * 120))
    assert manager.wait() == 2
    assert manager.lines[0].startswith("data_dir: too long for the socket of the embedded Redis")


def test_a_file_in_place_of_the_data_directory_is_said(start, data):
    data.write_text("")
    manager = start()
    assert manager.wait() == 1
    assert manager.lines == [f"data_dir: {data} is not a directory"]


def test_a_directory_that_nobody_can_write_is_said(start):
    manager = start(Path("/proc/ops"))
    assert manager.wait() == 1
    assert manager.lines == ["data_dir: /proc/ops cannot be used: No such file or directory"]


def test_an_open_data_directory_is_closed(data):
    data.mkdir(mode=0o755)
    data.chmod(0o755)
    os.close(claim_data_directory(data))
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_the_lock_goes_with_its_holder(data):
    descriptor = claim_data_directory(data)
    with pytest.raises(NotPossibleError, match=f"process {os.getpid()}"):
        claim_data_directory(data)
    os.close(descriptor)
    os.close(claim_data_directory(data))


@pytest.mark.fault
def test_a_part_that_cannot_start_ends_the_start(start, data):
    """As when a port is lost between our look and the start: nothing is left half-started."""
    data.mkdir()
    (data / "gateway.pem").mkdir()
    manager = start()
    assert manager.wait() == 1
    assert manager.lines[-1].startswith("gateway ended with exit code")
    assert manager.processes() == {}
    assert manager.ports_are_free()
    assert "The first administrator is admin, the password is " in manager.output


# Stopping


def stops_cleanly(manager: Manager, number: int) -> None:
    began = time.monotonic()
    assert manager.stop(number) == 0
    took = time.monotonic() - began
    assert manager.lines[-1] == "manager   | stopped"
    assert manager.processes() == {}
    assert manager.ports_are_free()
    assert "Traceback" not in manager.output
    assert took < 20


@pytest.mark.timeout(400)
@pytest.mark.fault
def test_the_data_outlive_stops_and_kills(start, data):
    """One life: stopped, run again, killed, run again, interrupted."""
    first = start()
    first.wait_until_it_runs()
    password = first.password()
    first.wait_until_its_host_runs()
    authority = (data / "keys" / "ca.pem").read_bytes()
    stops_cleanly(first, signal.SIGTERM)

    second = start(environment={"OPS_ADMIN_PASSWORD": "something-else-entirely"})
    second.wait_until_it_runs()
    assert second.sign_in(password) == 200
    assert "Sign in   as before" in second.output
    assert (data / "keys" / "ca.pem").read_bytes() == authority
    second.wait_until_its_host_runs()
    assert len(second.processes()) >= 10
    second.process.kill()
    second.process.wait()
    wait_for(lambda: not second.processes(), 30, "all to be gone")

    third = start()
    third.wait_until_it_runs()
    assert third.sign_in(password) == 200
    stops_cleanly(third, signal.SIGINT)


@pytest.mark.fault
def test_it_stops_cleanly_before_it_has_begun(start):
    manager = start()
    wait_for(lambda: len(manager.processes()) > 1, 30, "the settings to be read")
    assert manager.stop(signal.SIGINT) == 0
    assert manager.processes() == {}


@pytest.mark.fault
def test_it_stops_cleanly_while_it_starts(start):
    """The password that was made up must not get lost: the next start makes none."""
    manager = start()
    manager.wait_for_line("scheduler | ")
    assert manager.stop(signal.SIGINT) == 0
    assert manager.processes() == {}
    assert manager.ports_are_free()
    assert "The first administrator is admin, the password is " in manager.output


# Not root


def can_run_ours(user: int) -> bool:
    """Python, or all of this, may lie in root's home."""
    try:
        identity = {"user": user, "group": user, "extra_groups": []}
        subprocess.run([sys.executable, "-c", "import wsgi"], cwd=ROOT, check=True, capture_output=True, **identity)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def drop_capabilities() -> None:
    """Runs in the child: what root then starts has no more rights than the owner of root's files."""
    libc = ctypes.CDLL(None)
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.fixture
def ordinary(data: Path) -> dict[str, object]:
    """What makes `start` run without root's rights, in a place that belongs to whoever it runs as."""
    if os.geteuid() != 0:
        return {}
    if not can_run_ours(NOBODY):
        return {"preexec_fn": drop_capabilities}
    os.chown(data.parent, NOBODY, NOBODY)
    return {"user": NOBODY, "group": NOBODY, "extra_groups": [], "environment": {"HOME": str(data.parent)}}


def test_an_ordinary_user_can_run_it(start, ordinary):
    manager = start(**ordinary)
    manager.wait_until_it_runs()
    assert manager.is_healthy()
    rights = {re.search(r"CapEff:\t(\w+)", Path(f"/proc/{pid}/status").read_text())[1] for pid in manager.processes()}
    assert rights == {"0" * 16}
    assert manager.stop() == 0
    assert manager.processes() == {}


def test_a_directory_that_an_ordinary_user_cannot_write_is_said(start, ordinary, data):
    data.parent.chmod(0o500)
    manager = start(**ordinary)
    assert manager.wait() == 1
    assert manager.lines == [f"data_dir: {data} cannot be used: Permission denied; choose another with OPS_DATA_DIR"]


def test_a_directory_of_somebody_else_is_said(start, ordinary, data):
    """Open to everybody, but not ours to close."""
    if os.geteuid() != 0:
        pytest.skip("only root can make one")
    data.mkdir()
    data.chmod(0o777)
    os.chown(data, 1, 1)
    manager = start(**ordinary)
    assert manager.wait() == 1
    assert manager.lines == [
        f"data_dir: {data} cannot be used: Operation not permitted; choose another with OPS_DATA_DIR"
    ]


def test_a_port_that_is_for_root_only_is_said(start, ordinary):
    lowest = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if lowest < 2:
        pytest.skip("here ordinary users may use every port")
    ordinary["environment"] = {**ordinary.get("environment", {}), "OPS_WEB_PORT": str(lowest - 1)}
    manager = start(**ordinary)
    assert manager.wait() == 1
    assert manager.lines == [f"port {lowest - 1} is for root only: choose another with OPS_WEB_PORT"]
