"""Checking the audit log: which row is the first that somebody edited, removed, moved or made up."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AwareDatetime, BaseModel, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.audit import chain
from app.audit.models import GENESIS_HASH, AuditCheckpoint, AuditHead, AuditRow
from app.kernel.context import ops

CHUNK = 2000


class Finding(NamedTuple):
    """What is wrong, and where: the sequence of the first bad row."""

    sequence: int
    problem: str


class Report(NamedTuple):
    rows: int
    checkpoints: int
    finding: Finding | None


class Checkpoint(BaseModel):
    """One signed line, from the table or from the file."""

    sequence: int
    hash: str
    created_at: AwareDatetime
    signature: str


def verify(session: Session) -> Report:
    """Read the whole log once. The earliest wrong row wins, whatever showed it."""
    checkpoints = [*_from_table(session), *_from_file(ops().settings.data_path / "audit-checkpoints.jsonl")]
    public_key = ops().keys.audit.public_key()
    findings = [finding for item in checkpoints if (finding := _check_signature(public_key, item))]
    expected = {item.sequence: item.hash for item in checkpoints}
    count, finding, link = _walk(session, expected)
    if finding is None:
        finding = _check_head(session, link) or _check_end(expected, link)
    if finding is not None:
        findings.append(finding)
    return Report(count, len(checkpoints), min(findings, default=None))


def _walk(session: Session, checkpoints: dict[int, str]) -> tuple[int, Finding | None, chain.Link]:
    link, count, key = chain.Link(0, GENESIS_HASH), 0, ops().keys.audit_seal
    for row in _rows(session):
        problem = _problem_of(row, link, key)
        if problem is None and checkpoints.get(row.id, row.hash) != row.hash:
            problem = "differs from what a checkpoint signed"
        if problem is not None:
            return count, Finding(min(row.id, link.sequence + 1), problem), link
        link, count = chain.Link(row.id, row.hash), count + 1
    return count, None, link


def _problem_of(row: AuditRow, previous: chain.Link, key: bytes) -> str | None:
    if row.id != previous.sequence + 1:
        return "is missing"
    link = chain.Link(row.id, row.hash)
    if chain.next_hash(previous.hash, row.canonical) != row.hash:
        return "was edited, or its neighbours were moved"
    if not chain.is_sealed(key, link, row.seal):
        return "was written by somebody who does not have the key"
    fields: dict[str, Any] = {name: getattr(row, name) for name in chain.FIELDS}
    if chain.canonical(row.id, row.created_at, fields) != row.canonical:
        return "shows something else than what was hashed"
    return None


def _rows(session: Session) -> Iterator[AuditRow]:
    last = None
    while True:
        statement = select(AuditRow).order_by(AuditRow.id).limit(CHUNK)
        rows = session.scalars(statement if last is None else statement.where(AuditRow.id > last)).all()
        if not rows:
            return
        yield from rows
        last = rows[-1].id
        session.expunge_all()


def _check_head(session: Session, link: chain.Link) -> Finding | None:
    head = session.scalar(select(AuditHead).where(AuditHead.id == 1))
    if head is None:
        return Finding(link.sequence + 1, "the head of the log is missing")
    if head.sequence > link.sequence:
        return Finding(link.sequence + 1, "is missing: the log was cut off here")
    if (head.sequence, head.hash) != link:
        return Finding(head.sequence + 1, "is beyond the head of the log")
    if head.sequence and not chain.is_sealed(ops().keys.audit_seal, chain.Link(*link), head.seal):
        return Finding(head.sequence, "the head of the log was written without the key")
    return None


def _check_end(checkpoints: dict[int, str], link: chain.Link) -> Finding | None:
    if max(checkpoints, default=0) > link.sequence:
        return Finding(link.sequence + 1, "is missing: a checkpoint was signed beyond the log's end")
    return None


def _check_signature(key: Ed25519PublicKey, item: Checkpoint) -> Finding | None:
    if chain.is_signed(key, chain.Link(item.sequence, item.hash), item.created_at, item.signature):
        return None
    return Finding(item.sequence, "a checkpoint of this row has a wrong signature")


def _from_table(session: Session) -> Iterator[Checkpoint]:
    for row in session.scalars(select(AuditCheckpoint)):
        yield Checkpoint.model_validate(row, from_attributes=True)


def _from_file(path: Path) -> Iterator[Checkpoint]:
    """The file's lines. The last one may be torn by a power cut; a wrong one before it counts as forged."""
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            yield Checkpoint.model_validate(json.loads(line))
        except (ValueError, ValidationError):
            if number < len(lines):
                yield Checkpoint.model_validate(
                    {"sequence": 0, "hash": "", "created_at": "1970-01-01T00:00:00Z", "signature": ""}
                )
