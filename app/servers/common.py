"""What both planes' gunicorn configurations have in common."""

import logging
import os
import resource
from typing import Any

from gunicorn import glogging
from prometheus_client.multiprocess import mark_process_dead

from config import Settings, split_address

log = logging.getLogger(__name__)

SHARED_MEMORY = "/dev/shm"  # noqa: S108  # nosec B108
SPARE_DESCRIPTORS = 256
IDLE_S = 75.0
"""Longer than nginx keeps its connections to us, so that it is never we who close one that is just being used."""
FIRST_BYTE_S = 10.0

REQUEST_LINE_BYTES = 8190
HEADER_FIELDS = 64
HEADER_BYTES = 8190
BACKLOG = 2048
GRACE_S = 8
GATEWAY_GRACE_S = 20
"""At most; to answer ten thousand held requests takes seconds of computing."""
HUNG_AFTER_S = 60
SOCKET_UMASK = 0o117
"""A Unix socket is for us and our group, which a proxy may belong to."""


class ServerLog(glogging.Logger):  # type: ignore[misc]
    """Gunicorn's own messages join the Manager's log; requests are logged by the application."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.setLevel(self.LOG_LEVELS.get(cfg.loglevel.lower(), logging.INFO))
        self.error_log.propagate = True


def bind_address(address: str) -> str:
    """As gunicorn spells it. A path is a Unix socket's."""
    if address.startswith("/"):
        return f"unix:{address}"
    host, port = split_address(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def gunicorn_level(settings: Settings) -> str:
    """Which process started which is worth a line only to somebody who looks for trouble."""
    return "debug" if settings.log.level == "debug" else "warning"


def scratch_directory() -> str | None:
    """Where workers show that they are alive: in memory if possible, since waiting for a busy disk looks like death."""
    return SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None


def connections_per_worker(wanted: int) -> int:
    """As many as wanted, or as the system lets one process have. Raises the soft limit as far as it goes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most == resource.RLIM_INFINITY or wanted + SPARE_DESCRIPTORS <= most:
        return wanted
    possible = max(10, most - SPARE_DESCRIPTORS)
    log.warning("only %d connections can be held: the limit of open files is %d", possible, most)
    return possible


def forget_dead_worker(_arbiter: Any, worker: Any) -> None:
    """What an ended worker counted stays; what it held (polls) is gone with it."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
