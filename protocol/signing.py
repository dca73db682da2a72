"""What is signed and how: commands with the host's key (HMAC-SHA256), recovery requests with its old private key."""

from __future__ import annotations

import hashlib
import hmac

KEY_BYTES = 32


def command_text(uuid: str, node_uuid: str, kind: str, payload: str, issued_at: str, not_after: str) -> bytes:
    """The bytes under a command's signature. No field may hold a line feed; the payload enters as its hash."""
    digest = hashlib.sha256(payload.encode("utf-8")).hexdigest()
    return "\n".join(("ops-command-v1", uuid, node_uuid, kind, digest, issued_at, not_after)).encode("utf-8")


def sign_command(key: bytes, uuid: str, node_uuid: str, kind: str, payload: str, issued_at: str, not_after: str) -> str:
    """Lower-case hex HMAC-SHA256 of `command_text`."""
    text = command_text(uuid, node_uuid, kind, payload, issued_at, not_after)
    return hmac.new(key, text, hashlib.sha256).hexdigest()


def is_signature_valid(key: bytes, text: bytes, signature: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(hmac.new(key, text, hashlib.sha256).hexdigest(), signature)


def recovery_text(node_uuid: str, timestamp: str, csr_der: bytes) -> bytes:
    """What the old key signs (ECDSA with SHA-256) when a host whose certificate expired asks for a new one."""
    return "\n".join(("ops-recover-v1", node_uuid, timestamp, hashlib.sha256(csr_der).hexdigest())).encode("utf-8")
