"""Bytes to JSON and back within bounds: size, depth, encoding, gzip. Knows no message."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from protocol.errors import BODY_TOO_LARGE, TOO_LARGE, ProtocolError
from protocol.limits import DEPTH


def to_plain(value: Any) -> Any:
    """A message (NamedTuple of NamedTuples) as plain JSON values: field names are the wire's, bytes become base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, tuple):
        names = getattr(value, "_fields", None)
        if names is None:
            return [to_plain(item) for item in value]
        return {name: to_plain(item) for name, item in zip(names, value)}
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    return value


def encode(message: Any) -> bytes:
    """The body of a message. ValueError for NaN and infinities, which JSON does not have."""
    return json.dumps(to_plain(message), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def canonical(value: Any) -> str:
    """The one text of a value that is hashed: keys sorted by code point, no spaces, only needful escapes."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def decode(raw: bytes, max_bytes: int, max_depth: int = DEPTH) -> Any:
    """Parse a body. ProtocolError names `body`; TOO_LARGE if it is longer than `max_bytes`."""
    if len(raw) > max_bytes:
        raise ProtocolError("body", f"must not exceed {max_bytes} bytes", TOO_LARGE, BODY_TOO_LARGE)
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
        if b"\\u" in raw:
            # Only an escape can smuggle in a lone surrogate or a NUL; neither survives a database column.
            if "\\u0000" in json.dumps(value):
                raise ProtocolError("body", "must not contain NUL")
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except ProtocolError:
        raise
    except (ValueError, RecursionError):
        raise ProtocolError("body", "must be JSON in UTF-8") from None
    if not _is_shallow(value, max_depth):
        raise ProtocolError("body", f"must not nest deeper than {max_depth}")
    return value


def compress(raw: bytes) -> bytes:
    """gzip at the cheapest level; metrics shrink to a quarter even so."""
    squeezer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return squeezer.compress(raw) + squeezer.flush()


def decompress(raw: bytes, max_bytes: int) -> bytes:
    """gunzip, never producing more than `max_bytes`; ProtocolError for a bomb, a torn stream or bytes after its end."""
    stretcher = zlib.decompressobj(31)
    try:
        plain = stretcher.decompress(raw, max_bytes + 1)
    except zlib.error:
        raise ProtocolError("body", "is not gzip as its Content-Encoding says") from None
    if len(plain) > max_bytes:
        raise ProtocolError("body", f"must not exceed {max_bytes} bytes", TOO_LARGE, BODY_TOO_LARGE)
    if not stretcher.eof or stretcher.unused_data:
        raise ProtocolError("body", "is not one whole gzip stream")
    return plain


def _refuse_constant(name: str) -> Any:
    raise ProtocolError("body", f"must not contain {name}")


def _is_shallow(value: Any, max_depth: int) -> bool:
    level = [value]
    for _ in range(max_depth):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent if isinstance(parent, list) else ())
            if isinstance(child, (dict, list))
        ]
        if not level:
            return True
    return False
