"""Redis as the Manager uses it: how it is connected, and how a job gets into a queue.

It knows nothing of Flask, so that the scheduler stays small. When features enqueue is the business of `queue`.
"""

import re

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry
from rq import Queue
from rq.exceptions import DuplicateJobError
from rq.job import Job
from rq.serializers import JSONSerializer

JobArgument = int | str

QUEUES = ("default",)
RUN_JOB = "app.worker.run_job"
JOB_TIMEOUT_S = 300
FAILURES_KEPT_S = 86400
DOTTED_NAME = re.compile(r"app(\.[a-z_][a-z0-9_]*)+")


def connect_redis(url: str, timeout_s: float = 5.0) -> Redis:
    """A client that connects when it is used. It tries twice, since a restarted Redis leaves dead connections behind,
    and no more: callers are better served by a quick refusal.
    """
    client: Redis = Redis.from_url(
        url,
        socket_connect_timeout=min(2.0, timeout_s),
        socket_timeout=timeout_s,
        health_check_interval=30,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )
    return client


def open_queue(redis: Redis, name: str = QUEUES[0]) -> Queue:
    """A queue whose jobs are JSON: what lies in Redis must never be executable."""
    return Queue(name, connection=redis, serializer=JSONSerializer, default_timeout=JOB_TIMEOUT_S)


def push_job(redis: Redis, dotted: str, arguments: tuple[JobArgument, ...], queue: str = QUEUES[0]) -> str:
    """Have a worker call `dotted` with these ids; returns the job's id. What succeeded is forgotten at once."""
    job = open_queue(redis, queue).enqueue_call(
        RUN_JOB, args=(dotted, *arguments), description=dotted, result_ttl=0, failure_ttl=FAILURES_KEPT_S
    )
    return str(job.id)


def push_unless_pending(redis: Redis, dotted: str, job_id: str, timeout_s: int, queue: str = QUEUES[0]) -> bool:
    """The same for a job that must not be there twice, waiting or running. Its failures are not kept."""
    try:
        open_queue(redis, queue).enqueue_call(
            RUN_JOB, args=(dotted,), description=dotted, timeout=timeout_s, result_ttl=0, failure_ttl=0,
            job_id=job_id, unique=True,
        )  # fmt: skip
    except DuplicateJobError:
        return False
    return True


def forget_job(redis: Redis, job_id: str) -> None:
    """Remove a job wherever it is listed."""
    for name in QUEUES:
        queue = open_queue(redis, name)
        queue.remove(job_id)
        queue.intermediate_queue.remove(job_id)
    if Job.exists(job_id, redis):
        Job.fetch(job_id, redis, serializer=JSONSerializer).delete()


def describe(error: RedisError) -> str:
    """One line for the log."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no answer'}"
