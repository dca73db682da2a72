"""What the tests of the audit log share: hashing that costs nothing, and a log with something in it."""

import pytest
from argon2 import PasswordHasher
from flask import Flask

from app.audit.actions import record, write_checkpoint
from app.kernel.access import Actor
from app.kernel.db import db, in_transaction
from app.people import passwords

ACTOR = Actor(
    kind="user", user_id=7, username="ada", ip="192.0.2.1", user_agent="a program", request_id="request-1"
)  # fmt: skip


@pytest.fixture(autouse=True)
def cheap_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    monkeypatch.setattr(passwords, "HASHER", cheap)
    monkeypatch.setattr(passwords, "NOBODY", cheap.hash("nobody knows"))


def write_rows(app: Flask, *numbers: int) -> None:
    """One row a transaction."""
    with app.app_context():
        session = db.session()
        for number in numbers:
            in_transaction(session, lambda n=number: record(session, ACTOR, "test.done", "thing", n, None, {"n": n}))


def write_checkpoint_now(app: Flask) -> None:
    with app.app_context():
        in_transaction(db.session(), lambda: write_checkpoint(db.session()))
