"""Fixtures of the tests of health and metrics."""

from tests.variants import fragile_app, make_app, own_mariadb, own_redis

__all__ = ["fragile_app", "make_app", "own_mariadb", "own_redis"]
