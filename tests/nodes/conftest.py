"""A cast that is quickly there, and the gateway's certificate, which pages with an installation command need."""

import pytest
from flask import Flask

from app.kernel.secrets import renew_gateway_certificate
from tests.factories import Api
from tests.visitors import make_cast


@pytest.fixture
def cast(app: Flask) -> dict[str, Api]:
    return make_cast(app)


@pytest.fixture
def gateway(app: Flask) -> None:
    """Its certificate lies where the gateway of this machine would have put it."""
    ops = app.extensions["ops"]
    renew_gateway_certificate(ops.settings, ops.keys.authority)
