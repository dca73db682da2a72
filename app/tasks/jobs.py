"""What the scheduler has done for tasks: whatever is due begins, files that nobody needs go."""

import logging
from functools import partial

from app.kernel.clock import now
from app.kernel.db import db, in_transaction, is_away, reading
from app.tasks import files, running

log = logging.getLogger(__name__)


def run_due_tasks() -> None:
    """Each in a transaction of its own, so that a mistake in one of them does not hold up the others."""
    session = db.session()
    with reading():
        due = in_transaction(session, lambda: running.due_tasks(session, now()))
    for task_id in due:
        try:
            in_transaction(session, partial(running.run_due_task, session, task_id))
        except Exception as error:
            if is_away(error):
                raise
            log.exception("task %d could not be run", task_id)


def tidy_files() -> None:
    session = db.session()
    in_transaction(session, lambda: files.forget_unneeded(session))
    in_transaction(session, lambda: files.forget_unfinished(session))
    with reading():
        in_transaction(session, lambda: files.remove_orphans(session))
