"""Who this host is to the Manager: node, certificates and keys on disk, each step durable before the next is taken."""

from __future__ import annotations

import base64
import json
import logging
import sys
from typing import Any, NamedTuple

from daemon.disk import read_json, remove_file, write_file
from daemon.system import System
from protocol.enrolment import Certificate, EnrollApproved
from protocol.times import to_epoch

CURRENT = "current.pem"
CANDIDATE = "candidate.pem"
KEYTOOL_S = 30.0

_NODE = "node.json"
_PENDING = "pending.json"
_RENEWAL = "renewal.json"

log = logging.getLogger("daemon.identity")


class Node(NamedTuple):
    """What the Manager gave this host, apart from certificates."""

    node_id: int
    node_uuid: str
    server_url: str
    ca_pem: str
    command_key: bytes


class Pending(NamedTuple):
    """An enrolment that has not been answered yet. It outlives restarts, so that a retry is the same enrolment."""

    request_id: str
    server_url: str
    ca_pem: str
    token: str | None
    ticket: str | None
    key_pem: str
    csr_pem: str
    is_reenrolment: bool


class IdentityError(Exception):
    """The files do not make an identity; the message says which and why."""


class Identity:
    """The directory `identity/`. A certificate and its key are one file, so that one rename switches both."""

    def __init__(self, system: System, directory: str) -> None:
        self._system = system
        self.directory = directory
        system.make_dir(directory)
        self.node: Node | None = None
        self.pending: Pending | None = None
        self._load()

    # ---- enrolment

    def begin(self, server_url: str, ca_pem: str, token: str | None, is_reenrolment: bool) -> Pending:
        """Make a key and remember the request before anybody asks; an unfinished one of its kind is gone on with."""
        known = self.pending
        if known is not None and known.is_reenrolment == is_reenrolment and known.server_url == server_url:
            changed = known._replace(ca_pem=ca_pem, token=token, ticket=known.ticket if token == known.token else None)
            self.pending = changed
        else:
            made = self._keytool({"do": "request", "common_name": "ops-scaffold host"})
            self.pending = Pending(
                request_id=self._system.random_uuid(),
                server_url=server_url,
                ca_pem=ca_pem,
                token=token,
                ticket=None,
                key_pem=made["key_pem"],
                csr_pem=made["csr_pem"],
                is_reenrolment=is_reenrolment,
            )
        self._store_pending()
        return self.pending

    def keep_ticket(self, ticket: str) -> None:
        """Somebody has to approve; ask with this from now on."""
        if self.pending is not None and self.pending.ticket != ticket:
            self.pending = self.pending._replace(ticket=ticket)
            self._store_pending()

    def drop_pending(self) -> None:
        """The request was refused for good."""
        self.pending = None
        remove_file(self._system, self.directory, _PENDING)

    def complete(self, answer: EnrollApproved) -> Node:
        """The host is a node. The request goes last: after a crash it is made again, with the same key and answer."""
        pending = self.pending
        if pending is None:
            raise IdentityError("there is no enrolment to complete")
        node = Node(answer.node_id, answer.node_uuid, pending.server_url, answer.ca_pem, answer.command_key)
        bundle = _bundle(answer.certificate_pem, pending.key_pem, answer.certificate_not_after)
        for name in (CANDIDATE, _RENEWAL):
            remove_file(self._system, self.directory, name)
        write_file(self._system, self.directory, CURRENT, bundle.encode("ascii"))
        self._write(_NODE, _node_json(node))
        remove_file(self._system, self.directory, _PENDING)
        self.pending, self.node = None, node
        return node

    # ---- renewal

    def has(self, name: str) -> bool:
        """Whether there is a certificate under this name."""
        return self._system.exists(f"{self.directory}/{name}")

    def path(self, name: str) -> str:
        """Where a certificate is."""
        return f"{self.directory}/{name}"

    def expires_at(self, name: str) -> float:
        """Seconds since 1970 by the Manager's time; 0 if the file does not say."""
        try:
            first = self._system.read(self.path(name), 200).split(b"\n", 1)[0].decode("ascii")
            return to_epoch(first.partition("not-after: ")[2])
        except (OSError, ValueError):
            return 0.0

    def renewal_request(self) -> str:
        """The CSR for the next certificate; its key is on disk before anybody asks, and stays the same in a retry."""
        stored = self._read(_RENEWAL)
        if stored is None:
            stored = self._keytool({"do": "request", "common_name": self._known().node_uuid})
            self._write(_RENEWAL, stored)
        return str(stored["csr_pem"])

    def recovery_signature(self, csr_pem: str, timestamp: str) -> tuple[str, bytes]:
        """The expired certificate and the old key's signature over the request for a new one."""
        bundle = self._system.read(self.path(CURRENT)).decode("ascii")
        certificate, key = _unbundle(bundle)
        order = {"do": "sign", "key_pem": key, "csr_pem": csr_pem, "timestamp": timestamp}
        made = self._keytool({**order, "node_uuid": self._known().node_uuid})
        return certificate, base64.b64decode(made["signature"])

    def keep_candidate(self, answer: Certificate) -> None:
        """A new certificate to be proven; the current one stays until it is."""
        stored = self._read(_RENEWAL)
        if stored is None:
            raise IdentityError("a certificate came for a key that is not here")
        if answer.ca_pem != self._known().ca_pem:
            self.node = self._known()._replace(ca_pem=answer.ca_pem)
            self._write(_NODE, _node_json(self.node))
        bundle = _bundle(answer.certificate_pem, str(stored["key_pem"]), answer.certificate_not_after)
        write_file(self._system, self.directory, CANDIDATE, bundle.encode("ascii"))
        remove_file(self._system, self.directory, _RENEWAL)

    def promote(self) -> None:
        """The Manager answered under the candidate: it is the current one now, and the old one is gone."""
        self._system.replace(self.path(CANDIDATE), self.path(CURRENT))
        self._system.sync_dir(self.directory)

    def drop_candidate(self) -> None:
        """The Manager does not take it."""
        remove_file(self._system, self.directory, CANDIDATE)

    # ---- files

    def _load(self) -> None:
        stored = self._read(_PENDING)
        if stored is not None:
            self.pending = Pending(**stored)
        node = self._read(_NODE)
        if node is None:
            return
        try:
            self.node = Node(**{**node, "command_key": base64.b64decode(node["command_key"])})
        except (TypeError, KeyError, ValueError) as error:
            raise IdentityError(f"{self.path(_NODE)} is damaged: {error}") from error

    def _store_pending(self) -> None:
        if self.pending is not None:
            self._write(_PENDING, self.pending._asdict())

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            stored = read_json(self._system, self.path(name))
        except ValueError as error:
            raise IdentityError(f"{self.path(name)} is damaged: {error}") from error
        return stored if isinstance(stored, dict) else None

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_file(self._system, self.directory, name, json.dumps(content).encode("utf-8"))

    def _known(self) -> Node:
        if self.node is None:
            raise IdentityError("this host is not enrolled")
        return self.node

    def _keytool(self, order: dict[str, str]) -> dict[str, str]:
        argv = [sys.executable, "-m", "daemon.keytool"]
        finished = self._system.run(argv, json.dumps(order).encode("utf-8"), KEYTOOL_S)
        if finished.code != 0:
            raise IdentityError("the key tool failed" + (": it took too long" if finished.timed_out else ""))
        made: dict[str, str] = json.loads(finished.out)
        return made


def _bundle(certificate_pem: str, key_pem: str, not_after: str) -> str:
    """Certificate and key in one file; OpenSSL passes over the first line, `expires_at` reads it."""
    return f"not-after: {not_after}\n{certificate_pem.strip()}\n{key_pem.strip()}\n"


def _unbundle(bundle: str) -> tuple[str, str]:
    head, mark, key = bundle.partition("-----BEGIN PRIVATE KEY-----")
    certificate = head.partition("\n")[2]
    return certificate.strip() + "\n", mark + key


def _node_json(node: Node) -> dict[str, Any]:
    return {**node._asdict(), "command_key": base64.b64encode(node.command_key).decode("ascii")}
