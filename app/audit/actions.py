"""Writing the audit log: entries wait on the session and are chained as the last statements before its commit."""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flask_babel import lazy_gettext as _l
from sqlalchemy import event, insert, select, update
from sqlalchemy.orm import Session, SessionTransaction

from app.audit import chain
from app.audit.models import AuditCheckpoint, AuditHead, AuditRow
from app.audit.verification import CHECKPOINT_FILE
from app.kernel import ratelimit
from app.kernel.access import Actor
from app.kernel.clock import now, rfc3339
from app.kernel.context import ops
from app.kernel.db import db, in_transaction
from app.kernel.errors import Conflict, Refusal
from app.kernel.logs import redact

PENDING = "audit_pending"
REFUSALS_OF_ONE_KIND = 10
REFUSALS_OF_ONE_CALLER = 60
"""A minute. Whoever goes on after that is told no as before, but no longer fills the log with it."""
LONGEST_TEXT = 4000
HEAD_CHANGED: Mapping[str, Any] = dict.fromkeys(chain.FIELDS, "") | {
    "user_id": None,
    "username": "system",
    "action": chain.HEAD_CHANGED,
    "resource_type": "audit",
    "resource_id": None,
    "detail": None,
    "status": "failed",
    "error_message": "the head of the log was not the one we wrote; rows before this one may be missing",
}
"""Put into the log where it goes on behind a head that somebody changed: else our next row would hide the cut."""

log = logging.getLogger(__name__)


class Pending(NamedTuple):
    """An entry that waits for the commit, and the savepoints inside which it was made."""

    entry: dict[str, Any]
    savepoints: tuple[SessionTransaction, ...]


class LogChanged(Conflict):
    """The log is not as we left it, so we do not vouch for it."""

    message = _l("The audit log was changed from outside. `flask ops audit verify` names the place.")


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
    if not session.in_transaction():
        session.begin()  # so that a rollback drops this entry too
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
    session.info.setdefault(PENDING, []).append(Pending(entry, _open_savepoints(session)))


def record_refusal(actor: Actor, refusal: Refusal) -> None:
    """A refusal, in a transaction of its own since the refused one was undone. Floods are cut, never the first ones."""
    who = str(actor.user_id or actor.ip)
    if ratelimit.count(f"refusals:{who}", 60).count > REFUSALS_OF_ONE_CALLER:
        return
    kind = hashlib.sha256(f"{who}:{actor.ip}:{refusal.action}:{refusal.resource_id}".encode()).hexdigest()
    if ratelimit.count(f"refusal:{kind}", 60).count > REFUSALS_OF_ONE_KIND:
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
        event.listen(Session, "after_soft_rollback", _drop_undone)


def write_checkpoint(session: Session) -> chain.Link:
    """Sign the head and append it to the file beside the database, so that cutting the log's end shows."""
    link, created_at = sealed_head(session), now().replace(microsecond=0)
    newest = session.scalar(select(AuditCheckpoint).order_by(AuditCheckpoint.id.desc()).limit(1))
    if newest is not None and chain.Link(newest.sequence, newest.hash) == link:
        return link
    signature = chain.sign_checkpoint(ops().keys.audit, link, created_at)
    session.add(AuditCheckpoint(sequence=link.sequence, hash=link.hash, signature=signature, created_at=created_at))
    line = {"sequence": link.sequence, "hash": link.hash, "created_at": rfc3339(created_at), "signature": signature}
    _append_line(ops().settings.data_path / CHECKPOINT_FILE, json.dumps(line).encode() + b"\n")
    return link


def sealed_head(session: Session) -> chain.Link:
    """The head, if it is one that we wrote: who signs whatever he finds would sign a forger's log."""
    head = session.scalar(select(AuditHead).where(AuditHead.id == 1))
    if head is None or not chain.is_head_sealed(ops().keys.audit_seal, chain.Link(head.sequence, head.hash), head.seal):
        raise LogChanged
    return chain.Link(head.sequence, head.hash)


def _append_line(path: Path, line: bytes) -> None:
    """Append and wait for the disk. What a power cut left of a line is cut off first: it was never committed."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, LONGEST_TEXT, max(0, size - LONGEST_TEXT))
        os.ftruncate(descriptor, size - len(tail) + tail.rfind(b"\n") + 1)
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_savepoints(session: Session) -> tuple[SessionTransaction, ...]:
    found, transaction = [], session.get_nested_transaction()
    while transaction is not None and transaction.nested:
        found.append(transaction)
        transaction = transaction.parent
    return tuple(found)


def _drop_undone(session: Session, undone: SessionTransaction) -> None:
    """All entries when the transaction is undone; with a savepoint only those that were made inside it."""
    if undone.nested:
        session.info[PENDING] = [item for item in session.info.get(PENDING, ()) if undone not in item.savepoints]
    else:
        session.info.pop(PENDING, None)


def _chain_pending(session: Session) -> None:
    if session.in_nested_transaction():
        return  # only a savepoint is released
    entries: list[Mapping[str, Any]] = [item.entry for item in session.info.pop(PENDING, ())]
    if not entries:
        return
    session.flush()
    columns = (AuditHead.sequence, AuditHead.hash, AuditHead.seal)
    sequence, head_hash, found_seal = session.execute(select(*columns).where(AuditHead.id == 1).with_for_update()).one()
    link, key, rows = chain.Link(sequence, head_hash), ops().keys.audit_seal, []
    if not chain.is_head_sealed(key, link, found_seal):
        log.error("the head of the audit log was changed from outside, at row %d", sequence)
        entries.insert(0, HEAD_CHANGED)
    for entry in entries:
        created_at = now()
        text = chain.canonical(link.sequence + 1, created_at, entry)
        link = chain.Link(link.sequence + 1, chain.next_hash(link.hash, text))
        sealed = {"canonical": text, "hash": link.hash, "seal": chain.seal(key, link)}
        rows.append({**entry, **sealed, "id": link.sequence, "created_at": created_at})
    session.execute(insert(AuditRow), rows)
    values = {"sequence": link.sequence, "hash": link.hash, "seal": chain.seal_head(key, link)}
    session.execute(update(AuditHead).where(AuditHead.id == 1).values(**values))
