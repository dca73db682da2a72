"""Waits until the web plane says it is well and the gateway accepts connections; a process of its own, soon gone."""

import http.client
import json
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from app.launch.processes import NOT_READY, READY, UNHEALTHY

PATIENCE_S = 120.0
UNHEALTHY_PATIENCE_S = 10.0
PAUSE_S = 0.1
EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # nosec B104


def wait(health_url: str, gateway: str) -> tuple[int, str]:
    """READY, or NOT_READY / UNHEALTHY and why."""
    began = time.monotonic()
    answered: float | None = None
    while True:
        healthy, why = _web_health(health_url)
        if healthy and _accepts(gateway):
            return READY, ""
        if healthy is not None:
            answered = answered or time.monotonic()
        present = time.monotonic()
        if healthy is False and answered is not None and present - answered > UNHEALTHY_PATIENCE_S:
            return UNHEALTHY, why
        if present - began > PATIENCE_S:
            return NOT_READY, why or "the gateway does not answer"
        time.sleep(PAUSE_S)


def _web_health(url: str) -> tuple[bool | None, str]:
    """None if nobody answers."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 0
    if parts.scheme == "https":
        # Our own server on our own machine; its certificate is made for other names.
        context = ssl._create_unverified_context()  # noqa: S323, SLF001  # nosec B323
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(host, port, timeout=5, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return None, "the web plane does not answer"
    finally:
        connection.close()
    return answer.status == 200, _unwell(body)


def _unwell(body: bytes) -> str:
    try:
        checks = json.loads(body).get("checks", {})
    except (ValueError, AttributeError):
        return "the web plane answers strangely"
    return ", ".join(f"{name} {state}" for name, state in checks.items() if state != "ok")


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with (
            socket.socket(socket.AF_UNIX)
            if address.startswith("/")
            else _connected(host.strip("[]"), int(port)) as peer
        ):
            if address.startswith("/"):
                peer.connect(address)
    except OSError:
        return False
    return True


def _connected(host: str, port: int) -> socket.socket:
    """To a listener on this machine, which may be bound to every interface."""
    return socket.create_connection((EVERYWHERE.get(host, host), port), timeout=5)


def main(arguments: Sequence[str]) -> int:
    health_url, gateway = arguments
    code, why = wait(health_url, gateway)
    sys.stdout.write(f"{why}\n" if why else "")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
