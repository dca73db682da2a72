"""What the scheduler has done to the audit log."""

from app.audit import actions
from app.kernel.db import db


def write_checkpoint() -> None:
    actions.write_checkpoint(db.session())
