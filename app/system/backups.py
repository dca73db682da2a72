"""One file with all that a Manager must not lose: every table, the keys, the file of audit checkpoints.

The same on every database, so it also moves an installation from SQLite to MariaDB or MySQL. It is read and checked
whole before anything is changed, and the database changes in one transaction.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from flask import current_app
from flask_migrate import upgrade
from sqlalchemy import Column, Connection, LargeBinary, Table, func, insert, select, text

from app.audit.verification import CHECKPOINT_FILE
from app.kernel.clock import now
from app.kernel.context import attach, ops
from app.kernel.db import Base, migration_engine, reading
from app.kernel.secrets import load_keys
from app.kernel.types import UtcDateTime
from app.people.models import User

FORMAT = 1
MANIFEST = "manifest.json"
KEYS = "keys"
TABLES = "tables"
MEASURED = frozenset(
    {"metric_points", "metric_details", "metric_5m", "metric_1h", "fleet_points", "late_buckets", "agent_points"}
)
"""What `without_metrics` leaves out."""
ROWS_AT_ONCE = 1000
BLOCK = 1024 * 1024
LARGEST_MANIFEST = 16 * 1024 * 1024


class BackupError(Exception):
    """Why nothing was written or restored, in one line."""


class Summary(NamedTuple):
    """What a backup holds."""

    created_at: str
    revision: str
    rows: int
    has_keys: bool
    tables: Mapping[str, int]


class _Member(NamedTuple):
    size: int
    sha256: str


def write_backup(path: Path, *, with_keys: bool, with_metrics: bool) -> Summary:
    """Write a backup while the Manager runs. The tables are of one moment; the file is there whole or not at all."""
    if path.exists():
        raise BackupError(f"{path} exists already")
    settings = ops().settings
    members: dict[str, _Member] = {}
    counts: dict[str, int] = {}
    # First, since a checkpoint that is newer than the rows would look as if the log had been cut off.
    checkpoints = _read_or_empty(settings.data_path / CHECKPOINT_FILE)
    descriptor, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as archive:
                if with_keys:
                    for key in sorted(entry for entry in settings.keys_path.iterdir() if _is_key(entry)):
                        _add(archive, f"{KEYS}/{key.name}", io.BytesIO(key.read_bytes()), members)
                _add(archive, CHECKPOINT_FILE, io.BytesIO(checkpoints), members)
                with _snapshot() as connection:
                    revision = _revision(connection)
                    for table in Base.metadata.sorted_tables:
                        if with_metrics or table.name not in MEASURED:
                            with tempfile.TemporaryFile(dir=path.parent) as rows:
                                counts[table.name] = _dump(connection, table, rows)
                                rows.seek(0)
                                _add(archive, f"{TABLES}/{table.name}.jsonl", rows, members)
                manifest = {
                    "format": FORMAT,
                    "created_at": now().isoformat(timespec="seconds"),
                    "revision": revision,
                    "rows": counts,
                    "members": {name: member._asdict() for name, member in members.items()},
                }
                _add(archive, MANIFEST, io.BytesIO(json.dumps(manifest, indent=1).encode()), {})
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).replace(path)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    _sync(path.parent)
    return _summary(manifest)


def check_backup(path: Path) -> Summary:
    """Read all of a backup and compare it with what it says of itself."""
    found: dict[str, _Member] = {}
    manifest: dict[str, Any] | None = None
    with _opened(path) as archive:
        for entry in archive:
            source = archive.extractfile(entry) if entry.isfile() else None
            if source is None:
                raise BackupError(f"{path} is no backup: {entry.name!r} is no file")
            if entry.name == MANIFEST:
                manifest = _read_manifest(path, source.read(LARGEST_MANIFEST))
            else:
                found[entry.name] = _measure(source)
    if manifest is None:
        raise BackupError(f"{path} is no backup, or its end is missing")
    if manifest["format"] != FORMAT:
        raise BackupError(f"{path} has the format {manifest['format']!r}; this version reads {FORMAT}")
    told = {name: _Member(**member) for name, member in manifest["members"].items()}
    if wrong := sorted(name for name in told.keys() | found.keys() if told.get(name) != found.get(name)):
        raise BackupError(f"{path} is damaged: {', '.join(wrong)}")
    return _summary(manifest)


def restore_backup(path: Path, *, replace_all: bool) -> Summary:
    """Put a backup in the place of what is there. Without `replace_all` only where there is nothing yet.

    What was there of keys and checkpoints is kept beside under another name. After a crash: do it again.
    """
    summary = check_backup(path)
    settings = ops().settings
    upgrade()
    with tempfile.TemporaryDirectory(dir=settings.data_path, prefix=".restore-") as name:
        staged = Path(name)
        engine = migration_engine(settings)
        with _opened(path) as archive, engine.begin() as connection:
            revision = _revision(connection)
            if revision != summary.revision:
                raise BackupError(
                    f"{path} is of the revision {summary.revision} and this version's is {revision}; "
                    "restore it with the version that it came from, then upgrade"
                )
            if not replace_all and connection.scalar(select(func.count()).select_from(User)):
                raise BackupError("the database has users already; --replace puts the backup in the place of it all")
            _load_all(connection, archive, staged)
        _swap(staged, settings.keys_path, summary.has_keys)
    attach(current_app, replace(ops(), keys=load_keys(settings)))
    return summary


def _load_all(connection: Connection, archive: tarfile.TarFile, staged: Path) -> None:
    tables = Base.metadata.tables
    is_mysql = connection.dialect.name == "mysql"
    if is_mysql:
        connection.execute(text("SET FOREIGN_KEY_CHECKS = 0"))
    for table in reversed(Base.metadata.sorted_tables):
        connection.execute(table.delete())
    for entry in archive:
        source = archive.extractfile(entry)
        folder, _, name = entry.name.rpartition("/")
        if source is None or entry.name == MANIFEST:
            continue
        if folder == TABLES and (table_name := name.removesuffix(".jsonl")) in tables:
            _load(connection, tables[table_name], source)
        elif (folder == KEYS and _is_plain(name)) or entry.name == CHECKPOINT_FILE:
            _write_private(staged / folder / name, source.read())
        else:
            raise BackupError(f"the backup holds {entry.name!r}, which this version does not know")
    if is_mysql:
        connection.execute(text("SET FOREIGN_KEY_CHECKS = 1"))
    elif lost := connection.execute(text("PRAGMA foreign_key_check")).first():
        raise BackupError(f"the backup is not consistent: {tuple(lost)}")


def _swap(staged: Path, keys: Path, has_keys: bool) -> None:
    """Staged files into their places; what differs from them is kept beside."""
    mark = f"before-restore-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
    checkpoints = ops().settings.data_path / CHECKPOINT_FILE
    if _read_or_empty(checkpoints) != _read_or_empty(staged / CHECKPOINT_FILE):
        if checkpoints.exists():
            checkpoints.replace(checkpoints.with_name(f"{CHECKPOINT_FILE}.{mark}"))
        (staged / CHECKPOINT_FILE).replace(checkpoints)
    if has_keys and _contents(keys) != _contents(staged / KEYS):
        beside = keys.with_name(f"{keys.name}.{mark}")
        beside.mkdir(mode=0o700)
        for old in filter(_is_key, list(keys.iterdir())):
            shutil.copy2(old, beside / old.name)
        for new in (staged / KEYS).iterdir():
            new.replace(keys / new.name)
    _sync(keys)
    _sync(checkpoints.parent)


def _dump(connection: Connection, table: Table, target: IO[bytes]) -> int:
    columns = list(table.columns)
    count = 0
    for row in connection.execution_options(yield_per=ROWS_AT_ONCE).execute(select(table)):
        line = {column.key: _to_json(column, value) for column, value in zip(columns, row, strict=True)}
        target.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        count += 1
    return count


def _load(connection: Connection, table: Table, source: IO[bytes]) -> None:
    columns = {column.key: column for column in table.columns}
    for lines in _batches(source):
        rows = [{key: _from_json(columns[key], value) for key, value in json.loads(line).items()} for line in lines]
        connection.execute(insert(table), rows)


def _batches(lines: Iterable[bytes]) -> Iterator[Sequence[bytes]]:
    batch: list[bytes] = []
    for line in lines:
        batch.append(line)
        if len(batch) == ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _to_json(column: Column[Any], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(column.type, UtcDateTime):
        return value.isoformat()
    return b64encode(value).decode() if isinstance(column.type, LargeBinary) else value


def _from_json(column: Column[Any], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(column.type, UtcDateTime):
        return datetime.fromisoformat(value)
    return b64decode(value) if isinstance(column.type, LargeBinary) else value


@contextmanager
def _snapshot() -> Iterator[Connection]:
    """All that is read inside is of the same moment, and nobody waits for it."""
    engine = migration_engine(ops().settings)
    if engine.dialect.name == "mysql":
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with reading(), engine.connect() as connection:
        yield connection


def _revision(connection: Connection) -> str:
    return str(connection.scalar(text("SELECT version_num FROM alembic_version")))


def _add(archive: tarfile.TarFile, name: str, source: IO[bytes], members: dict[str, _Member]) -> None:
    members[name] = _measure(source)
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = members[name].size, 0o600, int(time.time())
    source.seek(0)
    archive.addfile(entry, source)


def _measure(source: IO[bytes]) -> _Member:
    digest, size = hashlib.sha256(), 0
    while block := source.read(BLOCK):
        digest.update(block)
        size += len(block)
    return _Member(size, digest.hexdigest())


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:gz") as archive:
            yield archive
    except (OSError, EOFError, tarfile.TarError) as error:
        raise BackupError(f"{path} cannot be read: {error}") from None


def _read_manifest(path: Path, content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
        if isinstance(manifest, dict) and {"format", "created_at", "revision", "rows", "members"} <= manifest.keys():
            return manifest
    except ValueError:
        pass
    raise BackupError(f"{path} is no backup: its manifest cannot be read")


def _summary(manifest: Mapping[str, Any]) -> Summary:
    return Summary(
        created_at=manifest["created_at"],
        revision=manifest["revision"],
        rows=sum(manifest["rows"].values()),
        has_keys=any(name.startswith(f"{KEYS}/") for name in manifest["members"]),
        tables=manifest["rows"],
    )


def _is_key(path: Path) -> bool:
    return path.is_file() and _is_plain(path.name)


def _is_plain(name: str) -> bool:
    return bool(name) and not name.startswith(".") and "/" not in name


def _contents(directory: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in directory.iterdir() if _is_key(entry)}


def _read_or_empty(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _write_private(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
