"""Jobs that a transaction gives rise to: they are pushed after its commit, and never if it is undone.

A push that fails is logged and forgotten. Whatever must happen in any case stands in the database, where the periodic
jobs find it again.
"""

import logging
from typing import NamedTuple

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from app.kernel.broker import DOTTED_NAME, QUEUES, JobArgument, describe, open_queue, push_job
from app.kernel.context import ops

log = logging.getLogger(__name__)
PENDING = "pending_jobs"


class PendingJob(NamedTuple):
    """A job that waits for the commit, and the savepoints inside which it was asked for."""

    dotted: str
    arguments: tuple[JobArgument, ...]
    queue: str
    savepoints: tuple[SessionTransaction, ...]


def enqueue_after_commit(session: Session, dotted: str, *arguments: JobArgument, queue: str = QUEUES[0]) -> None:
    """Have a worker call `dotted`, for instance "app.audit.jobs.write_checkpoint", with ids once this is committed.

    Asking twice for the same in one transaction gives one job.
    """
    if not DOTTED_NAME.fullmatch(dotted) or queue not in QUEUES:
        raise ValueError(f"not a job or not a queue: {dotted!r}, {queue!r}")
    if not all(isinstance(argument, int | str) for argument in arguments):
        raise TypeError(f"jobs take ids, not {arguments!r}")
    _listen()
    pending: list[PendingJob] = session.info.setdefault(PENDING, [])
    if not any((job.dotted, job.arguments, job.queue) == (dotted, arguments, queue) for job in pending):
        pending.append(PendingJob(dotted, arguments, queue, _open_savepoints(session)))


def queue_depths(redis: Redis) -> dict[str, int]:
    """How many jobs wait in each queue."""
    return {name: open_queue(redis, name).count for name in QUEUES}


def _listen() -> None:
    if not event.contains(Session, "after_commit", _push_pending):
        event.listen(Session, "after_commit", _push_pending)
        event.listen(Session, "after_soft_rollback", _drop_undone)


def _push_pending(session: Session) -> None:
    if session.in_nested_transaction():
        return  # only a savepoint was released
    for job in session.info.pop(PENDING, ()):
        try:
            push_job(ops().redis, job.dotted, job.arguments, job.queue)
        except RedisError as error:
            log.warning("could not enqueue %s%r: %s", job.dotted, job.arguments, describe(error))


def _drop_undone(session: Session, undone: SessionTransaction) -> None:
    """All of them when the transaction is undone; with a savepoint only those that were asked for inside it."""
    if undone.nested:
        session.info[PENDING] = [job for job in session.info.get(PENDING, ()) if undone not in job.savepoints]
    else:
        session.info.pop(PENDING, None)


def _open_savepoints(session: Session) -> tuple[SessionTransaction, ...]:
    found, transaction = [], session.get_nested_transaction()
    while transaction is not None and transaction.nested:
        found.append(transaction)
        transaction = transaction.parent
    return tuple(found)
