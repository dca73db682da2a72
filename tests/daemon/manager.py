"""A throw-away Manager: the daemon plane as docs/protocol.md describes it, over real TLS, with faults on demand."""

import base64
import datetime as dt
import hashlib
import http.server
import secrets
import socket
import ssl
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protocol import errors
from protocol.checkin import AuditHead, CheckIn, CheckInAnswer, RefusedBatch, parse_checkin
from protocol.codec import decode, decompress, encode
from protocol.commands import (
    Command,
    PollAnswer,
    Report,
    ReportOutcome,
    ReportsAnswer,
    Result,
    make_command,
    parse_poll,
    parse_reports,
    state_asked_for,
)
from protocol.enrolment import (
    Certificate,
    EnrollApproved,
    EnrollPending,
    parse_enroll,
    parse_recover,
    parse_renew,
)
from protocol.fields import Fields
from protocol.limits import CHECKIN_BYTES, COMMANDS, ENROLL_BYTES, LIVE_BYTES, POLL_BYTES, REPORTS_BYTES
from protocol.metrics import Live, Point, Sample, parse_live
from protocol.settings import DEFAULTS, Settings
from protocol.signing import recovery_text
from protocol.states import DELIVERED, QUEUED, can_move
from protocol.times import to_text
from protocol.version import CURRENT, HEADER, INSTANCE_HEADER, negotiate
from tests.daemon.pki import Authority, node_of, pem, spki


class Refusal(Exception):
    def __init__(self, code: int, reason: str, retry_after: int | None = None, **data: Any) -> None:
        super().__init__(reason)
        self.code, self.reason, self.retry_after, self.data = code, reason, retry_after, data


class Drop(Exception):
    """Close the connection without an answer."""


class Node:
    def __init__(self, node_id: int) -> None:
        self.id = node_id
        self.uuid = str(uuid.uuid4())
        self.key = secrets.token_bytes(32)
        self.fingerprints: list[str] = []
        self.candidate: str | None = None
        self.certificate: x509.Certificate | None = None
        self.is_revoked = False
        self.lease: str | None = None
        self.previous_lease: str | None = None
        self.order = (0, 0)
        self.instance: str | None = None
        self.boot_id: str | None = None
        self.challenge: str | None = None
        self.checkins: list[CheckIn] = []
        self.points: dict[str, Point] = {}
        self.arrivals: Counter[str] = Counter()
        self.events: list[Any] = []
        self.inventory: Any = None
        self.commands: dict[str, Command] = {}
        self.states: dict[str, str] = {}
        self.reports: list[Report] = []
        self.samples: list[Sample] = []
        self.handed_out: dict[str, float] = {}
        self.polls = 0
        self.is_copy = False

    def result(self, command_id: str) -> Result | None:
        return next((r for r in self.reports if isinstance(r, Result) and r.command == command_id), None)


