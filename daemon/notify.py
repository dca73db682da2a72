"""Tells systemd what the Daemon is doing, if it wants to know; takes the variables away so that no child has them."""

from __future__ import annotations

import os
import socket


class Notifier:
    """sd_notify without libsystemd; silent where nobody listens."""

    def __init__(self, environ: os._Environ[str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        period = environ.pop("WATCHDOG_USEC", "")
        environ.pop("WATCHDOG_PID", None)
        self.watchdog_s = int(period) / 1e6 if period.isdigit() and self._address else 0.0

    def send(self, state: str) -> None:
        """One or more `KEY=value` lines."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.sendto(state.encode("utf-8"), self._address)
        except OSError:
            # systemd goes on without us; there is nobody else to tell.
            return
