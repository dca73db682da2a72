"""Error codes of the contract, the machine-readable reasons of the daemon plane, and the refusal that carries both."""

from __future__ import annotations

from typing import Any, NamedTuple

SUCCESS = 0
BAD_PARAMETER = 1001
NOT_AUTHENTICATED = 1002
FORBIDDEN = 1003
NOT_FOUND = 1004
TOO_MANY_REQUESTS = 1005
CONFLICT = 1006
METHOD_NOT_ALLOWED = 1007
TOO_LARGE = 1008
INTERNAL = 5000
DATABASE_AWAY = 5001
QUEUE_AWAY = 5002

HTTP_STATUS = {
    SUCCESS: 200,
    BAD_PARAMETER: 400,
    NOT_AUTHENTICATED: 401,
    FORBIDDEN: 403,
    NOT_FOUND: 404,
    METHOD_NOT_ALLOWED: 405,
    CONFLICT: 409,
    TOO_LARGE: 413,
    TOO_MANY_REQUESTS: 429,
    INTERNAL: 500,
    DATABASE_AWAY: 503,
    QUEUE_AWAY: 503,
}

# Reasons: what a Daemon acts on. The message beside them is for people and may change.
WIRE_UNSUPPORTED = "wire_unsupported"
INVALID_FIELD = "invalid_field"
CERTIFICATE_REQUIRED = "certificate_required"
CERTIFICATE_UNKNOWN = "certificate_unknown"
CERTIFICATE_SUPERSEDED = "certificate_superseded"
CERTIFICATE_EXPIRED = "certificate_expired"
CERTIFICATE_VALID = "certificate_valid"
REVOKED = "revoked"
REJECTED = "rejected"
TOKEN_REFUSED = "token_refused"  # noqa: S105 - the name of a reason, not a secret
DISCOVERY_OFF = "discovery_off"
KEY_MISMATCH = "key_mismatch"
SIGNATURE_INVALID = "signature_invalid"
CHALLENGE = "challenge"
CHECKIN_FIRST = "checkin_first"
UNKNOWN_COMMAND = "unknown_command"
UNKNOWN_STREAM = "unknown_stream"
UNKNOWN_FILE = "unknown_file"
ILLEGAL_STEP = "illegal_step"
BODY_TOO_LARGE = "body_too_large"
BUSY = "busy"

REASONS = frozenset(
    {
        WIRE_UNSUPPORTED,
        INVALID_FIELD,
        CERTIFICATE_REQUIRED,
        CERTIFICATE_UNKNOWN,
        CERTIFICATE_SUPERSEDED,
        CERTIFICATE_EXPIRED,
        CERTIFICATE_VALID,
        REVOKED,
        REJECTED,
        TOKEN_REFUSED,
        DISCOVERY_OFF,
        KEY_MISMATCH,
        SIGNATURE_INVALID,
        CHALLENGE,
        CHECKIN_FIRST,
        UNKNOWN_COMMAND,
        UNKNOWN_STREAM,
        UNKNOWN_FILE,
        ILLEGAL_STEP,
        BODY_TOO_LARGE,
        BUSY,
    }
)

# What a result may give as `error_code`: the outcomes of the contract, then those that only a host can find.
TASK_FAILED = "task_failed"
TASK_TIMEOUT = "task_timeout"
NOT_DELIVERED = "not_delivered"
AGENT_BUSY = "agent_busy"
INTERRUPTED = "interrupted"
FORBIDDEN_BY_HOST = "forbidden_by_host"
UPDATE_FAILED = "update_failed"
ROLLED_BACK = "rolled_back"
UNSUPPORTED_KIND = "unsupported_kind"
BAD_PAYLOAD = "bad_payload"

OUTCOME_CODES = frozenset(
    {
        TASK_FAILED,
        TASK_TIMEOUT,
        NOT_DELIVERED,
        AGENT_BUSY,
        INTERRUPTED,
        FORBIDDEN_BY_HOST,
        UPDATE_FAILED,
        ROLLED_BACK,
        UNSUPPORTED_KIND,
        BAD_PAYLOAD,
    }
)


class ProtocolError(ValueError):
    """A message breaks the wire's rules; `field` is the dotted path of the first thing that does."""

    def __init__(self, field: str, message: str, code: int = BAD_PARAMETER, reason: str = INVALID_FIELD) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
        self.code = code
        self.reason = reason


class Refusal(NamedTuple):
    """An answer that is not 2xx, as the other side understood it."""

    status: int
    code: int
    reason: str
    message: str
    retry_after_s: float | None
    timestamp: str | None
    data: dict[str, Any]


def refusal_body(
    code: int, message: str, reason: str, timestamp: str, data: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The contract's envelope around a refusal; `data.reason` is what programs read."""
    return {"code": code, "message": message, "data": {"reason": reason, **(data or {})}, "timestamp": timestamp}


def parse_refusal(status: int, retry_after: str | None, body: object) -> Refusal:
    """Make sense of any non-2xx answer, also of one that a proxy made up; never raises."""
    timestamp: str | None = None
    data: dict[str, Any] = {}
    code, reason, message = INTERNAL, "", f"HTTP {status}"
    if isinstance(body, dict):
        if type(body.get("code")) is int:
            code = body["code"]
        if isinstance(body.get("message"), str):
            message = body["message"][:500]
        if isinstance(body.get("timestamp"), str):
            timestamp = body["timestamp"][:27]
        if isinstance(body.get("data"), dict):
            data = body["data"]
            reason = data["reason"] if data.get("reason") in REASONS else ""
    return Refusal(status, code, reason, message, _seconds(retry_after), timestamp, data)


def _seconds(retry_after: str | None) -> float | None:
    """`Retry-After` in whole seconds; the date form is not part of this wire and counts as absent."""
    digits = (retry_after or "").strip()
    if not (digits.isascii() and digits.isdigit()):
        return None
    return min(float(digits[:6]), 3600.0)
