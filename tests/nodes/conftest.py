"""A cast that is quickly there."""

import pytest
from flask import Flask

from tests.factories import Api
from tests.visitors import make_cast


@pytest.fixture
def cast(app: Flask) -> dict[str, Api]:
    return make_cast(app)
