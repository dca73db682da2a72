"""The arithmetic of the chain: what is hashed, sealed and signed. It touches no database.

Each row's hash covers the row before it, which anybody can check. Its seal needs our key, so whoever owns the database
but not the key cannot write a chain of his own. The head is sealed in another way than rows are: else the last row that
a cut leaves would hold a good head. Signatures are for those who have the public key only.
"""

import hashlib
import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.kernel.clock import rfc3339

GENESIS_HASH = "0" * 64
HEAD_CHANGED = "audit.head_changed"
"""The action of the row that we write behind a head that was not ours."""
FIELDS = (
    "user_id", "username", "action", "resource_type", "resource_id", "detail",
    "ip", "user_agent", "request_id", "status", "error_message",
)  # fmt: skip


class Link(NamedTuple):
    """A place in the chain."""

    sequence: int
    hash: str


def canonical(sequence: int, created_at: datetime, fields: Mapping[str, Any]) -> str:
    """A row as the text that is hashed. It is stored, so that no database's rounding can change it."""
    body = {"sequence": sequence, "created_at": moment(created_at)} | {name: fields[name] for name in FIELDS}
    return compact(body)


def moment(created_at: datetime) -> str:
    return created_at.isoformat(timespec="microseconds")


def next_hash(previous: str, text: str) -> str:
    return hashlib.sha256(f"{previous}\n{text}".encode()).hexdigest()


def seal(key: bytes, link: Link) -> str:
    return _mac(key, f"{link.sequence}:{link.hash}")


def is_sealed(key: bytes, link: Link, found: str) -> bool:
    return _is_same(seal(key, link), found)


def seal_head(key: bytes, link: Link) -> str:
    return _mac(key, f"head:{link.sequence}:{link.hash}")


def is_head_sealed(key: bytes, link: Link, found: str) -> bool:
    """The head of an empty log is the same everywhere and bears no seal."""
    return link == Link(0, GENESIS_HASH) or _is_same(seal_head(key, link), found)


def problem_of(row: Mapping[str, Any], previous_hash: str, key: bytes) -> str | None:
    """What is wrong with a row that stands behind this hash; None if it is as it was written."""
    if next_hash(previous_hash, row["canonical"]) != row["hash"]:
        return "was edited, or its neighbours were moved"
    if not is_sealed(key, Link(row["id"], row["hash"]), row["seal"]):
        return "was written by somebody who does not have the key"
    if canonical(row["id"], row["created_at"], row) != row["canonical"]:
        return "shows something else than what was hashed"
    if row["action"] == HEAD_CHANGED:
        return "was written where somebody had changed the log's end; rows before it may have been cut off"
    return None


def sign_checkpoint(key: Ed25519PrivateKey, link: Link, created_at: datetime) -> str:
    return _sign(key, _checkpoint_text(link, created_at))


def is_checkpoint_signed(key: Ed25519PublicKey, link: Link, created_at: datetime, signature: str) -> bool:
    return _is_signed(key, _checkpoint_text(link, created_at), signature)


def sign_statement(key: Ed25519PrivateKey, statement: Mapping[str, Any]) -> str:
    """Sign what is said at the end of an export."""
    return _sign(key, _statement_text(statement))


def is_statement_signed(key: Ed25519PublicKey, statement: Mapping[str, Any], signature: str) -> bool:
    return _is_signed(key, _statement_text(statement), signature)


def compact(value: Any) -> str:
    """The one way in which a value is written down before it is hashed or signed."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _checkpoint_text(link: Link, created_at: datetime) -> bytes:
    return f"ops-audit-checkpoint\n{link.sequence}\n{link.hash}\n{rfc3339(created_at)}".encode()


def _statement_text(statement: Mapping[str, Any]) -> bytes:
    return f"ops-audit-export\n{compact(statement)}".encode()


def _mac(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _is_same(expected: str, found: object) -> bool:
    return isinstance(found, str) and hmac.compare_digest(expected.encode(), found.encode("utf-8", "replace"))


def _sign(key: Ed25519PrivateKey, text: bytes) -> str:
    return b64encode(key.sign(text)).decode()


def _is_signed(key: Ed25519PublicKey, text: bytes, signature: str) -> bool:
    try:
        key.verify(b64decode(signature), text)
    except (InvalidSignature, ValueError):
        return False
    return True
