"""The worker: what happens to a job in it, and how it lives through stops, kills and a Redis that comes and goes."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask_migrate import upgrade
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from app import scheduler, worker
from app.factory import create_app
from app.kernel.broker import connect_redis, open_queue, push_job, push_unless_pending
from app.kernel.db import db
from app.kernel.errors import Conflict, DatabaseAway
from app.kernel.live_settings import ChangedSetting
from app.people import jobs as people_jobs
from config import load_settings
from tests.services import ROOT, wait_for
from tests.services import Redis as RedisServer

PROBE = "app.people.jobs.probe"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="module")
def environment(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    data = tmp_path_factory.mktemp("worker")
    return {"OPS_DATA_DIR": str(data), "OPS_REDIS_URL": server.url, "OPS_DATABASE_URL": ""}


@pytest.fixture(scope="module")
def made_app(environment: dict[str, str]) -> Flask:
    app = create_app(load_settings([], environment))
    with app.app_context():
        upgrade()
    return app


@pytest.fixture
def app(made_app: Flask, server: RedisServer) -> Flask:
    server.wipe()
    with made_app.app_context():
        db.session.execute(ChangedSetting.__table__.delete())
        db.session.commit()
    made_app.extensions.pop("live_settings", None)
    return made_app


@pytest.fixture
def redis(app: Flask) -> Redis:
    return connect_redis(app.extensions["ops"].settings.redis_url)


Run = Callable[[Callable[..., None]], Job]


@pytest.fixture
def run(app: Flask, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Have a worker run one job, whose function is given; the worker stops behind it."""

    def run_one(function: Callable[..., None], *arguments: int, timeout: int = 60) -> Job:
        stop = worker.StopFlag()

        def called(*given: int) -> None:
            stop.is_set = True
            function(*given)

        monkeypatch.setattr(people_jobs, "probe", called, raising=False)
        job = open_queue(redis).enqueue_call(
            worker.run_job.__module__ + ".run_job", args=(PROBE, *arguments), timeout=timeout
        )
        worker.Worker(app, redis, stop).run()
        return Job.fetch(job.id, redis, serializer=JSONSerializer)

    return run_one


def stored() -> int:
    return db.session.scalar(select(func.count()).select_from(ChangedSetting)) or 0


def store() -> None:
    db.session.add(ChangedSetting(key="ui.timezone", value="UTC"))
    db.session.flush()


def test_what_a_job_did_is_committed(run, app):
    assert run(store).is_finished
    with app.app_context():
        assert stored() == 1


def test_a_job_gets_its_ids(run):
    seen = []
    run(lambda *ids: seen.append(ids), 7, 8)
    assert seen == [(7, 8)]


def test_a_job_that_fails_leaves_nothing_and_is_logged_once(run, app, caplog):
    def fail() -> None:
        store()
        raise ZeroDivisionError("on purpose")

    with caplog.at_level(logging.INFO):
        assert run(fail).is_failed
    with app.app_context():
        assert stored() == 0
    complaints = [entry for entry in caplog.records if entry.levelno >= logging.ERROR]
    assert [entry.getMessage() for entry in complaints] == [f"job {PROBE}() failed"]
    assert "ZeroDivisionError: on purpose" in caplog.text


def test_a_refusal_is_one_line_and_not_tried_again(run, caplog):
    calls = []

    def refuse() -> None:
        calls.append(1)
        raise Conflict("that is so already")

    with caplog.at_level(logging.INFO):
        assert run(refuse).is_failed
    assert len(calls) == 1
    assert "that is so already" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_refusal_that_names_a_time_is_tried_again(run, monkeypatch):
    pauses, calls = [], []
    monkeypatch.setattr(worker.time, "sleep", pauses.append)

    def busy_twice() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise DatabaseAway(retry_after_s=1)

    assert run(busy_twice).is_finished
    assert (len(calls), pauses) == (3, [1, 2])


