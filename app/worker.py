"""Runs background jobs: one process, one application, one transaction for each job.

What a job does stands in its room's `jobs.py`, and when it is enqueued in `scheduler` or after a commit.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from flask import Flask
from redis import Redis
from redis.exceptions import RedisError
from rq import worker_registration
from rq.exceptions import DequeueTimeout
from rq.job import Job, get_current_job
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.timeouts import JobTimeoutException
from rq.utils import as_text
from rq.worker import SimpleWorker, WorkerStatus

from app.factory import create_app
from app.kernel.broker import DOTTED_NAME, QUEUES, JobArgument, connect_redis, describe, forget_job, open_queue
from app.kernel.context import ops
from app.kernel.db import db, in_transaction
from app.kernel.edges import as_app_error
from app.kernel.errors import AppError
from app.kernel.live_settings import live_settings
from app.kernel.logs import configure_logging, log_context
from app.kernel.secrets import KeysError
from app.scheduler import INTERVALS, PERIODIC, configured_interval
from config import SettingsError, load_settings

log = logging.getLogger(__name__)

ATTEMPTS = 3
LONGEST_PAUSE_S = 5
WAIT_FOR_JOB_S = 1
STOP_GRACE_S = 10
RECONNECT_S = 2.0
SLOW_JOB_S = 5.0
INTERVALS_KEPT_S = 600


class JobFailedError(Exception):
    """A job that was given up; why is in the log already."""


def run_job(dotted: str, *arguments: JobArgument) -> None:
    """Call a job inside the application context that the worker made for it, and commit what it did.

    Deadlocks are tried again by `in_transaction`. Refusals that name a time after which to try again are tried again
    here, a few times; everything else fails the job. Work that must not be lost is found again in the database.
    """
    job, started = get_current_job(), time.monotonic()
    log_context.set({"request_id": job.id if job else ""})
    for attempt in range(1, ATTEMPTS + 1):
        try:
            in_transaction(db.session(), lambda: _job_function(dotted)(*arguments))
            break
        except JobTimeoutException:
            log.error("job %s%r was interrupted: too slow, or the worker has to stop", dotted, arguments)  # noqa: TRY400
            raise
        except Exception as error:  # noqa: BLE001 - a job's wrapper: it logs, and one bad job must not end the worker
            refusal = as_app_error(error)
            if refusal.retry_after_s is None or attempt == ATTEMPTS:
                _give_up(dotted, arguments, error, refusal)
            log.info("job %s%r: %s; trying again", dotted, arguments, refusal)
            time.sleep(min((refusal.retry_after_s or 0) * attempt, LONGEST_PAUSE_S))
    taken_s = time.monotonic() - started
    level = logging.INFO if taken_s > SLOW_JOB_S else logging.DEBUG
    log.log(level, "job %s%r", dotted, arguments, extra={"duration_ms": round(taken_s * 1000, 1)})


def publish_intervals() -> None:
    """Tell the scheduler, which does not know the database, how often things happen by the settings in force now."""
    settings = live_settings()
    intervals = {job.dotted: configured_interval(settings, job) for job in PERIODIC}
    pipe = ops().redis.pipeline()
    pipe.hset(INTERVALS, mapping={name: str(seconds) for name, seconds in intervals.items()})
    pipe.expire(INTERVALS, INTERVALS_KEPT_S)
    pipe.execute()


def _job_function(dotted: str) -> Callable[..., object]:
    """Only functions of ours can be called, whatever somebody wrote into Redis."""
    module, _, name = dotted.rpartition(".")
    if not DOTTED_NAME.fullmatch(dotted) or not (module.endswith(".jobs") or module == __name__):
        raise ValueError(f"not a job: {dotted!r}")
    return cast(Callable[..., object], getattr(import_module(module), name))


def _give_up(dotted: str, arguments: tuple[JobArgument, ...], error: Exception, refusal: AppError) -> None:
    if isinstance(error, AppError) or refusal.retry_after_s is not None:
        log.error("job %s%r failed: %s", dotted, arguments, refusal)
    else:
        log.error("job %s%r failed", dotted, arguments, exc_info=error)
    raise JobFailedError(dotted) from error


class StopFlag:
    """Set by a signal, looked at between jobs. A job that runs gets some seconds more, then it is interrupted."""

    def __init__(self) -> None:
        self.is_set = False

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_signal: object) -> None:
        self.is_set = True
        # A job's time limit is an alarm; without a job there is none, and none may be set.
        if remaining_s := signal.alarm(0):
            signal.alarm(min(remaining_s, STOP_GRACE_S))


class Worker(SimpleWorker):
    """RQ's worker without a process for each job: forking a grown process for a job of milliseconds costs more than it
    protects. The loop is our own, since RQ's ends with Redis and loses a job when a signal comes at the wrong moment.
    """

    def __init__(self, app: Flask, redis: Redis, stop: StopFlag) -> None:
        self._app, self._stop, self._is_redis_away = app, stop, False
        queues = [open_queue(redis, name) for name in QUEUES]
        name = f"{socket.gethostname()}-{os.getpid()}-{time.monotonic_ns():x}"
        super().__init__(
            queues, name=name, connection=redis, serializer=JSONSerializer, worker_ttl=30, prepare_for_work=False
        )
        self.hostname, self.pid = socket.gethostname(), os.getpid()

    @property
    def dequeue_timeout(self) -> int:
        return WAIT_FOR_JOB_S

    @property
    def connection_timeout(self) -> int:
        return WAIT_FOR_JOB_S + 5

    def run(self) -> None:
        """Run jobs until asked to stop. Between jobs nothing can be lost, so only there it is looked."""
        while not self._stop.is_set:
            try:
                self._turn()
                self._say_redis_is(None)
            except RedisError as error:
                self._say_redis_is(error)
                time.sleep(RECONNECT_S)
            except Exception:
                log.exception("the worker stumbled")
                time.sleep(RECONNECT_S)
        try:
            self.register_death()  # type: ignore[no-untyped-call]
        except RedisError:
            log.info("Redis is away; it will forget this worker by itself")

    def execute_job(self, job: Job, queue: Queue) -> None:
        with self._app.app_context():
            super().execute_job(job, queue)

    def serialize(self) -> dict[str, Any]:
        return super().serialize() | {"process": process_identity(os.getpid())}

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Nothing: `run_job` has logged it."""

    def _turn(self) -> None:
        if not self.connection.sismember(self.redis_workers_keys, self.key):
            self._introduce()
        self.set_state(WorkerStatus.IDLE)
        self.heartbeat()
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()  # type: ignore[no-untyped-call]
        try:
            found = Queue.dequeue_any(
                self.queues,
                WAIT_FOR_JOB_S,
                connection=self.connection,
                job_class=self.job_class,
                serializer=self.serializer,
                death_penalty_class=self.death_penalty_class,
            )
        except DequeueTimeout:
            return
        if found is not None:
            self.execute_job(*found)

    def _introduce(self) -> None:
        """At the start, and again after Redis was wiped."""
        bury_dead_workers(self.connection)
        self.connection.delete(self.key)
        self.register_birth()  # type: ignore[no-untyped-call]

    def _say_redis_is(self, error: RedisError | None) -> None:
        """Once when it goes and once when it comes back."""
        if error is not None and not self._is_redis_away:
            log.warning("Redis is away: %s", describe(error))
        elif error is None and self._is_redis_away:
            log.info("Redis is back")
        self._is_redis_away = error is not None


