"""The line that makes a host a node, the script behind it, and the kits that the script fetches."""

import hashlib
import json
import shlex
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.kernel import pki
from app.kernel.context import ops


@dataclass(frozen=True)
class Instructions:
    """What an operator pastes into a host's shell."""

    one_liner: str
    fallback: str
    ca_fingerprint: str
    has_kit: bool


def instructions(token: str | None) -> Instructions:
    """`one_liner` pins the gateway's key; `fallback`, for curls that cannot, compares the script's checksum instead."""
    url = f"{ops().settings.gateway_url}/daemon/v1/install.sh"
    given = f" --token {shlex.quote(token)}" if token else ""
    digest = hashlib.sha256(script().encode()).hexdigest()
    return Instructions(
        one_liner=f"curl -fsSk --pinnedpubkey {shlex.quote(pin())} {shlex.quote(url)} | sh -s --{given}",
        fallback=(
            f"curl -fsSk -o install.sh {shlex.quote(url)} && "
            f"echo '{digest}  install.sh' | sha256sum -c - && sh install.sh{given}"
        ),
        ca_fingerprint=ca_fingerprint(),
        has_kit=bool(kits()),
    )


def install_command(token: str) -> str:
    return instructions(token).one_liner


def ca_fingerprint() -> str:
    return pki.fingerprint(ops().keys.authority.certificate)


def pin() -> str:
    """For curl's --pinnedpubkey. Hosts trust no public authority for us, so they trust this one key."""
    key = _served_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "sha256//" + b64encode(hashlib.sha256(key).digest()).decode()


def _served_key() -> CertificatePublicKeyTypes:
    """What Daemons meet: our gateways' own key, or that of the proxy in front of them."""
    given = ops().settings.server.gateway.proxy_certificate
    return x509.load_pem_x509_certificate(Path(given).read_bytes()).public_key() if given else ops().keys.gateway


def script() -> str:
    """install.sh with this Manager's address, keys and kits filled in."""
    index = kit_index()
    values = {
        "SERVER": ops().settings.gateway_url,
        "PIN": pin(),
        "CA_FINGERPRINT": ca_fingerprint(),
        "VERSION": str(index.get("version", "")),
        "KITS": " ".join(f"{arch}:{kit['sha256']}" for arch, kit in kits().items()),
    }
    text = (ops().settings.root_path / "deploy" / "install.sh").read_text("utf-8")
    for name, value in values.items():
        text = text.replace(f"={'@'}{name}@", f"={shlex.quote(value)}", 1)
    return text


def kits() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = kit_index().get("kits", {})
    return found


def kit_index() -> dict[str, Any]:
    """What `make kit` left; nothing, before it was ever run."""
    path = ops().settings.kit_path / "index.json"
    try:
        index: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return index


def kit_file(arch: str) -> Path | None:
    """The archive for an architecture. The name comes from our index, never from the request."""
    kit = kits().get(arch)
    return None if kit is None else ops().settings.kit_path / Path(kit["file"]).name
