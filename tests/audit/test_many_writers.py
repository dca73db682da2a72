"""Many who write at once: the chain has no gap and no fork, whoever comes first."""

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

from flask import Flask

from app.audit.actions import record, write_checkpoint
from app.kernel.access import Actor
from app.kernel.db import db, in_transaction
from tests.audit.reading import checked, entries

ROOT = Path(__file__).resolve().parents[2]
WRITERS, PROCESSES, ROWS = 8, 3, 20


def test_threads_take_turns(app: Flask) -> None:
    start = Barrier(WRITERS)

    def write(number: int) -> None:
        with app.app_context():
            session, actor = db.session(), Actor.system(f"thread-{number}")
            start.wait()
            for row in range(ROWS):
                in_transaction(session, lambda row=row: record(session, actor, "test.done", "thing", row))

    def sign(_number: int) -> None:
        with app.app_context():
            for _ in range(10):
                in_transaction(db.session(), lambda: write_checkpoint(db.session()))

    with ThreadPoolExecutor(WRITERS + 1) as pool:
        jobs = [pool.submit(write, number) for number in range(WRITERS)] + [pool.submit(sign, 0)]
        for job in jobs:
            job.result()
    check_whole(app, {f"thread-{number}": ROWS for number in range(WRITERS)})


def test_processes_take_turns(applications: Any) -> None:
    """On SQLite, where no server sorts them out."""
    app = applications.empty("sqlite")
    environment = applications.settings("sqlite")
    given = {
        "OPS_DATA_DIR": environment.data_dir, "OPS_KEYS__DIR": str(environment.keys_path),
        "OPS_REDIS_URL": environment.redis_url, "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.audit.many_writers", str(PROCESSES), str(ROWS)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_whole(app, {f"process-{number}": ROWS for number in range(PROCESSES)})


def check_whole(app: Flask, expected: dict[str, int]) -> None:
    rows = entries(app)
    total = sum(expected.values())
    assert [row.id for row in rows] == list(range(1, total + 1))
    assert Counter(row.username for row in rows) == expected
    assert len({row.hash for row in rows}) == total
    for name in expected:
        own = [int(row.resource_id) for row in rows if row.username == name]
        assert own == sorted(own)
    report = checked(app)
    assert report.finding is None
    assert report.rows == total
