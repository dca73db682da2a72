"""Finer attacks on the log than the five, and tampering with what vouches for it: head, checkpoints, their file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from app.audit import actions, chain, jobs
from app.audit.verification import CHECKPOINT_FILE
from app.kernel.context import ops
from app.kernel.db import db, in_transaction
from tests.audit.conftest import ACTOR, write_checkpoint_now, write_rows
from tests.audit.reading import checked, entries, run_sql

TABLES = ("audit_logs", "audit_head", "audit_checkpoints")


@pytest.fixture
def log(app: Flask) -> Flask:
    """Ten rows, checkpoints of the fourth and the eighth."""
    for first in (1, 5):
        write_rows(app, *range(first, first + 4))
        write_checkpoint_now(app)
    write_rows(app, 9, 10)
    return app


def found(app: Flask) -> tuple[int, str]:
    finding = checked(app).finding
    assert finding is not None
    return finding.sequence, finding.problem


def checkpoint_file(app: Flask) -> Path:
    return app.extensions["ops"].settings.data_path / CHECKPOINT_FILE


def snapshot(app: Flask) -> dict[str, list[dict[str, Any]]]:
    """A copy of the tables, as a backup holds it."""
    with app.app_context(), db.engine.connect() as connection:
        return {
            name: [dict(row) for row in connection.execute(text(f"SELECT * FROM {name}")).mappings()] for name in TABLES
        }


def restore(app: Flask, copy: dict[str, list[dict[str, Any]]]) -> None:
    with app.app_context(), db.engine.begin() as connection:
        for name, rows in copy.items():
            connection.execute(text(f"DELETE FROM {name}"))
            for row in rows:
                columns = ", ".join(row)
                values = ", ".join(f":{column}" for column in row)
                connection.execute(text(f"INSERT INTO {name} ({columns}) VALUES ({values})"), row)


def test_a_clean_log_says_how_many_rows_no_checkpoint_has_signed_yet(log: Flask) -> None:
    report = checked(log)
    assert (report.rows, report.checkpoints, report.finding, report.unsigned, report.warnings) == (10, 2, None, 2, ())
    write_checkpoint_now(log)
    assert checked(log).unsigned == 0


def test_the_head_cannot_be_taken_from_the_last_row_that_is_left(log: Flask) -> None:
    """Rows younger than any checkpoint: only the head knows them, and each row's own seal lies there to be copied."""
    run_sql(
        log,
        "DELETE FROM audit_logs WHERE id > 9",
        "UPDATE audit_head SET sequence = 9, hash = (SELECT hash FROM audit_logs WHERE id = 9),"
        " seal = (SELECT seal FROM audit_logs WHERE id = 9)",
    )
    assert found(log) == (10, "may be missing: the head of the log was written without the key")


def test_a_cut_is_not_hidden_by_what_we_write_next(log: Flask) -> None:
    """We would seal the new head ourselves, and with it the cut."""
    run_sql(
        log,
        "DELETE FROM audit_logs WHERE id > 9",
        "UPDATE audit_head SET sequence = 9, hash = (SELECT hash FROM audit_logs WHERE id = 9)",
    )
    write_rows(log, 11, 12)
    rows = entries(log)
    assert [row.action for row in rows][8:] == ["test.done", "audit.head_changed", "test.done", "test.done"]
    assert (rows[9].status, rows[9].username) == ("failed", "system")
    sequence, problem = found(log)
    assert sequence == 10
    assert "cut off" in problem


@pytest.mark.parametrize("column", ["seal", "hash", "sequence"])
def test_a_head_that_was_edited_is_noticed_and_not_signed(log: Flask, column: str) -> None:
    value = "9" if column == "sequence" else "'x'"
    run_sql(log, f"UPDATE audit_head SET {column} = {value}")
    assert found(log)[0] in (10, 11)
    with log.app_context(), pytest.raises(actions.LogChanged):
        in_transaction(db.session(), jobs.write_checkpoint)
    assert len(checkpoint_file(log).read_text().splitlines()) == 2


def test_a_missing_head_is_noticed_and_nothing_more_is_written(log: Flask) -> None:
    run_sql(log, "DELETE FROM audit_head")
    assert found(log) == (11, "cannot be placed: the head of the log is missing")
    with pytest.raises(Exception, match="No row"):
        write_rows(log, 11)
    assert len(entries(log)) == 10


def test_a_second_head_confuses_nobody(log: Flask) -> None:
    run_sql(log, "INSERT INTO audit_head (id, sequence, hash, seal) VALUES (2, 3, 'x', 'y')")
    write_rows(log, 11)
    write_checkpoint_now(log)
    report = checked(log)
    run_sql(log, "DELETE FROM audit_head WHERE id = 2")
    assert report.finding is None


