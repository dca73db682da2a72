"""The database: engine, sessions, transactions and their locking, the same for SQLite and MySQL/MariaDB.

SQLite and greenlets: a statement that waits for a lock inside SQLite freezes the whole process, and a transaction that
reads first and writes later fails at once. So writing transactions begin with BEGIN IMMEDIATE, never wait inside
SQLite, and take turns by a lock of our own. Features see none of this.
"""

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

from flask_sqlalchemy import SQLAlchemy
from pymysql.constants import SERVER_STATUS
from sqlalchemy import Connection, Engine, MetaData, NullPool, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Session

from app.kernel.errors import DatabaseAway
from config import Settings

Result = TypeVar("Result")

NAMING = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
TABLE_OPTIONS = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "sqlite_autoincrement": True,  # a deleted row's number is never given to another one
}
SQLITE_PATIENCE_S = 10.0
SURE_S = 1.0
"""No server is back so soon after it went."""
NOT_LET_IN = frozenset({1040, 1044, 1045, 1049, 1129, 1130, 1203, 1226})
STOPS_OR_ONLY_READS = frozenset({1053, 1290, 1792, 1836})
CONNECTION_LOST = frozenset({1927, 2002, 2003, 2006, 2013, 2014, 2055})
AWAY_CODES = NOT_LET_IN | STOPS_OR_ONLY_READS | CONNECTION_LOST
DEADLOCK_CODES = frozenset({1205, 1213})
SQLITE_AWAY = re.compile(r"locked|busy|unable to open|disk I/O error|is full|readonly database")
SQLITE_IS_TAKEN = re.compile(r"locked|busy")


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    __table_args__: Any = TABLE_OPTIONS


db = SQLAlchemy(model_class=Base)
_reads_only: ContextVar[bool] = ContextVar("reads_only", default=False)


@contextmanager
def reading(is_reading: bool = True) -> Iterator[None]:
    """Transactions begun inside only read (or not), so they neither take nor wait for the write lock."""
    token = _reads_only.set(is_reading)
    try:
        yield
    finally:
        _reads_only.reset(token)


def set_reads_only(is_reading: bool) -> None:
    """The same for the rest of the current request or job."""
    _reads_only.set(is_reading)


def engine_options(settings: Settings) -> dict[str, Any]:
    """What `create_engine` is told for these settings."""
    if settings.database_url.startswith("sqlite"):
        return {"connect_args": {"timeout": 0, "check_same_thread": False}, "pool_size": 20, "max_overflow": 20}
    part = settings.database
    # Without this the driver would read all authorities that the host trusts, for each connection to a local socket.
    is_local = "unix_socket" in make_url(settings.database_url).query
    return {
        "isolation_level": "READ COMMITTED",
        "pool_size": min(part.max_idle_conns, part.max_open_conns),
        "max_overflow": max(0, part.max_open_conns - part.max_idle_conns),
        "pool_timeout": 10,
        "pool_reset_on_return": None,  # `_undo_what_is_open` does it
        "pool_recycle": int(part.conn_max_lifetime),
        "connect_args": {
            "charset": "utf8mb4",
            "ssl_disabled": is_local,
            "connect_timeout": min(5, part.answer_timeout),
            "read_timeout": part.answer_timeout,
            "write_timeout": part.answer_timeout,
            "init_command": "SET time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',"
            " innodb_lock_wait_timeout = 10",
        },
    }


def migration_engine(settings: Settings) -> Engine:
    """For migrations: a statement may take as long as it takes, and SQLite does not mind references for the moment.

    It changes most things by building a table anew and dropping the old one, which would otherwise count as deleting
    its rows, and so delete whatever refers to them.
    """
    engine = _separate_engine(settings, None)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA foreign_keys = OFF"))
    return engine


def probe_engine(settings: Settings, patience_s: float) -> Engine:
    """For asking whether the database is there: it connects anew each time, and does not wait for long."""
    return _separate_engine(settings, patience_s)


def _separate_engine(settings: Settings, answer_timeout_s: float | None) -> Engine:
    """One without a pool, apart from the one that requests share."""
    given = engine_options(settings)["connect_args"]
    if "read_timeout" in given:
        given |= {"read_timeout": answer_timeout_s, "write_timeout": answer_timeout_s}
        given["connect_timeout"] = min(given["connect_timeout"], answer_timeout_s or 60)
    isolation = {} if "check_same_thread" in given else {"isolation_level": "READ COMMITTED"}
    engine = create_engine(settings.database_url, poolclass=NullPool, connect_args=given, **isolation)
    prepare_engine(engine)
    return engine


