"""Who calls over TCP: the signature of each request, its time, and nonces that no restart forgets. Rates, too."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import struct
import time

from agent import disk
from agent.server import Request

SKEW_S = 60
KEEP_S = 2 * SKEW_S + 5
COMPACT_ENTRIES = 20_000
MOST_BUCKETS = 1024

_NONCE = re.compile(r"[!-~]{8,128}")
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
_ENTRY = struct.Struct(">16sQ")
_BOOT = 36

log = logging.getLogger("agent.signature")


class NotAuthentic(Exception):
    """Why a request is not believed. Says nothing that helps to guess."""


class Nonces:
    """Every nonce of the last two minutes, on disk before its request is acted on.

    The file belongs to one boot. After another boot, when what was not yet on the disk may be lost, requests signed
    before the agent started are refused for as long as they could be valid.
    """

    def __init__(self, path: str, boot_id: str) -> None:
        self._path = path
        self._boot = boot_id.encode("ascii", "replace").ljust(_BOOT)[:_BOOT]
        self._known: dict[bytes, int] = {}
        self._fd = -1
        self._entries = 0
        data = disk.read_file(path)
        is_trusted = data[:_BOOT] == self._boot and (len(data) - _BOOT) % _ENTRY.size == 0
        self.not_before = 0 if is_trusted else int(time.time())
        if not data:
            # Nothing was ever accepted here, so nothing can be replayed.
            self.not_before = 0
        now = int(time.time())
        if len(data) > _BOOT:
            whole = (len(data) - _BOOT) // _ENTRY.size * _ENTRY.size
            for digest, until in _ENTRY.iter_unpack(data[_BOOT : _BOOT + whole]):
                if until > now:
                    self._known[digest] = until
        self._compact()

    def use(self, key: str, nonce: str, now: int) -> bool:
        """False if it was used before. OSError: it cannot be written down, so the request must not count."""
        digest = hashlib.blake2b(f"{key}\n{nonce}".encode(), digest_size=16).digest()
        if self._known.get(digest, 0) > now:
            return False
        if self._entries > COMPACT_ENTRIES:
            self._known = {found: until for found, until in self._known.items() if until > now}
            self._compact()
        disk.write_all(self._fd, _ENTRY.pack(digest, now + KEEP_S))
        self._entries += 1
        self._known[digest] = now + KEEP_S
        return True

    def close(self) -> None:
        """Forget the descriptor."""
        os.close(self._fd)

    def _compact(self) -> None:
        data = self._boot + b"".join(_ENTRY.pack(digest, until) for digest, until in self._known.items())
        disk.write_file(self._path, data)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = disk.open_append(self._path)
        self._entries = len(self._known)


class Gate:
    """Knows the keys."""

    def __init__(self, keys: dict[str, str], nonces: Nonces) -> None:
        self._keys = {name: secret.encode("utf-8") for name, secret in keys.items()}
        self._nobody = os.urandom(32)
        self._nonces = nonces

    def look(self, request: Request) -> None:
        """What can be told before the body is there. Raises NotAuthentic."""
        headers = request.headers
        if not all(headers.get(f"x-ops-{name}") for name in ("key", "timestamp", "nonce", "signature")):
            raise NotAuthentic("X-Ops-Key, X-Ops-Timestamp, X-Ops-Nonce and X-Ops-Signature are required")
        stamp = headers["x-ops-timestamp"]
        if _TIMESTAMP.fullmatch(stamp) is None or _NONCE.fullmatch(headers["x-ops-nonce"]) is None:
            raise NotAuthentic("the timestamp must be Unix seconds, the nonce 8 to 128 visible characters")
        if abs(int(time.time()) - int(stamp)) > SKEW_S:
            raise NotAuthentic(f"the timestamp is more than {SKEW_S} s away from this host's time")

    def check(self, request: Request) -> str:
        """The name of the key. Raises NotAuthentic; OSError as `Nonces.use`."""
        self.look(request)
        headers = request.headers
        name, stamp = headers["x-ops-key"], headers["x-ops-timestamp"]
        nonce, signature = headers["x-ops-nonce"], headers["x-ops-signature"]
        text = signed_text(request.method, request.path, request.query, stamp, nonce, request.body)
        # An unknown key costs as much time as a wrong signature.
        right = hmac.new(self._keys.get(name, self._nobody), text, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(right.encode("ascii"), signature.encode("latin-1")) or name not in self._keys:
            raise NotAuthentic("the key or the signature is wrong")
        now = int(time.time())
        if int(stamp) < self._nonces.not_before:
            raise NotAuthentic("this was signed before the agent started on a fresh boot; sign it again")
        if not self._nonces.use(name, nonce, now):
            raise NotAuthentic("this nonce was used before")
        return name


class Rates:
    """So many requests a second for each caller, and a burst."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, caller: str) -> float:
        """0 if he may; else in how many seconds he may again."""
        now = time.monotonic()
        tokens, at = self._buckets.get(caller, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._per_s)
        if caller not in self._buckets and len(self._buckets) >= MOST_BUCKETS:
            oldest = min(self._buckets, key=lambda name: self._buckets[name][1])
            del self._buckets[oldest]
        if tokens < 1:
            self._buckets[caller] = (tokens, now)
            return (1 - tokens) / self._per_s
        self._buckets[caller] = (tokens - 1, now)
        return 0.0


def signed_text(method: str, path: str, query: str, timestamp: str, nonce: str, body: bytes) -> bytes:
    """The bytes under a request's signature: path and query as sent, the body as its hash."""
    digest = hashlib.sha256(body).hexdigest()
    return "\n".join((method, path, query, timestamp, nonce, digest)).encode("latin-1")
