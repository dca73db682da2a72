"""Checking the audit log in the database: which row is the first that somebody edited, removed, moved or made up.

It needs the keys. What somebody can check who has an export and the public key is the business of `exported`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import AwareDatetime, BaseModel, ValidationError
from sqlalchemy import Select, literal_column, select
from sqlalchemy.orm import Session

from app.audit import chain
from app.audit.models import AuditCheckpoint, AuditHead, AuditRow
from app.kernel.context import ops

CHUNK = 2000
CHECKPOINT_FILE = "audit-checkpoints.jsonl"


class Finding(NamedTuple):
    """What is wrong, and where: the sequence of the first bad row, or 0 where it is about no row."""

    sequence: int
    problem: str

    def __str__(self) -> str:
        return (
            f"Row {self.sequence} {self.problem}."
            if self.sequence
            else f"{self.problem[:1].upper()}{self.problem[1:]}."
        )


class Report(NamedTuple):
    """What was read. `unsigned` rows at the end are younger than any checkpoint: cutting them off would not show."""

    rows: int
    checkpoints: int
    finding: Finding | None
    unsigned: int = 0
    warnings: tuple[str, ...] = ()


class Checkpoint(BaseModel, frozen=True):
    """One signed line, from the table or from the file."""

    sequence: int
    hash: str
    created_at: AwareDatetime
    signature: str

    @property
    def link(self) -> chain.Link:
        return chain.Link(self.sequence, self.hash)


class Collected(NamedTuple):
    """Checkpoints that are ours, by sequence; what is wrong with others; what is worth saying."""

    hashes: Mapping[int, set[str]]
    genuine: int
    findings: Sequence[Finding]
    warnings: Sequence[str]


def verify(session: Session) -> Report:
    """Read the whole log once. The earliest wrong row wins, whatever showed it."""
    collected = _collect(session, ops().settings.data_path / CHECKPOINT_FILE)
    count, finding, link = _walk(session, collected.hashes)
    if finding is None:
        finding = _check_head(session, link) or _check_end(collected.hashes, link)
    first = min([*collected.findings, *([finding] if finding else [])], default=None)
    unsigned = max(0, link.sequence - max(collected.hashes, default=0))
    return Report(count, collected.genuine, first, unsigned, tuple(collected.warnings))


def _walk(session: Session, checkpoints: Mapping[int, set[str]]) -> tuple[int, Finding | None, chain.Link]:
    link, count, key = chain.Link(0, chain.GENESIS_HASH), 0, ops().keys.audit_seal
    for row in _rows(session, AuditRow):
        problem = _place_problem(row, link) or _row_problem(row, link, key)
        if problem is None and checkpoints.get(row["id"], set()) - {row["hash"]}:
            problem = "differs from what a checkpoint signed"
        if problem is not None:
            return count, Finding(min(row["id"], link.sequence + 1), problem), link
        link, count = chain.Link(row["id"], row["hash"]), count + 1
    return count, None, link


def _place_problem(row: Mapping[str, Any], previous: chain.Link) -> str | None:
    if row["id"] <= previous.sequence:
        return "stands before the log's beginning"
    return None if row["id"] == previous.sequence + 1 else "is missing"


def _row_problem(row: Mapping[str, Any], previous: chain.Link, key: bytes) -> str | None:
    """Values come as the driver gives them: what somebody wrote there need not be what the column is meant for."""
    try:
        detail = None if row["detail"] is None else json.loads(row["detail"])
        read = {**row, "detail": detail, "created_at": _moment(row["created_at"])}
        return chain.problem_of(read, previous.hash, key)
    except (TypeError, ValueError, RecursionError):
        return "holds something that cannot be read"


def _moment(value: Any) -> datetime:
    return (value if isinstance(value, datetime) else datetime.fromisoformat(value)).replace(tzinfo=UTC)


def _rows(session: Session, model: type[AuditRow | AuditCheckpoint]) -> Iterator[dict[str, Any]]:
    """A table in the order of its numbers, in steps, with values as they lie there."""
    names = [column.name for column in model.__table__.columns]
    columns: list[Any] = [literal_column(name) for name in names]
    statement: Select[Any] = select(*columns).select_from(model.__table__).order_by(model.id).limit(CHUNK)
    last: int | None = None
    while True:
        rows = session.execute(statement if last is None else statement.where(model.id > last)).all()
        yield from (dict(zip(names, row, strict=True)) for row in rows)
        if len(rows) < CHUNK:
            return
        last = rows[-1][names.index("id")]


def _check_head(session: Session, link: chain.Link) -> Finding | None:
    head = session.scalar(select(AuditHead).where(AuditHead.id == 1))
    if head is None:
        return Finding(link.sequence + 1, "cannot be placed: the head of the log is missing")
    if head.sequence > link.sequence:
        return Finding(link.sequence + 1, "is missing: the log was cut off here")
    if (head.sequence, head.hash) != link:
        return Finding(head.sequence + 1, "is beyond the head of the log")
    if not chain.is_head_sealed(ops().keys.audit_seal, link, head.seal):
        return Finding(link.sequence + 1, "may be missing: the head of the log was written without the key")
    return None


def _check_end(checkpoints: Mapping[int, set[str]], link: chain.Link) -> Finding | None:
    if max(checkpoints, default=0) > link.sequence:
        return Finding(link.sequence + 1, "is missing: a checkpoint was signed beyond the log's end")
    return None


def _collect(session: Session, path: Path) -> Collected:
    """Every checkpoint there is. On SQLite this Manager has written all of them, so each stands in its file too."""
    key, findings, warnings = ops().keys.audit.public_key(), [], []
    in_table, wrong = _from_table(session)
    findings += [Finding(sequence, "has a checkpoint that cannot be read") for sequence in wrong]
    in_file, bad_lines = _from_file(path)
    findings += [Finding(0, f"line {number} of {CHECKPOINT_FILE} is none of ours") for number in bad_lines]
    genuine = set()
    for item in in_table | in_file:
        if chain.is_checkpoint_signed(key, item.link, item.created_at, item.signature):
            genuine.add(item)
        else:
            findings.append(Finding(max(item.sequence, 0), "has a checkpoint with a wrong signature"))
    if only_in_table := genuine & in_table - in_file:
        first = min(item.sequence for item in only_in_table)
        if session.get_bind().dialect.name == "sqlite":
            findings.append(Finding(first, "has a checkpoint that the file beside the database has lost"))
        else:
            warnings.append(
                f"{len(only_in_table)} checkpoints are not in this machine's file, the first of row {first}"
            )
    if only_in_file := genuine & in_file - in_table:
        warnings.append(f"{len(only_in_file)} checkpoints of the file are no longer in the database")
    hashes: dict[int, set[str]] = {}
    for item in genuine:
        hashes.setdefault(item.sequence, set()).add(item.hash)
    return Collected(hashes, len(genuine), findings, warnings)


def _from_table(session: Session) -> tuple[set[Checkpoint], list[int]]:
    found, wrong = set(), []
    for row in _rows(session, AuditCheckpoint):
        try:
            found.add(Checkpoint.model_validate({**row, "created_at": _moment(row["created_at"])}))
        except (ValidationError, TypeError, ValueError):
            wrong.append(row["sequence"] if isinstance(row["sequence"], int) else 1)
    return found, wrong


def _from_file(path: Path) -> tuple[set[Checkpoint], list[int]]:
    """The file's checkpoints, and the numbers of lines that are none. A last line that a power cut tore is no line."""
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    found, wrong = set(), []
    for number, line in enumerate(lines[:-1], 1):
        try:
            found.add(Checkpoint.model_validate_json(line))
        except ValidationError:
            wrong.append(number)
    return found, wrong
