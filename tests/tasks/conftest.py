"""Tasks with the product's own wiring: the rig's hosts, the real hooks."""

import pytest
from flask import Flask

from app.commands.hooks import attach
from app.link.takers import HOOKS
from tests.commands.conftest import clock as clock
from tests.commands.rig import Feature, Rig


@pytest.fixture
def rig(app: Flask) -> Rig:
    made = Rig(app, Feature())
    attach(app, HOOKS)
    return made