class FakeManager:
    """`faults` maps a path to a function that runs before a request is looked at: it may raise Refusal or Drop, wait,
    or return to go on. `after` runs when all is stored and before the answer is sent."""

    def __init__(self, directory: Path, port: int = 0, authority: Authority | None = None, age_days: int = 0) -> None:
        self.authority = authority or Authority()
        self.directory = directory
        self.settings: Settings = DEFAULTS._replace(version=1, heartbeat_interval_s=10, metrics_interval_s=10)
        self.next_checkin_s = 10.0
        self.tokens = {"join-me"}
        self.needs_approval = False
        self.is_discovery_on = False
        self.lifetime: dt.timedelta | None = None
        self.clock_shift_s = 0.0
        self.nodes: dict[str, Node] = {}
        self.by_spki: dict[bytes, Node] = {}
        self.waiting: dict[str, bytes] = {}
        self.approved: set[str] = set()
        self.recoveries = 0
        self.enrolments = 0
        self.requests: list[tuple[float, str, int]] = []
        self.connections = 0
        self.wire_answer: str | None = None
        self.live_until: str | None = None
        self.lease_s = 1.0
        self.is_draining = False
        self.refuse_batches = False
        self.twist: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer
        self.audit_head: AuditHead | None = None
        self.bodies: list[bytes] = []
        self.streams: dict[str, bytearray] = {}
        self.ended: set[str] = set()
        self.stream_room: int | None = None
        self.stream_words = 0
        self.files: dict[int, bytes] = {}
        self.file_break: int | None = None
        self.fetched: dict[str, bytearray] = {}
        self.faults: dict[str, Callable[[], None]] = {}
        self.after: dict[str, Callable[[], None]] = {}
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        context.load_cert_chain(*self.authority.server_files(directory, age_days=age_days))
        context.load_verify_locations(cadata=self.authority.pem)
        context.verify_mode = ssl.CERT_OPTIONAL
        manager = self

        class Handler(_Handler):
            owner = manager

        self.server = _Server(("127.0.0.1", port), Handler)
        self.server.context = context
        self.port = self.server.server_address[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    # ---- for tests

    def close(self) -> None:
        with self.changed:
            self.changed.notify_all()
        self.server.shutdown()
        self.server.cut_all()
        self.server.server_close()

    @property
    def node(self) -> Node:
        assert len(self.nodes) == 1, self.nodes
        return next(iter(self.nodes.values()))

    def now(self) -> float:
        return time.time() + self.clock_shift_s

    def text(self, later_s: float = 0.0) -> str:
        return to_text(self.now() + later_s)

    def send(self, kind: str, payload: dict[str, Any], node: Node | None = None, ttl_s: float = 60.0) -> str:
        node = node or self.node
        command_id = str(uuid.uuid4())
        command = make_command(node.key, command_id, node.uuid, kind, payload, self.text(), self.text(ttl_s))
        return self.queue(command, node)

    def queue(self, command: Command, node: Node | None = None) -> str:
        node = node or self.node
        with self.changed:
            node.commands[command.id] = command
            node.states[command.id] = QUEUED
            self.changed.notify_all()
        return command.id

    def revoke(self, node: Node) -> None:
        with self.changed:
            node.is_revoked = True
            self.changed.notify_all()

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]

    # ---- the plane

    def enroll(self, fields: Fields, der: bytes | None) -> tuple[int, Any]:
        message = parse_enroll(fields)
        csr = x509.load_pem_x509_csr(message.csr_pem.encode())
        key = spki(csr.public_key())
        self.enrolments += 1
        if key in self.by_spki:
            return 200, self._approved(self.by_spki[key])
        origin = self.nodes.get(node_of(der)) if der else None
        if message.ticket is not None:
            if self.waiting.get(message.ticket) != key:
                raise Refusal(errors.CONFLICT, errors.KEY_MISMATCH)
            if message.ticket not in self.approved:
                return 202, EnrollPending("pending", message.ticket, 1, self.text())
        elif origin is None:
            if message.token is None and not self.is_discovery_on:
                raise Refusal(errors.FORBIDDEN, errors.DISCOVERY_OFF)
            if message.token is not None and message.token not in self.tokens:
                raise Refusal(errors.FORBIDDEN, errors.TOKEN_REFUSED)
            if self.needs_approval or message.token is None:
                ticket = secrets.token_hex(16)
                self.waiting[ticket] = key
                return 202, EnrollPending("pending", ticket, 1, self.text())
        node = Node(len(self.nodes) + 1)
        node.inventory = message.facts
        not_after = None if self.lifetime is None else dt.datetime.now(dt.UTC) + self.lifetime
        node.certificate = self.authority.sign_node(message.csr_pem, node.uuid, not_after)
        node.fingerprints = [node.certificate.fingerprint(hashes.SHA256()).hex()]
        self.nodes[node.uuid] = node
        self.by_spki[key] = node
        return 200, self._approved(node)

    def _approved(self, node: Node) -> EnrollApproved:
        assert node.certificate is not None
        return EnrollApproved(
            "approved",
            node.id,
            node.uuid,
            pem(node.certificate),
            to_text(node.certificate.not_valid_after_utc.timestamp(), 0),
            self.authority.pem,
            node.key,
            self.settings,
            self.text(),
        )

    def _issue(self, node: Node, csr_pem: str) -> Certificate:
        key = spki(x509.load_pem_x509_csr(csr_pem.encode()).public_key())
        assert node.certificate is not None
        if node.candidate is None or spki(node.certificate.public_key()) != key:
            node.certificate = self.authority.sign_node(csr_pem, node.uuid)
            node.candidate = node.certificate.fingerprint(hashes.SHA256()).hex()
        not_after = to_text(node.certificate.not_valid_after_utc.timestamp(), 0)
        return Certificate("approved", pem(node.certificate), not_after, self.authority.pem, self.text())

    def recover(self, fields: Fields) -> tuple[int, Any]:
        message = parse_recover(fields)
        old = x509.load_pem_x509_certificate(message.certificate_pem.encode())
        node = self.nodes[node_of(old.public_bytes(serialization.Encoding.DER))]
        csr_der = x509.load_pem_x509_csr(message.csr_pem.encode()).public_bytes(serialization.Encoding.DER)
        try:
            key: Any = old.public_key()
            key.verify(
                message.signature, recovery_text(node.uuid, message.timestamp, csr_der), ec.ECDSA(hashes.SHA256())
            )
        except InvalidSignature:
            raise Refusal(errors.FORBIDDEN, errors.SIGNATURE_INVALID) from None
        if old.not_valid_after_utc.timestamp() > self.now():
            raise Refusal(errors.CONFLICT, errors.CERTIFICATE_VALID)
        self.recoveries += 1
        return 200, self._issue(node, message.csr_pem)

    def identify(self, der: bytes | None) -> Node:
        if der is None:
            raise Refusal(errors.NOT_AUTHENTICATED, errors.CERTIFICATE_REQUIRED)
        node = self.nodes.get(node_of(der))
        fingerprint = hashlib.sha256(der).hexdigest()
        if node is None:
            raise Refusal(errors.NOT_AUTHENTICATED, errors.CERTIFICATE_UNKNOWN)
        if node.is_revoked:
            raise Refusal(errors.FORBIDDEN, errors.REVOKED)
        if fingerprint == node.candidate:
            node.fingerprints, node.candidate = [fingerprint], None
        if fingerprint not in node.fingerprints:
            raise Refusal(errors.NOT_AUTHENTICATED, errors.CERTIFICATE_SUPERSEDED)
        return node

    def checkin(self, node: Node, fields: Fields) -> tuple[int, Any]:
        message = parse_checkin(fields)
        order = (message.generation, message.sequence)
        if order <= node.order and (message.challenge is None or message.challenge != node.challenge):
            node.challenge = secrets.token_hex(8)
            raise Refusal(errors.CONFLICT, errors.CHALLENGE, challenge=node.challenge)
        is_restarted = message.machine.boot_id == node.boot_id and message.instance_id != node.instance
        if node.lease is None or message.lease == node.lease or is_restarted:
            node.previous_lease = node.lease
        elif message.lease != node.previous_lease:
            node.is_copy = True
            return 200, self._answer((), reenrol=True)
        node.lease = secrets.token_hex(16)
        node.order, node.challenge = order, None
        node.instance, node.boot_id = message.instance_id, message.machine.boot_id
        node.checkins.append(message)
        ids = [batch.id for batch in message.metrics] + [event.id for event in message.events]
        if self.refuse_batches:
            refused = tuple(RefusedBatch(name, "too old") for name in ids)
            return 200, self._answer((), node)._replace(refused=refused)
        for batch in message.metrics:
            for point in batch.points:
                node.points.setdefault(point.timestamp, point)
                node.arrivals[point.timestamp] += 1
        known = {event.timestamp + event.kind for event in node.events}
        node.events += [event for event in message.events if event.timestamp + event.kind not in known]
        node.inventory = message.inventory or node.inventory
        wants = node.inventory is None
        answer = self._answer(tuple(ids), node)._replace(want_inventory=wants)
        if message.settings_version != self.settings.version:
            answer = answer._replace(settings=self.settings)
        return 200, self.twist(_plain(answer))

    def _answer(self, ids: tuple[str, ...], node: Node | None = None, reenrol: bool = False) -> CheckInAnswer:
        return CheckInAnswer(
            ack=ids,
            refused=(),
            lease=None if node is None else node.lease,
            want_inventory=False,
            want_agents=False,
            settings=None,
            next_checkin_s=self.next_checkin_s,
            commands_pending=False,
            reenrol=reenrol,
            audit_head=self.audit_head,
            server_time=self.text(),
        )

    def owns(self, node: Node, instance: str | None) -> None:
        if node.instance is None or instance != node.instance:
            raise Refusal(errors.CONFLICT, errors.CHECKIN_FIRST)

    def poll(self, node: Node, fields: Fields) -> tuple[int, Any]:
        message = parse_poll(fields)
        deadline = time.monotonic() + message.wait_s
        answer = PollAnswer((), False, False, False, None, self.text())
        node.polls += 1
        mine = node.polls
        with self.changed:
            self.changed.notify_all()
            while True:
                due = [command for command in node.commands.values() if self._is_due(node, command, message.have)]
                if node.is_revoked:
                    return 200, answer._replace(revoked=True)
                if due:
                    due = due[:COMMANDS]
                    for command in due:
                        node.states[command.id] = DELIVERED
                        node.handed_out[command.id] = time.monotonic()
                    return 200, answer._replace(commands=tuple(due), server_time=self.text())
                if self.live_until is not None:
                    until, self.live_until = self.live_until, None
                    return 200, Fields({**_plain(answer), "live": {"until": until}}).plain()
                if self.is_draining:
                    self.is_draining = False
                    return 200, answer._replace(drain=True)
                if time.monotonic() >= deadline or mine != node.polls:
                    return 200, answer._replace(server_time=self.text())
                self.changed.wait(min(self.lease_s, deadline - time.monotonic()))

    def _is_due(self, node: Node, command: Command, have: tuple[str, ...]) -> bool:
        if node.states[command.id] == DELIVERED:
            handed_out = node.handed_out.get(command.id, float("inf"))
            return command.id not in have and time.monotonic() - handed_out > self.lease_s
        return node.states[command.id] == QUEUED

    def reports(self, node: Node, fields: Fields) -> tuple[int, Any]:
        with self.changed:
            outcomes = [self._report(node, report) for report in parse_reports(fields).reports]
            self.changed.notify_all()
        return 200, ReportsAnswer(tuple(outcomes), self.text())

    def _report(self, node: Node, report: Report) -> ReportOutcome:
        state = node.states.get(report.command)
        wanted = state_asked_for(report)
        if state is None:
            return ReportOutcome(report.command, report.type, False, errors.UNKNOWN_COMMAND)
        if report in node.reports:
            return ReportOutcome(report.command, report.type, True, None)
        if wanted is not None and wanted != state and not can_move(state, wanted):
            return ReportOutcome(report.command, report.type, False, errors.ILLEGAL_STEP)
        node.reports.append(report)
        if wanted is not None:
            node.states[report.command] = wanted
        return ReportOutcome(report.command, report.type, True, None)

    def stream(self, name: str, query: str, raw: bytes) -> tuple[int, Any]:
        """As docs/protocol.md has it: every stream that a test opened in `streams`."""
        given = dict(part.split("=") for part in query.split("&"))
        with self.changed:
            known = self.streams.get(name)
            if known is None:
                raise Refusal(errors.NOT_FOUND, errors.UNKNOWN_STREAM)
            self.stream_words += 1
            offset, room = int(given["offset"]), self.stream_room
            if name not in self.ended and offset <= len(known):
                fresh = raw[len(known) - offset :]
                known += fresh if room is None else fresh[: max(0, room - len(known))]
            if given.get("end") == "1" and offset + len(raw) <= len(known):
                self.ended.add(name)
            self.changed.notify_all()
            return 200, {"next": len(known), "closed": name in self.ended, "server_time": self.text()}

    def take_file(self, command: str, query: str, raw: bytes) -> tuple[int, Any]:
        """A piece of what a download brings; one that leaves a gap is not taken."""
        given = dict(part.split("=") for part in query.split("&"))
        offset, total = int(given["offset"]), int(given["total"])
        known = self.fetched.setdefault(command, bytearray())
        if offset <= len(known):
            known[offset:] = raw
        return 200, {"next": len(known), "complete": len(known) == total, "server_time": self.text()}

    def live(self, node: Node, fields: Fields) -> tuple[int, Any]:
        message: Live = parse_live(fields)
        with self.changed:
            node.samples += message.samples
            self.changed.notify_all()
        return 200, {"until": self.text(30)}


