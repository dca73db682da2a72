"""The Manager's keys on disk: made once, read once per process, never written anywhere else.

Several Managers share one directory of keys. The gateway's certificate is each machine's own and lies in its data
directory. What certificates contain is the business of `pki`.
"""

import fcntl
import json
import os
import secrets
import socket
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.kernel import pki
from config import Settings

FORM, JWT_ACCESS, JWT_REFRESH = "form.key", "jwt-access.key", "jwt-refresh.key"
ENCRYPTION, AUDIT = "encryption.json", "audit.pem"
CA_KEY, CA_CERTIFICATE, GATEWAY_KEY = "ca.key", "ca.pem", "gateway.key"
LOCK = ".lock"
SHORTEST_SECRET = 32
NONCE_BYTES = 12


class KeysError(Exception):
    """Keys that are missing or unusable, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class SealError(ValueError):
    """Something was not encrypted by us, for another context, or with a key that is gone. Deliberately says no more."""


class SecretBox:
    """Encrypts what lies in the database. The newest key of the ring encrypts, every key of the ring decrypts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ciphers: dict[str, AESGCM] = {}
        self._newest = ""
        self._load()

    def encrypt(self, secret: bytes, context: str) -> str:
        """Text that only `decrypt` with the same context opens, so that a value copied to another row is worthless."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._ciphers[self._newest].encrypt(nonce, secret, context.encode())
        return f"{self._newest}.{urlsafe_b64encode(nonce + sealed).decode().rstrip('=')}"

    def decrypt(self, sealed: str, context: str) -> bytes:
        identifier, _, body = sealed.partition(".")
        if identifier not in self._ciphers:
            self._load()  # another process may have added a key since
        try:
            raw = urlsafe_b64decode(body + "=" * (-len(body) % 4))
            return self._ciphers[identifier].decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], context.encode())
        except (KeyError, ValueError, InvalidTag) as error:
            raise SealError("this secret cannot be opened") from error

    def is_current(self, sealed: str) -> bool:
        """Whether the newest key encrypted this; if not, encrypt it again and the old key may go."""
        return sealed.partition(".")[0] == self._newest

    def rotate(self) -> str:
        """Add a key that encrypts from now on and return its id. Running processes learn of it when they meet it."""
        with _locked(self._path.parent):
            ring = _read_json(self._path)
            ring["keys"].append(_new_ring_key())
            _write(self._path, json.dumps(ring, indent=1).encode() + b"\n", replace=True)
        self._load()
        return self._newest

    def _load(self) -> None:
        ring = _read_json(self._path)
        self._ciphers = {entry["id"]: AESGCM(urlsafe_b64decode(entry["key"])) for entry in ring["keys"]}
        self._newest = ring["keys"][-1]["id"]


@dataclass(frozen=True)
class Keys:
    """Every key a process needs, read once."""

    form: bytes = field(repr=False)
    """Signs the state of forms, nothing else: who has it can forge no session."""
    jwt_access: bytes = field(repr=False)
    jwt_refresh: bytes = field(repr=False)
    box: SecretBox = field(repr=False)
    audit: ed25519.Ed25519PrivateKey = field(repr=False)
    """Signs checkpoints of the audit log."""
    audit_seal: bytes = field(repr=False)
    """Seals the rows of the audit log; derived from `audit`."""
    authority: pki.Authority = field(repr=False)
    gateway: ec.EllipticCurvePublicKey = field(repr=False)
    """What hosts know every gateway of this installation by, whatever its certificate."""


def create_missing_keys(settings: Settings) -> list[str]:
    """Make what is missing and return the names of the files made. Raises KeysError where making is not allowed."""
    directory = settings.keys_path
    if settings.keys.required:
        if missing := _missing(settings):
            raise KeysError(missing)
        return []
    make_private_directory(directory)
    made = []
    with _locked(directory):
        for name in _needed(settings):
            if not (directory / name).exists():
                _write(directory / name, _new_content(directory, name))
                made.append(name)
    return made


def load_keys(settings: Settings) -> Keys:
    """Read every key. Raises KeysError that names each missing or broken file."""
    if problems := _missing(settings) + _short_secrets(settings):
        raise KeysError(problems)
    reader, jwt = _Reader(settings.keys_path), settings.auth.jwt
    form = reader.secret(FORM)
    access = jwt.access_secret.encode() or reader.secret(JWT_ACCESS)
    refresh = jwt.refresh_secret.encode() or reader.secret(JWT_REFRESH)
    box, audit = reader.box(ENCRYPTION), reader.audit_key(AUDIT)
    authority_key, certificate = reader.elliptic_key(CA_KEY), reader.certificate(CA_CERTIFICATE)
    gateway_key = reader.elliptic_key(GATEWAY_KEY)
    if authority_key and certificate and certificate.public_key() != authority_key.public_key():
        raise KeysError([f"{settings.keys_path / CA_CERTIFICATE} does not belong to {CA_KEY}"])
    if not (form and access and refresh and box and audit and authority_key and certificate and gateway_key):
        found = {
            FORM: form, JWT_ACCESS: access, JWT_REFRESH: refresh, ENCRYPTION: box, AUDIT: audit,
            CA_KEY: authority_key, CA_CERTIFICATE: certificate, GATEWAY_KEY: gateway_key,
        }  # fmt: skip
        broken = [settings.keys_path / name for name, key in found.items() if not key]
        raise KeysError([f"{path} cannot be read or is not what it should be" for path in broken])
    return Keys(
        form=form,
        jwt_access=access,
        jwt_refresh=refresh,
        box=box,
        audit=audit,
        audit_seal=_derived(audit.private_bytes_raw(), b"ops audit seal"),
        authority=pki.Authority(certificate, authority_key),
        gateway=gateway_key.public_key(),
    )


def gateway_certificate_path(settings: Settings) -> Path:
    """One file with the gateway's key and certificate, so that both are always of one piece."""
    return settings.data_path / "gateway.pem"


