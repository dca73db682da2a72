"""How a host gets, renews and recovers its certificate."""

from __future__ import annotations

from typing import NamedTuple

from protocol.fields import WORD, Fields
from protocol.inventory import Inventory, Machine, parse_inventory, parse_machine
from protocol.limits import BIG, CA_PEM_CHARS, PEM_CHARS
from protocol.settings import Settings, parse_settings
from protocol.signing import KEY_BYTES

APPROVED = "approved"
PENDING = "pending"


class Enroll(NamedTuple):
    """Body of `POST enroll`. Exactly one of `token` and `ticket`, or neither (discovery, or a clone with its old
    certificate)."""

    request_id: str
    token: str | None
    ticket: str | None
    csr_pem: str
    machine: Machine
    facts: Inventory


class EnrollApproved(NamedTuple):
    """200: the host is a node."""

    status: str
    node_id: int
    node_uuid: str
    certificate_pem: str
    certificate_not_after: str
    ca_pem: str
    command_key: bytes
    settings: Settings
    server_time: str


class EnrollPending(NamedTuple):
    """202: somebody has to approve; ask again with the ticket and the same key."""

    status: str
    ticket: str
    poll_after_s: int
    server_time: str


class Renew(NamedTuple):
    """Body of `POST renew`, sent under the certificate that is to be replaced."""

    csr_pem: str


class Recover(NamedTuple):
    """Body of `POST recover`, sent without a certificate because the old one has expired."""

    certificate_pem: str
    csr_pem: str
    timestamp: str
    signature: bytes


class Certificate(NamedTuple):
    """200 of `renew` and `recover`."""

    status: str
    certificate_pem: str
    certificate_not_after: str
    ca_pem: str
    server_time: str


def parse_enroll(fields: Fields) -> Enroll:
    """Read a request to enrol."""
    message = Enroll(
        request_id=fields.uuid("request_id"),
        token=fields.text_or_none("token", 256),
        ticket=fields.text_or_none("ticket", 256, 8, WORD),
        csr_pem=fields.text("csr_pem", PEM_CHARS),
        machine=parse_machine(fields.inner("machine")),
        facts=parse_inventory(fields.inner("facts")),
    )
    if message.token is not None and message.ticket is not None:
        raise fields.refuse("token", "must be absent where a ticket is given")
    return message


def parse_enroll_answer(fields: Fields) -> EnrollApproved | EnrollPending:
    """Read either answer."""
    if fields.choice("status", (APPROVED, PENDING)) == PENDING:
        return parse_pending(fields)
    return EnrollApproved(
        status=APPROVED,
        node_id=fields.integer("node_id", 1, BIG),
        node_uuid=fields.uuid("node_uuid"),
        certificate_pem=fields.text("certificate_pem", PEM_CHARS),
        certificate_not_after=fields.time("certificate_not_after"),
        ca_pem=fields.text("ca_pem", CA_PEM_CHARS),
        command_key=fields.blob("command_key", KEY_BYTES, KEY_BYTES),
        settings=parse_settings(fields.inner("settings")),
        server_time=fields.time("server_time"),
    )


def parse_pending(fields: Fields) -> EnrollPending:
    """Read a 202."""
    return EnrollPending(
        status=PENDING,
        ticket=fields.text("ticket", 256, 8, WORD),
        poll_after_s=fields.integer("poll_after_s", 1, 3600),
        server_time=fields.time("server_time"),
    )


def parse_renew(fields: Fields) -> Renew:
    """Read a request to renew."""
    return Renew(csr_pem=fields.text("csr_pem", PEM_CHARS))


def parse_recover(fields: Fields) -> Recover:
    """Read a request to recover."""
    return Recover(
        certificate_pem=fields.text("certificate_pem", PEM_CHARS),
        csr_pem=fields.text("csr_pem", PEM_CHARS),
        timestamp=fields.time("timestamp"),
        signature=fields.blob("signature", 512, 8),
    )


def parse_certificate_answer(fields: Fields) -> Certificate | EnrollPending:
    """Read the answer to `renew` or `recover`."""
    if fields.choice("status", (APPROVED, PENDING)) == PENDING:
        return parse_pending(fields)
    return Certificate(
        status=APPROVED,
        certificate_pem=fields.text("certificate_pem", PEM_CHARS),
        certificate_not_after=fields.time("certificate_not_after"),
        ca_pem=fields.text("ca_pem", CA_PEM_CHARS),
        server_time=fields.time("server_time"),
    )
