"""X.509 certificates of clients (RFC 5280), read and verified; and the headers in which a TLS proxy hands them on (RFC 9440, Envoy).

A client's certificate is accepted if it is the trusted one itself, or was issued by it directly: whoever has authorities in between uploads
the last of them. What this module raises holds no part of a certificate.
"""

import binascii
import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import unquote_to_bytes

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CERTIFICATE_BYTES_MAX = 16_384
"""Longest certificate that is read, in DER."""

RSA_BITS_MIN, RSA_BITS_MAX = 2048, 8192
"""Sizes of RSA keys, as those of access tokens."""

_WEAK = frozenset({"md5", "sha1", "sha224"})
"""Digests of signatures that are refused (RFC 9155)."""


class CertificateInvalid(ValueError):
    """A certificate that is refused. Its text says why, in words that follow a colon."""


class ReadCertificate(msgspec.Struct, frozen=True):
    """A certificate. `names`: what it says of its subject, by `domain.certificates.CertificateName`. Instants are UTC microseconds;
    `expires_at` is exclusive."""

    der: bytes
    fingerprint: str
    names: dict[str, tuple[str, ...]]
    is_authority: bool
    is_for_clients: bool
    valid_from: int
    expires_at: int
    parsed: object


def read_pem(text: str) -> ReadCertificate:
    """Return the one certificate of a text. Raises CertificateInvalid."""
    try:
        found = x509.load_pem_x509_certificates(text.encode("ascii"))
    except ValueError:
        raise CertificateInvalid("it is no certificate in PEM") from None
    if len(found) != 1 or "PRIVATE KEY" in text:
        raise CertificateInvalid("it must be one certificate, and nothing else")
    return read_der(found[0].public_bytes(Encoding.DER))


def read_der(der: bytes) -> ReadCertificate:
    """Return a certificate. Raises CertificateInvalid for one that cannot be read, or whose key or signature is weak."""
    if len(der) > CERTIFICATE_BYTES_MAX:
        raise CertificateInvalid("it is too long")
    try:
        parsed = x509.load_der_x509_certificate(der)
        key = parsed.public_key()
        digest = parsed.signature_hash_algorithm
        names = _read_names(parsed)
        is_authority, is_for_clients = _read_uses(parsed)
        valid_from, expires_at = _instant(parsed.not_valid_before_utc), _instant(parsed.not_valid_after_utc) + 1_000_000
    except (ValueError, TypeError, OverflowError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise CertificateInvalid("it cannot be read") from None
    except Exception as error:  # of the library, for algorithms that it does not know
        raise CertificateInvalid("its key or its signature is of an unknown kind") from error
    if isinstance(key, rsa.RSAPublicKey):
        is_strong = RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX
    else:
        is_strong = isinstance(key, ed25519.Ed25519PublicKey) or (isinstance(key, ec.EllipticCurvePublicKey) and key.key_size >= 256)
    if not is_strong or (digest is not None and digest.name in _WEAK):
        raise CertificateInvalid("its key or its signature is too weak")
    fingerprint = hashlib.sha256(der).hexdigest()
    names["fingerprint"] = (fingerprint,)
    return ReadCertificate(der, fingerprint, names, is_authority, is_for_clients, valid_from, expires_at, parsed)


def is_issued_by(certificate: ReadCertificate, trusted: ReadCertificate) -> bool:
    """Return whether a certificate is the trusted one itself, or was issued by it."""
    if certificate.der == trusted.der:
        return True
    if not trusted.is_authority or not isinstance(certificate.parsed, x509.Certificate) or not isinstance(trusted.parsed, x509.Certificate):
        return False
    try:
        certificate.parsed.verify_directly_issued_by(trusted.parsed)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _read_names(parsed: x509.Certificate) -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {"subject": (parsed.subject.rfc4514_string(),)}
    names["common_name"] = tuple(str(each.value) for each in parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    try:
        alternatives = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return names
    names["dns"] = tuple(alternatives.get_values_for_type(x509.DNSName))
    names["uri"] = tuple(alternatives.get_values_for_type(x509.UniformResourceIdentifier))
    names["email"] = tuple(alternatives.get_values_for_type(x509.RFC822Name))
    return names


def _read_uses(parsed: x509.Certificate) -> tuple[bool, bool]:
    """Return whether a certificate is that of an authority, and whether it is for clients. Without the extension it is for everything."""
    is_authority, is_for_clients = False, True
    for extension in parsed.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints):
            is_authority = value.ca
        elif isinstance(value, x509.ExtendedKeyUsage):
            is_for_clients = ExtendedKeyUsageOID.CLIENT_AUTH in value or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in value
        elif isinstance(value, x509.KeyUsage) and not value.key_cert_sign:
            is_authority = False
    return is_authority, is_for_clients


def _instant(at: datetime) -> int:
    return int(at.astimezone(UTC).timestamp()) * 1_000_000


# ---- Headers of proxies -------------------------------------------------------------------------------------------------

CLIENT_CERT = b"client-cert"
FORWARDED_CLIENT_CERT = b"x-forwarded-client-cert"

_ELEMENT = re.compile(rb'(?:by=[^;,"]*;)*(?:hash=[0-9a-f]*;)?cert="([^"]*)"(?:;.*)?', re.IGNORECASE | re.DOTALL)
"""An element of `x-forwarded-client-cert` as far as `Cert`. What Envoy writes before it is of itself; behind it come the subject and the
names of the certificate, which its issuer chose freely, and of which Envoy neither quotes nor encodes the URIs."""


def find_forwarded(headers: Mapping[bytes, bytes], name: bytes) -> bytes:
    """Return the certificate (DER) that a trusted proxy has put into the header `name`; empty without one, or if the header is not what it
    should be.

    `client-cert` is the DER in base64 between colons (RFC 9440, section 2.1). `x-forwarded-client-cert` is one element, whose `Cert` is a
    PEM in percent encoding (Envoy's documentation of HTTP headers). A header with more than one is refused, wherever the second one
    stands: a name in a certificate can look like an element of another proxy, or like a quote that hides one."""
    value = headers.get(name, b"").strip()
    try:
        if name == CLIENT_CERT:
            is_binary = len(value) > 2 and value.startswith(b":") and value.endswith(b":")
            return binascii.a2b_base64(value[1:-1], strict_mode=True) if is_binary else b""
        lowered = value.lower()
        found = _ELEMENT.fullmatch(value) if lowered.count(b"cert=") == 1 and lowered.count(b"hash=") <= 1 else None
        if found is None:
            return b""
        return x509.load_pem_x509_certificate(unquote_to_bytes(found[1])).public_bytes(Encoding.DER)
    except ValueError:
        return b""
