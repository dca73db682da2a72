"""The arithmetic of the chain: what is hashed, sealed and signed. It touches no database.

Each row's hash covers the row before it, which anybody can check. Its seal needs our key, so whoever owns the database
but not the key cannot write a chain of his own. Checkpoints are signatures that an export can be checked against.
"""

import hashlib
import hmac
import json
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from datetime import datetime
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.kernel.clock import rfc3339

FIELDS = (
    "user_id", "username", "action", "resource_type", "resource_id", "detail",
    "ip", "user_agent", "request_id", "status", "error_message",
)  # fmt: skip


class Link(NamedTuple):
    """A place in the chain."""

    sequence: int
    hash: str


def canonical(sequence: int, created_at: datetime, fields: dict[str, Any]) -> str:
    """A row as the text that is hashed. It is stored, so that no database's rounding can change it."""
    body = {"sequence": sequence, "created_at": moment(created_at)} | {name: fields[name] for name in FIELDS}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def moment(created_at: datetime) -> str:
    return created_at.isoformat(timespec="microseconds")


def next_hash(previous: str, text: str) -> str:
    return hashlib.sha256(f"{previous}\n{text}".encode()).hexdigest()


def seal(key: bytes, link: Link) -> str:
    return hmac.new(key, f"{link.sequence}:{link.hash}".encode(), hashlib.sha256).hexdigest()


def is_sealed(key: bytes, link: Link, found: str) -> bool:
    return hmac.compare_digest(seal(key, link), found)


def sign(key: Ed25519PrivateKey, link: Link, created_at: datetime) -> str:
    return b64encode(key.sign(_checkpoint_text(link, created_at))).decode()


def is_signed(key: Ed25519PublicKey, link: Link, created_at: datetime, signature: str) -> bool:
    try:
        key.verify(b64decode(signature), _checkpoint_text(link, created_at))
    except (InvalidSignature, Base64Error):
        return False
    return True


def _checkpoint_text(link: Link, created_at: datetime) -> bytes:
    return f"ops-audit-checkpoint\n{link.sequence}\n{link.hash}\n{rfc3339(created_at)}".encode()
