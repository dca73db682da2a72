"""A gateway for each kind of database, shared by the tests of this directory unless one has to break it."""

import socket
from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from app.kernel.access import Actor
from app.kernel.db import db, in_transaction
from app.nodes import enrolment
from app.nodes.schemas import TokenIn
from tests.link.hosts import Host
from tests.link.planes import Plane

ADMIN = Actor.system("tests")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def planes() -> Iterator[dict[str, Plane]]:
    """Gateways by database URL; started once, since a start costs seconds."""
    found: dict[str, Plane] = {}
    yield found
    for plane in found.values():
        plane.stop()


@pytest.fixture
def gateway(app: Flask, planes: dict[str, Plane]) -> Plane:
    """A running gateway over the test's database."""
    url = app.extensions["ops"].settings.database_url
    if url not in planes:
        planes[url] = Plane(app, "gateway", free_port())
        planes[url].start()
    return planes[url]


@pytest.fixture
def own_gateway(app: Flask) -> Iterator[Plane]:
    """One that the test may kill."""
    plane = Plane(app, "gateway", free_port())
    plane.start()
    yield plane
    plane.stop()


@pytest.fixture
def own_plane() -> Iterator[Callable[..., Plane]]:
    """Makes gateways with settings of their own, reached under the address that they themselves name."""
    made: list[Plane] = []

    def make(app: Flask, **environment: str) -> Plane:
        port = free_port()
        plane = Plane(app, "gateway", port, OPS_GATEWAY_URL=f"https://127.0.0.1:{port}", **environment)
        plane.start()
        made.append(plane)
        return plane

    yield make
    for plane in made:
        plane.stop()


@pytest.fixture
def join(app: Flask) -> Callable[..., str]:
    """Makes join tokens."""

    def make(**values: object) -> str:
        with app.app_context():
            given = TokenIn.model_validate({"name": "tests"} | values)
            session = db.session()
            return in_transaction(session, lambda: enrolment.create_token(session, ADMIN, given))[1]

    return make


@pytest.fixture
def new_host(gateway: Plane, join: Callable[..., str]) -> Callable[..., Host]:
    """Makes hosts that are nodes already and have checked in once."""

    def make(hostname: str = "web-1", plane: Plane = gateway) -> Host:
        host = Host(plane.port, plane.ca_path, hostname)
        reply = host.enroll(join())
        assert reply.status == 200, reply
        reply = host.checkin(inventory=host.inventory)
        assert reply.status == 200, reply
        return host

    return make


@pytest.fixture
def host(new_host: Callable[..., Host]) -> Host:
    return new_host()
