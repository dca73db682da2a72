"""A rig for each kind of database, and a clock that tests may set forward."""

import sys

import pytest
from flask import Flask

from tests.commands.rig import Clock, Feature, Rig


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    for name, module in list(sys.modules.items()):
        if name.startswith("app.") and getattr(module, "now", None) is moved.real:
            monkeypatch.setattr(module, "now", moved)
    return moved


@pytest.fixture
def feature() -> Feature:
    return Feature()


@pytest.fixture
def rig(app: Flask, feature: Feature, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setitem(app.extensions, "command_hooks", app.extensions["command_hooks"])
    return Rig(app, feature)