def prepare_engine(engine: Engine) -> None:
    """Teach an engine our locking. Called once for each engine, before its first connection."""
    if engine.dialect.name == "sqlite":
        _SqliteTurns(engine)
    else:
        event.listen(engine, "checkin", lambda _dbapi, record: record.info.update(idle_since=time.monotonic()))
        event.listen(engine, "checkout", partial(_look_whether_alive, engine))
        event.listen(engine, "reset", _undo_what_is_open)


def _undo_what_is_open(dbapi: Any, _record: Any, _state: Any) -> None:
    """Only what was neither committed nor rolled back: each question to the server is a journey."""
    if dbapi.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS:
        dbapi.rollback()


def _look_whether_alive(engine: Engine, dbapi: Any, record: Any, _proxy: Any) -> None:
    """A connection that nobody used for a while may be dead; one that was used a moment ago is not asked each time."""
    idle_since = record.info.get("idle_since")
    if idle_since is None or time.monotonic() - idle_since < SURE_S:
        return
    try:
        engine.dialect.do_ping(dbapi)
    except engine.dialect.loaded_dbapi.Error as error:
        raise InvalidatePoolError from error


class _SqliteTurns:
    """Writers of one process take turns by a lock; other processes are waited for in short, cooperative steps."""

    def __init__(self, engine: Engine) -> None:
        self._lock = threading.Lock()
        event.listen(engine, "connect", self._on_connect)
        event.listen(engine, "begin", self._on_begin)
        event.listen(engine, "commit", self._release)
        event.listen(engine, "rollback", self._release)
        event.listen(engine, "checkin", lambda _dbapi, record: self._release_info(record.info))

    @staticmethod
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "temp_store = MEMORY"):
            _when_free(partial(connection.execute, f"PRAGMA {pragma}"), time.monotonic() + SQLITE_PATIENCE_S)

    def _on_begin(self, connection: Connection) -> None:
        deadline = time.monotonic() + SQLITE_PATIENCE_S
        # Past SQLAlchemy, which would take a refusal for the end of a transaction and give the turn back.
        driver: Any = connection.connection.dbapi_connection
        if _reads_only.get():
            _when_free(partial(_begin_reading, driver), deadline)
            return
        if not self._lock.acquire(timeout=SQLITE_PATIENCE_S):
            raise DatabaseAway(retry_after_s=1)
        connection.info["has_write_turn"] = True
        try:
            _when_free(partial(driver.execute, "BEGIN IMMEDIATE"), deadline)
        except BaseException:
            self._release(connection)
            raise

    def _release(self, connection: Connection) -> None:
        if not connection.invalidated:
            self._release_info(connection.info)

    def _release_info(self, info: dict[Any, Any]) -> None:
        if info.pop("has_write_turn", False):
            self._lock.release()


def _begin_reading(driver: Any) -> None:
    """Begin and look at the file at once, so that all of the transaction reads the same state and none of it waits."""
    driver.execute("BEGIN")
    try:
        driver.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    except BaseException:
        driver.execute("ROLLBACK")
        raise


def _when_free(step: Callable[[], object], deadline: float) -> None:
    """Do what SQLite refuses while another process holds the file, as soon as it can be done; other greenlets go on."""
    pause_s = 0.001
    while True:
        try:
            step()
            return
        except sqlite3.OperationalError as error:
            if not SQLITE_IS_TAKEN.search(str(error)):
                raise OperationalError("BEGIN", None, error) from error
            if time.monotonic() > deadline:
                raise DatabaseAway(retry_after_s=1) from error
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)


def is_deadlock(error: BaseException) -> bool:
    """Whether the database undid a transaction only because of another one: doing it again is right."""
    return isinstance(error, OperationalError) and _code(error) in DEADLOCK_CODES


def is_away(error: BaseException) -> bool:
    """Whether the database cannot be reached, as opposed to having refused a statement."""
    if isinstance(error, PoolTimeout | DatabaseAway):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return SQLITE_AWAY.search(str(error.orig)) is not None
    return error.connection_invalidated or _code(error) in AWAY_CODES


def _code(error: DBAPIError) -> int:
    arguments = getattr(error.orig, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else 0


def in_transaction(session: Session, work: Callable[[], Result], attempts: int = 4) -> Result:
    """Do `work` and commit; after a deadlock, undo and do it again. The only place where requests and jobs commit."""
    for attempt in range(1, attempts + 1):
        try:
            result = work()
            session.commit()
            return result
        except Exception as error:
            session.rollback()
            if attempt == attempts or not is_deadlock(error):
                raise
            time.sleep(0.01 * attempt)
    raise AssertionError("unreachable")
