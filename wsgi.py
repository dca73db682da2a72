"""Makes the application that a server or the `flask` command asks for. The settings come from the environment."""

from flask import Flask

from app import factory
from app.kernel.context import Plane
from config import SettingsError, load_settings


def create_app(plane: Plane = "web") -> Flask:
    """`wsgi:create_app("gateway")` for gunicorn; `flask --app wsgi` finds it by its name."""
    try:
        settings = load_settings()
    except SettingsError as error:
        raise SystemExit(f"The settings are wrong:\n{error}") from None
    return factory.create_app(settings, plane)
