"""`flask ops backup` and `restore`: everything comes back, also on another database; damage is found first."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import select, text

from app.audit.verification import CHECKPOINT_FILE, verify
from app.factory import create_app
from app.kernel.context import ops
from app.kernel.db import Base, db
from app.kernel.secrets import create_missing_keys, load_keys
from app.launch.checks import claim_data_directory
from app.link.models import Presence
from app.metrics.models import MetricDetail
from app.nodes.models import Node
from app.people.models import User
from config import load_settings
from tests.conftest import Applications
from tests.factories import api_as, make_user
from tests.nodes.fleet import make_node
from tests.services import MariaDb
from tests.test_cli import assert_one_line, run


@pytest.fixture
def filled(app: Flask) -> Flask:
    """One with a user, a node, measurements and a signed audit log."""
    with app.app_context():
        make_user("ada", "admin")
        node_id = make_node("web-1", labels={"env": "prod"}, tags=["a", "b"])
        db.session.add(MetricDetail(node_id=node_id, ts=1, body=b"\x00\xff\x1f"))
        db.session.commit()
    api_as(app, "ada")
    assert run(app, "audit", "checkpoint").exit_code == 0
    return app


Fresh = Callable[[str], Flask]
Change = Callable[[str, bytes], bytes | None]


@pytest.fixture
def fresh(tmp_path: Path, request: pytest.FixtureRequest, applications: Applications) -> Fresh:
    """Another machine: own data directory, own keys, an empty database of the kind asked for."""

    def make(kind: str) -> Flask:
        given = {"OPS_DATA_DIR": str(tmp_path / "other"), "OPS_REDIS_URL": applications.settings("sqlite").redis.url}
        if kind == "mariadb":
            server: MariaDb = request.getfixturevalue("mariadb_server")
            given["OPS_DATABASE_URL"] = server.create_database()
        settings = load_settings([], given)
        settings.data_path.mkdir()
        create_missing_keys(settings)
        return create_app(settings, keys=load_keys(settings))

    return make


def contents(app: Flask) -> dict[str, list[dict[str, Any]]]:
    """Every row but the audit log's, which goes on, and what gateways of other tests keep writing."""
    with app.app_context():
        return {
            table.name: [dict(row) for row in db.session.execute(select(table)).mappings()]
            for table in Base.metadata.sorted_tables
            if not table.name.startswith("audit_") and table.name != Presence.__tablename__
        }


def write(app: Flask, path: Path, *words: str) -> Result:
    result = run(app, "backup", str(path), *words)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("mariadb", marks=pytest.mark.mariadb)])
def test_everything_comes_back_on_another_machine_and_another_database(
    filled: Flask, fresh: Fresh, tmp_path: Path, kind: str
) -> None:
    before = contents(filled)
    written = write(filled, tmp_path / "all.ops")
    assert "It holds the keys" in written.output
    assert (tmp_path / "all.ops").stat().st_mode & 0o777 == 0o600
    other = fresh(kind)
    result = run(other, "restore", str(tmp_path / "all.ops"))
    assert result.exit_code == 0, result.output
    assert contents(other) == before
    with other.app_context():
        assert ops().keys.audit_seal == filled.extensions["ops"].keys.audit_seal
        assert (ops().settings.keys_path / "audit.pem").read_bytes() == (
            filled.extensions["ops"].settings.keys_path / "audit.pem"
        ).read_bytes()
        assert verify(db.session()).finding is None
        assert db.session.scalar(select(MetricDetail.body)) == b"\x00\xff\x1f"
    assert list((tmp_path / "other").glob("keys.before-restore-*/ca.key"))
    api_as(other, "ada")


def test_what_was_there_is_replaced_only_when_told(filled: Flask, tmp_path: Path) -> None:
    write(filled, tmp_path / "a.ops")
    with filled.app_context():
        make_user("late", "viewer")
    refused = run(filled, "restore", str(tmp_path / "a.ops"))
    assert_one_line(refused, "has users already", "--replace")
    with filled.app_context():
        assert db.session.scalar(select(User.id).where(User.username == "late"))
        db.session.rollback()
    assert run(filled, "restore", str(tmp_path / "a.ops"), "--replace").exit_code == 0
    with filled.app_context():
        assert list(db.session.scalars(select(User.username))) == ["ada"]
        assert list(db.session.scalars(select(Node.hostname))) == ["web-1"]


def test_newer_checkpoints_are_kept_as_evidence(filled: Flask, tmp_path: Path) -> None:
    write(filled, tmp_path / "a.ops")
    assert run(filled, "audit", "checkpoint").exit_code == 0
    data = filled.extensions["ops"].settings.data_path
    newer = (data / CHECKPOINT_FILE).read_bytes()
    result = run(filled, "restore", str(tmp_path / "a.ops"), "--replace")
    assert result.exit_code == 0, result.output
    kept = list(data.glob(f"{CHECKPOINT_FILE}.before-restore-*"))
    assert [path.read_bytes() for path in kept] == [newer]
    for path in kept:
        path.unlink()


