"""Gunicorn's configuration for the plane of people and programs: `gunicorn -c python:app.servers.web`."""

import logging
import ssl
from typing import Any

from app.kernel.logs import configure_logging
from app.servers import common
from app.servers.paced import Pace
from app.servers.workers import PlaneWorker
from config import load_settings

log = logging.getLogger(__name__)
_settings = load_settings()
configure_logging(_settings)

CONNECTIONS = 2000
# What remains of TLS 1.2: forward secrecy and authenticated encryption. All suites of 1.3 are of that kind.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class WebWorker(PlaneWorker):
    """Serves browsers and API clients."""

    pace = Pace(
        handshake_s=10.0,
        first_s=common.FIRST_BYTE_S,
        idle_s=common.IDLE_S,
        read_s=_settings.server.http.read_timeout,
        write_s=_settings.server.http.write_timeout,
    )


def ssl_context(_config: Any, _default: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.load_cert_chain(_settings.tls.cert_file, _settings.tls.key_file)
    return context


def when_ready(_arbiter: Any) -> None:
    log.info("the web plane listens on %s", _settings.server.http.addr)


wsgi_app = "wsgi:create_app('web')"
proc_name = "ops-web"
bind = [common.bind_address(_settings.server.http.addr)]
workers = _settings.server.workers
worker_class = WebWorker
worker_connections = common.connections_per_worker(CONNECTIONS)
worker_tmp_dir = common.scratch_directory()
backlog = common.BACKLOG
umask = common.SOCKET_UMASK
keepalive = int(common.IDLE_S)
timeout = common.HUNG_AFTER_S
graceful_timeout = common.GRACE_S
limit_request_line = common.REQUEST_LINE_BYTES
limit_request_fields = common.HEADER_FIELDS
limit_request_field_size = common.HEADER_BYTES
forwarded_allow_ips = ""  # the application knows which proxies it trusts
sendfile = False  # would go past the limits on slow clients
control_socket_disable = True
logger_class = common.ServerLog
child_exit = common.forget_dead_worker
loglevel = common.gunicorn_level(_settings)
if _settings.tls.enabled:
    certfile, keyfile = _settings.tls.cert_file, _settings.tls.key_file
