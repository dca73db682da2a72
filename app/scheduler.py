"""What happens again and again: an explicit table, and a process that enqueues whatever is due.

Of several Managers one ticks. All it remembers lies in Redis and may be lost: then everything is simply due. It knows
nothing of Flask or the database, so it stays small; workers tell it how intervals were changed at run time.
"""

import functools
import logging
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import RedisError
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from app.kernel.broker import QUEUES, connect_redis, describe, forget_job, open_queue, push_unless_pending
from app.kernel.logs import configure_logging
from config import Settings, SettingsError, load_settings

log = logging.getLogger(__name__)

LEASE = "ops:scheduler:lease"
LAST = "ops:scheduler:last"
INTERVALS = "ops:scheduler:intervals"
TICK_S = 1.0
LEASE_S = 3.0
LOST_AFTER_S = 10.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Periodic(NamedTuple):
    """A job without arguments, how often it runs and how long it may take."""

    dotted: str
    every: float | str
    """Seconds, or the key of a setting."""
    timeout_s: int = 60

    @property
    def job_id(self) -> str:
        """Fixed, so that it cannot wait twice."""
        return "periodic-" + self.dotted.replace(".", "-")


PERIODIC = (
    Periodic("app.worker.publish_intervals", every=5),
    Periodic("app.audit.jobs.write_checkpoint", every="audit.checkpoint_interval"),
    Periodic("app.people.jobs.forget_expired", every=600, timeout_s=300),
    Periodic("app.link.jobs.find_silent_nodes", every="node.offline_check_interval"),
    Periodic("app.link.jobs.expire_commands", every=10),
    Periodic("app.link.jobs.sweep_fanouts", every=2),
    Periodic("app.tasks.jobs.run_due_tasks", every=2),
    Periodic("app.tasks.jobs.tidy_files", every=3600, timeout_s=300),
    Periodic("app.metrics.jobs.roll_up", every=60),
    Periodic("app.metrics.jobs.clean_up", every=600),
    Periodic("app.metrics.jobs.keep_partitions", every=3600),
    Periodic("app.agents.jobs.settle_lost_pushes", every=30),
    Periodic("app.agents.jobs.forget_old", every=3600, timeout_s=300),
    Periodic("app.link.jobs.forget_old_commands", every=600),
    Periodic("app.link.jobs.forget_old_events", every=3600, timeout_s=300),
)


class Scheduler:
    """One Manager's scheduler. `tick` is called about once a second; only the holder of the lease does anything."""

    def __init__(self, redis: Redis, settings: Settings, table: Sequence[Periodic] = PERIODIC) -> None:
        self._redis, self._settings, self._table = redis, settings, table
        self._token = secrets.token_hex(8).encode()
        self._suspects: dict[str, float] = {}

    def tick(self) -> list[str]:
        """Enqueue what is due; returns the names of what was."""
        if not self._has_lease():
            return []
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        pipe.hgetall(LAST)
        pipe.hgetall(INTERVALS)
        (seconds, microseconds), last, intervals = pipe.execute()
        present = seconds + microseconds / 1e6
        due = [job for job in self._table if self._is_due(job, present, last, intervals)]
        return [job.dotted for job in due if self._push(job, present)]

    def release(self) -> None:
        """Let another Manager tick at once."""
        if self._redis.get(LEASE) == self._token:
            self._redis.delete(LEASE)

    def _has_lease(self) -> bool:
        if self._redis.set(LEASE, self._token, nx=True, px=int(LEASE_S * 1000)):
            return True
        if self._redis.get(LEASE) != self._token:
            return False
        self._redis.pexpire(LEASE, int(LEASE_S * 1000))
        return True

    def _is_due(self, job: Periodic, present: float, last: dict[bytes, bytes], intervals: dict[bytes, bytes]) -> bool:
        name = job.dotted.encode()
        interval_s = float(intervals.get(name) or configured_interval(self._settings, job))
        elapsed_s = present - float(last.get(name, 0))
        # A clock that was set back must not silence a job until it has caught up.
        return elapsed_s < 0 or elapsed_s + TICK_S / 2 >= interval_s

    def _push(self, job: Periodic, present: float) -> bool:
        is_pushed = push_unless_pending(self._redis, job.dotted, job.job_id, job.timeout_s)
        if is_pushed:
            self._redis.hset(LAST, job.dotted, str(present))
            self._suspects.pop(job.job_id, None)
        elif not self._is_alive(job.job_id):
            self._suspect(job.job_id)
        else:
            self._suspects.pop(job.job_id, None)
        return is_pushed

    def _is_alive(self, job_id: str) -> bool:
        """Whether a job that exists waits in its queue or is held by a worker that exists too."""
        try:
            job = Job.fetch(job_id, self._redis, serializer=JSONSerializer)
        except NoSuchJobError:
            return True  # it has ended just now
        if job.get_status(refresh=False) == JobStatus.QUEUED:
            return any(open_queue(self._redis, name).get_job_position(job_id) is not None for name in QUEUES)
        return bool(job.worker_name and self._redis.exists(f"rq:worker:{job.worker_name}"))

    def _suspect(self, job_id: str) -> None:
        """What died with its worker would block its successors; what is only on its way gets time to arrive."""
        present = time.monotonic()
        if present - self._suspects.setdefault(job_id, present) > LOST_AFTER_S:
            log.warning("job %s was lost with its worker", job_id)
            forget_job(self._redis, job_id)
            del self._suspects[job_id]


def configured_interval(settings: Settings, job: Periodic) -> float:
    """Seconds between two runs, as far as settings say; what administrators changed at run time is not known here."""
    if isinstance(job.every, str):
        value: Any = functools.reduce(getattr, job.every.split("."), settings)
        return float(value)
    return job.every


def run(scheduler: Scheduler) -> None:
    """Tick until a signal comes. Redis may come and go."""
    is_away = False
    while True:
        began = time.monotonic()
        try:
            scheduler.tick()
            if is_away:
                log.info("Redis is back")
            is_away = False
        except RedisError as error:
            if not is_away:
                log.warning("Redis is away, nothing is scheduled meanwhile: %s", describe(error))
            is_away = True
        pause_s = max(0.05, TICK_S - (time.monotonic() - began))
        if signal.sigtimedwait(STOP_SIGNALS, pause_s):
            break
    try:
        scheduler.release()
    except RedisError:
        log.info("Redis is away; the lease will run out by itself")


def main() -> int:
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    # Blocked and asked for once a second, so that no signal comes between a command to Redis and its answer.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    configure_logging(settings)
    log.info("the scheduler has started")
    run(Scheduler(connect_redis(settings.redis_url), settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
