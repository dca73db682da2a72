"""What one application carries besides Flask's own: settings, keys, Redis. Nothing here is global to the process."""

from dataclasses import dataclass
from typing import Literal, cast

from flask import Flask, current_app
from redis import Redis

from app.kernel.secrets import Keys
from config import Settings

Plane = Literal["web", "gateway"]


@dataclass(frozen=True)
class Ops:
    settings: Settings
    keys: Keys
    redis: Redis
    plane: Plane


def attach(app: Flask, ops: Ops) -> None:
    app.extensions["ops"] = ops


def ops() -> Ops:
    """The current application's."""
    return cast(Ops, current_app.extensions["ops"])
