"""The token endpoint (OAuth 2.0, RFC 6749): short access tokens in exchange for something that proves who asks.

A token stands for one API key (`domain.tokens`) and is signed by control; gateways verify it without asking. Errors have the words of RFC
6749, section 5.2. What was presented is never repeated in them.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_plus

import msgspec

from tollway.control import publish
from tollway.control.authentication import device_login, federation
from tollway.control.authentication.oauth import ExchangeRefused, IssuedToken, Parameters
from tollway.control.identity import access
from tollway.control.plane import ControlPlane
from tollway.control.secrets import signing_keys
from tollway.control.secrets.signing_keys import Signer
from tollway.domain import ids
from tollway.domain.faults import DATABASE_UNAVAILABLE, KEY_INVALID, RESOURCE_UNKNOWN, Fault
from tollway.domain.federation import IdentityProvider, ProviderRule
from tollway.domain.keys import KeyType
from tollway.domain.tokens import (
    AUDIENCE,
    FOREIGN_LIFETIME_SECONDS_MAX,
    LIFETIME_SECONDS,
    TOKEN_TYPE,
    FederationRule,
    TokenInvalid,
    check_claims,
)
from tollway.storage import federation as stored_federation
from tollway.storage import tokens as storage
from tollway.storage.tokens import RepresentedKey
from tollway.wire.json_web_tokens import encode_part, load_key, read_token, verify

CLIENT_CREDENTIALS = "client_credentials"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"

PLAYGROUND = "playground"
"""Stand-in for a grant type in the log, where a person sends a request from the console."""

SUBJECT_TOKEN_TYPES = ("urn:ietf:params:oauth:token-type:jwt", "urn:ietf:params:oauth:token-type:id_token")
ISSUED_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"


@dataclass(frozen=True, slots=True)
class Proven:
    """Result of a grant: the key that the token will stand for, its end at the latest (`ends_at`, UTC microseconds; None: no bound of its
    own), and fields for the log."""

    key: RepresentedKey
    ends_at: int | None
    log_fields: Mapping[str, str]


def exchange(plane: ControlPlane, parameters: Parameters, authorization: str | None) -> IssuedToken:
    """Return a token for a request with these parameters. `authorization`: the header of that name. Raises ExchangeRefused; Fault
    DATABASE_UNAVAILABLE."""
    grant_type = parameters.get("grant_type")
    if grant_type is None:
        raise ExchangeRefused("invalid_request", "The parameter grant_type is missing.")
    for_people = device_login.GRANTS.get(grant_type)
    if for_people is not None:
        return for_people(plane, parameters)
    prove = _GRANTS.get(grant_type)
    if prove is None:
        raise ExchangeRefused("unsupported_grant_type", f"The supported grant types are {', '.join(GRANT_TYPES)}.")
    proven = prove(plane, parameters, authorization)
    return _issue(plane, grant_type, proven)


# ---- Client credentials -------------------------------------------------------------------------------------------------


def _prove_client(plane: ControlPlane, parameters: Parameters, authorization: str | None) -> Proven:
    """RFC 6749, section 4.4: the secret is an API key, the client its service account, or the key itself."""
    client_id, secret = _read_client(parameters, authorization)
    try:
        found = access.identify(plane.database, plane.peppers, plane.pepper_version, secret.encode(), plane.now())
    except Fault as fault:
        if fault.kind is not KEY_INVALID:
            raise
        raise _refuse_client() from None
    if found.type not in (KeyType.LIVE, KeyType.TEST) or found.organization_id is None:
        raise _refuse_client()
    with plane.database.tenant(found.organization_id, write=False) as tx:
        key = storage.find_represented_key(tx, found.id, plane.now())
    if key is None or client_id not in (key.service_account_id, key.id):
        raise _refuse_client()
    return Proven(key, key.expires_at, {})


def _read_client(parameters: Parameters, authorization: str | None) -> tuple[str, str]:
    """Return the id and the secret of a client, by the header or by parameters, and not by both (RFC 6749, section 2.3)."""
    in_body = parameters.get("client_id"), parameters.get("client_secret")
    if authorization is None:
        if in_body[0] is None or in_body[1] is None:
            raise _refuse_client()
        return in_body[0], in_body[1]
    scheme, _, encoded = authorization.partition(" ")
    if in_body[1] is not None:
        raise ExchangeRefused("invalid_request", "Send the client's secret in the header or in the body, and not in both.")
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode("ascii") if scheme.lower() == "basic" else ""
    except (binascii.Error, ValueError):
        raise _refuse_client() from None
    client_id, colon, secret = text.partition(":")
    if not colon:
        raise _refuse_client()
    return unquote_plus(client_id), unquote_plus(secret)


def _refuse_client() -> ExchangeRefused:
    return ExchangeRefused(
        "invalid_client",
        "The client is not known: client_id is the id of a service account, client_secret one of its API keys.",
        status=401,
    )


# ---- Assertions of other issuers ----------------------------------------------------------------------------------------


def _prove_exchanged(plane: ControlPlane, parameters: Parameters, _authorization: str | None) -> Proven:
    """RFC 8693, section 2.1, as OpenAI's SDK sends it: an identity provider and a service account are named."""
    if parameters.get("subject_token_type") not in SUBJECT_TOKEN_TYPES:
        raise ExchangeRefused("invalid_request", f"subject_token_type must be one of {', '.join(SUBJECT_TOKEN_TYPES)}.")
    if "actor_token" in parameters:
        raise ExchangeRefused("invalid_request", "Delegation (actor_token) is not supported.")
    provider_id, account_id = _require(parameters, "identity_provider_id"), _require(parameters, "service_account_id")
    assertion = _require(parameters, "subject_token")
    organization_id = None
    if ids.is_id(ids.IDENTITY_PROVIDER, provider_id):
        with plane.database.platform(write=False) as tx:
            organization_id = stored_federation.find_provider_organization(tx, provider_id)
    if organization_id is None:
        raise _refuse_assertion(f"no identity provider {_describe_id(ids.IDENTITY_PROVIDER, provider_id)}")
    with plane.database.tenant(organization_id, write=False) as tx:
        provider = stored_federation.find_provider(tx, provider_id)
        rules = stored_federation.list_all_rules(tx, [provider_id]).get(provider_id, [])
    return _prove_assertion(plane, provider, [rule for rule in rules if rule.service_account_id == account_id], assertion)


