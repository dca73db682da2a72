"""Our own certificate authority: it makes the gateway's certificate, signs what nodes ask for and says who a node is.

Where keys lie on disk is the business of `secrets`; whether a node is still welcome is for the database to say.
"""

import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NODE_URN = "urn:ops:node:"
AUTHORITY_LIFE = timedelta(days=365 * 20)
SERVER_LIFE = timedelta(days=730)
# Hosts whose clocks are late must be able to use what they were just given.
BACKDATED = timedelta(days=1)
LARGEST_REQUEST_BYTES = 16 * 1024
RSA_BITS = range(2048, 8192 + 1)
LARGEST_RSA_EXPONENT = 2**32
REQUEST_HASHES = {"sha256", "sha384", "sha512"}

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class RequestError(ValueError):
    """A certificate request that is not signed; the text says why and is fit for the asker."""


class CertificateError(ValueError):
    """A certificate that proves nothing to us; the text says why."""


@dataclass(frozen=True)
class Authority:
    """A certificate and its key, able to sign others."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def sign_node(
        self, request: bytes, node_uuid: UUID, life: timedelta, at: datetime | None = None
    ) -> x509.Certificate:
        """A client certificate for one node. From the request (PEM or DER) only the public key is taken."""
        key = requested_key(request)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"{NODE_URN}{node_uuid}")])
        return self._sign(str(node_uuid), key, names, ExtendedKeyUsageOID.CLIENT_AUTH, life, at)

    def sign_server(
        self,
        key: ec.EllipticCurvePublicKey,
        names: Iterable[str],
        life: timedelta = SERVER_LIFE,
        at: datetime | None = None,
    ) -> x509.Certificate:
        """A server certificate for host names and addresses; the first one is also its common name."""
        ordered = list(dict.fromkeys(names))
        general = x509.SubjectAlternativeName([_general_name(name) for name in ordered])
        return self._sign(ordered[0][:64], key, general, ExtendedKeyUsageOID.SERVER_AUTH, life, at)

    def _sign(
        self,
        common_name: str,
        key: PublicKey,
        names: x509.SubjectAlternativeName,
        purpose: x509.ObjectIdentifier,
        life: timedelta,
        at: datetime | None,
    ) -> x509.Certificate:
        at = at or datetime.now(UTC)
        identifier = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(at - BACKDATED)
            .not_valid_after(at + life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(names, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .sign(self.key, hashes.SHA256())
        )


def create_authority(key: ec.EllipticCurvePrivateKey | None = None, at: datetime | None = None) -> Authority:
    """A new authority. Its name ends in random letters, so that two installations are told apart."""
    key = key or create_key()
    at = at or datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Ops Scaffold CA {secrets.token_hex(4)}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATED)
        .not_valid_after(at + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def create_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def requested_key(request: bytes) -> PublicKey:
    """The key somebody proves to own. Raises RequestError if the proof is wrong or the key is weak."""
    if len(request) > LARGEST_REQUEST_BYTES:
        raise RequestError("the certificate request is too large")
    try:
        is_pem = request.lstrip().startswith(b"-----")
        parsed = x509.load_pem_x509_csr(request) if is_pem else x509.load_der_x509_csr(request)
        key = _strong(parsed.public_key())
        algorithm = parsed.signature_hash_algorithm
        is_proven = parsed.is_signature_valid
    except RequestError:
        raise
    except Exception as error:
        raise RequestError("not a certificate request") from error
    if algorithm is None or algorithm.name not in REQUEST_HASHES:
        raise RequestError("the request is signed with an outdated hash")
    if not is_proven:
        raise RequestError("the request is not signed by its own key")
    return key


def identify_node(
    certificate: bytes | x509.Certificate,
    authority: x509.Certificate,
    at: datetime | None = None,
    *,
    check_dates: bool = True,
) -> UUID:
    """Whose client certificate this is (DER or parsed). Raises CertificateError unless we issued it for a node."""
    parsed = certificate if isinstance(certificate, x509.Certificate) else _parsed(certificate)
    try:
        parsed.verify_directly_issued_by(authority)
    except (InvalidSignature, TypeError, ValueError) as error:
        raise CertificateError("another authority issued it") from error
    at = at or datetime.now(UTC)
    if check_dates and not parsed.not_valid_before_utc <= at <= parsed.not_valid_after_utc:
        raise CertificateError("it is expired or not valid yet")
    try:
        usage = parsed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = list(parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise CertificateError("it was not made for a node") from error
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise CertificateError("it is not made for clients")
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise CertificateError("it does not name exactly one node")
    return _uuid_of(names[0].value)


def fingerprint(certificate: bytes | x509.Certificate) -> str:
    """SHA-256 over the certificate (DER or parsed) as lowercase hex: what is stored, shown and compared."""
    parsed = certificate if isinstance(certificate, x509.Certificate) else _parsed(certificate)
    return parsed.fingerprint(hashes.SHA256()).hex()


def to_pem(thing: x509.Certificate | ec.EllipticCurvePrivateKey) -> bytes:
    if isinstance(thing, x509.Certificate):
        return thing.public_bytes(serialization.Encoding.PEM)
    return thing.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def server_names(certificate: x509.Certificate) -> set[str]:
    """The host names and addresses that a server certificate is valid for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    return addresses | set(names.get_values_for_type(x509.DNSName))


def canonical_name(name: str) -> str:
    """A host name or address as certificates spell it: no brackets, no upper case, ASCII."""
    bare = name.strip().strip("[]").rstrip(".").lower()
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return bare if bare.isascii() else bare.encode("idna").decode()


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _strong(key: object) -> PublicKey:
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    if isinstance(key, rsa.RSAPublicKey):
        is_usual = key.key_size in RSA_BITS and 65537 <= key.public_numbers().e <= LARGEST_RSA_EXPONENT
        if is_usual:
            return key
    raise RequestError("the key must be EC P-256 or RSA with 2048 to 8192 bits")


def _parsed(certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(certificate)
    except ValueError as error:
        raise CertificateError("it is not a certificate") from error


def _uuid_of(name: str) -> UUID:
    text = name.removeprefix(NODE_URN)
    try:
        found = UUID(text)
    except ValueError as error:
        raise CertificateError("it does not name a node") from error
    if name != f"{NODE_URN}{found}":
        raise CertificateError("it does not name a node")
    return found


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )
