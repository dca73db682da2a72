"""Jobs that follow a commit, and that every job named anywhere in the source exists."""

import ast
import json
import logging
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from flask import Flask
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer
from sqlalchemy import String, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from app.kernel import broker
from app.kernel.broker import connect_redis, open_queue, push_job, push_unless_pending
from app.kernel.context import attach
from app.kernel.queue import enqueue_after_commit, queue_depths
from tests.services import Redis as RedisServer

JOB = "app.audit.jobs.write_checkpoint"
APP = Path(__file__).resolve().parents[2] / "app"


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20), unique=True)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
def redis(server: RedisServer) -> Redis:
    server.wipe()
    return connect_redis(server.url)


@pytest.fixture
def session(redis: Redis) -> Iterator[Session]:
    """A session inside an application that has our Redis and nothing else."""
    app = Flask("test")
    attach(app, SimpleNamespace(redis=redis))
    engine = create_engine("sqlite://")

    @event.listens_for(engine, "connect")
    def no_implicit_begin(connection, _record):
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection):
        connection.exec_driver_sql("BEGIN")

    Base.metadata.create_all(engine)
    with app.app_context(), Session(engine) as made:
        yield made
    engine.dispose()


def waiting(redis: Redis) -> list[list[object]]:
    return [job.args for job in open_queue(redis).jobs]


def test_a_job_is_pushed_after_the_commit_and_not_before(session, redis):
    enqueue_after_commit(session, JOB, 7, "x")
    session.add(Thing(name="a"))
    session.flush()
    assert waiting(redis) == []
    session.commit()
    assert waiting(redis) == [[JOB, 7, "x"]]


def test_the_next_commit_does_not_push_it_again(session, redis):
    enqueue_after_commit(session, JOB)
    session.commit()
    session.add(Thing(name="a"))
    session.commit()
    assert len(waiting(redis)) == 1


def test_a_transaction_that_is_undone_pushes_nothing(session, redis):
    session.add(Thing(name="a"))
    enqueue_after_commit(session, JOB)
    session.rollback()
    session.add(Thing(name="a"))
    session.commit()
    assert waiting(redis) == []


def test_a_commit_that_fails_pushes_nothing(session, redis):
    session.add(Thing(name="a"))
    session.commit()
    session.add(Thing(name="a"))
    enqueue_after_commit(session, JOB)
    with pytest.raises(Exception, match="UNIQUE"):
        session.commit()
    session.rollback()
    session.commit()
    assert waiting(redis) == []


def test_releasing_a_savepoint_is_no_commit(session, redis):
    enqueue_after_commit(session, JOB, 1)
    with session.begin_nested():
        session.add(Thing(name="a"))
        enqueue_after_commit(session, JOB, 2)
    assert waiting(redis) == []
    session.commit()
    assert waiting(redis) == [[JOB, 1], [JOB, 2]]


def test_an_undone_savepoint_takes_its_jobs_along_and_no_others(session, redis):
    enqueue_after_commit(session, JOB, 1)
    outer = session.begin_nested()
    enqueue_after_commit(session, JOB, 2)
    inner = session.begin_nested()
    enqueue_after_commit(session, JOB, 3)
    inner.commit()
    outer.rollback()
    with session.begin_nested():
        enqueue_after_commit(session, JOB, 4)
    session.commit()
    assert waiting(redis) == [[JOB, 1], [JOB, 4]]


def test_asking_twice_gives_one_job(session, redis):
    for _ in range(3):
        enqueue_after_commit(session, JOB, 7)
    enqueue_after_commit(session, JOB, 8)
    session.commit()
    assert waiting(redis) == [[JOB, 7], [JOB, 8]]


def test_two_sessions_do_not_mix(session, redis):
    with Session(session.get_bind()) as other:
        enqueue_after_commit(other, JOB, 1)
        enqueue_after_commit(session, JOB, 2)
        session.commit()
        assert waiting(redis) == [[JOB, 2]]


