"""Client certificates: which of an organization are trusted, and for which service account a program with one stands.

An organization uploads the certificate of an authority of its own, or that of one program. A rule says for which service account a
certificate stands that the authority issued, by what is written in it. Each rule has an API key of its own, as rules of identity providers
have, so that limits, budgets, usage and revocation are those of a key.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec

CERTIFICATES_MAX = 50
"""Certificates of one organization, as many as OpenAI allows."""

RULES_MAX = 100
"""Rules of one certificate."""

CHANGED_MAX = 10
"""Certificates that one request activates or deactivates, as OpenAI has it."""

MATCHERS_MAX = 6

PEM_CHARACTERS_MAX = 16_384
"""Longest certificate that is uploaded; one with an RSA key of 4096 bits has 2,000."""


class CertificateName(StrEnum):
    """Parts of a certificate by which a rule recognizes it."""

    FINGERPRINT = "fingerprint"  # SHA-256 of the whole certificate, in hexadecimal
    SUBJECT = "subject"  # distinguished name (RFC 4514)
    COMMON_NAME = "common_name"
    DNS = "dns"
    URI = "uri"
    EMAIL = "email"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificate:
    """A certificate that an organization trusts where it is active. `fingerprint`: SHA-256 in hexadecimal. `is_authority`: it is that of an
    authority, and issues others. `is_active`: in the whole organization; otherwise in the projects of `project_ids`. Instants are UTC
    microseconds; `expires_at` is exclusive."""

    id: str
    organization_id: str
    name: str | None
    content: str
    fingerprint: str
    is_authority: bool
    valid_from: int
    expires_at: int
    is_active: bool
    project_ids: frozenset[str]
    created_at: int

    def is_active_in(self, project_id: str) -> bool:
        """Return whether it is trusted in a project."""
        return self.is_active or project_id in self.project_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRule:
    """A rule of a certificate. `matchers`: what a certificate must say, by `CertificateName`."""

    id: str
    certificate_id: str
    project_id: str
    service_account_id: str
    key_id: str
    name: str | None
    matchers: Mapping[str, str]
    created_at: int


class CertificateMapping(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rule as gateways know it: a certificate that meets all `matchers` stands for the key `key_id`."""

    key_id: str
    matchers: dict[str, str] = {}

    def matches(self, names: Mapping[str, tuple[str, ...]]) -> bool:
        """Return whether the names in a certificate, by kind, meet every matcher."""
        return all(_meets(kind, wanted, names.get(kind, ())) for kind, wanted in self.matchers.items())


_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def find_matchers_error(matchers: Mapping[str, str], *, is_authority: bool) -> str | None:
    """Return why matchers cannot be those of a rule, in words that follow a colon; None if they can."""
    if is_authority and not matchers:
        return "a rule of an authority must say which of its certificates it is for"
    if not set(matchers) <= set(CertificateName):
        return f"a certificate is recognized by {', '.join(CertificateName)}"
    if any(not 1 <= len(value) <= 512 or not value.isprintable() for value in matchers.values()):
        return "a value has 1 to 512 printable characters"
    fingerprint = matchers.get(CertificateName.FINGERPRINT)
    if fingerprint is not None and _FINGERPRINT.fullmatch(fingerprint) is None:
        return "a fingerprint is a SHA-256 of 64 hexadecimal digits in lower case"
    prefix = matchers.get(CertificateName.URI, "")
    if prefix.endswith("*") and (prefix.count("/") < 3 or not prefix.endswith("/*")):
        return "the prefix of a URI ends in /* and names a host at least"
    return None


def _meets(kind: str, wanted: str, values: tuple[str, ...]) -> bool:
    """Return whether one of the values is the one that is wanted; a URI may begin with what stands before a final asterisk. Host names are
    compared without case (RFC 4343)."""
    if kind == CertificateName.URI and wanted.endswith("*"):
        return any(value.startswith(wanted[:-1]) for value in values)
    if kind == CertificateName.DNS:
        return wanted.lower() in {value.lower() for value in values}
    return wanted in values
