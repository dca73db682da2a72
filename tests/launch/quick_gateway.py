"""The gateway's configuration with less patience and fewer places, so that tests need not wait."""

import os

from app.servers import common

common.FIRST_BYTE_S = float(os.environ.get("QUICK_FIRST_BYTE", "1"))
common.IDLE_S = 4.0
common.GATEWAY_GRACE_S = 10

from app.servers.gateway import *  # noqa: E402, F403

worker_connections = int(os.environ.get("QUICK_CONNECTIONS", "200"))
