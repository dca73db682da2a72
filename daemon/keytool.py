"""A short-lived child: makes a key with its CSR, and signs with the old key when a certificate has expired."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocol.signing import recovery_text


def make_request(common_name: str) -> dict[str, str]:
    """A new ECDSA P-256 key and a CSR for it; subject and names are the Manager's to write."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64] or "host")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return {
        "key_pem": key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode("ascii"),
        "csr_pem": csr.public_bytes(serialization.Encoding.PEM).decode("ascii"),
    }


def sign_recovery(key_pem: str, csr_pem: str, node_uuid: str, timestamp: str) -> dict[str, str]:
    """Prove possession of the old key over the new request."""
    key = serialization.load_pem_private_key(key_pem.encode("ascii"), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("the old key is not an elliptic-curve key")
    csr_der = x509.load_pem_x509_csr(csr_pem.encode("ascii")).public_bytes(serialization.Encoding.DER)
    signature = key.sign(recovery_text(node_uuid, timestamp, csr_der), ec.ECDSA(hashes.SHA256()))
    return {"signature": base64.b64encode(signature).decode("ascii")}


def main() -> int:
    """One JSON object in, one out."""
    order: dict[str, Any] = json.load(sys.stdin)
    if order["do"] == "request":
        answer = make_request(order["common_name"])
    else:
        answer = sign_recovery(order["key_pem"], order["csr_pem"], order["node_uuid"], order["timestamp"])
    sys.stdout.write(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
