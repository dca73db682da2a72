"""Transactions on both databases: isolation, deadlocks, and on SQLite whose turn it is to write."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pymysql
import pytest
from flask import Flask
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, event, inspect, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from app.kernel import db as kernel_db
from app.kernel.db import (
    AWAY_CODES,
    TABLE_OPTIONS,
    Base,
    db,
    engine_options,
    in_transaction,
    is_away,
    is_deadlock,
    prepare_engine,
    reading,
)
from app.kernel.errors import Conflict, DatabaseAway
from config import load_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def engine(context: Flask) -> Iterator[Engine]:
    """The application's, with a table of two counters."""
    counters = Table(
        "counters", MetaData(), Column("id", Integer, primary_key=True), Column("n", Integer), **TABLE_OPTIONS
    )
    counters.drop(db.engine, checkfirst=True)
    counters.create(db.engine)
    with db.engine.begin() as connection:
        connection.execute(counters.insert(), [{"id": 1, "n": 0}, {"id": 2, "n": 0}])
    yield db.engine
    db.session.rollback()
    counters.drop(db.engine)


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A SQLite file of its own with the same table."""
    path = str(tmp_path / "ops.db")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE counters (id INTEGER PRIMARY KEY, n INTEGER)")
        connection.execute("INSERT INTO counters VALUES (1, 0), (2, 0)")
    connection.close()
    return path


@pytest.fixture
def sqlite(file: str) -> Iterator[Engine]:
    settings = load_settings([], {"OPS_DATABASE_URL": f"sqlite:///{file}"})
    engine = create_engine(settings.database_url, **engine_options(settings))
    prepare_engine(engine)
    yield engine
    engine.dispose()


def numbers(engine: Engine) -> list[int]:
    with reading(), engine.connect() as connection:
        return list(connection.scalars(text("SELECT n FROM counters ORDER BY id")))


def add(session: Session, row: int = 1) -> None:
    session.execute(text("UPDATE counters SET n = n + 1 WHERE id = :id"), {"id": row})


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


# What holds on both


def test_a_transaction_sees_what_others_committed_meanwhile(engine: Engine) -> None:
    """READ COMMITTED on MariaDB, whose default would show the first state for ever; on SQLite a reader keeps a snapshot
    and a writer has no others beside it.
    """
    with reading(), Session(engine) as reader, Session(engine) as writer:
        assert reader.scalar(text("SELECT n FROM counters WHERE id = 1")) == 0
        with reading(False):
            in_transaction(writer, lambda: add(writer))
        seen = reader.scalar(text("SELECT n FROM counters WHERE id = 1"))
        assert seen == (1 if engine.dialect.name == "mysql" else 0)
        reader.rollback()
        assert reader.scalar(text("SELECT n FROM counters WHERE id = 1")) == 1


def test_a_guarded_update_is_won_by_one(engine: Engine) -> None:
    """Also when both looked first and found the same state."""
    barrier, won = threading.Barrier(2), []

    def claim() -> None:
        with Session(engine) as session:

            def work() -> None:
                with reading(), Session(engine) as look:
                    assert look.scalar(text("SELECT n FROM counters WHERE id = 1")) == 0
                barrier.wait(10)
                result = session.execute(text("UPDATE counters SET n = 1 WHERE id = 1 AND n = 0"))
                won.append(result.rowcount)  # type: ignore[attr-defined]

            in_transaction(session, work)

    threads = [in_thread(claim), in_thread(claim)]
    for thread in threads:
        thread.join()
    assert sorted(won) == [0, 1]


def test_a_row_count_counts_rows_that_matched_though_nothing_changed(engine: Engine) -> None:
    """MySQL by itself counts changed ones, and a guarded update that writes what is there would look lost."""
    with engine.begin() as connection:
        assert connection.execute(text("UPDATE counters SET n = 0 WHERE id = 1")).rowcount == 1


def test_references_are_kept(engine: Engine) -> None:
    statement = (
        "INSERT INTO access_tokens (user_id, name, prefix, token_hash, scopes, created_at) "
        "VALUES (999, 'a', 'b', 'c', '[]', '2026-01-01')"
    )
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text(statement))


def test_nothing_is_committed_when_the_work_fails(engine: Engine) -> None:
    session = db.session()

    def work() -> None:
        add(session)
        raise Conflict

    with pytest.raises(Conflict):
        in_transaction(session, work)
    assert numbers(engine) == [0, 0]


def test_constraints_and_indexes_are_named_by_one_rule(engine: Engine) -> None:
    """So that a migration can name what it drops, on every database."""
    inspector = inspect(engine)
    for table in Base.metadata.sorted_tables:
        for constraint in table.constraints:
            assert constraint.name, f"{table.name}: {constraint}"
        if table.name not in inspector.get_table_names():
            continue
        unique = {item["name"] for item in inspector.get_unique_constraints(table.name)}
        foreign = {item["name"] for item in inspector.get_foreign_keys(table.name)}
        index = {item["name"] for item in inspector.get_indexes(table.name)} - unique - foreign
        assert all(name.startswith(f"uq_{table.name}_") for name in unique), unique
        assert all(name.startswith(f"fk_{table.name}_") for name in foreign), foreign
        assert all(name.startswith(f"ix_{table.name}_") for name in index), index
        assert index == {item.name for item in table.indexes}


# Deadlocks


@pytest.mark.mariadb
@pytest.mark.parametrize("app", ["mariadb"], indirect=True)
def test_what_was_left_open_is_undone_before_somebody_else_gets_the_connection(engine: Engine) -> None:
    connection = engine.raw_connection()
    connection.cursor().execute("UPDATE counters SET n = 7 WHERE id = 1")
    connection.close()
    assert numbers(engine) == [0, 0]
    with engine.begin() as other:
        other.execute(text("UPDATE counters SET n = 1 WHERE id = 1"))
    assert numbers(engine) == [1, 0]


@pytest.mark.mariadb
@pytest.mark.parametrize("app", ["mariadb"], indirect=True)
def test_a_connection_that_died_while_nobody_used_it_is_replaced(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_db, "SURE_S", 0)
    with engine.connect() as one, engine.connect() as other, engine.connect() as killer:
        killed = [connection.scalar(text("SELECT CONNECTION_ID()")) for connection in (one, other)]
        one.close()
        other.close()
        for number in killed:
            killer.exec_driver_sql(f"KILL {number}")
    with engine.connect() as first, engine.connect() as second, engine.connect() as third:
        found = {connection.scalar(text("SELECT CONNECTION_ID()")) for connection in (first, second, third)}
    assert not found & set(killed)


@pytest.mark.mariadb
@pytest.mark.parametrize("app", ["mariadb"], indirect=True)
def test_a_deadlock_is_undone_and_done_again(engine: Engine) -> None:
    """Two transactions lock two rows in opposite orders: one of them loses and must not notice. (SQLite has but one
    writer at a time.)
    """
    barrier, attempts = threading.Barrier(2), []

    def both(first: int, second: int) -> None:
        tries = []
        with Session(engine) as session:

            def work() -> None:
                tries.append(1)
                attempts.append(first)
                add(session, first)
                if len(tries) == 1:
                    barrier.wait(10)
                add(session, second)

            in_transaction(session, work)

    threads = [in_thread(lambda: both(1, 2)), in_thread(lambda: both(2, 1))]
    for thread in threads:
        thread.join()
    assert numbers(engine) == [2, 2]
    assert len(attempts) == 3, "one of the two was tried twice"


def test_a_deadlock_that_comes_again_and_again_is_told(engine: Engine) -> None:
    attempts = []

    def work() -> None:
        attempts.append(1)
        raise OperationalError("UPDATE", {}, pymysql.err.OperationalError(1213, "Deadlock found"))

    with pytest.raises(OperationalError):
        in_transaction(db.session(), work)
    assert len(attempts) == 4


@pytest.mark.parametrize(("code", "kind"), [(1213, is_deadlock), (1205, is_deadlock), (2006, is_away), (1040, is_away)])
def test_errors_are_told_apart(code: int, kind: Callable[[BaseException], bool]) -> None:
    error = OperationalError("SELECT", {}, pymysql.err.OperationalError(code, "x"))
    assert [other(error) for other in (is_deadlock, is_away)] == [kind is is_deadlock, kind is is_away]


def test_a_wrong_statement_is_neither_a_deadlock_nor_an_outage(engine: Engine) -> None:
    with pytest.raises(Exception) as caught, engine.begin() as connection:  # noqa: PT011
        connection.execute(text("SELECT nothing FROM nowhere"))
    assert not is_away(caught.value)
    assert not is_deadlock(caught.value)


def test_a_pool_without_free_connections_counts_as_an_outage() -> None:
    assert is_away(PoolTimeout())
    assert is_away(DatabaseAway())
    assert 1064 not in AWAY_CODES


def test_a_pool_never_holds_more_than_it_may() -> None:
    environment = {"OPS_DATABASE_URL": "mysql://h/d", "OPS_DATABASE__MAX_OPEN_CONNS": "7"}
    options = engine_options(load_settings([], environment | {"OPS_DATABASE__MAX_IDLE_CONNS": "5"}))
    assert (options["pool_size"], options["max_overflow"]) == (5, 2)


# SQLite: whose turn it is


@contextmanager
def impatient(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.3) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(kernel_db, "SQLITE_PATIENCE_S", seconds)
        yield


def assert_free(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else can write at once."""
    outcome: list[object] = []

    def write() -> None:
        try:
            with engine.begin() as connection:
                connection.execute(text("UPDATE counters SET n = n WHERE id = 1"))
            outcome.append("written")
        except DatabaseAway as error:
            outcome.append(error)

    with impatient(monkeypatch):
        in_thread(write).join()
    assert outcome == ["written"]


def test_reading_first_and_writing_later_does_not_fail(sqlite: Engine) -> None:
    """Another writer comes in between, and has to wait."""
    other_done = threading.Event()

    def other() -> None:
        with Session(sqlite) as session:
            in_transaction(session, lambda: add(session))
        other_done.set()

    with Session(sqlite) as session:

        def work() -> None:
            number = session.scalar(text("SELECT n FROM counters WHERE id = 1"))
            in_thread(other)
            assert not other_done.wait(0.05)
            session.execute(text("UPDATE counters SET n = :n WHERE id = 1"), {"n": (number or 0) + 1})

        in_transaction(session, work)
    assert other_done.wait(5)
    assert numbers(sqlite) == [2, 0]


def test_without_our_locking_reading_first_and_writing_later_fails_at_once(file: str) -> None:
    """The harm: no time-out helps a transaction that began by reading."""
    first, second = (sqlite3.connect(file, timeout=5, isolation_level=None) for _connection in range(2))
    first.execute("BEGIN")
    first.execute("SELECT n FROM counters").fetchall()
    second.execute("UPDATE counters SET n = 7")
    started = time.monotonic()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        first.execute("UPDATE counters SET n = 8")
    assert time.monotonic() - started < 20
    first.close()
    second.close()


def test_a_read_only_transaction_neither_takes_nor_waits_for_the_turn(
    sqlite: Engine, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(sqlite) as writer:
        add(writer)
        started = time.monotonic()
        assert numbers(sqlite) == [0, 0]
        assert time.monotonic() - started < 20
        writer.commit()
    with reading(), Session(sqlite) as reader:
        assert reader.scalar(text("SELECT n FROM counters WHERE id = 1")) == 1
        with reading(False):
            assert_free(sqlite, monkeypatch)


def test_a_read_only_transaction_sees_one_state_from_its_beginning(sqlite: Engine) -> None:
    with reading(), sqlite.connect() as reader, reader.begin():
        with reading(False), sqlite.begin() as writer:
            writer.execute(text("UPDATE counters SET n = 5"))
        assert list(reader.scalars(text("SELECT n FROM counters"))) == [0, 0]


def leave_by_exception(engine: Engine) -> None:
    with suppress(Conflict), engine.begin() as connection:
        connection.execute(text("UPDATE counters SET n = 9"))
        raise Conflict


def leave_by_rollback(engine: Engine) -> None:
    with Session(engine) as session:
        add(session)
        session.rollback()


def leave_by_closing(engine: Engine) -> None:
    session = Session(engine)
    add(session)
    session.close()


def leave_by_wrong_statement(engine: Engine) -> None:
    with pytest.raises(OperationalError), engine.begin() as connection:
        connection.execute(text("UPDATE nothing SET n = 9"))


def leave_by_invalidated_connection(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("UPDATE counters SET n = 9"))
        connection.invalidate()


def leave_by_detached_connection(engine: Engine) -> None:
    connection = engine.connect()
    connection.execute(text("UPDATE counters SET n = 9"))
    connection.detach()
    connection.close()


def leave_by_disposed_pool(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("UPDATE counters SET n = 9"))
        engine.dispose()


def leave_by_refused_commit(engine: Engine) -> None:
    def refuse(_session: Session) -> None:
        raise Conflict

    with Session(engine) as session:
        event.listen(session, "before_commit", refuse)
        add(session)
        with pytest.raises(Conflict):
            session.commit()


def leave_by_savepoint(engine: Engine) -> None:
    with Session(engine) as session:
        with suppress(Conflict), session.begin_nested():
            add(session)
            raise Conflict
        session.commit()


@pytest.mark.parametrize(
    "leave",
    [
        leave_by_exception,
        leave_by_rollback,
        leave_by_closing,
        leave_by_wrong_statement,
        leave_by_invalidated_connection,
        leave_by_detached_connection,
        leave_by_disposed_pool,
        leave_by_refused_commit,
        leave_by_savepoint,
    ],
)
def test_the_turn_is_given_back_however_a_transaction_ends(
    sqlite: Engine, monkeypatch: pytest.MonkeyPatch, leave: Callable[[Engine], None]
) -> None:
    leave(sqlite)
    assert_free(sqlite, monkeypatch)
    assert numbers(sqlite) == [0, 0]
    assert sqlite.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_whoever_waits_in_vain_is_told_that_the_database_is_away_and_blocks_nobody(
    sqlite: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(sqlite) as holder:
        add(holder)
        with impatient(monkeypatch), pytest.raises(DatabaseAway) as caught, sqlite.begin():
            pass
        assert caught.value.retry_after_s == 1
        holder.commit()
    assert numbers(sqlite) == [1, 0]
    assert_free(sqlite, monkeypatch)
    assert sqlite.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_file_that_cannot_be_opened_counts_as_an_outage(tmp_path: Path) -> None:
    settings = load_settings([], {"OPS_DATABASE_URL": f"sqlite:///{tmp_path / 'none' / 'ops.db'}"})
    engine = create_engine(settings.database_url, **engine_options(settings))
    prepare_engine(engine)
    with pytest.raises(OperationalError) as caught, engine.connect():
        pass
    assert is_away(caught.value)


def let_go_later(connection: sqlite3.Connection) -> threading.Thread:
    def let_go() -> None:
        time.sleep(0.3)
        connection.close()

    return in_thread(let_go)


def test_a_first_start_beside_another_one_waits_for_it(tmp_path: Path) -> None:
    """Turning a new file to the write-ahead log needs the file for oneself."""
    path = tmp_path / "new.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE counters (id INTEGER PRIMARY KEY, n INTEGER)")
    other.execute("BEGIN EXCLUSIVE")
    settings = load_settings([], {"OPS_DATABASE_URL": f"sqlite:///{path}"})
    engine = create_engine(settings.database_url, **engine_options(settings))
    prepare_engine(engine)
    thread = let_go_later(other)
    assert numbers(engine) == []
    thread.join()
    engine.dispose()


def test_a_reader_waits_for_whoever_has_the_file_for_himself(sqlite: Engine, file: str) -> None:
    """The last one that closes folds the journal into the file, and shuts everybody out for that moment."""
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("UPDATE counters SET n = 5 WHERE id = 1")
    thread = let_go_later(other)
    started = time.monotonic()
    assert numbers(sqlite) == [5, 0]
    assert time.monotonic() - started > 0.2
    thread.join()


def test_a_connection_that_is_kept_gives_its_turn_back_between_transactions(
    sqlite: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite.connect() as connection:
        for end in (connection.commit, connection.rollback):
            connection.execute(text("UPDATE counters SET n = n"))
            end()
            assert_free(sqlite, monkeypatch)


def test_a_connection_that_is_kept_gives_its_turn_back_when_it_waited_in_vain(
    sqlite: Engine, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite.connect() as connection:
        with held(file), impatient(monkeypatch), pytest.raises(DatabaseAway):
            connection.begin()
        assert_free(sqlite, monkeypatch)


def test_a_connection_that_was_lost_may_begin_again(sqlite: Engine) -> None:
    """It never came back to the pool meanwhile, and must not wait for itself."""
    with sqlite.connect() as connection:
        connection.execute(text("UPDATE counters SET n = 9"))
        connection.invalidate()
        connection.rollback()
        started = time.monotonic()
        connection.execute(text("UPDATE counters SET n = 3 WHERE id = 1"))
        connection.commit()
    assert time.monotonic() - started < 20
    assert numbers(sqlite) == [3, 0]


# SQLite among greenlets


class Greenlets:
    """The program `greenlets`, running one scenario."""

    def __init__(self, scenario: str, file: str) -> None:
        command = [sys.executable, "-m", "tests.kernel.greenlets", scenario, f"sqlite:///{file}"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ))

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.line())
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0
        return found


WIDE_STALL_S = 3.0
"""Measured: 5 to 20 ms where nothing else runs. A lock that is waited for inside SQLite freezes for its time-out."""


def test_a_hundred_writers_at_once_all_succeed_and_stall_nobody(file: str) -> None:
    found = Greenlets("writers", file).result()
    assert found["failures"] == []
    assert found["total"] == 300
    assert found["stall_s"] < WIDE_STALL_S


def test_without_our_locking_writers_fail_or_freeze_the_process(file: str) -> None:
    found = Greenlets("naive", file).result()
    assert found["failures"]
    assert found["stall_s"] > 0.9, "the whole time-out, in which nobody else ran"


def test_a_killed_greenlet_gives_its_turn_back(file: str) -> None:
    found = Greenlets("killed", file).result()
    assert found["written"] == 1
    assert found["waited_s"] < 1


@contextmanager
def held(file: str) -> Iterator[sqlite3.Connection]:
    """Another process is writing."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE counters SET n = n + 1 WHERE id = 2")
    try:
        yield connection
    finally:
        connection.close()


def test_another_process_that_writes_is_waited_for_while_everybody_else_goes_on(file: str) -> None:
    program = Greenlets("patient", file)
    with held(file) as connection:
        assert program.line() == "ready"
        time.sleep(0.6)
        connection.execute("COMMIT")
        found = program.result()
    assert found["total"] == 2
    assert found["read_s"] < 0.2
    assert 0.4 < found["waited_s"] < 5
    assert found["stall_s"] < WIDE_STALL_S


def test_another_process_that_never_ends_counts_as_an_outage_after_a_while(file: str) -> None:
    program = Greenlets("impatient", file)
    with held(file):
        assert program.line() == "ready"
        found = program.result()
    assert found["refusals"] == [[5001, 503, 1]] * 5
    assert 0.4 < found["waited_s"] < 5
    assert found["stall_s"] < WIDE_STALL_S
