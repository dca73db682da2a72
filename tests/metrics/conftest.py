"""Applications that serve the pages and the API of measurements, whether the factory does so yet or not."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from app.metrics.api import api
from app.metrics.pages import pages
from tests.conftest import Applications
from tests.services import Redis


class WithMetrics(Applications):
    def empty(self, kind: str) -> Flask:
        app = super().empty(kind)
        if "metrics" not in app.blueprints:
            app._got_first_request = False
            app.register_blueprint(pages)
            app.register_blueprint(api.blueprint)
            app.extensions["api_rooms"] = (*app.extensions["api_rooms"], api)
        return app


@pytest.fixture(scope="session")
def applications(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, test_keys: Any, redis_server: Redis
) -> Iterator[Applications]:
    base = tmp_path_factory.mktemp("metrics")
    yield WithMetrics(request, base, test_keys, redis_server)
    shutil.rmtree(base, ignore_errors=True)