def test_parts_may_be_left_out(filled: Flask, tmp_path: Path) -> None:
    quiet = write(filled, tmp_path / "a.ops", "--without-keys", "--without-metrics")
    assert "keys" not in quiet.output
    with tarfile.open(tmp_path / "a.ops") as archive:
        names = archive.getnames()
    assert "tables/users.jsonl" in names
    assert not [name for name in names if name.startswith("keys/") or "metric_" in name]
    assert run(filled, "restore", str(tmp_path / "a.ops"), "--replace").exit_code == 0


def test_a_file_is_never_overwritten_and_a_failure_leaves_none(
    filled: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.ops").write_text("mine")
    assert_one_line(run(filled, "backup", str(tmp_path / "a.ops")), "exists already")
    assert (tmp_path / "a.ops").read_text() == "mine"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.system.backups._dump", full)
    assert_one_line(run(filled, "backup", str(tmp_path / "b.ops")), "No space left")
    assert sorted(entry.name for entry in tmp_path.iterdir() if "ops" in entry.name) == ["a.ops"]


def repacked(source: Path, target: Path, change: Change) -> None:
    with tarfile.open(source) as old, tarfile.open(target, "w:gz") as new:
        for entry in old:
            file = old.extractfile(entry)
            assert file is not None
            body = change(entry.name, file.read())
            if body is not None:
                entry.size = len(body)
                new.addfile(entry, io.BytesIO(body))


def in_manifest(**values: Any) -> Change:
    return lambda name, body: json.dumps(json.loads(body) | values).encode() if name == "manifest.json" else body


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name, body: None if name == "tables/users.jsonl" else body, ("damaged", "tables/users.jsonl")),
        (lambda name, body: body.replace(b"ada", b"eve") if "users" in name else body, ("damaged", "users")),
        (lambda name, body: None if name == "manifest.json" else body, ("no backup",)),
        (lambda name, body: b"[]" if name == "manifest.json" else body, ("manifest",)),
        (
            lambda name, body: (
                json.dumps(json.loads(body) | {"format": 9}).encode() if name == "manifest.json" else body
            ),
            ("format",),
        ),
        (
            lambda name, body: (
                json.dumps(json.loads(body) | {"revision": "x"}).encode() if name == "manifest.json" else body
            ),
            ("revision", "version"),
        ),
    ],
)
def test_what_is_damaged_or_foreign_changes_nothing(
    sqlite_app: Flask, tmp_path: Path, change: Change, words: tuple[str, ...]
) -> None:
    with sqlite_app.app_context():
        make_user("ada", "admin")
    write(sqlite_app, tmp_path / "a.ops")
    repacked(tmp_path / "a.ops", tmp_path / "b.ops", change)
    before = contents(sqlite_app)
    assert_one_line(run(sqlite_app, "restore", str(tmp_path / "b.ops"), "--replace"), *words)
    assert contents(sqlite_app) == before


def test_a_torn_file_and_no_archive_are_told(sqlite_app: Flask, tmp_path: Path) -> None:
    write(sqlite_app, tmp_path / "a.ops")
    whole = (tmp_path / "a.ops").read_bytes()
    for name, content in (
        ("torn", whole[: len(whole) // 2]),
        ("flipped", whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]),
        ("text", b"hello"),
        ("empty", gzip.compress(b"")),
    ):
        (tmp_path / name).write_bytes(content)
        assert_one_line(run(sqlite_app, "restore", "--check", str(tmp_path / name)), name)
    assert "whole;" in run(sqlite_app, "restore", "--check", str(tmp_path / "a.ops")).output


def test_a_name_in_the_archive_never_becomes_a_path_outside(sqlite_app: Flask, tmp_path: Path) -> None:
    write(sqlite_app, tmp_path / "a.ops")

    def evil(name: str, body: bytes) -> bytes:
        if name != "manifest.json":
            return body
        manifest = json.loads(body)
        manifest["members"]["keys/../../evil"] = manifest["members"].pop("keys/ca.key")
        return json.dumps(manifest).encode()

    repacked(tmp_path / "a.ops", tmp_path / "b.ops", evil)
    with tarfile.open(tmp_path / "b.ops") as old, tarfile.open(tmp_path / "c.ops", "w:gz") as new:
        for entry in old:
            file = old.extractfile(entry)
            entry.name = entry.name.replace("keys/ca.key", "keys/../../evil")
            new.addfile(entry, file)
    assert_one_line(run(sqlite_app, "restore", str(tmp_path / "c.ops"), "--replace"), "does not know")
    assert not list(tmp_path.rglob("evil"))


def test_a_running_manager_is_not_restored_over(sqlite_app: Flask, tmp_path: Path) -> None:
    write(sqlite_app, tmp_path / "a.ops")
    claimed = claim_data_directory(sqlite_app.extensions["ops"].settings.data_path)
    try:
        result = run(sqlite_app, "restore", str(tmp_path / "a.ops"), "--replace")
    finally:
        os.close(claimed)
    assert_one_line(result, "already uses")


def test_both_are_in_the_audit_log(sqlite_app: Flask, tmp_path: Path) -> None:
    write(sqlite_app, tmp_path / "a.ops")
    run(sqlite_app, "restore", str(tmp_path / "a.ops"), "--replace")
    with sqlite_app.app_context():
        found = db.session.execute(text("SELECT action FROM audit_logs ORDER BY id")).scalars().all()
    assert found[-1] == "backup.restore"
