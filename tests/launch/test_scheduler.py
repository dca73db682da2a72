"""The scheduler: what is due when, that nothing piles up, and that one of several ticks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from app import scheduler
from app.kernel.broker import connect_redis, open_queue
from app.scheduler import INTERVALS, LAST, LEASE, PERIODIC, Periodic, Scheduler, configured_interval
from config import load_settings
from tests.services import ROOT, wait_for
from tests.services import Redis as RedisServer

FAST = Periodic("app.audit.jobs.write_checkpoint", every="audit.checkpoint_interval")
SLOW = Periodic("app.people.jobs.forget_expired", every=600)
NAMES = [FAST.dotted, SLOW.dotted]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
def redis(server: RedisServer) -> Redis:
    server.wipe()
    return connect_redis(server.url)


def make(redis: Redis, table: tuple[Periodic, ...] = (FAST, SLOW), **environment: str) -> Scheduler:
    return Scheduler(redis, load_settings([], environment), table)


@pytest.fixture
def one(redis: Redis) -> Scheduler:
    return make(redis)


def waiting(redis: Redis) -> list[str]:
    return [job.args[0] for job in open_queue(redis).jobs]


def done(redis: Redis) -> None:
    """As if a worker had run everything."""
    for job in open_queue(redis).jobs:
        job.delete()


def let_pass(redis: Redis, seconds: float) -> None:
    for name, value in redis.hgetall(LAST).items():
        redis.hset(LAST, name, str(float(value) - seconds))


def test_at_first_everything_is_due(one, redis):
    assert one.tick() == NAMES
    assert waiting(redis) == NAMES


def test_a_job_is_due_again_when_its_interval_is_over(one, redis):
    one.tick()
    done(redis)
    let_pass(redis, 58)
    assert one.tick() == []
    let_pass(redis, 2)
    assert one.tick() == [FAST.dotted]
    done(redis)
    let_pass(redis, 540)
    assert one.tick() == NAMES


def test_nothing_piles_up_while_workers_are_away(one, redis):
    for _ in range(50):
        one.tick()
        let_pass(redis, 100_000)
    assert waiting(redis) == NAMES


def test_what_had_to_wait_is_enqueued_as_soon_as_there_is_room(one, redis):
    one.tick()
    let_pass(redis, 100_000)
    assert one.tick() == []
    done(redis)
    assert one.tick() == NAMES


def test_a_wiped_redis_makes_everything_due(one, redis):
    one.tick()
    redis.flushall()
    assert one.tick() == NAMES


def test_a_clock_that_was_set_back_silences_nothing(one, redis):
    one.tick()
    done(redis)
    let_pass(redis, -100_000)
    assert one.tick() == NAMES


def test_intervals_come_from_the_settings(redis):
    one = make(redis, OPS_AUDIT__CHECKPOINT_INTERVAL="10s")
    one.tick()
    done(redis)
    let_pass(redis, 11)
    assert one.tick() == [FAST.dotted]


def test_intervals_changed_at_run_time_count_at_once(one, redis):
    one.tick()
    done(redis)
    let_pass(redis, 15)
    assert one.tick() == []
    redis.hset(INTERVALS, FAST.dotted, "10")
    assert one.tick() == [FAST.dotted]
    done(redis)
    redis.hset(INTERVALS, FAST.dotted, "3600")
    let_pass(redis, 100)
    assert one.tick() == []


def test_of_two_one_ticks(one, redis):
    other = make(redis)
    assert one.tick() == NAMES
    redis.delete(LAST)
    done(redis)
    assert other.tick() == []
    assert one.tick() == NAMES


def test_another_takes_over_at_once_from_one_that_stopped(one, redis):
    other = make(redis)
    one.tick()
    other.release()
    redis.delete(LAST)
    done(redis)
    assert other.tick() == []
    one.release()
    assert other.tick() == NAMES


def test_another_takes_over_soon_from_one_that_died(one, redis):
    one.tick()
    assert 0 < redis.pttl(LEASE) <= 3000
    redis.pexpire(LEASE, 1)
    time.sleep(0.01)
    redis.delete(LAST)
    done(redis)
    assert make(redis).tick() == NAMES


def test_the_lease_is_renewed_by_ticking(one, redis):
    one.tick()
    redis.pexpire(LEASE, 500)
    one.tick()
    assert redis.pttl(LEASE) > 2000


def pretend_started(redis: Redis, job: Periodic, worker: str) -> None:
    redis.lrem("rq:queue:default", 0, job.job_id)
    redis.hset(f"rq:job:{job.job_id}", mapping={"status": "started", "worker_name": worker})


def test_a_job_whose_worker_is_gone_is_given_up_after_a_while(one, redis, monkeypatch):
    one.tick()
    pretend_started(redis, FAST, "dead")
    let_pass(redis, 100)
    assert one.tick() == []
    assert redis.exists(f"rq:job:{FAST.job_id}")
    monkeypatch.setattr(scheduler, "LOST_AFTER_S", 0.0)
    one.tick()
    assert one.tick() == [FAST.dotted]


def test_a_job_that_is_run_is_not_given_up(one, redis, monkeypatch):
    monkeypatch.setattr(scheduler, "LOST_AFTER_S", 0.0)
    one.tick()
    pretend_started(redis, FAST, "alive")
    redis.hset("rq:worker:alive", "pid", "1")
    for _ in range(5):
        let_pass(redis, 100)
        assert one.tick() == []


def test_a_job_that_waits_long_is_not_given_up(one, redis, monkeypatch):
    monkeypatch.setattr(scheduler, "LOST_AFTER_S", 0.0)
    one.tick()
    for _ in range(5):
        let_pass(redis, 100_000)
        assert one.tick() == []
    assert waiting(redis) == NAMES


def test_every_interval_of_the_table_can_be_read():
    settings = load_settings([], {})
    assert all(configured_interval(settings, job) >= 1 for job in PERIODIC)
    assert len({job.job_id for job in PERIODIC}) == len(PERIODIC)


class Process:
    def __init__(self, server: RedisServer, directory: Path) -> None:
        environment = {"OPS_REDIS_URL": server.url, "OPS_DATA_DIR": str(directory)}
        self.output = directory / "output"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.scheduler"],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=output,
                stderr=output,
            )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def process(server: RedisServer, redis: Redis, tmp_path: Path) -> Iterator[Process]:
    made = Process(server, tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


def is_full(redis: Redis) -> bool:
    return len(waiting(redis)) == len(PERIODIC)


def test_the_process_ticks_and_stops_within_moments(process, redis):
    wait_for(lambda: is_full(redis), 30, "the first tick")
    began = time.monotonic()
    assert process.stop() == 0
    assert time.monotonic() - began < 20
    assert not redis.exists(LEASE)


@pytest.mark.fault
@pytest.mark.parametrize("how", ["kill", "wipe", "pause"])
def test_the_process_lives_through_what_happens_to_redis(process, redis, server, how):
    wait_for(lambda: is_full(redis), 30, "the first tick")
    if how == "wipe":
        server.wipe()
    elif how == "kill":
        server.kill()
        time.sleep(1.5)
        server.start()
    else:
        with server.paused():
            time.sleep(7)
    wait_for(lambda: is_full(redis), 30, "everything to be there again")
    assert process.process.poll() is None
    assert process.stop() == 0


@pytest.mark.fault
def test_a_redis_that_is_away_is_complained_about_once(server, redis, tmp_path):
    server.stop()
    process = Process(server, tmp_path)
    try:
        time.sleep(3.5)
        assert process.stop() == 0
        assert process.output.read_text().count("Redis is away, nothing") == 1
    finally:
        process.process.kill()
        server.start()


def test_the_process_is_small(process, redis):
    """It must not come to import Flask, the database or the application."""
    wait_for(lambda: is_full(redis), 30, "the first tick")
    maps = Path(f"/proc/{process.process.pid}/maps").read_text()
    assert "sqlalchemy" not in maps
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    resident_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident_kb < 75_000


def test_the_scheduler_imports_neither_flask_nor_the_database():
    code = "import sys, app.scheduler; print({'flask', 'sqlalchemy', 'app.factory'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