def _plain(message: Any) -> dict[str, Any]:
    return decode(encode(message), 1 << 20)  # type: ignore[no-any-return]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    context: ssl.SSLContext

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.open: set[socket.socket] = set()

    def cut_all(self) -> None:
        for channel in list(self.open):
            try:
                socket.socket.shutdown(channel, socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        return


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: FakeManager
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120

    def setup(self) -> None:
        self.request.settimeout(10)
        self.raw = self.request
        self.request = self.server.context.wrap_socket(self.request, server_side=True)  # type: ignore[attr-defined]
        self.der = self.request.getpeercert(True)
        self.owner.connections += 1
        self.server.open.add(self.request)  # type: ignore[attr-defined]
        super().setup()

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.server.open.discard(self.request)  # type: ignore[attr-defined]
            self.request.close()

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        if self.path == "/daemon/v1/ca.pem":
            self._send(200, self.owner.authority.pem.encode(), {"Content-Type": "application/x-pem-file"})
        elif self.path.startswith("/daemon/v1/files/"):
            self._send_file(int(self.path.rpartition("/")[2].partition("?")[0]))
        else:
            self._refuse(Refusal(errors.NOT_FOUND, ""))

    def _send_file(self, file_id: int) -> None:
        """From an offset on; the connection breaks once after `file_break` bytes, if a test says so."""
        owner, path = self.owner, self.path.removeprefix("/daemon/v1/")
        offset = int(self.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
        owner.requests.append((time.monotonic(), f"{path.partition('?')[0]}@{offset}", 200))
        try:
            owner.faults.get("files", lambda: None)()
            owner.identify(self.der)
            if file_id not in owner.files:
                raise Refusal(errors.NOT_FOUND, errors.UNKNOWN_FILE)
        except Refusal as error:
            self._refuse(error)
            return
        body = owner.files[file_id][offset:]
        end, owner.file_break = owner.file_break, None
        self.send_response(206 if offset else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if end is None else body[:end])
        if end is not None:
            self.wfile.flush()
            self.close_connection = True

    def do_POST(self) -> None:
        path = self.path.removeprefix("/daemon/v1/")
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        owner = self.owner
        owner.bodies.append(raw)
        try:
            owner.faults.get(path.partition("?")[0], lambda: None)()
            negotiate(self.headers.get(HEADER))
            status, answer = self._route(path, raw)
            body = encode(answer)
            owner.requests.append((time.monotonic(), path, status))
            owner.after.get(path.partition("?")[0], lambda: None)()
            with owner.changed:
                owner.changed.notify_all()
        except errors.ProtocolError as error:
            owner.requests.append((time.monotonic(), path, error.code))
            self._refuse(Refusal(error.code, error.reason, field=error.field), str(error))
            return
        except Refusal as error:
            owner.requests.append((time.monotonic(), path, error.code))
            self._refuse(error)
            return
        except Drop:
            owner.requests.append((time.monotonic(), path, 0))
            self.close_connection = True
            try:
                socket.socket.shutdown(self.request, socket.SHUT_RDWR)
            except OSError:
                return
            return
        self._send(status, body, {})

    def _route(self, path: str, raw: bytes) -> tuple[int, Any]:
        owner = self.owner
        place, _, query = path.partition("?")
        if place.startswith("streams/"):
            with owner.lock:
                owner.identify(self.der)
            return owner.stream(place[len("streams/") :], query, raw)
        if place.startswith("commands/") and place.endswith("/file"):
            with owner.lock:
                owner.identify(self.der)
            return owner.take_file(place.split("/")[1], query, raw)
        most = {
            "checkin": CHECKIN_BYTES,
            "poll": POLL_BYTES,
            "commands/reports": REPORTS_BYTES,
            "live": LIVE_BYTES,
        }.get(path, ENROLL_BYTES)
        if self.headers.get("Content-Encoding") == "gzip":
            raw = decompress(raw, most)
        fields = Fields(decode(raw, most))
        if path == "enroll":
            with owner.lock:
                return owner.enroll(fields, self.der)
        if path == "recover":
            with owner.lock:
                return owner.recover(fields)
        with owner.lock:
            node = owner.identify(self.der)
            if path == "renew":
                return 200, owner._issue(node, parse_renew(fields).csr_pem)
            if path == "checkin":
                return owner.checkin(node, fields)
            owner.owns(node, self.headers.get(INSTANCE_HEADER))
        if path == "poll":
            return owner.poll(node, fields)
        if path == "commands/reports":
            return owner.reports(node, fields)
        if path == "live":
            return owner.live(node, fields)
        raise Refusal(errors.NOT_FOUND, "")

    def _refuse(self, refusal: Refusal, message: str | None = None) -> None:
        body = errors.refusal_body(
            refusal.code, message or refusal.reason, refusal.reason, self.owner.text(), refusal.data
        )
        extra = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
        self._send(errors.HTTP_STATUS[refusal.code], encode(body), extra)

    def _send(self, status: int, body: bytes, extra: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header(HEADER, self.owner.wire_answer or str(CURRENT))
        self.send_header("Content-Length", str(len(body)))
        for name, value in {"Content-Type": "application/json", **extra}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def fingerprint_of(pem_text: str) -> str:
    block = pem_text.split("-----")[2]
    return hashlib.sha256(base64.b64decode(block)).hexdigest()
