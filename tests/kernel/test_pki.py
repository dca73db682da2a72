"""Our certificate authority: what it signs, what it refuses to sign, and whom it recognises."""

import contextlib
import datetime as dt
import ssl
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from app.kernel import pki

NODE = UUID("11111111-2222-4333-8444-555555555555")
YEAR = dt.timedelta(days=365)
NOW = dt.datetime(2026, 5, 4, 12, tzinfo=dt.UTC)
SHA256 = hashes.SHA256()


@pytest.fixture(scope="module")
def authority() -> pki.Authority:
    return pki.create_authority(at=NOW)


def request(key=None, name="web-1", extensions=(), algorithm=SHA256) -> bytes:
    key = key or pki.create_key()
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def extension(certificate: x509.Certificate, kind):
    return certificate.extensions.get_extension_for_class(kind).value


def test_a_node_gets_a_client_certificate_that_names_it_and_nothing_else(authority):
    key = pki.create_key()
    certificate = authority.sign_node(request(key), NODE, YEAR, at=NOW)

    names = list(extension(certificate, x509.SubjectAlternativeName))
    assert [name.value for name in names] == [f"urn:ops:node:{NODE}"]
    assert list(extension(certificate, x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert extension(certificate, x509.BasicConstraints).ca is False
    assert certificate.public_key() == key.public_key()
    assert certificate.not_valid_before_utc == NOW - dt.timedelta(days=1)
    assert certificate.not_valid_after_utc == NOW + YEAR


def test_what_a_request_asks_for_beyond_its_key_is_ignored(authority):
    greedy = request(
        name="*",
        extensions=[
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier(f"urn:ops:node:{uuid4()}"), x509.DNSName("gateway.example")]
            ),
            x509.BasicConstraints(ca=True, path_length=None),
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        ],
    )
    certificate = authority.sign_node(greedy, NODE, YEAR, at=NOW)

    assert pki.identify_node(certificate, authority.certificate, NOW) == NODE
    assert extension(certificate, x509.BasicConstraints).ca is False
    assert list(extension(certificate, x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.subject.rfc4514_string() == f"CN={NODE}"


@pytest.mark.parametrize("bits", [2048, 3072])
def test_rsa_keys_of_usual_size_are_signed(authority, bits):
    key = rsa.generate_private_key(65537, bits)
    assert authority.sign_node(request(key), NODE, YEAR).public_key() == key.public_key()


def test_a_request_may_come_as_der(authority):
    der = x509.load_pem_x509_csr(request()).public_bytes(serialization.Encoding.DER)
    assert authority.sign_node(der, NODE, YEAR)


@pytest.mark.parametrize(
    "make_key",
    [
        lambda: rsa.generate_private_key(65537, 1024),
        lambda: rsa.generate_private_key(3, 2048),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: ec.generate_private_key(ec.SECP256K1()),
        lambda: dsa.generate_private_key(2048),
    ],
    ids=["rsa-1024", "rsa-exponent-3", "p-384", "secp256k1", "dsa"],
)
def test_weak_and_unusual_keys_are_refused(authority, make_key):
    with pytest.raises(pki.RequestError, match="key must be"):
        authority.sign_node(request(make_key()), NODE, YEAR)


def test_a_key_that_signs_without_a_hash_of_its_own_is_refused(authority):
    with pytest.raises(pki.RequestError, match="key must be"):
        authority.sign_node(request(ed25519.Ed25519PrivateKey.generate(), algorithm=None), NODE, YEAR)


def test_somebody_elses_key_is_refused(authority):
    """Whoever shows a public key must own it: here its signature was tampered with."""
    der = bytearray(x509.load_pem_x509_csr(request()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    with pytest.raises(pki.RequestError):
        authority.sign_node(bytes(der), NODE, YEAR)


def test_a_changed_name_breaks_the_signature(authority):
    der = x509.load_pem_x509_csr(request(name="web-1")).public_bytes(serialization.Encoding.DER)
    with pytest.raises(pki.RequestError, match="not signed by its own key"):
        authority.sign_node(der.replace(b"web-1", b"web-2"), NODE, YEAR)


def test_an_outdated_hash_is_refused(authority, monkeypatch):
    monkeypatch.setattr(pki, "REQUEST_HASHES", {"sha512"})
    with pytest.raises(pki.RequestError, match="outdated hash"):
        authority.sign_node(request(algorithm=hashes.SHA256()), NODE, YEAR)


@pytest.mark.parametrize("nonsense", [b"", b"-----BEGIN CERTIFICATE REQUEST-----", b"\x30\x82", b"x" * 20_000])
def test_nonsense_is_refused(authority, nonsense):
    with pytest.raises(pki.RequestError):
        authority.sign_node(nonsense, NODE, YEAR)


def test_an_authority_may_sign_certificates_but_no_further_authorities(authority):
    certificate = authority.certificate
    assert extension(certificate, x509.BasicConstraints) == x509.BasicConstraints(ca=True, path_length=0)
    assert extension(certificate, x509.KeyUsage).key_cert_sign
    assert certificate.not_valid_after_utc - NOW == dt.timedelta(days=365 * 20)
    certificate.verify_directly_issued_by(certificate)


def test_two_authorities_have_different_names():
    assert pki.create_authority().certificate.subject != pki.create_authority().certificate.subject


def test_a_server_certificate_carries_names_and_addresses(authority):
    key = pki.create_key()
    certificate = authority.sign_server(key.public_key(), ["ops.example", "10.0.0.1", "::1", "ops.example"], at=NOW)

    assert pki.server_names(certificate) == {"ops.example", "10.0.0.1", "::1"}
    assert list(extension(certificate, x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.SERVER_AUTH]
    certificate.verify_directly_issued_by(authority.certificate)


def test_openssl_accepts_both_kinds(authority, tmp_path):
    """Ours may believe in our certificates; what counts is that the library of every client does."""
    now = dt.datetime.now(dt.UTC)
    key = pki.create_key()
    server = authority.sign_server(key.public_key(), ["localhost"], at=now)
    client_key = pki.create_key()
    client = authority.sign_node(request(client_key), NODE, YEAR, at=now)
    (tmp_path / "server").write_bytes(pki.to_pem(key) + pki.to_pem(server))
    (tmp_path / "client").write_bytes(pki.to_pem(client_key) + pki.to_pem(client))
    trusted = pki.to_pem(authority.certificate).decode()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=trusted)
    context.load_cert_chain(tmp_path / "server")
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.verify_flags |= ssl.VERIFY_X509_STRICT
    ours.load_verify_locations(cadata=trusted)
    ours.load_cert_chain(tmp_path / "client")

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = context.wrap_bio(to_server, to_client, server_side=True)
    here = ours.wrap_bio(to_client, to_server, server_hostname="localhost")
    for _ in range(4):
        for side in (here, there):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    assert pki.identify_node(there.getpeercert(True), authority.certificate) == NODE


def test_a_certificate_of_another_authority_proves_nothing(authority):
    stranger = pki.create_authority(at=NOW).sign_node(request(), NODE, YEAR, at=NOW)
    with pytest.raises(pki.CertificateError, match="another authority"):
        pki.identify_node(stranger, authority.certificate, NOW)


def test_another_authority_of_the_same_name_proves_nothing(authority):
    """The name is copied, the key is not."""
    forger = pki.Authority(authority.certificate, pki.create_key())
    with pytest.raises(pki.CertificateError, match="another authority"):
        pki.identify_node(forger.sign_node(request(), NODE, YEAR, at=NOW), authority.certificate, NOW)


@pytest.mark.parametrize("at", [NOW - dt.timedelta(days=2), NOW + YEAR + dt.timedelta(minutes=1)])
def test_dates_count_unless_told_otherwise(authority, at):
    certificate = authority.sign_node(request(), NODE, YEAR, at=NOW)
    with pytest.raises(pki.CertificateError, match="expired"):
        pki.identify_node(certificate, authority.certificate, at)
    assert pki.identify_node(certificate, authority.certificate, at, check_dates=False) == NODE


def test_a_server_certificate_is_no_node(authority):
    certificate = authority.sign_server(pki.create_key().public_key(), ["web-1"], at=NOW)
    with pytest.raises(pki.CertificateError, match="not made for clients"):
        pki.identify_node(certificate, authority.certificate, NOW)


def test_the_authority_itself_is_no_node(authority):
    with pytest.raises(pki.CertificateError, match="not made for a node"):
        pki.identify_node(authority.certificate, authority.certificate, NOW)


def named(*names: x509.GeneralName) -> Callable[[pki.Authority], x509.Certificate]:
    def sign(authority: pki.Authority) -> x509.Certificate:
        alternative = x509.SubjectAlternativeName(names)
        key = pki.create_key().public_key()
        return authority._sign("x", key, alternative, ExtendedKeyUsageOID.CLIENT_AUTH, YEAR, NOW)

    return sign


URI = x509.UniformResourceIdentifier


@pytest.mark.parametrize(
    "sign",
    [
        named(URI(f"urn:ops:node:{NODE}"), URI(f"urn:ops:node:{uuid4()}")),
        named(URI(f"urn:ops:node:{NODE}"), x509.DNSName("web-1")),
        named(x509.DNSName(f"urn:ops:node:{NODE}")),
        named(URI("urn:ops:node:")),
        named(URI(f"urn:ops:user:{NODE}")),
        named(URI(f"urn:ops:node:{str(NODE).upper()}/../x")),
        named(URI(f"urn:ops:node:{{{NODE}}}")),
        named(URI(f"urn:ops:node:{NODE.hex}")),
    ],
    ids=["two", "and-a-host", "as-a-host", "none", "user", "suffix", "braces", "undashed"],
)
def test_exactly_one_node_must_be_named_exactly(authority, sign):
    with pytest.raises(pki.CertificateError):
        pki.identify_node(sign(authority), authority.certificate, NOW)


def test_nonsense_is_no_certificate(authority):
    with pytest.raises(pki.CertificateError, match="not a certificate"):
        pki.identify_node(b"\x00" * 20, authority.certificate)


def test_fingerprints_are_what_openssl_prints_without_colons(authority):
    der = authority.certificate.public_bytes(serialization.Encoding.DER)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    assert pki.fingerprint(der) == pki.fingerprint(authority.certificate) == digest.finalize().hex()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Ops.Example.", "ops.example"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("192.0.2.1", "192.0.2.1"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_names_are_compared_as_certificates_spell_them(given, expected):
    assert pki.canonical_name(given) == expected
