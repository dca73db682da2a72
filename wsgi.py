"""Makes the application that a server or the `flask` command asks for. The settings come from the environment."""

from flask import Flask

from app import factory
from app.kernel.context import Plane
from config import load_settings


def create_app(plane: Plane = "web") -> Flask:
    """`wsgi:create_app("gateway")` for gunicorn; `flask --app wsgi` finds it by its name."""
    return factory.create_app(load_settings(), plane)
