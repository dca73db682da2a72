"""The one-liner: the script that the gateway serves makes a machine a node, with a shell, curl and Python alone."""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import select

from app import __version__
from app.kernel.db import db
from app.nodes.install import instructions
from app.nodes.models import Node
from tests.launch.started import processes_with
from tests.link.planes import Plane
from tests.services import find_program, wait_for
from tools.build_kit import COMPONENTS, copy_sources, pack

LIBRARIES = {"daemon": ("psutil", "cryptography", "cffi", "ruamel", "_cffi_backend"), "agent": ("ruamel",)}
pytestmark = pytest.mark.skipif(find_program("curl") is None, reason="curl is not installed (apt install curl)")


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit as `make kit` makes it, but with the libraries of this very Python, so that no index is needed."""
    directory = tmp_path_factory.mktemp("kit")
    tree = directory / "tree"
    for component in COMPONENTS:
        copy_sources(component, tree)
        place = tree / component.place / "lib" / f"cp{sys.version_info[0]}{sys.version_info[1]}"
        place.mkdir(parents=True)
        for name in LIBRARIES[component.name]:
            found = importlib.util.find_spec(name)
            assert found is not None, name
            inside = found.submodule_search_locations
            source = Path(inside[0]) if inside else Path(found.origin or "")
            (shutil.copytree if source.is_dir() else shutil.copy)(source, place / source.name)
    archive = directory / f"ops-scaffold-{__version__}-linux-amd64.tar.gz"
    pack(tree, archive)
    shutil.rmtree(tree)
    entry = {"file": archive.name, "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
    index = {"version": __version__, "kits": dict.fromkeys(("amd64", "arm64"), entry)}
    (directory / "index.json").write_text(json.dumps(index))
    return directory


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path) -> Iterator[None]:
    """Agents outlive the Daemon, also where a test fails."""
    yield
    for pid in processes_with(f"{tmp_path}/"):
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def app(sqlite_app: Flask) -> Flask:
    """What is installed does not depend on the database."""
    return sqlite_app


@pytest.fixture
def installing(sqlite_app: Flask, kit: Path, own_plane: Callable[..., Plane]) -> Plane:
    return own_plane(sqlite_app, OPS_NODE__KIT_DIR=str(kit))


def one_liner(app: Flask, plane: Plane, kit: Path, token: str, *, fallback: bool = False) -> str:
    """What the page shows, for the address and the kits of this gateway."""
    given = app.extensions["ops"]
    server = given.settings.server.model_copy(update={"gateway_url": f"https://127.0.0.1:{plane.port}"})
    node = given.settings.node.model_copy(update={"kit_dir": str(kit)})
    settings = given.settings.model_copy(update={"server": server, "node": node})
    for worked_out_before in ("gateway_url", "kit_path"):
        settings.__dict__.pop(worked_out_before, None)
    with app.app_context():
        app.extensions["ops"] = replace(given, settings=settings)
        try:
            found = instructions(token)
        finally:
            app.extensions["ops"] = given
    return found.fallback if fallback else found.one_liner


def run(line: str, prefix: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = " ".join(("--prefix", str(prefix), "--python", sys.executable, "--no-service", *more))
    return subprocess.run(
        ["sh", "-c", f"{line} {words}"], capture_output=True, text=True, timeout=120, check=False, cwd=prefix
    )


@pytest.mark.parametrize("fallback", [False, True], ids=["pinned", "checksum"])
def test_it_makes_this_machine_a_node_that_lives(
    sqlite_app: Flask, installing: Plane, kit: Path, join: Callable[..., str], tmp_path: Path, fallback: bool
) -> None:
    done = run(one_liner(sqlite_app, installing, kit, join(), fallback=fallback), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    releases = tmp_path / "opt/ops-scaffold/releases"
    for component in COMPONENTS:
        assert (releases / component.name / "current").readlink() == Path(component.version)
    assert (tmp_path / "etc/ops-scaffold/capabilities.yaml").exists()
    for state in ("daemon", "agent"):
        assert (tmp_path / "var/lib/ops-scaffold" / state).stat().st_mode & 0o777 == 0o700
    command = started_with(done)
    with started(command) as daemon:
        wait_for(lambda: node(sqlite_app).status == "online", 60, "the installed Daemon to check in")
        wait_for(lambda: node(sqlite_app).agent_version, 60, "its task agent")
        assert node(sqlite_app).agent_status == "running"
        pid = agent_pid(tmp_path)
        assert Path(f"/proc/{pid}/cwd").resolve() == (releases / "agent/current").resolve()
        assert (tmp_path / "var/lib/ops-scaffold/daemon/agents/task/agent.sock").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "var/lib/ops-scaffold/agent/lock").exists()
    assert daemon.returncode == 0
    uninstall(tmp_path)
    assert not is_running(pid)


def test_it_is_taken_off_the_host_with_everything_that_it_runs(
    sqlite_app: Flask, installing: Plane, kit: Path, join: Callable[..., str], tmp_path: Path
) -> None:
    done = run(one_liner(sqlite_app, installing, kit, join()), tmp_path)
    with started(started_with(done)):
        pid = agent_pid(tmp_path)
        script = tmp_path / "opt/ops-scaffold/uninstall.sh"
        refused = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=False, timeout=60)
        assert refused.returncode != 0
        assert "stop it first" in refused.stdout + refused.stderr
        assert is_running(pid)
    # The agent outlives the Daemon.
    assert is_running(pid)
    uninstall(tmp_path)
    assert not is_running(pid)
    assert (tmp_path / "etc/ops-scaffold/agent.yaml").exists()
    assert (tmp_path / "var/lib/ops-scaffold/daemon/identity").exists()
    assert run(one_liner(sqlite_app, installing, kit, join()), tmp_path).returncode == 0
    uninstall(tmp_path, "--purge")
    assert not (tmp_path / "etc/ops-scaffold").exists()
    assert not (tmp_path / "var/lib/ops-scaffold").exists()


def test_a_new_release_of_the_agent_takes_over_and_the_same_one_does_not_disturb(
    sqlite_app: Flask, installing: Plane, kit: Path, join: Callable[..., str], tmp_path: Path
) -> None:
    line = one_liner(sqlite_app, installing, kit, join(max_uses=1))
    with started(started_with(run(line, tmp_path))):
        first = agent_pid(tmp_path)
    with started(started_with(run(line, tmp_path))):
        assert agent_pid(tmp_path) == first
    assert is_running(first)
    (tmp_path / "opt/ops-scaffold/releases/agent/current/.kit").write_text("of an earlier kit")
    command = started_with(run(line, tmp_path))
    wait_for(lambda: not is_running(first), 30, "the end of the old agent")
    with started(command):
        wait_for(lambda: agent_pid(tmp_path) != first, 30, "the new agent")
    uninstall(tmp_path)


def started_with(done: subprocess.CompletedProcess[str]) -> str:
    """What the script says the Daemon is started with."""
    assert done.returncode == 0, done.stdout + done.stderr
    command = done.stdout.strip().splitlines()[-1].partition("Start the Daemon with: ")[2]
    assert command
    return command


@contextlib.contextmanager
def started(command: str) -> Iterator[subprocess.Popen[bytes]]:
    daemon = subprocess.Popen(["sh", "-c", f"exec env {command}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield daemon
    finally:
        daemon.terminate()
        daemon.wait(20)


def node(app: Flask) -> Node:
    with app.app_context():
        db.session.rollback()
        found = db.session.scalars(select(Node)).one()
        db.session.expunge(found)
        return found


def agent_pid(prefix: Path) -> int:
    """Of the task agent, once it listens."""
    place = prefix / "var/lib/ops-scaffold/daemon/agents/task"

    def pid() -> int | None:
        with contextlib.suppress(OSError, IndexError), socket.socket(socket.AF_UNIX) as channel:
            channel.connect(f"/proc/self/fd/{folder}/agent.sock")
            return int((place / "pid").read_text().split()[1])
        return None

    wait_for(place.exists, 60, "the agent's place")
    folder = os.open(place, os.O_PATH)
    try:
        return int(wait_for(pid, 60, "the agent"))
    finally:
        os.close(folder)


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def uninstall(prefix: Path, *more: str) -> None:
    done = subprocess.run(
        ["sh", str(prefix / "opt/ops-scaffold/uninstall.sh"), *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (prefix / "opt/ops-scaffold").exists()


def test_it_may_be_run_again_and_keeps_identity_and_settings(
    sqlite_app: Flask, installing: Plane, kit: Path, join: Callable[..., str], tmp_path: Path
) -> None:
    line = one_liner(sqlite_app, installing, kit, join(max_uses=1))
    assert run(line, tmp_path).returncode == 0
    configuration = tmp_path / "etc/ops-scaffold/daemon.yaml"
    configuration.write_text(configuration.read_text() + "# mine\n")
    again = run(line, tmp_path)
    assert again.returncode == 0, again.stderr
    assert "# mine" in configuration.read_text()
    with sqlite_app.app_context():
        assert len(db.session.scalars(select(Node)).all()) == 1


def test_it_says_in_one_line_what_is_wrong(
    sqlite_app: Flask, installing: Plane, kit: Path, join: Callable[..., str], tmp_path: Path
) -> None:
    refused = run(one_liner(sqlite_app, installing, kit, "ops_join_nonsense"), tmp_path)
    assert refused.returncode != 0
    assert "was not let in" in refused.stderr
    unknown = run(one_liner(sqlite_app, installing, kit, join()), tmp_path, "--frobnicate")
    assert "unknown option: --frobnicate" in unknown.stderr


def test_a_kit_that_was_tampered_with_is_not_unpacked(
    sqlite_app: Flask, installing: Plane, kit: Path, join: Callable[..., str], tmp_path: Path
) -> None:
    archive = next(kit.glob("*.tar.gz"))
    other = tmp_path / "other.tar.gz"
    other.write_bytes(archive.read_bytes()[:-1] + b"x")
    done = run(one_liner(sqlite_app, installing, kit, join()), tmp_path, "--kit", str(other))
    assert done.returncode != 0
    assert "not the one that this script was made for" in done.stderr
    assert not (tmp_path / "opt").exists()


def test_another_server_in_between_is_not_talked_to(
    sqlite_app: Flask, installing: Plane, kit: Path, join: Callable[..., str], tmp_path: Path
) -> None:
    line = one_liner(sqlite_app, installing, kit, join())
    pin = line.partition("sha256//")[2][:43]
    done = run(line.replace(pin, "A" * 43), tmp_path)
    assert not (tmp_path / "opt").exists()
    assert "pinned" in done.stderr