def copy_row(log: Flask, source: int, target: int) -> None:
    columns = "user_id, username, action, resource_type, resource_id, detail, ip, user_agent, request_id, status, "
    columns += "error_message, created_at, canonical, hash, seal"
    run_sql(
        log, f"INSERT INTO audit_logs (id, {columns}) SELECT :target, {columns} FROM audit_logs WHERE id = :source",
        source=source, target=target,
    )  # fmt: skip


@pytest.mark.parametrize(("target", "named"), [(11, 11), (0, 0), (-5, -5), (500, 11)])
def test_a_row_that_was_put_in_beyond_either_end_is_named(log: Flask, target: int, named: int) -> None:
    copy_row(log, 10, target)
    assert found(log)[0] == named


def test_a_genuine_row_that_was_hidden_beyond_an_older_head_is_named(log: Flask) -> None:
    """Head and checkpoints of an earlier day are put back, the rows are left where they are."""
    old = snapshot(log)
    write_rows(log, 11, 12)
    restore(log, old | {"audit_logs": snapshot(log)["audit_logs"]})
    assert found(log) == (11, "is beyond the head of the log")


def test_an_older_state_of_the_whole_database_is_noticed_by_the_file(log: Flask) -> None:
    old = snapshot(log)
    write_rows(log, 11, 12)
    write_checkpoint_now(log)
    restore(log, old)
    assert found(log) == (11, "is missing: a checkpoint was signed beyond the log's end")


def test_it_stays_noticed_when_the_log_has_grown_past_that_place_again(log: Flask) -> None:
    """The same numbers, and even a checkpoint of the same row: it does not replace the older one."""
    old = snapshot(log)
    write_rows(log, 11, 12)
    write_checkpoint_now(log)
    restore(log, old)
    write_rows(log, 21, 22)
    write_checkpoint_now(log)
    assert found(log) == (12, "differs from what a checkpoint signed")
    write_rows(log, 23)
    assert found(log)[0] == 12


GARBAGE: list[tuple[str, str]] = [
    ("detail", "'{\"after\":'"), ("detail", "'[[['"), ("created_at", "'yesterday'"), ("created_at", "'20'"),
    ("canonical", "x'00ff'"), ("hash", "x'00ff'"), ("seal", "x'00ff'"), ("seal", "'ключ'"), ("username", "x'ff'"),
    ("user_id", "'seven'"), ("user_id", "NULL"), ("detail", "NULL"), ("status", "''"), ("error_message", "'x'"),
]  # fmt: skip


@pytest.mark.parametrize(("column", "value"), GARBAGE)
def test_whatever_somebody_writes_into_a_column_is_a_finding_and_no_crash(
    applications: Any, column: str, value: str
) -> None:
    """SQLite takes any value in any column."""
    app = applications.empty("sqlite")
    write_rows(app, 1, 2, 3)
    run_sql(app, f"UPDATE audit_logs SET {column} = {value} WHERE id = 2".replace(":", "\\:"))
    assert found(app)[0] == 2


@pytest.mark.parametrize(
    ("column", "value"),
    [("detail", "'{'"), ("created_at", "'1000-01-01'"), ("hash", "''"), ("username", "'ada '"), ("ip", "'é'")],
)
def test_on_mariadb_too(applications: Any, column: str, value: str) -> None:
    app = applications.empty("mariadb")
    write_rows(app, 1, 2, 3)
    run_sql(app, f"UPDATE audit_logs SET {column} = {value} WHERE id = 2")
    assert found(app)[0] == 2


def test_the_first_of_several_bad_rows_is_named(log: Flask) -> None:
    run_sql(log, "UPDATE audit_logs SET ip = 'x' WHERE id IN (3, 7)", "DELETE FROM audit_logs WHERE id = 5")
    assert found(log)[0] == 3


def test_checkpoints_that_were_removed_from_the_table_still_count_by_the_file(log: Flask) -> None:
    run_sql(log, "DELETE FROM audit_checkpoints")
    report = checked(log)
    assert (report.finding, report.checkpoints, report.unsigned) == (None, 2, 2)
    assert report.warnings == ("2 checkpoints of the file are no longer in the database",)


def test_a_forged_checkpoint_is_noticed_wherever_it_was_put(log: Flask) -> None:
    values = "5, 'x', 'bm90IG91cnM=', '2026-01-01 00:00:00'"
    run_sql(log, f"INSERT INTO audit_checkpoints (sequence, hash, signature, created_at) VALUES ({values})")
    assert found(log) == (5, "has a checkpoint with a wrong signature")


@pytest.mark.parametrize("change", ["sequence = 6", "hash = 'x'", "signature = '!'", "created_at = '2026-01-01'"])
def test_an_edited_checkpoint_is_noticed(log: Flask, change: str) -> None:
    run_sql(log, f"UPDATE audit_checkpoints SET {change} WHERE sequence = 4")
    assert found(log)[0] in (4, 6)


