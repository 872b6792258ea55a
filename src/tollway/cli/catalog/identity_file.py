"""Parts of the platform file about identity: groups and their roles, identity providers, their rules, and directories.

Their values are checked here as the API checks them, so that a mistake is found before anything is changed (a test compares the
bounds)."""

import re
import unicodedata
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from tollway.control.identity import issuer_keys
from tollway.domain.catalog import Endpoint
from tollway.domain.federation import CONNECTIONS_MAX, PROVIDERS_MAX, RULES_MAX
from tollway.domain.tokens import Scalar, find_matcher_error


class SignInConnectionFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An identity provider with which the people of an organization sign in, by its name or id. Its issuer is fixed when it is created.
    `client_secret`: ${VARIABLE} or file:PATH, never the secret itself; null for a public client. `role`: the role with which people join.
    `groups`: the group, by its name or id, that a group of the provider stands for."""

    issuer: str
    client_id: str
    client_secret: str | UnsetType | None = UNSET
    trusts_addresses: bool | UnsetType = UNSET
    domains: list[str] | UnsetType = UNSET
    role: str | UnsetType | None = UNSET
    groups_claim: str | UnsetType = UNSET
    groups: dict[str, str] | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class FederationRuleFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A rule of an identity provider, by its name or id: tokens with these claims stand for a service account that exists, by its name or
    id in its project, which are fixed when the rule is created. `endpoints`: those that tokens may call; null for all."""

    project: str
    service_account: str
    claims: dict[str, Scalar]
    endpoints: list[Endpoint] | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET


class IdentityProviderFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An issuer whose tokens stand for service accounts, by its name or id. Its keys are fetched, from the metadata at `discovery_url`
    (null for the usual address), or are those of `jwks`, a JSON Web Key Set of public keys."""

    issuer: str
    audience: str
    description: str | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET
    is_direct: bool | UnsetType = UNSET
    is_single_use: bool | UnsetType = UNSET
    discovery_url: str | UnsetType | None = UNSET
    jwks: dict[str, Any] | UnsetType = UNSET
    rules: dict[str, FederationRuleFile] | UnsetType = UNSET


class GroupFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A group of people, by its name or id. A directory takes over the group of its name. `roles`: all that it holds in the
    organization."""

    roles: list[str] | UnsetType = UNSET


class DirectoryFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A directory that provisions people and groups by SCIM, by the name or id of its token, which must exist: its secret is shown to
    whoever makes it, never to a pipeline."""


IdentityFile = SignInConnectionFile | FederationRuleFile | IdentityProviderFile | GroupFile | DirectoryFile

_TEXT_CHARACTERS_MAX = 2048
_CLIENT_ID_CHARACTERS_MAX = 512
_TEXT = re.compile(r"[\x21-\x7e]+")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9-]+(\.[a-z0-9-]+)+")
_REFERENCE = re.compile(r"\$\{[^{}]+\}|file:.+")
_NAME_CHARACTERS_MAX = 256
_DESCRIPTION_CHARACTERS_MAX = 1024
_CLAIM_CHARACTERS_MAX = 512
_DOMAINS_MAX = 20
_GROUPS_MAX = 100
_ENDPOINTS_MAX = 50

COUNTS_MAX = {"sign-in connection": CONNECTIONS_MAX, "identity provider": PROVIDERS_MAX, "federation rule": RULES_MAX}
"""Most of each kind in one organization, or of rules in one identity provider."""


def check(parsed: IdentityFile) -> None:
    """Raise ValueError for a value that the API would refuse."""
    match parsed:
        case SignInConnectionFile():
            _check_connection(parsed)
        case IdentityProviderFile():
            _check_provider(parsed)
        case FederationRuleFile():
            _check_rule(parsed)
        case GroupFile() if parsed.roles is not UNSET:
            for role in parsed.roles:
                _check_name("role", role)


def check_names(kind: str, names: "dict[str, Any] | UnsetType") -> None:
    """Raise ValueError for a name of something of `kind` that the API would refuse, or for more of them than there may be."""
    stated = {} if names is UNSET else names
    for name in stated:
        _check_name(f"the name of a {kind}", name)
    if kind in COUNTS_MAX and len(stated) > COUNTS_MAX[kind]:
        raise ValueError(f"there may be at most {COUNTS_MAX[kind]} of the kind {kind}, not {len(stated)}")


def _check_connection(parsed: SignInConnectionFile) -> None:
    _check_text("issuer", parsed.issuer)
    _check_text("client_id", parsed.client_id, _CLIENT_ID_CHARACTERS_MAX)
    if isinstance(parsed.client_secret, str) and not _REFERENCE.fullmatch(parsed.client_secret):
        raise ValueError("client_secret must not stand in the file: write ${VARIABLE} or file:PATH")
    domains = [] if parsed.domains is UNSET else parsed.domains
    wrong = next((each for each in domains if not _DOMAIN.fullmatch(each)), None)
    if wrong is not None:
        raise ValueError(f"domains {wrong!r}: a domain is such as example.com, in small letters")
    if len(domains) > _DOMAINS_MAX:
        raise ValueError(f"there may be at most {_DOMAINS_MAX} domains, not {len(domains)}")
    if isinstance(parsed.role, str):
        _check_name("role", parsed.role)
    if parsed.groups_claim is not UNSET:
        _check_length("groups_claim", parsed.groups_claim, _NAME_CHARACTERS_MAX)
    groups = {} if parsed.groups is UNSET else parsed.groups
    for name in groups:
        _check_length("a group of the provider", name, _NAME_CHARACTERS_MAX)
    if len(groups) > _GROUPS_MAX:
        raise ValueError(f"there may be at most {_GROUPS_MAX} groups, not {len(groups)}")


def _check_provider(parsed: IdentityProviderFile) -> None:
    _check_text("issuer", parsed.issuer)
    _check_text("audience", parsed.audience)
    _check_description(parsed.description)
    if parsed.jwks is not UNSET and parsed.discovery_url is not UNSET:
        raise ValueError("keys are uploaded by jwks or fetched by discovery_url, not both")
    if parsed.jwks is not UNSET:
        try:
            issuer_keys.read_keys(parsed.jwks)
        except ValueError as error:
            raise ValueError(f"jwks: {error}") from None
    if isinstance(parsed.discovery_url, str):
        _check_text("discovery_url", parsed.discovery_url)
        check_address("discovery_url", parsed.discovery_url)
    check_names("federation rule", parsed.rules)


def _check_rule(parsed: FederationRuleFile) -> None:
    error = find_matcher_error(parsed.claims)
    if error is not None:
        raise ValueError(f"claims: {error}")
    for name, value in parsed.claims.items():
        if isinstance(value, str):
            _check_length(f"claims.{name}", value, _CLAIM_CHARACTERS_MAX)
            _check_printable(f"claims.{name}", value)
    if parsed.endpoints is not UNSET and parsed.endpoints is not None and not 1 <= len(parsed.endpoints) <= _ENDPOINTS_MAX:
        raise ValueError("endpoints must not be empty; null allows all")
    _check_description(parsed.description)


def check_address(field: str, url: str) -> None:
    """Raise ValueError for an address from which control never fetches keys."""
    error = issuer_keys.find_address_error(url)
    if error is not None:
        raise ValueError(f"{field} {url!r}: {error}")


def list_keys(jwks: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the members of the keys of a set that are kept, in the order of their ids: what is compared."""
    return sorted((msgspec.to_builtins(each) for each in issuer_keys.read_keys(jwks)), key=lambda each: str(each.get("kid", "")))


def _check_description(text: str | UnsetType | None) -> None:
    if isinstance(text, str) and text:
        _check_length("description", text, _DESCRIPTION_CHARACTERS_MAX)
        _check_printable("description", text)


def _check_name(field: str, text: str) -> None:
    _check_length(field, text, _NAME_CHARACTERS_MAX)
    _check_printable(field, text)


def _check_text(field: str, text: str, most: int = _TEXT_CHARACTERS_MAX) -> None:
    _check_length(field, text, most)
    if not _TEXT.fullmatch(text):
        raise ValueError(f"{field}: it must be printable ASCII without spaces")


def _check_length(field: str, text: str, most: int) -> None:
    if not 1 <= len(text) <= most:
        raise ValueError(f"{field} has 1 to {most} characters")


def _check_printable(field: str, text: str) -> None:
    if any(unicodedata.category(character) in {"Cc", "Cs", "Co", "Cn"} for character in text) or not text.strip():
        raise ValueError(f"{field} must be readable text")
