"""How fast users and a long audit log are listed: `python -m bench.foundation`.

Fills 200,000 audit rows through the real chain, starts the real web server on SQLite and on a private MariaDB, and asks
it over HTTP with one client and with eight. What it asks stands in `QUESTIONS`.
"""

import argparse
import contextlib
import os
import platform
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from flask import Flask
from flask_migrate import upgrade
from sqlalchemy import insert, select, text, update

from app.audit import chain
from app.audit.models import AuditHead, AuditRow
from app.audit.verification import verify
from app.factory import create_app
from app.kernel.access import Actor
from app.kernel.context import ops
from app.kernel.db import db, in_transaction
from app.people import actions as people
from app.people.models import User
from app.people.schemas import SignIn, UserCreate
from app.people.tokens import fingerprint
from bench.mariadb import GrownMariaDb
from config import Settings, load_settings
from tests.services import Redis, wait_for

ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "bench-marks-the-spot"
COOKIE = "ops_session"
FIRST_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
BATCH = 2000
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36"
NAMES = [f"user{number:03d}" for number in range(200)]
ACTIONS = (
    [("auth.sign_in", "user")] * 40 + [("task.run", "task")] * 25 + [("node.update", "node")] * 15
    + [("user.update", "user")] * 8 + [("settings.change", "settings")] * 2 + [("token.create", "token")] * 5
    + [("rollout.start", "rollout")] * 4 + [("user.delete", "user")]
)  # fmt: skip


class Question(NamedTuple):
    """One thing that is asked again and again."""

    name: str
    path: str


QUESTIONS = (
    Question("users, API", "/api/v1/system/users"),
    Question("users, API, keyword", "/api/v1/system/users?keyword=user01"),
    Question("audit, API", "/api/v1/system/audit-logs"),
    Question("audit, API, last page", "/api/v1/system/audit-logs?page={last_page}"),
    Question("audit page", "/audit"),
    Question("audit page, its table only", "/audit?page=2"),
    Question("audit page, page 5,000", "/audit?page=5000"),
    Question("audit page, last page", "/audit?page={last_page}"),
    Question("audit page, 100 rows", "/audit?page_size=100"),
    Question("audit page, action (40 %)", "/audit?action=auth.sign_in"),
    Question("audit page, action, its last page", "/audit?action=auth.sign_in&page=3900"),
    Question("audit page, status success (97 %)", "/audit?status=success"),
    Question("audit page, status failed (3 %)", "/audit?status=failed"),
    Question("audit page, user name", "/audit?username=user007"),
    Question("audit page, user number", "/audit?user_id=8"),
    Question("audit page, kind and thing", "/audit?resource_type=node&resource_id=42"),
    Question("audit page, one week", "/audit?start=2026-02-01T00:00:00Z&end=2026-02-08T00:00:00Z"),
    Question("audit page, user and status", "/audit?username=user007&status=failed"),
    Question("audit page, by user name", "/audit?sort=username"),
    Question("audit page, by user name, page 5,000", "/audit?sort=username&page=5000"),
    Question("audit page, oldest first", "/audit?sort=created_at"),
    Question("audit page, keyword, common", "/audit?keyword=user0"),
    Question("audit page, keyword, rare", "/audit?keyword=203.0.113.77"),
    Question("audit page, keyword, nothing", "/audit?keyword=no-such-thing"),
    Question("audit page, keyword, last page", "/audit?keyword=user0&page=5000"),
)


class Figures(NamedTuple):
    """Milliseconds; `first`: the very first time; `cpu`: what one request costs web server and database together."""

    p50: float
    p95: float
    p99: float
    first: float
    cpu: float
    per_second: float


def fill(rows: int) -> None:
    """Rows as a busy year leaves them, chained and sealed by the product's own arithmetic, and checked by it."""
    session, key = db.session(), ops().keys.audit_seal
    link = chain.Link(*session.execute(select(AuditHead.sequence, AuditHead.hash)).one())
    chance, left = random.Random(1), rows
    while left:
        batch = []
        for _ in range(min(BATCH, left)):
            created_at = FIRST_MOMENT + timedelta(seconds=link.sequence * 90)
            entry = _entry(chance)
            line = chain.canonical(link.sequence + 1, created_at, entry)
            link = chain.Link(link.sequence + 1, chain.next_hash(link.hash, line))
            sealed = {"canonical": line, "hash": link.hash, "seal": chain.seal(key, link)}
            batch.append(entry | sealed | {"id": link.sequence, "created_at": created_at})
        session.execute(insert(AuditRow), batch)
        head = {"sequence": link.sequence, "hash": link.hash, "seal": chain.seal_head(key, link)}
        session.execute(update(AuditHead).values(**head))
        session.commit()
        left -= len(batch)


