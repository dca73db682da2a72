"""What the tests about people share: a clock that can be moved."""

import sys
from datetime import datetime, timedelta

import pytest
from argon2 import PasswordHasher
from flask import Flask

from app.kernel import clock as real_clock
from app.people import passwords
from tests.factories import Api, api_as, make_user


class Clock:
    """The product's clock, ahead of the real one by as much as a test says."""

    def __init__(self) -> None:
        self._ahead = timedelta()
        self._real = real_clock.now

    def __call__(self) -> datetime:
        return self._real() + self._ahead

    def advance(self, **by: float) -> None:
        self._ahead += timedelta(**by)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    for name, module in list(sys.modules.items()):
        if name.startswith("app.") and getattr(module, "now", None) is moved._real:
            monkeypatch.setattr(module, "now", moved)
    return moved


@pytest.fixture(autouse=True)
def cheap_hashing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real argon2id, but hundreds of users in a moment. Whoever measures it asks for `real_hashing`."""
    if "real_hashing" not in request.fixturenames:
        cheap = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
        monkeypatch.setattr(passwords, "HASHER", cheap)
        monkeypatch.setattr(passwords, "NOBODY", cheap.hash("nobody knows"))


@pytest.fixture
def real_hashing() -> None:
    """As in production."""


@pytest.fixture
def sqlite_cast(sqlite_app: Flask) -> dict[str, Api]:
    """The fixed cast, for what does not depend on the database."""
    with sqlite_app.app_context():
        for name, role in (("alice", "admin"), ("oscar", "operator"), ("vera", "viewer")):
            make_user(name, role)
    return {name: api_as(sqlite_app, name) for name in ("alice", "oscar", "vera")}
