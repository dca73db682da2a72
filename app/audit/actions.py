"""Writing the audit log: entries wait on the session and are chained as the last statements before its commit."""

import json
import os
from collections.abc import Mapping
from typing import Any

from sqlalchemy import event, insert, select, update
from sqlalchemy.orm import Session

from app.audit import chain
from app.audit.models import AuditCheckpoint, AuditHead, AuditRow
from app.kernel import ratelimit
from app.kernel.access import Actor
from app.kernel.clock import now, rfc3339
from app.kernel.context import ops
from app.kernel.db import db, in_transaction
from app.kernel.errors import Refusal
from app.kernel.logs import redact

PENDING = "audit_pending"
REFUSALS_PER_MINUTE = 10
LONGEST_TEXT = 4000


def record(
    session: Session,
    actor: Actor,
    action: str,
    resource_type: str,
    resource_id: object = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    *,
    error_message: str | None = None,
) -> None:
    """Say what is being done, in the transaction that does it. Of two states only what differs is kept."""
    if before is not None and after is not None:
        changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        before = {name: value for name, value in before.items() if name in changed}
        after = {name: value for name, value in after.items() if name in changed}
    detail = {name: value for name, value in (("before", before), ("after", after)) if value is not None}
    entry = {
        "user_id": actor.user_id,
        "username": actor.username[:64],
        "action": action,
        "resource_type": resource_type,
        "resource_id": None if resource_id is None else str(resource_id)[:64],
        "detail": json.loads(json.dumps(redact(detail), default=str)) or None,
        "ip": actor.ip[:45],
        "user_agent": actor.user_agent[:255],
        "request_id": actor.request_id[:64],
        "status": "success" if error_message is None else "failed",
        "error_message": None if error_message is None else error_message[:LONGEST_TEXT],
    }
    session.info.setdefault(PENDING, []).append(entry)


def record_refusal(actor: Actor, refusal: Refusal) -> None:
    """A refusal, in a transaction of its own since the refused one was undone. Floods are cut, never the first ones."""
    who = f"{actor.user_id}:{actor.ip}:{refusal.action}:{refusal.resource_id}"
    if ratelimit.count(f"refusal:{who}", 60).count > REFUSALS_PER_MINUTE:
        return
    session = db.session()
    in_transaction(
        session,
        lambda: record(
            session, actor, refusal.action, refusal.resource_type, refusal.resource_id, error_message=refusal.reason
        ),
    )


def listen_for_commits() -> None:
    """Chain what is pending whenever a session commits. Called once, by the factory."""
    if not event.contains(Session, "before_commit", _chain_pending):
        event.listen(Session, "before_commit", _chain_pending)
        event.listen(Session, "after_rollback", _drop_pending)


def write_checkpoint(session: Session) -> chain.Link:
    """Sign the head and append it to the file beside the database, so that cutting the log's end shows."""
    head = session.scalars(select(AuditHead)).one()
    link, created_at = chain.Link(head.sequence, head.hash), now().replace(microsecond=0)
    newest = session.scalar(select(AuditCheckpoint).order_by(AuditCheckpoint.id.desc()).limit(1))
    if newest is not None and newest.sequence == head.sequence:
        return link
    signature = chain.sign(ops().keys.audit, link, created_at)
    session.add(AuditCheckpoint(sequence=link.sequence, hash=link.hash, signature=signature, created_at=created_at))
    line = {"sequence": link.sequence, "hash": link.hash, "created_at": rfc3339(created_at), "signature": signature}
    _append_line(json.dumps(line))
    return link


def _append_line(line: str) -> None:
    path = ops().settings.data_path / "audit-checkpoints.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _drop_pending(session: Session) -> None:
    session.info.pop(PENDING, None)


def _chain_pending(session: Session) -> None:
    entries = session.info.pop(PENDING, None)
    if not entries or session.in_nested_transaction():
        return
    session.flush()
    head = session.execute(select(AuditHead.sequence, AuditHead.hash).where(AuditHead.id == 1).with_for_update()).one()
    link, key, rows = chain.Link(head.sequence, head.hash), ops().keys.audit_seal, []
    for entry in entries:
        created_at = now()
        text = chain.canonical(link.sequence + 1, created_at, entry)
        link = chain.Link(link.sequence + 1, chain.next_hash(link.hash, text))
        sealed = {"canonical": text, "hash": link.hash, "seal": chain.seal(key, link)}
        rows.append(entry | sealed | {"id": link.sequence, "created_at": created_at})
    session.execute(insert(AuditRow), rows)
    values = {"sequence": link.sequence, "hash": link.hash, "seal": chain.seal(key, link)}
    session.execute(update(AuditHead).where(AuditHead.id == 1).values(**values))
