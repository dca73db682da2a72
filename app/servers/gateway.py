"""Gunicorn's configuration for the plane of Daemons: `gunicorn -c python:app.servers.gateway`.

TLS 1.3 with a certificate of our own authority, unless a proxy does it. Clients are asked for theirs; which requests
need one is for the application to say.
"""

import logging
import ssl
from typing import Any

from app.kernel.logs import configure_logging
from app.kernel.secrets import CA_CERTIFICATE, gateway_certificate_path, load_keys, renew_gateway_certificate
from app.servers import common
from app.servers.paced import Pace
from app.servers.workers import PlaneWorker
from config import load_settings

log = logging.getLogger(__name__)
_settings = load_settings()
configure_logging(_settings)

_certificate = gateway_certificate_path(_settings)


class GatewayWorker(PlaneWorker):
    """Serves Daemons, most of which hold a request open at any time."""

    pace = Pace(
        handshake_s=_settings.server.gateway.handshake_timeout,
        first_s=common.FIRST_BYTE_S,
        idle_s=common.IDLE_S,
        read_s=_settings.server.http.read_timeout,
        write_s=_settings.server.http.write_timeout,
    )

    def upkeep(self, context: ssl.SSLContext | None) -> None:
        """A Manager that runs for years renews its certificate while it runs; new connections get the new one."""
        if context is None:
            return
        try:
            renew_gateway_certificate(_settings, load_keys(_settings).authority)
            context.load_cert_chain(_certificate)
        except Exception:
            log.exception("could not renew the gateway's certificate")


def ssl_context(_config: Any, _default: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(_settings.keys_path / CA_CERTIFICATE)
    context.load_cert_chain(_certificate)
    # A resumed session would bring along a client certificate that nobody has looked at again.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context


def when_ready(_arbiter: Any) -> None:
    log.info("the gateway listens on %s", _settings.server.gateway.addr)


wsgi_app = "wsgi:create_app('gateway')"
proc_name = "ops-gateway"
bind = [common.bind_address(_settings.server.gateway.addr)]
workers = _settings.server.gateway_workers
worker_class = GatewayWorker
worker_connections = common.connections_per_worker(-(-_settings.server.gateway.max_connections // workers))
worker_tmp_dir = common.scratch_directory()
backlog = common.BACKLOG
umask = common.SOCKET_UMASK
keepalive = int(common.IDLE_S)
timeout = common.HUNG_AFTER_S
graceful_timeout = common.GATEWAY_GRACE_S
limit_request_line = common.REQUEST_LINE_BYTES
limit_request_fields = common.HEADER_FIELDS
limit_request_field_size = common.HEADER_BYTES
forwarded_allow_ips = ""
sendfile = False
control_socket_disable = True
logger_class = common.ServerLog
child_exit = common.forget_dead_worker
loglevel = common.gunicorn_level(_settings)
if not _settings.server.gateway.behind_proxy:
    renew_gateway_certificate(_settings, load_keys(_settings).authority)
    certfile = keyfile = str(_certificate)