def test_a_refusal_is_not_tried_again_for_ever(run, monkeypatch, caplog):
    monkeypatch.setattr(worker.time, "sleep", lambda _s: None)
    calls = []

    def busy() -> None:
        calls.append(1)
        raise DatabaseAway(retry_after_s=60)

    assert run(busy).is_failed
    assert len(calls) == 3
    assert "Traceback" not in caplog.text


def test_a_deadlock_is_tried_again(run):
    calls = []

    def deadlock_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OperationalError("UPDATE", {}, Exception(1213, "Deadlock found"))

    assert run(deadlock_once).is_finished
    assert len(calls) == 2


def test_a_job_that_takes_too_long_is_interrupted(run, caplog):
    began = time.monotonic()
    assert run(lambda: time.sleep(30), timeout=1).is_failed
    assert time.monotonic() - began < 20
    assert "was interrupted" in caplog.text


def test_each_line_carries_the_number_of_its_job(run):
    seen = []
    job = run(lambda: seen.append(worker.log_context.get()))
    assert seen == [{"request_id": job.id}]


@pytest.mark.parametrize("name", ["os.system", "app.people.actions.create_user", "app.kernel.db.in_transaction"])
def test_only_jobs_can_be_called(app, name, caplog):
    """Whoever can write to Redis must not be able to call anything else."""
    with app.app_context(), pytest.raises(worker.JobFailedError):
        worker.run_job(name, 1)
    assert "not a job" in caplog.text


def test_what_cannot_be_read_ends_no_worker(app, redis, caplog):
    """For instance a pickle, which is how RQ's default would have written it, and how an attack would."""
    redis.hset(
        "rq:job:evil",
        mapping={"data": b"\x80\x04K\x01.", "origin": "default", "created_at": "2026-01-01T00:00:00.000000Z"},
    )
    redis.rpush("rq:queue:default", "evil")
    stop = worker.StopFlag()
    open_queue(redis).enqueue_call("app.worker.run_job", args=(PROBE,))
    people_jobs.probe = lambda: setattr(stop, "is_set", True)
    try:
        worker.Worker(app, redis, stop).run()
    finally:
        del people_jobs.probe
    assert stop.is_set
    assert open_queue(redis).count == 0


def test_intervals_in_force_are_published(app, redis):
    with app.app_context():
        db.session.add(ChangedSetting(key="audit.checkpoint_interval", value=15.0))
        db.session.commit()
        worker.publish_intervals()
    published = redis.hgetall(scheduler.INTERVALS)
    assert float(published[b"app.audit.jobs.write_checkpoint"]) == 15.0
    assert set(published) == {job.dotted.encode() for job in scheduler.PERIODIC}


def test_a_process_is_named_for_good():
    assert worker.process_identity(os.getpid()) == worker.process_identity(os.getpid())
    assert worker.process_identity(os.getpid()) != worker.process_identity(1)
    assert worker.process_identity(2**22 + 1) == ""


