"""The one-liner: the script that the gateway serves makes a machine a node, with a shell, curl and Python alone."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import select

from app import __version__
from app.kernel.db import db
from app.nodes.install import instructions
from app.nodes.models import Node
from tests.link.planes import Plane
from tests.services import find_program, wait_for
from tools.build_kit import ROOT, pack

LIBRARIES = ("psutil", "cryptography", "cffi", "ruamel", "_cffi_backend")
pytestmark = pytest.mark.skipif(find_program("curl") is None, reason="curl is not installed (apt install curl)")


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit as `make kit` makes it, but with the libraries of this very Python, so that no index is needed."""
    directory = tmp_path_factory.mktemp("kit")
    tree = directory / "tree"
    for package in ("daemon", "protocol"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    place = tree / "lib" / f"cp{sys.version_info[0]}{sys.version_info[1]}"
    place.mkdir(parents=True)
    for name in LIBRARIES:
        found = importlib.util.find_spec(name)
        assert found is not None, name
        source = (
            Path(found.submodule_search_locations[0]) if found.submodule_search_locations else Path(found.origin or "")
        )
        (shutil.copytree if source.is_dir() else shutil.copy)(source, place / source.name)
    archive = directory / f"ops-scaffold-{__version__}-linux-amd64.tar.gz"
    pack(tree, archive)
    shutil.rmtree(tree)
    entry = {"file": archive.name, "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
    index = {"version": __version__, "kits": dict.fromkeys(("amd64", "arm64"), entry)}
    (directory / "index.json").write_text(json.dumps(index))
    return directory


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
    home = tmp_path / "opt/ops-scaffold/releases/daemon/current"
    assert home.readlink() == Path(__version__)
    assert (tmp_path / "etc/ops-scaffold/capabilities.yaml").exists()
    assert (tmp_path / "var/lib/ops-scaffold/daemon").stat().st_mode & 0o077 == 0
    command = done.stdout.strip().splitlines()[-1].partition("Start the Daemon with: ")[2]
    assert command
    daemon = subprocess.Popen(["sh", "-c", f"exec env {command}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:

        def is_online() -> bool:
            with sqlite_app.app_context():
                db.session.rollback()
                return "online" in db.session.scalars(select(Node.status)).all()

        wait_for(is_online, 60, "the installed Daemon to check in")
    finally:
        daemon.terminate()
        daemon.wait(20)
    assert daemon.returncode == 0


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
