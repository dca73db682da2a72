"""The web plane as it runs in production, gunicorn and all, for tests and screenshots that look at it with a browser.

What lies in its database is the business of whoever starts it.
"""

import contextlib
import http.client
import socket
import sys
from collections.abc import Iterator, Mapping

from config import Settings
from tests.services import ROOT, Server


class WebServer(Server):
    """A web plane over the data that `settings` name, on a port of its own."""

    name = "web"

    def __init__(self, settings: Settings, environment: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {
            "PYTHONPATH": str(ROOT),
            "OPS_DATA_DIR": str(settings.data_path),
            "OPS_KEYS__DIR": str(settings.keys_path),
            "OPS_REDIS_URL": settings.redis_url,
            "OPS_DATABASE_URL": settings.database_url,
            "OPS_WEB_PORT": str(self.port),
            "OPS_SERVER__DEVELOPMENT": "true",
            **(environment or {}),
        }

    def command(self) -> list[str]:
        given = [f"{name}={value}" for name, value in self._environment.items()]
        return ["/usr/bin/env", *given, sys.executable, "-m", "gunicorn", "-c", "python:app.servers.web"]

    def answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/health/live")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Crashed for a while, and started again."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    def _is_up(self) -> bool:
        # It listens on a port; the file stands in for the socket that the other servers have.
        self.socket.touch()
        return super()._is_up()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