def _entry(chance: random.Random) -> dict[str, Any]:
    action, kind = chance.choice(ACTIONS)
    number = chance.randrange(len(NAMES))
    has_failed = chance.random() < 0.03
    thing = chance.randrange(1, 1000)
    changed = {"before": {"status": "enabled", "role": "viewer"}, "after": {"status": "disabled", "role": "operator"}}
    return {
        "user_id": number + 1,
        "username": NAMES[number],
        "action": action,
        "resource_type": kind,
        "resource_id": str(thing),
        "detail": changed if kind != "user" else {"after": {"kind": "web"}},
        "ip": f"203.0.113.{thing % 256}" if thing % 100 else "203.0.113.77",
        "user_agent": USER_AGENT,
        "request_id": f"{chance.getrandbits(64):016x}",
        "status": "failed" if has_failed else "success",
        "error_message": "wrong user name or password, or disabled" if has_failed else None,
    }


def make_people() -> tuple[str, str]:
    """Users to list, and one administrator: his cookie and his bearer token."""
    session, actor = db.session(), Actor.system("bench")
    admin = in_transaction(
        session,
        lambda: people.create_user(session, actor, UserCreate(username="admin", password=PASSWORD, role="admin")),
    )
    session.execute(
        insert(User),
        [{"username": name, "password_hash": "!", "email": f"{name}@example.org", "role": "viewer"} for name in NAMES],
    )
    session.commit()
    given = SignIn(username="admin", password=PASSWORD)
    secret = in_transaction(session, lambda: people.open_browser_session(session, actor, admin, given.password))
    pair = in_transaction(session, lambda: people.open_api_session(session, actor, admin, given.password))
    assert fingerprint(secret)
    return secret, pair["access_token"]