@pytest.mark.fault
def test_a_redis_that_is_away_is_logged_and_harms_nobody(session, redis, server, caplog):
    session.add(Thing(name="a"))
    enqueue_after_commit(session, JOB, 7)
    server.stop()
    try:
        with caplog.at_level(logging.WARNING):
            session.commit()
    finally:
        server.start()
    assert session.get(Thing, 1)
    assert "could not enqueue app.audit.jobs.write_checkpoint(7,)" in caplog.text
    session.commit()
    assert waiting(redis) == []


@pytest.mark.parametrize("bad", ["os.system", "app", "app.x;y", "app..x", "App.x"])
def test_only_jobs_of_ours_can_be_named(session, bad):
    with pytest.raises(ValueError, match="not a job"):
        enqueue_after_commit(session, bad)


def test_only_known_queues_can_be_named(session):
    with pytest.raises(ValueError, match="not a queue"):
        enqueue_after_commit(session, JOB, queue="nobody-listens")


def test_only_ids_can_be_handed_over(session):
    with pytest.raises(TypeError, match="jobs take ids"):
        enqueue_after_commit(session, JOB, Thing(name="a"))


def test_what_lies_in_redis_is_plain_json(redis):
    job_id = push_job(redis, JOB, (7, "x"))
    data = zlib.decompress(redis.hget(f"rq:job:{job_id}", "data"))
    assert json.loads(data) == ["app.worker.run_job", None, [JOB, 7, "x"], {}]


def test_a_job_with_an_id_of_its_own_waits_only_once(redis):
    assert push_unless_pending(redis, JOB, "periodic-x", 60)
    assert not push_unless_pending(redis, JOB, "periodic-x", 60)
    assert len(waiting(redis)) == 1


def test_a_forgotten_job_is_gone_everywhere(redis):
    push_unless_pending(redis, JOB, "periodic-x", 60)
    broker.forget_job(redis, "periodic-x")
    assert waiting(redis) == []
    assert push_unless_pending(redis, JOB, "periodic-x", 60)
    broker.forget_job(redis, "never-was-there")


def test_depths_are_told_for_each_queue(redis):
    assert queue_depths(redis) == {"default": 0}
    push_job(redis, JOB, ())
    push_job(redis, JOB, ())
    assert queue_depths(redis) == {"default": 2}


@pytest.mark.fault
def test_a_client_works_again_after_redis_was_restarted(redis, server):
    """A connection that died with the old Redis must not be anybody's error."""
    redis.ping()
    server.restart()
    assert redis.ping()


def test_jobs_are_fetched_as_json(redis):
    job_id = push_job(redis, JOB, (1,))
    assert Job.fetch(job_id, redis, serializer=JSONSerializer).timeout == broker.JOB_TIMEOUT_S


def named_jobs() -> list[tuple[str, int, str | None]]:
    """Every place where a job is named: file, line and the name, None if it is no plain text."""
    found = []
    for path in sorted(APP.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            position = {"enqueue_after_commit": 1, "Periodic": 0}.get(function)
            if position is not None and len(node.args) > position:
                name = node.args[position]
                text = name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else None
                found.append((str(path.relative_to(APP.parent)), node.lineno, text))
    return found


@pytest.mark.parametrize(("file", "line", "dotted"), named_jobs(), ids=lambda value: str(value))
def test_every_job_that_is_named_exists(file, line, dotted):
    assert dotted is not None, f"{file}:{line} must name its job as plain text, so that it can be checked"
    module, _, name = dotted.rpartition(".")
    assert module.endswith(".jobs") or module == "app.worker", f"{file}:{line}: workers refuse {dotted}"
    assert callable(getattr(import_module(module), name, None)), f"{file}:{line} names {dotted}, which does not exist"


def test_the_search_for_names_finds_some():
    assert any(file == "app/scheduler.py" for file, _, _ in named_jobs())
