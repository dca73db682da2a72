"""A host as tests need one: it says exactly what it is told to, over real TLS, and keeps what it was told."""

import http.client
import json
import ssl
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.codec import encode
from protocol.times import to_text

NO_HASH = "0" * 64
INVENTORY: dict[str, Any] = {
    "hostname": "web-1", "ips": ["192.0.2.7"], "macs": [], "os": "linux", "os_name": "Debian", "os_version": "12",
    "kernel_version": "6.1", "arch": "amd64", "cpu_model": "", "cpu_cores": 2, "memory_total": 2**30, "swap_total": 0,
    "disk_total": 2**34, "disks": [], "python_version": "3.11.2", "daemon_version": "1.2.3", "boot_time": None,
    "virtualization": None, "cloud": None, "timezone": "UTC",
}  # fmt: skip


class Reply(NamedTuple):
    status: int
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def reason(self) -> str:
        return str((self.body.get("data") or {}).get("reason", ""))


def point(at: datetime | None = None, **values: Any) -> dict[str, Any]:
    """One measurement."""
    moment = (at or datetime.now(UTC)).timestamp()
    return {"timestamp": to_text(moment), "cpu_usage": 12.5, "memory_usage": 40.0, "disk_usage": 30.0} | values


def batch(*points: dict[str, Any]) -> dict[str, Any]:
    return {"id": uuid4().hex, "points": list(points) or [point()]}


class Host:
    """A machine with a key. What it sends is a plain dictionary, so that tests can send nonsense as well."""

    def __init__(self, port: int, ca_path: Path, hostname: str = "web-1", name: str = "127.0.0.1") -> None:
        self.port, self._ca_path, self._name = port, ca_path, name
        self.inventory = INVENTORY | {"hostname": hostname}
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.request_id = str(uuid4())
        self.machine = {"machine_id": uuid4().hex * 2, "hardware_id": uuid4().hex * 2, "boot_id": uuid4().hex}
        self.certificate_pem = ""
        self.node_id = 0
        self.node_uuid = ""
        self.command_key = ""
        self.restart()
        self.lease: str | None = None
        self.generation = 0
        self.sequence = 0

    def restart(self) -> None:
        """A new instance of the Daemon on the same machine."""
        self.instance = uuid4().hex
        self.generation = getattr(self, "generation", 0) + 1
        self.sequence = 0

    def csr_pem(self, key: ec.EllipticCurvePrivateKey | None = None) -> str:
        request = (
            x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key or self.key, hashes.SHA256())
        )
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def tls(self, *, with_certificate: bool = True, certificate_pem: str | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self._ca_path)
        pem = certificate_pem or self.certificate_pem
        if with_certificate and pem:
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                file.write(key_pem(self.key) + pem)
                file.flush()
                context.load_cert_chain(file.name)
        return context

    def connect(self, timeout_s: float = 30, **how: Any) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._name, self.port, timeout=timeout_s, context=self.tls(**how))

    def send(
        self,
        path: str,
        message: Any,
        *,
        connection: http.client.HTTPSConnection | None = None,
        timeout_s: float = 30,
        headers: dict[str, str] | None = None,
        with_certificate: bool = True,
    ) -> Reply:
        """POST a message; on a connection of its own unless one is given."""
        used = connection or self.connect(timeout_s, with_certificate=with_certificate)
        body = message if isinstance(message, bytes) else encode(message)
        given = {"Content-Type": "application/json", "X-Ops-Wire": "1.0", "X-Ops-Instance": self.instance}
        try:
            used.request("POST", f"/daemon/v1/{path}", body, given | (headers or {}))
            answer = used.getresponse()
            content = answer.read()
            return Reply(answer.status, json.loads(content) if content else {}, dict(answer.getheaders()))
        finally:
            if connection is None:
                used.close()

    def enroll(self, token: str | None, *, ticket: str | None = None, with_certificate: bool = False) -> Reply:
        message = {
            "request_id": self.request_id,
            "token": token,
            "ticket": ticket,
            "csr_pem": self.csr_pem(),
            "machine": self.machine,
            "facts": self.inventory,
        }
        reply = self.send("enroll", message, with_certificate=with_certificate)
        if reply.status == 200:
            self.certificate_pem = reply.body["certificate_pem"]
            self.node_id, self.node_uuid = reply.body["node_id"], reply.body["node_uuid"]
            self.command_key = reply.body["command_key"]
        return reply

    def checkin_message(self, *batches: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return {
            "instance_id": self.instance,
            "generation": self.generation,
            "sequence": self.sequence,
            "lease": self.lease,
            "machine": self.machine,
            "sent_at": to_text(datetime.now(UTC).timestamp()),
            "uptime_s": 100,
            "daemon_version": "1.2.3",
            "settings_version": 0,
            "inventory_hash": NO_HASH,
            "metrics": list(batches),
            "pending_points": 0,
            "dropped": {"epoch": "e1", "points": 0, "since": None},
            "events": [],
            "agents_hash": NO_HASH,
            "capabilities": {
                "state": "missing", "scripts": True, "terminal": True, "packages": True, "config": True,
                "run_as": ["*"], "files": ["/**"],
            },
            "clock": {},
        } | fields  # fmt: skip

    def checkin(self, *batches: dict[str, Any], **fields: Any) -> Reply:
        """Check in as a Daemon does: next sequence, present lease; keep the lease that comes back."""
        self.sequence += 1
        how = {name: fields.pop(name) for name in ("connection", "timeout_s") if name in fields}
        reply = self.send("checkin", self.checkin_message(*batches, **fields), **how)
        if reply.status == 200 and reply.body["lease"]:
            self.lease = reply.body["lease"]
        return reply

    def poll(self, wait_s: int = 0, have: list[str] | None = None, **how: Any) -> Reply:
        return self.send("poll", {"wait_s": wait_s, "have": have or []}, **how)


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
