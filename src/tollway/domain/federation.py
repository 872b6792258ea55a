"""Identity providers of an organization, and the rules by which their tokens stand for its service accounts."""

from collections.abc import Mapping
from dataclasses import dataclass

from tollway.domain.catalog import Endpoint
from tollway.domain.tokens import Jwk, Scalar

KEYS_MAX = 50
"""Keys of one issuer that are kept. Large providers publish fewer than ten."""

KEY_BYTES_MAX = 4096
"""Public members of one key as JSON, in bytes. An RSA key of 8192 bits has 1500."""

PROVIDERS_MAX = 20
"""Identity providers of one organization whose tokens stand for service accounts."""

CONNECTIONS_MAX = 20
"""Identity providers of one organization with which its people sign in."""

RULES_MAX = 100
"""Rules of one identity provider: each verification may try all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityProvider:
    """An issuer of tokens (OpenID Connect) that an organization trusts. `audience`: what tokens must be meant for. `keys`: its public keys,
    as they were uploaded (`is_uploaded`) or fetched at `fetched_at`. `discovery_url`: where its metadata is, None for the usual place below
    the issuer. `is_direct`: gateways accept its tokens without an exchange. `is_single_use`: an assertion with an id (`jti`) is exchanged
    once. Instants are UTC microseconds."""

    id: str
    organization_id: str
    name: str
    description: str | None
    issuer: str
    audience: str
    discovery_url: str | None
    is_uploaded: bool
    keys: tuple[Jwk, ...]
    fetched_at: int | None
    is_enabled: bool
    is_direct: bool
    is_single_use: bool
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRule:
    """A rule of an identity provider: tokens whose claims meet `matchers` stand for the key `key_id` of a service account. The key was made
    for the rule, and nobody knows its secret. `endpoints`: those that it is restricted to; None for all."""

    id: str
    provider_id: str
    project_id: str
    service_account_id: str
    key_id: str
    name: str | None
    description: str | None
    matchers: Mapping[str, Scalar]
    endpoints: tuple[Endpoint, ...] | None
    is_enabled: bool
    created_at: int
    updated_at: int