def _prove_assertion_of_rule(plane: ControlPlane, parameters: Parameters, _authorization: str | None) -> Proven:
    """RFC 7523, section 2.1, as Anthropic's SDK sends it: a rule and its organization are named."""
    rule_id, organization_id = _require(parameters, "federation_rule_id"), _require(parameters, "organization_id")
    assertion = _require(parameters, "assertion")
    provider, rules = None, list[ProviderRule]()
    if ids.is_id(ids.ORGANIZATION, organization_id) and ids.is_id(ids.FEDERATION_RULE, rule_id):
        with plane.database.tenant(organization_id, write=False) as tx:
            rule = stored_federation.find_rule(tx, rule_id)
            provider = None if rule is None else stored_federation.find_provider(tx, rule.provider_id)
        rules = [rule] if rule is not None and rule.is_enabled else []
    for name, value in (("service_account_id", "service_account_id"), ("workspace_id", "project_id")):
        rules = [each for each in rules if parameters.get(name) in (None, "default", getattr(each, value))]
    return _prove_assertion(plane, provider, rules, assertion)


def _prove_assertion(plane: ControlPlane, provider: IdentityProvider | None, rules: Sequence[ProviderRule], assertion: str) -> Proven:
    """Return what an assertion of an identity provider proves by one of its rules. Until its signature was verified, every refusal is the
    same."""
    if provider is None or not provider.is_enabled or not rules:
        raise _refuse_assertion("no enabled identity provider and rule")
    now = plane.now()
    try:
        read = read_token(assertion.encode("ascii", "replace"))
        verify(read, {key.id: key for key in map(load_key, provider.keys)})
    except TokenInvalid as invalid:
        if invalid.is_key_unknown and not provider.is_uploaded:
            due_at = max(now, (provider.fetched_at or 0) + federation.RETRY_US)
            with plane.database.tenant(provider.organization_id) as tx:
                stored_federation.hasten_fetch(tx, provider.id, due_at)
        raise _refuse_assertion(f"{provider.id}: {invalid}") from None
    try:
        ends_at = check_claims(read.claims, provider.issuer, provider.audience, now, FOREIGN_LIFETIME_SECONDS_MAX)
    except TokenInvalid as invalid:
        raise ExchangeRefused("invalid_grant", f"The assertion is refused: {invalid}.", detail=provider.id) from None
    rule = next((each for each in rules if FederationRule(each.key_id, dict(each.matchers)).matches(read.claims)), None)
    if rule is None:
        raise ExchangeRefused("invalid_grant", "The assertion is refused: no rule matches its claims.", detail=provider.id)
    with plane.database.tenant(provider.organization_id, write=False) as tx:
        key = storage.find_represented_key(tx, rule.key_id, now)
    if key is None:
        raise ExchangeRefused("invalid_grant", "The assertion is refused: the key of the rule was revoked.", detail=rule.id)
    token_id = read.claims.get("jti")
    if provider.is_single_use and isinstance(token_id, str):
        digest = hashlib.sha256(f"{provider.id}\0{token_id}".encode()).digest()
        with plane.database.platform() as tx:
            if not stored_federation.use_assertion(tx, digest, now=now, expires_at=ends_at):
                raise ExchangeRefused("invalid_grant", "The assertion is refused: it was used before.", detail=rule.id)
    return Proven(key, ends_at, {"provider_id": provider.id, "rule_id": rule.id})