class WebServer:
    """The product's own server, one process, answering on a port of the loopback."""

    def __init__(self, environment: dict[str, str], port: int) -> None:
        self._environment, self.port = environment, port

    def __enter__(self) -> "WebServer":
        command = [sys.executable, "-m", "gunicorn", "-c", "python:app.servers.web"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            wait_for(self._answers, 30, "the web server to answer", 0.2)
        except AssertionError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        if self.process.poll() is not None and self.process.stderr is not None:
            raise AssertionError(f"the web server ended: {self.process.stderr.read().decode()[-2000:]}")
        with contextlib.suppress(OSError, HTTPException):
            return ask(HTTPConnection("127.0.0.1", self.port, timeout=5), "/health/live", {}) > 0
        return False


def ask(connection: HTTPConnection, path: str, headers: dict[str, str]) -> float:
    """Seconds until the whole answer is there."""
    began = time.perf_counter()
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    taken_s = time.perf_counter() - began
    if response.status != 200:
        raise AssertionError(f"{path} was answered with {response.status}: {body[:300]!r}")
    return taken_s


def cpu_seconds(processes: Sequence[int]) -> float:
    """What these processes and their children have used so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().rpartition(")")
            fields = rest.split()
            if int(name.split()[0]) in processes or int(fields[1]) in processes:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(
    port: int, path: str, headers: dict[str, str], requests: int, clients: int, processes: Sequence[int]
) -> Figures:
    first = ask(HTTPConnection("127.0.0.1", port, timeout=60), path, headers)

    def one_client(_number: int) -> list[float]:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        taken = [ask(connection, path, headers) for _ in range(requests // clients)]
        connection.close()
        return taken

    used_s, began = cpu_seconds(processes), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        taken = sorted(seconds for part in pool.map(one_client, range(clients)) for seconds in part)
    elapsed_s = time.perf_counter() - began
    p50, p95, p99 = (1000 * _quantile(taken, share) for share in (0.5, 0.95, 0.99))
    cpu = 1000 * (cpu_seconds(processes) - used_s) / len(taken)
    return Figures(p50, p95, p99, 1000 * first, cpu, len(taken) / elapsed_s)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextlib.contextmanager
def database_of(kind: str) -> Iterator[tuple[str, list[int]]]:
    """A URL and its server's process; nothing for SQLite. MariaDB gets memory as in production."""
    if kind == "sqlite":
        yield "", []
        return
    with GrownMariaDb() as server:
        assert server.process is not None
        yield server.create_database(), [server.process.pid]


def prepared(directory: Path, database_url: str, redis_url: str, port: int) -> tuple[Flask, dict[str, str]]:
    environment = {
        "OPS_DATA_DIR": str(directory),
        "OPS_REDIS_URL": redis_url,
        "OPS_SERVER__HTTP__ADDR": f"127.0.0.1:{port}",
        "OPS_SERVER__RATE_LIMIT__PER_USER": "10000000",
        "OPS_SERVER__RATE_LIMIT__PER_ADDRESS": "10000000",
        "OPS_LOG__OUTPUT": "stderr",
        "OPS_LOG__LEVEL": "warning",
    }
    if database_url:
        environment["OPS_DATABASE_URL"] = database_url
    settings: Settings = load_settings([], environment)
    app = create_app(settings)
    with app.app_context():
        upgrade()
    return app, environment


def machine() -> str:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    packages = " ".join(f"{name} {version(name)}" for name in ("SQLAlchemy", "Flask", "gunicorn", "gevent", "PyMySQL"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {cpu}, {os.cpu_count()} cores, {memory} GiB · "
        f"load before {os.getloadavg()[0]:.2f}\n"
        f"Python {platform.python_version()} · SQLite {sqlite3.sqlite_version} · {packages}"
    )


def run(kind: str, rows: int, requests: int, clients: Sequence[int], only: str, redis_url: str) -> None:
    directory = Path(tempfile.mkdtemp(prefix="ops-bench-"))
    try:
        with database_of(kind) as (url, processes), socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            app, environment = prepared(directory, url, redis_url, port)
            with app.app_context():
                cookie, token = make_people()
                began = time.monotonic()
                fill(rows)
                filled_s = time.monotonic() - began
                if kind == "mariadb":
                    db.session.execute(text("ANALYZE TABLE audit_logs"))
                named = db.session.scalar(text("SELECT VERSION()" if url else "SELECT sqlite_version()"))
                began = time.monotonic()
                report = verify(db.session())
                assert report.finding is None, report.finding
                total = report.rows
                print(
                    f"\n{kind} {named}: {total:,} rows filled in {filled_s:.0f} s,"
                    f" verified in {time.monotonic() - began:.1f} s"
                )
                db.session.remove()
                db.engine.dispose()
            with WebServer(environment, port) as server:
                target = Target(port, cookie, token, [server.process.pid, *processes])
                table(target, total, requests, clients, only)
                if not only:
                    exports(target)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Target(NamedTuple):
    """Where to ask, as whom, and whose processor time it costs."""

    port: int
    cookie: str
    token: str
    processes: list[int]


def table(target: Target, total: int, requests: int, clients: Sequence[int], only: str) -> None:
    print(f"{'':42}{'clients':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'first':>9}{'cpu ms':>9}{'per s':>8}")
    for question in QUESTIONS:
        if only not in question.name:
            continue
        path = question.path.format(last_page=-(-total // 20))
        is_api = path.startswith("/api/")
        headers = {"Authorization": f"Bearer {target.token}"} if is_api else {"Cookie": f"{COOKIE}={target.cookie}"}
        if "table only" in question.name:
            headers |= {"HX-Request": "true", "HX-Target": "audit-table"}
        for count in clients:
            found = measure(target.port, path, headers, requests, count, target.processes)
            numbers = "".join(f"{value:9.1f}" for value in found[:5])
            print(f"{question.name:42}{count:8}{numbers}{found.per_second:8.0f}", flush=True)


def exports(target: Target) -> None:
    """The whole log as a download: what it takes, and how long others wait meanwhile."""
    headers, bearer = {"Cookie": f"{COOKIE}={target.cookie}"}, {"Authorization": f"Bearer {target.token}"}
    for form in ("csv", "jsonl"):
        before, waits = resident_mib(target.processes[0]), []
        with ThreadPoolExecutor(1) as pool:
            began = time.perf_counter()
            download = pool.submit(swallow, target.port, f"/audit?format={form}", headers)
            connection = HTTPConnection("127.0.0.1", target.port, timeout=60)
            most = before
            while not download.done():
                waits.append(ask(connection, "/api/v1/system/users", bearer))
                most = max(most, resident_mib(target.processes[0]))
                time.sleep(0.02)
            taken_s, size = time.perf_counter() - began, download.result()
        print(
            f"whole log as {form}: {size / 1e6:.0f} MB in {taken_s:.1f} s, memory {before:.0f} → {most:.0f} MiB;"
            f" users, API meanwhile: p50 {1000 * _quantile(sorted(waits), 0.5):.0f} ms,"
            f" p95 {1000 * _quantile(sorted(waits), 0.95):.0f} ms"
        )


def swallow(port: int, path: str, headers: dict[str, str]) -> int:
    """Bytes of an answer that nobody keeps."""
    connection, size = HTTPConnection("127.0.0.1", port, timeout=300), 0
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    while part := response.read(1 << 16):
        size += len(part)
    return size


def resident_mib(process: int) -> float:
    """Of the process and its children."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.partition(":")[::2] for line in status.read_text().splitlines())
            if process in (int(fields["Pid"]), int(fields["PPid"])):
                total += int(fields.get("VmRSS", "0 kB").split()[0])
    return total / 1024


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.foundation", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--requests", type=int, default=304, help="a question, for each number of clients")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--database", choices=("sqlite", "mariadb", "both"), default="both")
    parser.add_argument("--only", default="", help="questions whose name contains this")
    options = parser.parse_args(arguments)
    if not (ROOT / "app" / "servers" / "web.py").exists():
        print("skipped: there is no app.servers.web yet, and other servers' figures would say nothing")
        return 0
    print(machine())
    kinds = ("sqlite", "mariadb") if options.database == "both" else (options.database,)
    with Redis() as redis:
        for kind in kinds:
            if kind == "mariadb" and (reason := GrownMariaDb.why_unavailable()):
                print(f"\nmariadb: left out, {reason}")
                continue
            run(kind, options.rows, options.requests, options.clients, options.only, redis.url)
    print(f"\nload after {os.getloadavg()[0]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(list(islice(sys.argv, 1, None))))
