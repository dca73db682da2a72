"""What must be true of this machine before anything is started: the data directory and the ports are ours."""

import errno
import fcntl
import os
import secrets
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

VARIABLES = {"web": "OPS_WEB", "gateway": "OPS_GATEWAY"}
RUN = "run"
LOCK = "manager.lock"


class NotPossibleError(Exception):
    """Why the Manager cannot start here, one line for each reason."""


def claim_data_directory(path: Path) -> int:
    """Make the directory private and lock it for as long as the returned descriptor is open. No child inherits it."""
    _make_private(path)
    _make_private(path / RUN)
    _try_to_write(path)
    descriptor = os.open(path / RUN / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode().strip()
        os.close(descriptor)
        raise NotPossibleError(f"another Manager (process {holder or '?'}) already uses {path}") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def check_ports(addresses: Mapping[str, tuple[str, int]]) -> None:
    """Whether both planes can listen where they should. Leaves the ports as they were."""
    problems = [problem for plane, address in addresses.items() if (problem := _port_problem(plane, *address))]
    if problems:
        raise NotPossibleError("\n".join(problems))


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        if status.st_mode & 0o077:
            path.chmod(0o700)
    except FileExistsError:
        raise NotPossibleError(f"data_dir: {path} is not a directory") from None
    except OSError as error:
        raise NotPossibleError(f"data_dir: {path} cannot be used: {error.strerror}{_hint(error)}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise NotPossibleError(f"data_dir: {path} is not a directory")


def _try_to_write(path: Path) -> None:
    """Asked of the system by doing it, since permissions do not tell about full or read-only disks."""
    probe = path / RUN / f".probe-{secrets.token_hex(4)}"
    try:
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise NotPossibleError(f"data_dir: {path} cannot be written: {error.strerror}{_hint(error)}") from None


def _hint(error: OSError) -> str:
    return "; choose another with OPS_DATA_DIR" if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else ""


def _port_problem(plane: str, host: str, port: int) -> str:
    variable = VARIABLES[plane]
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            # Some systems notice only here.
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"port {port} is in use: choose another with {variable}_PORT"
        if error.errno == errno.EACCES:
            return f"port {port} is for root only: choose another with {variable}_PORT"
        reason = (error.strerror or str(error)).lower()
        return f"{host} cannot be listened on ({reason}): choose another with {variable}_HOST"
    return ""
