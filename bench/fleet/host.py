"""One simulated Daemon: enrols, checks in with believable measurements, holds a poll, answers commands, tells no lies.

It keeps a list of every point that was acknowledged, so that the database can be asked for exactly those.
"""

import asyncio
import hashlib
import math
import random
import time
from collections.abc import Callable
from ssl import SSLContext
from uuid import uuid4

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.fleet.tally import Tally
from bench.fleet.wire import Answer, BrokenError, Connection, tls
from protocol.checkin import Capabilities, CheckIn, Clock, Dropped
from protocol.commands import Poll
from protocol.enrolment import Enroll
from protocol.inventory import Inventory, Machine, inventory_hash
from protocol.metrics import Batch, Point
from protocol.times import to_epoch, to_text

GIB = 1024**3
NO_HASH = "0" * 64
MOST_HELD_S = 50


class Host:
    """A machine that does not exist. Everything random about it comes from its number, so runs are alike."""

    def __init__(self, number: int, url: str, ca_pem: str, tally: Tally, interval_s: float) -> None:
        self._random = random.Random(number)
        self.number, self._url, self._ca_pem, self._tally = number, url, ca_pem, tally
        self._interval_s = interval_s
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._machine = Machine(_digest(f"m{number}"), _digest(f"h{number}"), f"boot-{number}")
        self._inventory = self._made_up_inventory()
        self._instance = uuid4().hex
        self._sequence = 0
        self._lease: str | None = None
        self._sent_inventory = False
        self._settings_version = 0
        self._spool: list[Batch] = []
        self.node_id = 0
        self.node_uuid = ""

    async def run(self, context: SSLContext, until: Callable[[], bool]) -> None:
        """Live until told to stop. Whatever breaks is counted, backed off from and tried again."""
        link = Connection(self._url, context, self._instance)
        await asyncio.sleep(self._random.uniform(0, self._interval_s))
        failures = 0
        while not until():
            try:
                await self._checkin(link)
                await self._hold_polls(
                    link, time.monotonic() + self._interval_s * self._random.uniform(0.98, 1.02), until
                )
                failures = 0
            except BrokenError as error:
                self._tally.error(f"broken: {error}")
                failures += 1
                await asyncio.sleep(self._random.uniform(0, min(60, 2**failures)))
        self._tally.handshakes += link.handshakes
        link.close()

    async def enroll(self, token: str) -> SSLContext:
        """Become a node; answers what its later connections are made with."""
        link = Connection(self._url, tls(self._ca_pem))
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"sim-{self.number}")])
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(self._key, hashes.SHA256())
        pem = csr.public_bytes(serialization.Encoding.PEM).decode()
        message = Enroll(str(uuid4()), token, None, pem, self._machine, self._inventory)
        while True:
            try:
                answer = await link.post("enroll", message)
            except BrokenError as error:
                self._tally.error(f"enrol broken: {error}")
                await asyncio.sleep(self._random.uniform(0.5, 2))
                continue
            if answer.status == 200:
                break
            self._tally.error(f"enrol {answer.status}")
            await asyncio.sleep(max(answer.retry_after_s, 0.5))
        link.close()
        self.node_id, self.node_uuid = answer.body["node_id"], answer.body["node_uuid"]
        self._tally.enrolled += 1
        key_pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        return tls(answer.body["ca_pem"], answer.body["certificate_pem"], key_pem)

    async def _checkin(self, link: Connection) -> None:
        self._spool.append(Batch(uuid4().hex, (self._measured(),)))
        challenge = None
        while True:
            self._sequence += 1
            batches = tuple(self._spool[-500:])
            at, started = time.time(), time.perf_counter()
            answer = await link.post("checkin", self._message(batches, challenge))
            self._tally.checkins.append((at, time.perf_counter() - started))
            if answer.status == 200:
                self._take(answer, batches)
                return
            self._tally.error(f"check-in {answer.status} {answer.body.get('data', {}).get('reason', '')}")
            challenge = (answer.body.get("data") or {}).get("challenge")
            if challenge is None:
                await asyncio.sleep(max(answer.retry_after_s, 1))

    def _take(self, answer: Answer, batches: tuple[Batch, ...]) -> None:
        body = answer.body
        if body["reenrol"]:
            self._tally.error("taken for a clone")
            return
        self._lease = body["lease"] or self._lease
        self._sent_inventory = self._sent_inventory or not body["want_inventory"]
        if body["settings"]:
            self._settings_version = body["settings"]["version"]
        acked = set(body["ack"])
        for batch in batches:
            if batch.id in acked:
                for point in batch.points:
                    self._tally.acknowledged.append((self.node_id, round(to_epoch(point.timestamp) * 1000)))
        self._spool = [batch for batch in self._spool if batch.id not in acked]

    async def _hold_polls(self, link: Connection, until: float, stopped: Callable[[], bool]) -> None:
        have: list[str] = []
        while not stopped() and (left := until - time.monotonic()) > 0:
            wait_s = max(1, min(MOST_HELD_S, math.ceil(left)))
            answer = await link.post("poll", Poll(wait_s, tuple(have)), wait_s + 15)
            if answer.status != 200:
                self._tally.error(f"poll {answer.status}")
                await asyncio.sleep(max(answer.retry_after_s, 1))
                return
            self._tally.polls += 1
            for command in answer.body["commands"]:
                self._tally.received(command["id"], time.time())
                if command["kind"] == "task.run":
                    self._tally.tasks.append((self.node_id, time.time()))
                    await self._run_task(link, command["id"])
                else:
                    await self._report(link, command["id"])
            if answer.body["checkin"]:
                return

    async def _report(self, link: Connection, uuid: str) -> None:
        at = to_text(time.time())
        result = {"status": "succeeded", "finished_at": at, "started_at": at, "duration_ms": 0, "exit_code": 0}
        answer = await link.post(f"commands/{uuid}/result", result)
        if answer.status != 200:
            self._tally.error(f"result {answer.status}")

    async def _run_task(self, link: Connection, uuid: str) -> None:
        """As a host with a quick script: accepted and begun at once, its output and end a moment later."""
        at = to_text(time.time())
        begun: list[dict[str, object]] = [
            {"type": "accept", "command": uuid, "at": at},
            {"type": "start", "command": uuid, "at": at, "pid": 4711},
        ]
        ended: list[dict[str, object]] = [
            {"type": "output", "command": uuid, "seq": 0, "stream": "stdout", "offset": 0, "data": "aGVsbG8K"},
            {"type": "result", "command": uuid, "status": "succeeded", "finished_at": at, "started_at": at}
            | {"duration_ms": 2, "exit_code": 0, "stdout_bytes": 6, "user": "root"},
        ]
        for reports in (begun, ended):
            answer = await link.post("commands/reports", {"reports": reports})
            if answer.status != 200 or not all(outcome["ok"] for outcome in answer.body["results"]):
                self._tally.error(f"reports {answer.status}")

    def _message(self, batches: tuple[Batch, ...], challenge: str | None) -> CheckIn:
        return CheckIn(
            instance_id=self._instance,
            generation=1,
            sequence=self._sequence,
            lease=self._lease,
            challenge=challenge,
            machine=self._machine,
            sent_at=to_text(time.time()),
            uptime_s=3600.0,
            daemon_version="0.1.0",
            settings_version=self._settings_version,
            settings_error=None,
            inventory_hash=inventory_hash(self._inventory),
            inventory=None if self._sent_inventory else self._inventory,
            metrics=batches,
            pending_points=0,
            dropped=Dropped("sim", 0, None),
            events=(),
            agents_hash=NO_HASH,
            agents=(),
            capabilities=Capabilities("missing", True, True, True, True, ("*",), ("/**",)),
            clock=Clock(0, 1),
            audit_head=None,
        )

    def _measured(self) -> Point:
        """A day's swing with noise; different for each host."""
        wave = math.sin(time.time() / 13750 + self.number) * 20
        cpu = min(100.0, max(0.5, 35 + wave + self._random.gauss(0, 8)))
        memory = min(99.0, max(5.0, 50 + wave / 2 + self._random.gauss(0, 2)))
        disk = 40 + self.number % 50
        return Point(
            timestamp=to_text(time.time()),
            uptime_s=3600.0,
            cpu_usage=round(cpu, 2),
            memory_usage=round(memory, 2),
            memory_total=16 * GIB,
            memory_used=int(16 * GIB * memory / 100),
            memory_available=int(16 * GIB * (100 - memory) / 100),
            memory_cached=2 * GIB,
            swap_total=0,
            swap_used=0,
            disk_usage=float(disk),
            disk_total=200 * GIB,
            disk_used=2 * disk * GIB,
            network_rx=round(self._random.uniform(1e4, 1e6), 1),
            network_tx=round(self._random.uniform(1e4, 1e6), 1),
            load_avg_1=round(cpu / 25, 2),
            load_avg_5=round(cpu / 26, 2),
            load_avg_15=round(cpu / 27, 2),
            process_count=150 + self.number % 100,
            tcp_connections=20 + self.number % 40,
            detail=None,
        )

    def _made_up_inventory(self) -> Inventory:
        role = ("web", "db", "cache", "mq")[self.number % 4]
        address = f"10.{self.number // 65536 % 256}.{self.number // 256 % 256}.{self.number % 256}"
        return Inventory(
            f"{role}-{self.number:05d}", (address,), ("02:00:00:00:00:01",), "linux", "Debian GNU/Linux", "12", "6.1.0",
            "amd64", "Simulated CPU", 4, 16 * GIB, 0, 200 * GIB, (), "3.11.2", "0.1.0", None, "kvm", None, "UTC",
        )  # fmt: skip


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
