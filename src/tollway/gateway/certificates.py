"""Verification of client certificates at a gateway. No I/O: what organizations trust is in the snapshot.

The handshake of TLS has verified that the client has the private key, or a trusted proxy has. Which organization a certificate is for
follows from the request, never from the certificate: two organizations may trust the same authority, and certificates of authorities are
public, so that anybody can upload them.
"""

import hashlib
from collections.abc import Iterable

from tollway.domain.snapshot import CertificateEntry
from tollway.gateway.tokens import VerifiedToken
from tollway.wire.client_certificates import CertificateInvalid, ReadCertificate, is_issued_by, read_der


class TrustedCertificates:
    """The certificates that one version of the snapshot trusts. They are read when an organization first needs them."""

    def __init__(self, entries: Iterable[CertificateEntry]) -> None:
        self._by_organization: dict[str, list[CertificateEntry]] = {}
        for entry in entries:
            self._by_organization.setdefault(entry.organization_id, []).append(entry)
        self._read: dict[str, ReadCertificate] = {}

    def verify(self, organization_id: str, der: bytes, now_us: int) -> VerifiedToken:
        """Return what a certificate stands for in an organization. Raises CertificateInvalid."""
        certificate = read_der(der)
        if not certificate.is_for_clients:
            raise CertificateInvalid("it is not one of clients")
        for entry in self._by_organization.get(organization_id, ()):
            trusted = self._find_trusted(entry)
            begins, ends = max(certificate.valid_from, trusted.valid_from), min(certificate.expires_at, trusted.expires_at)
            if not begins <= now_us < ends or not is_issued_by(certificate, trusted):
                continue
            for rule in entry.rules:
                if rule.matches(certificate.names):
                    return VerifiedToken(rule.key_id, ends)
        raise CertificateInvalid("no active certificate of the organization vouches for it")

    def _find_trusted(self, entry: CertificateEntry) -> ReadCertificate:
        trusted = self._read.get(entry.id)
        if trusted is None:
            trusted = self._read[entry.id] = read_der(entry.certificate)
        return trusted


def digest_certificate(organization_id: bytes, der: bytes) -> bytes:
    """Return the digest by which a verified certificate is found again, in the organization that a request names."""
    return hashlib.sha256(b"client certificate\0" + organization_id + b"\0" + der).digest()
