"""`Idempotency-Key`: the same request sent again gets the first one's answer instead of happening twice.

Answers may hold what is shown only once (a new token), so they are kept encrypted, for a day.
"""

import hashlib
import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta

from flask import Response, request
from flask_babel import gettext as _
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.kernel.access import Actor
from app.kernel.clock import now
from app.kernel.context import ops
from app.kernel.db import Base
from app.kernel.errors import BadParameter, Conflict, FieldError
from app.kernel.types import BigId, LongText, Name, UtcDateTime

KEPT = timedelta(days=1)
KEY = re.compile(r"[!-~]{1,200}")
ATTEMPTS = 3


class IdempotentAnswer(Base):
    """What a request with a key was answered."""

    __tablename__ = "idempotent_answers"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    key_hash: Mapped[str] = mapped_column(Name(64), unique=True)
    request_hash: Mapped[str] = mapped_column(Name(64))
    status: Mapped[int]
    body: Mapped[str] = mapped_column(LongText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)


def once(session: Session, actor: Actor, key: str, content: str, work: Callable[[], Response]) -> Response:
    """Answer from memory if this caller sent this request before; else do the work and remember, in its transaction.
    `content` stands for the request's body.

    The key is claimed before the work begins, so whoever sends the same at the same moment waits for the first one.
    """
    if not KEY.fullmatch(key):
        raise BadParameter(errors=[FieldError("Idempotency-Key", _("1 to 200 letters, digits or signs are expected."))])
    key_hash = _hash(str(actor.user_id), key)
    request_hash = _hash(request.method, request.full_path, content)
    for _attempt in range(ATTEMPTS):
        if answer := _remembered(session, key_hash, request_hash):
            return answer
        if claim := _claimed(session, key_hash, request_hash):
            return _done(session, claim, work())
    raise Conflict(_("The same request is being worked on."))


def _claimed(session: Session, key_hash: str, request_hash: str) -> IdempotentAnswer | None:
    """None if somebody was first, whose answer can be looked up now."""
    claim = IdempotentAnswer(key_hash=key_hash, request_hash=request_hash, status=0, body="")
    session.add(claim)
    try:
        session.flush()
    except IntegrityError:
        session.rollback()
        return None
    return claim


def _done(session: Session, claim: IdempotentAnswer, response: Response) -> Response:
    claim.status = response.status_code
    claim.body = ops().keys.box.encrypt(response.get_data(), claim.key_hash)
    session.add(claim)
    session.flush()
    return response


def forget_old_answers(session: Session) -> int:
    result = session.execute(delete(IdempotentAnswer).where(IdempotentAnswer.created_at < now() - KEPT))
    return int(getattr(result, "rowcount", 0))


def _remembered(session: Session, key_hash: str, request_hash: str) -> Response | None:
    row = session.scalar(select(IdempotentAnswer).where(IdempotentAnswer.key_hash == key_hash))
    if row is None or row.created_at < now() - KEPT:
        if row is not None:
            session.delete(row)
            session.flush()
        return None
    if row.request_hash != request_hash:
        raise Conflict(_("This Idempotency-Key was used for another request."))
    response = Response(ops().keys.box.decrypt(row.body, key_hash), row.status, mimetype="application/json")
    response.headers["Idempotency-Replayed"] = "true"
    return response


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
