"""The web plane's configuration with less patience and fewer places, so that tests need not wait."""

import os

from app.servers import common

common.FIRST_BYTE_S = float(os.environ.get("QUICK_FIRST_BYTE", "1"))
common.IDLE_S = 4.0
common.GRACE_S = 4

from app.servers.web import *  # noqa: E402, F403

worker_connections = int(os.environ.get("QUICK_CONNECTIONS", "200"))