def process_identity(pid: int) -> str:
    """Names one process for good, so that a reused pid is never mistaken; empty if there is none (here)."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{Path('/proc/self/ns/pid').readlink()} {pid} {started}"
    except (OSError, IndexError):
        return ""


def bury_dead_workers(redis: Redis) -> None:
    """Forget workers of this machine that were killed, and the jobs they held, which would else count as running."""
    here = process_identity(os.getpid()).partition(" ")[0]
    for key in worker_registration.get_keys(connection=redis):
        values = redis.hmget(key, ["hostname", "pid", "process", "current_job", "queues"])
        host, pid, process, job_id, queues = (as_text(value or b"") for value in values)
        is_ours = host == socket.gethostname() and process.partition(" ")[0] == here
        if not is_ours or not pid.isdigit() or process_identity(int(pid)) == process:
            continue
        if job_id:
            log.warning("job %s was lost with its worker", job_id)
            forget_job(redis, job_id)
        redis.srem(Worker.redis_workers_keys, key)
        for name in queues.split(","):
            redis.srem(worker_registration.WORKERS_BY_QUEUE_KEY % name, key)
        redis.delete(key)


def main() -> int:
    try:
        settings = load_settings()
        configure_logging(settings)
        app = create_app(settings, "web")
    except (SettingsError, KeysError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    stop = StopFlag()
    stop.listen()
    log.info("the worker has started")
    Worker(app, connect_redis(settings.redis_url), stop).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
