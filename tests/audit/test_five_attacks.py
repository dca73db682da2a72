"""Somebody owns the database and changes the audit log: `ops audit verify` names the first bad row and exits 1."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, text

from app.audit import chain
from app.audit.actions import record, write_checkpoint
from app.audit.models import AuditHead, AuditRow
from app.audit.verification import CHECKPOINT_FILE
from app.kernel.access import Actor
from app.kernel.db import db, in_transaction

ACTOR = Actor.system("tests")
ROWS = 12
SIGNED = 8
"""The last row that a checkpoint has signed; those after it only the head knows."""


@pytest.fixture
def log(app: Flask) -> Flask:
    """Twelve rows, a checkpoint after the eighth."""
    with app.app_context():
        session = db.session()
        for number in range(1, ROWS + 1):
            in_transaction(
                session, lambda n=number: record(session, ACTOR, "test.done", "thing", n, after={"number": n})
            )
            if number == SIGNED:
                in_transaction(session, lambda: write_checkpoint(session))
    return app


def verified(app: Flask) -> tuple[int, int | None, str]:
    """Exit code, first bad row and what is wrong with it, from the command itself."""
    result = app.test_cli_runner().invoke(args=["ops", "audit", "verify", "--json"])
    finding = json.loads(result.output.splitlines()[-1])["finding"] or {}
    return result.exit_code, finding.get("sequence"), finding.get("problem", "")


def sql(app: Flask, *statements: str, **values: Any) -> None:
    with app.app_context(), db.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement), values)


def test_an_untouched_log_is_as_it_was_written(log: Flask) -> None:
    assert verified(log) == (0, None, "")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit_logs SET username = 'mallory' WHERE id = 5",
        "UPDATE audit_logs SET detail = NULL WHERE id = 5",
        "UPDATE audit_logs SET status = 'failed' WHERE id = 5",
        "UPDATE audit_logs SET created_at = '2020-01-01 00:00:00.000000' WHERE id = 5",
        "UPDATE audit_logs SET canonical = REPLACE(canonical, 'thing', 'thang') WHERE id = 5",
        "UPDATE audit_logs SET hash = REPLACE(hash, SUBSTR(hash, 1, 1), 'x') WHERE id = 5",
        "UPDATE audit_logs SET seal = '' WHERE id = 5",
    ],
)
def test_an_edited_row_is_named(log: Flask, change: str) -> None:
    sql(log, change)
    code, sequence, _problem = verified(log)
    assert (code, sequence) == (1, 5)


def test_a_deleted_row_is_named(log: Flask) -> None:
    sql(log, "DELETE FROM audit_logs WHERE id = 5")
    code, sequence, problem = verified(log)
    assert (code, sequence, problem) == (1, 5, "is missing")


def test_swapped_rows_are_named(log: Flask) -> None:
    sql(
        log,
        "UPDATE audit_logs SET id = 999 WHERE id = 4",
        "UPDATE audit_logs SET id = 4 WHERE id = 6",
        "UPDATE audit_logs SET id = 6 WHERE id = 999",
    )
    code, sequence, _problem = verified(log)
    assert (code, sequence) == (1, 4)


def test_a_log_that_was_cut_off_is_noticed(log: Flask) -> None:
    sql(log, f"DELETE FROM audit_logs WHERE id > {ROWS - 2}")
    code, sequence, _problem = verified(log)
    assert (code, sequence) == (1, ROWS - 1)


def test_a_cut_with_an_old_head_put_back_is_noticed_by_the_file_beside_the_database(log: Flask) -> None:
    """The database as a whole is set back to how it was before the checkpoint: within it, everything fits."""
    with log.app_context():
        session = db.session()
        old = session.execute(select(AuditRow.hash).where(AuditRow.id == 6)).scalar_one()
        key = log.extensions["ops"].keys.audit_seal
        head = {"sequence": 6, "hash": old, "seal": chain.seal_head(key, chain.Link(6, old))}
        session.rollback()
    sql(log, "DELETE FROM audit_logs WHERE id > 6", "DELETE FROM audit_checkpoints")
    sql(log, "UPDATE audit_head SET sequence = :sequence, hash = :hash, seal = :seal", **head)
    code, sequence, problem = verified(log)
    assert (code, sequence) == (1, 7)
    assert "checkpoint" in problem


def rechain(app: Flask, first: int, change: Callable[[dict[str, Any]], None], key: bytes) -> None:
    """Change a row and write the whole chain anew from it on, head and all, sealing with this key."""
    with app.app_context():
        session = db.session()
        rows = session.scalars(select(AuditRow).where(AuditRow.id >= first).order_by(AuditRow.id)).all()
        previous = session.scalar(select(AuditRow.hash).where(AuditRow.id == first - 1)) or chain.GENESIS_HASH
        for row in rows:
            fields = {name: getattr(row, name) for name in chain.FIELDS}
            if row.id == first:
                change(fields)
            row.username = fields["username"]
            row.canonical = chain.canonical(row.id, row.created_at, fields)
            row.hash = previous = chain.next_hash(previous, row.canonical)
            row.seal = chain.seal(key, chain.Link(row.id, row.hash))
        head = session.scalars(select(AuditHead)).one()
        head.hash, head.seal = previous, chain.seal_head(key, chain.Link(head.sequence, previous))
        session.commit()


def blame_mallory(fields: dict[str, Any]) -> None:
    fields["username"] = "mallory"


def test_a_chain_written_anew_without_the_key_is_noticed(log: Flask) -> None:
    rechain(log, 5, blame_mallory, b"not our key")
    sql(log, "DELETE FROM audit_checkpoints")
    code, sequence, problem = verified(log)
    assert (code, sequence) == (1, 5)
    assert "does not have the key" in problem


def test_even_the_seals_key_does_not_help_against_what_was_signed_and_kept_elsewhere(log: Flask) -> None:
    rechain(log, 5, blame_mallory, log.extensions["ops"].keys.audit_seal)
    sql(log, "DELETE FROM audit_checkpoints")
    code, sequence, problem = verified(log)
    assert (code, sequence) == (1, SIGNED)
    assert "checkpoint" in problem


def test_rows_beyond_the_head_and_a_missing_head_are_noticed(log: Flask) -> None:
    sql(log, "DELETE FROM audit_head")
    assert verified(log)[0] == 1


def test_a_forged_line_in_the_file_is_noticed_and_a_torn_last_one_is_not(log: Flask) -> None:
    path: Path = log.extensions["ops"].settings.data_path / CHECKPOINT_FILE
    genuine = path.read_bytes()
    path.write_bytes(genuine + b'{"sequence": 9, "ha')
    assert verified(log)[0] == 0
    forged = json.loads(genuine) | {"sequence": 3}
    path.write_bytes(genuine + json.dumps(forged).encode() + b"\n")
    assert verified(log)[0] == 1


def test_a_clock_that_goes_back_is_no_attack(log: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    with log.app_context():
        session = db.session()
        newest = session.execute(select(AuditRow.created_at).order_by(AuditRow.id.desc())).scalars().first()
        session.rollback()
        assert newest is not None
        monkeypatch.setattr("app.audit.actions.now", lambda: newest - timedelta(days=400))
        in_transaction(session, lambda: record(session, ACTOR, "test.done", "thing"))
    assert verified(log)[0] == 0