def _require(parameters: Parameters, name: str) -> str:
    value = parameters.get(name)
    if value is None:
        raise ExchangeRefused("invalid_request", f"The parameter {name} is missing.")
    return value


def _refuse_assertion(detail: str) -> ExchangeRefused:
    return ExchangeRefused(
        "invalid_grant", "The assertion is refused: no identity provider and rule of these ids verifies it.", detail=detail
    )


def _describe_id(prefix: str, id: str) -> str:
    """Return an id for the log; what does not look like one is not repeated there."""
    return id if ids.is_id(prefix, id) else "of that id"


_GRANTS: Mapping[str, Callable[[ControlPlane, Parameters, str | None], Proven]] = {
    CLIENT_CREDENTIALS: _prove_client,
    TOKEN_EXCHANGE: _prove_exchanged,
    JWT_BEARER: _prove_assertion_of_rule,
}
GRANT_TYPES = (*_GRANTS, *device_login.GRANTS)
"""The grant types of the token endpoint."""


def issue_for_key(plane: ControlPlane, organization_id: str, key_id: str) -> IssuedToken:
    """Return a token for a key of an organization, for somebody who may see its secret anyway: the caller has proved that. Raises
    RESOURCE_UNKNOWN for a key that may not act now; ExchangeRefused where it ends at this moment."""
    with plane.database.tenant(organization_id, write=False) as tx:
        key = storage.find_represented_key(tx, key_id, plane.now())
    if key is None:
        raise Fault(RESOURCE_UNKNOWN)
    return _issue(plane, PLAYGROUND, Proven(key, None, {}))


# ---- Issue --------------------------------------------------------------------------------------------------------------


def _issue(plane: ControlPlane, grant_type: str, proven: Proven) -> IssuedToken:
    """Return a signed token for a key. It ends within LIFETIME_SECONDS, and with what proved it at the latest."""
    signer, now, key = _get_signer(plane), plane.now(), proven.key
    issued_at = now // 1_000_000
    ends_at = min(each // 1_000_000 for each in (now + LIFETIME_SECONDS * 1_000_000, proven.ends_at, key.expires_at) if each is not None)
    if ends_at <= issued_at:
        raise ExchangeRefused("invalid_grant", "What was presented ends at this moment.")
    token_id = plane.new_id(ids.TOKEN)
    claims = {
        "iss": plane.token_issuer,
        "aud": AUDIENCE,
        "sub": key.service_account_id or key.id,
        "client_id": key.service_account_id or key.id,
        "key_id": key.id,
        "org_id": key.organization_id,
        "iat": issued_at,
        "exp": ends_at,
        "jti": token_id,
    }
    header = {"alg": "EdDSA", "typ": TOKEN_TYPE, "kid": signer.key_id}
    signed = b".".join(encode_part(msgspec.json.encode(part)) for part in (header, claims))
    token = signed + b"." + encode_part(signer.sign(signed))
    plane.log(
        {
            "event": "token_issued",
            "token_id": token_id,
            "grant_type": grant_type,
            "organization_id": key.organization_id,
            "key_id": key.id,
            "service_account_id": key.service_account_id,
            **proven.log_fields,
        }
    )
    return IssuedToken(token.decode(), ends_at - issued_at, ISSUED_TOKEN_TYPE if grant_type == TOKEN_EXCHANGE else None)


def _get_signer(plane: ControlPlane) -> Signer:
    """Return the key that signs now; the first token of an installation makes it."""
    signer = signing_keys.find_signer(plane.database, plane.vault, plane.token_issuer, plane.now())
    if signer is None:
        version = maintain_signing_keys(plane)
        publish.confirm(plane.database, plane.publications, version, plane.now())
        signer = signing_keys.find_signer(plane.database, plane.vault, plane.token_issuer, plane.now())
    if signer is None:
        raise Fault(DATABASE_UNAVAILABLE, detail="no signing key can be had")
    return signer


def maintain_signing_keys(plane: ControlPlane) -> int | None:
    """Make, replace and withdraw signing keys as their time has come. Return the version of the snapshot that says so, if any."""
    with plane.database.platform() as tx:
        return signing_keys.maintain(
            tx, plane.vault, plane.token_issuer, new_id=plane.new_id, random_bytes=plane.random_bytes(32), now=plane.now()
        )