def gateway_names(settings: Settings) -> list[str]:
    """What the gateway's certificate is valid for, in a fixed order."""
    host = urlsplit(settings.gateway_url).hostname or "localhost"
    names = [host, *settings.server.gateway.names, socket.gethostname(), "localhost", "127.0.0.1", "::1"]
    try:
        return list(dict.fromkeys(pki.canonical_name(name) for name in names if name))
    except UnicodeError as error:
        raise KeysError(
            [f"server.gateway_url, server.gateway.names: not a host name or an address: {error}"]
        ) from error


def renew_gateway_certificate(settings: Settings, authority: pki.Authority, at: datetime | None = None) -> bool:
    """Make the gateway's certificate if there is none, its names changed or less than a third of its life is left.

    Returns whether it was made. A running gateway notices by itself.
    """
    at = at or datetime.now(UTC)
    path, names = gateway_certificate_path(settings), gateway_names(settings)
    # The key outlives certificates and is the same for all Managers: hosts are given its hash to know us by.
    key = _Reader(settings.keys_path).elliptic_key(GATEWAY_KEY)
    if key is None:
        raise KeysError([f"{settings.keys_path / GATEWAY_KEY} cannot be read or is not what it should be"])
    if _serves(path, key, names, authority, at):
        return False
    certificate = authority.sign_server(key.public_key(), names, at=at)
    _write(path, pki.to_pem(key) + pki.to_pem(certificate), replace=True)
    return True


