"""What pages and answers with an installation command need: the gateway's certificate."""

from collections.abc import Callable

import pytest
from flask import Flask

from app.kernel.secrets import renew_gateway_certificate


@pytest.fixture
def with_gateway() -> Callable[[Flask], None]:
    def make(app: Flask) -> None:
        ops = app.extensions["ops"]
        renew_gateway_certificate(ops.settings, ops.keys.authority)

    return make


@pytest.fixture
def gateway(app: Flask, with_gateway: Callable[[Flask], None]) -> None:
    """Its certificate lies where the gateway of this machine would have put it."""
    with_gateway(app)
