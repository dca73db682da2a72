"""Fixtures of the kernel's tests: servers to break, and the laboratory over each kind of database."""

from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.conftest import DATABASES, Applications
from tests.kernel.lab import Lab
from tests.variants import build, dispose, forget, fragile_app, make_app, own_mariadb, own_redis

__all__ = ["fragile_app", "make_app", "own_mariadb", "own_redis"]


class Laboratories:
    """One for each kind of database and module, since making an application takes longer than most tests."""

    def __init__(self, applications: Applications) -> None:
        self._applications = applications
        self._made: dict[str, tuple[Flask, Lab]] = {}

    def empty(self, kind: str) -> tuple[Flask, Lab]:
        if kind not in self._made:
            lab = Lab()
            self._made[kind] = build(self._applications, lab.install, kind), lab
        self._applications.empty(kind)
        app, lab = self._made[kind]
        forget(app)
        lab.calls.clear()
        lab.failures.clear()
        return app, lab

    def close(self) -> None:
        for app, _lab in self._made.values():
            dispose(app)


@pytest.fixture(scope="module")
def laboratories(applications: Applications) -> Iterator[Laboratories]:
    made = Laboratories(applications)
    yield made
    made.close()


@pytest.fixture
def laboratory(laboratories: Laboratories) -> tuple[Flask, Lab]:
    return laboratories.empty("sqlite")


@pytest.fixture
def client(laboratory: tuple[Flask, Lab]) -> FlaskClient:
    return laboratory[0].test_client()


@pytest.fixture
def lab(laboratory: tuple[Flask, Lab]) -> Lab:
    return laboratory[1]


@pytest.fixture(params=DATABASES)
def any_laboratory(request: pytest.FixtureRequest, laboratories: Laboratories) -> tuple[Flask, Lab]:
    return laboratories.empty(request.param)


@pytest.fixture
def any_client(any_laboratory: tuple[Flask, Lab]) -> FlaskClient:
    return any_laboratory[0].test_client()


@pytest.fixture
def any_lab(any_laboratory: tuple[Flask, Lab]) -> Lab:
    return any_laboratory[1]