class Process:
    """A worker as the launcher starts it, with jobs that tests want."""

    def __init__(self, environment: dict[str, str], directory: Path, **more: str) -> None:
        self.notes = directory / "notes"
        self.output = (directory / "output").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.launch.worker_process"],
            cwd=ROOT,
            env=os.environ | environment | {"PROBE_FILE": str(self.notes)} | more,
            stdout=self.output,
            stderr=self.output,
        )

    def lines(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.output.close()


@pytest.fixture
def start(app: Flask, environment: dict[str, str], tmp_path: Path, redis: Redis) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start_one(**more: str) -> Process:
        made = Process(environment, tmp_path, **more)
        started.append(made)
        wait_for(lambda: made.process.pid in registered(redis), 60, "the worker")
        return made

    yield start_one
    for process in started:
        process.close()


def registered(redis: Redis) -> set[int]:
    return {int(redis.hget(key, "pid") or 0) for key in redis.smembers("rq:workers")}


def push(redis: Redis, name: str, *arguments: int) -> None:
    push_job(redis, f"app.probe.jobs.{name}", arguments)


def test_an_idle_worker_stops_within_moments(start):
    process = start()
    began = time.monotonic()
    assert process.stop() == 0
    assert time.monotonic() - began < 20


def test_a_worker_that_is_asked_to_stop_finishes_its_job(start, redis):
    process = start()
    push(redis, "slow", 2)
    push(redis, "quick", 1)
    wait_for(process.lines, 30, "the job to begin")
    assert process.stop() == 0
    assert process.lines() == ["began", "finished"]
    assert open_queue(redis).count == 1


def test_a_job_that_does_not_end_is_not_waited_for_long(start, redis):
    process = start(STOP_GRACE_S="1")
    push(redis, "stuck")
    wait_for(process.lines, 30, "the job to begin")
    began = time.monotonic()
    assert process.stop() == 0
    assert time.monotonic() - began < 20
    assert redis.scard("rq:workers") == 0


@pytest.mark.fault
def test_no_job_is_lost_or_run_twice_by_stopping(start, redis):
    count, process = 300, None
    for number in range(count):
        push(redis, "quick", number)
    for _ in range(2):
        before = len(process.lines()) if process else 0
        process = start()
        wait_for(lambda was=before, now=process: len(now.lines()) > was, 30, "some jobs")
        assert process.stop() == 0
    process = start()
    wait_for(lambda: open_queue(redis).count == 0, 30, "the queue to be empty")
    assert process.stop() == 0
    assert sorted(process.lines()) == sorted(f"ran {number}" for number in range(count))


@pytest.mark.fault
def test_a_worker_outlives_redis(start, redis, server, tmp_path):
    process = start()
    server.kill()
    time.sleep(3)
    server.start()
    push(redis, "quick", 1)
    wait_for(process.lines, 60, "the job")
    assert process.stop() == 0
    said = (tmp_path / "output").read_text()
    assert (said.count("Redis is away"), said.count("Redis is back"), said.count("Traceback")) == (1, 1, 0)


@pytest.mark.fault
def test_a_worker_starts_although_redis_is_away(app, environment, tmp_path, redis, server):
    server.stop()
    process = Process(environment, tmp_path)
    try:
        time.sleep(3)
        assert process.process.poll() is None
        server.start()
        push(redis, "quick", 1)
        wait_for(process.lines, 30, "the job")
        assert process.stop() == 0
    finally:
        process.close()
        if server.process is None:
            server.start()


@pytest.mark.fault
def test_a_worker_stops_although_redis_is_away(start, server):
    process = start()
    server.stop()
    try:
        time.sleep(0.5)
        assert process.stop() == 0
    finally:
        server.start()


@pytest.mark.fault
def test_a_worker_introduces_itself_again_after_a_wipe(start, redis, server):
    process = start()
    server.wipe()
    wait_for(lambda: redis.scard("rq:workers") == 1, 30, "the worker to be back")
    key = redis.smembers("rq:workers").pop()
    assert redis.hget(key, "pid") == str(process.process.pid).encode()
    push(redis, "quick", 1)
    wait_for(process.lines, 30, "the job")


@pytest.mark.fault
def test_a_killed_workers_job_does_not_block_its_successors(start, redis):
    first = start()
    push_unless_pending(redis, "app.probe.jobs.stuck", "periodic-stuck", 300)
    wait_for(first.lines, 30, "the job to begin")
    first.stop(signal.SIGKILL)
    assert not push_unless_pending(redis, "app.probe.jobs.quick", "periodic-stuck", 300)

    start()
    wait_for(lambda: not redis.exists("rq:job:periodic-stuck"), 30, "the dead worker to be buried")
    assert redis.scard("rq:workers") == 1
    assert push_unless_pending(redis, "app.probe.jobs.stuck", "periodic-stuck", 300)


def test_living_workers_are_not_buried(start, redis):
    process = start()
    push(redis, "slow", 1)
    wait_for(process.lines, 30, "the job to begin")
    worker.bury_dead_workers(redis)
    assert redis.scard("rq:workers") == 1
    wait_for(lambda: "finished" in process.lines(), 30, "the job to finish")