def edited(lines: list[bytes], number: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> list[bytes]:
    return [*lines[:number], json.dumps(change(json.loads(lines[number]))).encode(), *lines[number + 1 :]]


@pytest.mark.parametrize(
    ("tamper", "sequence"),
    [
        (lambda lines: edited(lines, 0, lambda line: line | {"hash": "0" * 64}), 4),
        (lambda lines: edited(lines, 1, lambda line: line | {"signature": "!"}), 8),
        (lambda lines: edited(lines, 0, lambda line: line | {"created_at": "2026-01-01T00:00:00Z"}), 4),
        (lambda lines: [b"garbage", *lines], 0),
        (lambda lines: [b"", *lines], 0),
        (lambda lines: [b"\xff\xfe\x00", *lines], 0),
        (lambda lines: [b'{"sequence": 1}', *lines], 0),
        (lambda lines: [b"[" * 100_000, *lines], 0),
    ],
)
def test_a_line_of_the_file_that_is_not_ours_is_noticed(
    log: Flask, tamper: Callable[[list[bytes]], list[bytes]], sequence: int
) -> None:
    path = checkpoint_file(log)
    path.write_bytes(b"\n".join([*tamper(path.read_bytes().splitlines()), b""]))
    assert found(log)[0] == sequence


@pytest.mark.parametrize("left", [None, 0, 1])
def test_a_file_that_lost_lines_is_noticed_where_we_wrote_all_of_them(log: Flask, left: int | None) -> None:
    """Several Managers over one MySQL each have some: there it is only worth a word."""
    path = checkpoint_file(log)
    lines = path.read_bytes().splitlines(keepends=True)
    if left is None:
        path.unlink()
    else:
        path.write_bytes(b"".join(lines[:left]))
    report = checked(log)
    if db_kind(log) == "sqlite":
        assert report.finding is not None
        assert report.finding.sequence == (8 if left == 1 else 4)
    else:
        assert report.finding is None
        assert "not in this machine's file" in report.warnings[0]


def db_kind(app: Flask) -> str:
    with app.app_context():
        return db.engine.dialect.name


def test_a_line_that_a_power_cut_tore_is_no_forgery_and_the_next_one_is_whole(log: Flask) -> None:
    path = checkpoint_file(log)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"sequence": 10, "hash": "abc')
    assert checked(log).finding is None
    write_checkpoint_now(log)
    assert path.read_bytes().startswith(whole)
    assert len(path.read_bytes().splitlines()) == 3
    assert checked(log).finding is None
    path.write_bytes(b"torn from the very beginning")
    run_sql(log, "DELETE FROM audit_checkpoints")
    write_rows(log, 11)
    write_checkpoint_now(log)
    assert [json.loads(line)["sequence"] for line in path.read_bytes().splitlines()] == [11]


def test_the_file_is_ours_alone_and_nothing_is_signed_twice(log: Flask) -> None:
    for _ in range(3):
        write_checkpoint_now(log)
    path = checkpoint_file(log)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [json.loads(line)["sequence"] for line in path.read_text().splitlines()] == [4, 8, 10]


def test_an_empty_log_is_clean(app: Flask) -> None:
    report = checked(app)
    assert (report.rows, report.finding) == (0, None)
    write_checkpoint_now(app)
    assert checked(app).finding is None


def test_a_log_that_was_emptied_is_noticed_by_the_file(log: Flask) -> None:
    genesis = f"UPDATE audit_head SET sequence = 0, hash = '{chain.GENESIS_HASH}', seal = ''"
    run_sql(log, "DELETE FROM audit_logs", "DELETE FROM audit_checkpoints", genesis)
    assert found(log)[0] == 1


def test_whoever_has_another_key_finds_everything_wrong(log: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    with log.app_context():
        present = ops()
    keys = type(present.keys)(**{**vars(present.keys), "audit_seal": b"x" * 32})
    monkeypatch.setitem(log.extensions, "ops", type(present)(present.settings, keys, present.redis, present.plane))
    assert found(log) == (1, "was written by somebody who does not have the key")


@pytest.mark.parametrize(
    ("arguments", "is_json"), [(("audit", "verify"), False), (("audit", "verify", "--json"), True)]
)
def test_the_command_names_the_row_and_says_it_by_its_exit_code(
    log: Flask, arguments: tuple[str, ...], is_json: bool
) -> None:
    runner = log.test_cli_runner()
    clean = runner.invoke(args=["ops", *arguments])
    assert clean.exit_code == 0
    assert "10" in clean.output
    run_sql(log, "UPDATE audit_logs SET ip = 'x' WHERE id = 3")
    spoilt = runner.invoke(args=["ops", *arguments])
    assert spoilt.exit_code == 1
    if is_json:
        assert json.loads(spoilt.output)["finding"]["sequence"] == 3
    else:
        assert spoilt.output.startswith("Row 3 ")


def test_no_refused_row_hides_behind_a_genuine_actor(log: Flask) -> None:
    """Our own rows are made by the same arithmetic, so a row of ours always passes."""
    with log.app_context():
        in_transaction(db.session(), lambda: actions.record(db.session(), ACTOR, "x.y", "z", error_message="no"))
    assert checked(log).finding is None
