"""What the scheduler has done for people."""

from app.kernel import idempotency
from app.kernel.db import db
from app.people import actions


def forget_expired() -> None:
    """Sessions that ended, and answers kept for repeated requests."""
    actions.forget_expired_sessions(db.session())
    idempotency.forget_old_answers(db.session())