def make_private_directory(path: Path) -> None:
    """A directory that only we can enter; one that is ours already is closed to others."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.stat()
    if status.st_mode & 0o077 and status.st_uid == os.geteuid():
        path.chmod(0o700)


class _Reader:
    """Reads key files; what cannot be read or is of another kind is None."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def secret(self, name: str) -> bytes | None:
        content = self._bytes(name).strip()
        return content if len(content) >= SHORTEST_SECRET else None

    def audit_key(self, name: str) -> ed25519.Ed25519PrivateKey | None:
        found = self._private_key(name)
        return found if isinstance(found, ed25519.Ed25519PrivateKey) else None

    def elliptic_key(self, name: str) -> ec.EllipticCurvePrivateKey | None:
        found = self._private_key(name)
        return found if isinstance(found, ec.EllipticCurvePrivateKey) else None

    def certificate(self, name: str) -> x509.Certificate | None:
        try:
            return x509.load_pem_x509_certificate(self._bytes(name))
        except ValueError:
            return None

    def box(self, name: str) -> SecretBox | None:
        try:
            return SecretBox(self._directory / name)
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            return None

    def _private_key(self, name: str) -> object:
        try:
            return serialization.load_pem_private_key(self._bytes(name), password=None)
        except (ValueError, TypeError):
            return None

    def _bytes(self, name: str) -> bytes:
        try:
            return (self._directory / name).read_bytes()
        except OSError:
            return b""


def _needed(settings: Settings) -> list[str]:
    """Names of the files, keys before what is made from them."""
    jwt = settings.auth.jwt
    names = [FORM, ENCRYPTION, AUDIT, CA_KEY, CA_CERTIFICATE, GATEWAY_KEY]
    return names + [JWT_ACCESS] * (not jwt.access_secret) + [JWT_REFRESH] * (not jwt.refresh_secret)


def _missing(settings: Settings) -> list[str]:
    paths = [settings.keys_path / name for name in _needed(settings)]
    return [f"{path} is missing" for path in paths if not path.exists()]


def _short_secrets(settings: Settings) -> list[str]:
    given = {
        "auth.jwt.access_secret": settings.auth.jwt.access_secret,
        "auth.jwt.refresh_secret": settings.auth.jwt.refresh_secret,
    }
    return [
        f"{key}: at least {SHORTEST_SECRET} characters"
        for key, value in given.items()
        if 0 < len(value) < SHORTEST_SECRET
    ]


def _new_content(directory: Path, name: str) -> bytes:
    if name == ENCRYPTION:
        return json.dumps({"keys": [_new_ring_key()]}, indent=1).encode() + b"\n"
    if name == AUDIT:
        return ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    if name in (CA_KEY, GATEWAY_KEY):
        return pki.to_pem(pki.create_key())
    if name == CA_CERTIFICATE:
        key = serialization.load_pem_private_key((directory / CA_KEY).read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise KeysError([f"{directory / CA_KEY} cannot be read or is not what it should be"])
        return pki.to_pem(pki.create_authority(key).certificate)
    return secrets.token_urlsafe(48).encode() + b"\n"


def _new_ring_key() -> dict[str, str]:
    return {
        "id": secrets.token_hex(4),
        "key": urlsafe_b64encode(AESGCM.generate_key(256)).decode(),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=purpose).derive(secret)


def _serves(
    path: Path, key: ec.EllipticCurvePrivateKey, names: list[str], authority: pki.Authority, at: datetime
) -> bool:
    """Whether a file holds this key and a certificate for it that is good for some time."""
    try:
        content = path.read_bytes()
        certificate = x509.load_pem_x509_certificate(content)
        if not content.startswith(pki.to_pem(key)):
            return False
        certificate.verify_directly_issued_by(authority.certificate)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, a new one is the answer
        return False
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    is_fresh = begins <= at and (ends - at) * 3 >= ends - begins
    return is_fresh and pki.server_names(certificate) == set(names) and key.public_key() == certificate.public_key()


def _read_json(path: Path) -> dict[str, list[dict[str, str]]]:
    parsed: dict[str, list[dict[str, str]]] = json.loads(path.read_text("utf-8"))
    return parsed


def _write(path: Path, content: bytes, *, replace: bool = False) -> None:
    """All of it or nothing, also when the power fails: a new file, fsync, its final name, fsync of the directory."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # fails if somebody was first: an existing key is never overwritten
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Two Managers that share a directory make its keys one after the other."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
