"""The way to an identity provider and back: OpenID Connect, authorization code with PKCE (RFC 7636), and the sign-out there.

What the provider must send back is kept in a cookie of the browser that began, sealed: the state, so that nobody is signed in by a link of
somebody else; the nonce of the ID token; the secret of PKCE. A state counts once. The address to which the provider leads back names the
client, and the issuer must be the one that it names (RFC 9207), so that no provider can be taken for another one. Who the person is, others
decide: `provider_sign_in` for people of organizations, `operator_sign_in` for operators.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from tollway.control.authentication.sign_in import Refused
from tollway.control.identity import issuer_keys
from tollway.control.identity.issuer_keys import AnswerRefused, KeysUnavailable
from tollway.control.identity.provider_metadata import ProviderMetadata
from tollway.control.plane import ControlPlane
from tollway.domain.faults import PROVIDER_UNAVAILABLE, Fault
from tollway.domain.sessions import SignInMethod
from tollway.domain.tokens import TokenInvalid, check_claims
from tollway.storage import federation as stored_federation
from tollway.wire.json_web_tokens import load_key, read_token, verify
from tollway.worker_threads import run_in_thread

FLOW_SECONDS = 600
"""Time from the beginning to the return from the provider: people type passwords and codes there."""

TOKEN_AGE_SECONDS_MAX = 86_400
"""Longest lifetime of an ID token."""

ID_TOKEN_CHARACTERS_MAX = 6_000
"""Longest ID token that is kept for the sign-out: servers take addresses of 8 KiB."""

_SCOPES = "openid email profile"
"""Scopes that are always asked for. The scope `groups` is added for a provider that names it in its metadata: others refuse it, and put
groups into the ID token without it."""

_CONTEXT = "provider_sign_in"


class _Flow(msgspec.Struct, frozen=True):
    """State of a sign-in while the person is at the provider. `client_id`: of the ProviderClient."""

    client_id: str
    state: str
    nonce: str
    verifier: str
    path: str
    ends_at: int


@dataclass(frozen=True, slots=True)
class BegunFlow:
    """The address at the provider that the browser is led to, and what it keeps meanwhile."""

    url: str
    sealed: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Returned:
    """Answer of the provider, which came through the browser, and what the browser kept. None: missing."""

    code: str | None = field(repr=False)
    state: str | None = field(repr=False)
    issuer: str | None
    error: str | None
    sealed: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Proven:
    """Claims of a verified ID token, the token itself, and the path that the person wanted."""

    claims: Mapping[str, Any] = field(repr=False)
    id_token: str = field(repr=False)
    path: str


@dataclass(frozen=True, slots=True)
class ProviderClient:
    """This platform as a client of an identity provider. `id`: in addresses of this site. `organization_id`: that named the provider;
    None for operators. `wants_groups`: the groups of a person are looked at. `read_secret`: returns the client secret, None for a public
    client; it blocks."""

    id: str
    organization_id: str | None
    issuer: str
    client_id: str
    wants_groups: bool
    read_secret: Callable[[], str | None] = field(repr=False)


async def begin(plane: ControlPlane, client: ProviderClient, redirect_uri: str, path: str) -> BegunFlow:
    """Return where a person signs in. Raises PROVIDER_UNAVAILABLE."""
    metadata = await _find_metadata(plane, client)
    state, nonce, verifier = (_encode(plane.random_bytes(32)) for _ in range(3))
    query = {
        "response_type": "code",
        "client_id": client.client_id,
        "redirect_uri": redirect_uri,
        "scope": _SCOPES + (" groups" if client.wants_groups and "groups" in metadata.scopes_supported else ""),
        "state": state,
        "nonce": nonce,
        "code_challenge": _encode(hashlib.sha256(verifier.encode()).digest()),
        "code_challenge_method": "S256",
    }
    flow = _Flow(client.id, state, nonce, verifier, path, plane.now() + FLOW_SECONDS * 1_000_000)
    sealed = plane.vault.seal_bytes(msgspec.json.encode(flow), context=_CONTEXT).hex()
    return BegunFlow(_extend(metadata.authorization_endpoint, query), sealed)


async def redeem(plane: ControlPlane, client: ProviderClient, returned: Returned, redirect_uri: str) -> Proven:
    """Return what the provider says of whoever comes back from it, which it is asked for. Returns are not counted as attempts: there is
    nothing to guess. Raises SIGN_IN_REFUSED, PROVIDER_UNAVAILABLE."""
    flow = await run_in_thread(_use_flow, plane, client, returned)
    if returned.error is not None or not returned.code:
        raise refuse(plane, client.id, "the provider refused")
    metadata = await _find_metadata(plane, client)
    if returned.issuer != client.issuer and (returned.issuer is not None or metadata.authorization_response_iss_parameter_supported):
        raise refuse(plane, client.id, "another issuer answered")
    id_token, claims = await _redeem(plane, client, metadata, returned.code, redirect_uri, flow)
    return Proven(claims, id_token, flow.path)


def _use_flow(plane: ControlPlane, client: ProviderClient, returned: Returned) -> _Flow:
    """Return the flow that this browser began, once."""
    try:
        opened = plane.vault.unseal_bytes(bytes.fromhex(returned.sealed or ""), context=_CONTEXT)
        flow = msgspec.json.decode(opened, type=_Flow)
    except ValueError:
        raise refuse(plane, client.id, "the browser did not begin it") from None
    is_own = hmac.compare_digest(flow.state.encode(), (returned.state or "").encode())
    if not is_own or flow.client_id != client.id or flow.ends_at <= plane.now():
        raise refuse(plane, client.id, "the state is not the one that the browser has, or it took too long")
    with plane.database.platform() as tx:
        digest = hashlib.sha256(f"{_CONTEXT}\0{flow.state}".encode()).digest()
        if not stored_federation.use_assertion(tx, digest, now=plane.now(), expires_at=flow.ends_at):
            raise refuse(plane, client.id, "the state was used before")
    return flow


async def _redeem(
    plane: ControlPlane, client: ProviderClient, metadata: ProviderMetadata, code: str, redirect_uri: str, flow: _Flow
) -> tuple[str, dict[str, Any]]:
    """Return the ID token and its claims that a code is exchanged for, after all checks of OpenID Connect Core 1.0, section 3.1.3.7."""
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri, "code_verifier": flow.verifier}
    authorization = None
    secret = await run_in_thread(client.read_secret)
    if secret is None:
        form["client_id"] = client.client_id
    elif "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
        pair = f"{quote(client.client_id, safe='')}:{quote(secret, safe='')}"
        authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
    else:
        form |= {"client_id": client.client_id, "client_secret": secret}
    answer = await _read(plane, client, metadata.token_endpoint, form, authorization)
    keys = await _read(plane, client, metadata.jwks_uri)
    token = answer.get("id_token")
    try:
        if not isinstance(token, str):
            raise TokenInvalid("there is no ID token")
        read = read_token(token.encode("ascii", "replace"))
        verify(read, {key.id: key for key in map(load_key, issuer_keys.read_keys(keys))})
        check_claims(read.claims, client.issuer, client.client_id, plane.now(), TOKEN_AGE_SECONDS_MAX)
    except (TokenInvalid, ValueError) as invalid:
        raise refuse(plane, client.id, f"the ID token is refused: {invalid}") from None
    nonce, party = read.claims.get("nonce"), read.claims.get("azp")
    if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), flow.nonce.encode()):
        raise refuse(plane, client.id, "the ID token has another nonce")
    has_others = isinstance(read.claims["aud"], list) and len(read.claims["aud"]) > 1
    if party not in (None, client.client_id) or (party is None and has_others):
        raise refuse(plane, client.id, "the ID token is for another client")
    return token, read.claims


# ---- Sign-out -----------------------------------------------------------------------------------------------------------


async def find_sign_out(plane: ControlPlane, client: ProviderClient, id_token: str | None, return_uri: str) -> str | None:
    """Return the address at which the person ends their session at the provider, which leads back to `return_uri` (OpenID Connect
    RP-Initiated Logout 1.0, section 2); None if it has none, or cannot be reached now. `id_token`: of the sign-in, so that the provider
    need not ask whose session ends."""
    try:
        metadata = await _find_metadata(plane, client)
    except Fault:
        return None
    if metadata.end_session_endpoint is None:
        return None
    query = {"client_id": client.client_id, "post_logout_redirect_uri": return_uri}
    if id_token is not None:
        query["id_token_hint"] = id_token
    return _extend(metadata.end_session_endpoint, query)


def seal_id_token(plane: ControlPlane, id_token: str, session_id: str) -> bytes | None:
    """Return an ID token sealed for `find_sign_out`; None for one that is too long for an address."""
    return plane.vault.seal(id_token, context=f"id_token:{session_id}") if len(id_token) <= ID_TOKEN_CHARACTERS_MAX else None


def unseal_id_token(plane: ControlPlane, sealed: bytes | None, session_id: str) -> str | None:
    """Return what `seal_id_token` sealed; None if it cannot be opened any more."""
    try:
        return None if sealed is None else plane.vault.unseal(sealed, context=f"id_token:{session_id}")
    except ValueError:
        return None


def _extend(url: str, query: Mapping[str, str]) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(query, quote_via=quote)}"


# ---- The provider -------------------------------------------------------------------------------------------------------


async def _find_metadata(plane: ControlPlane, client: ProviderClient) -> ProviderMetadata:
    return await plane.provider_metadata.find(client.id, lambda: _fetch_metadata(plane, client))


async def _fetch_metadata(plane: ControlPlane, client: ProviderClient) -> ProviderMetadata:
    document = await _read(plane, client, client.issuer.rstrip("/") + issuer_keys.METADATA_PATH)
    try:
        metadata = msgspec.convert(document, ProviderMetadata)
    except msgspec.ValidationError:
        raise _unreachable(plane, client, "its metadata are not complete") from None
    if metadata.issuer != client.issuer:
        raise _unreachable(plane, client, "its metadata name another issuer")
    is_private = client.issuer in plane.private_issuers
    opened = [metadata.authorization_endpoint]  # by browsers, which must not be led to anything but a page
    if metadata.end_session_endpoint is not None:
        opened.append(metadata.end_session_endpoint)
    for url in (*opened, metadata.token_endpoint, metadata.jwks_uri):
        if not is_private and issuer_keys.find_address_error(url) is not None:
            raise _unreachable(plane, client, "its metadata name an address that is not public")
        if not issuer_keys.is_url(url):
            raise _unreachable(plane, client, "its metadata name an address that is none")
    if any(urlsplit(url).scheme not in ("https", "http") for url in opened):
        raise _unreachable(plane, client, "its metadata name an address that is none")
    return metadata


async def _read(
    plane: ControlPlane, client: ProviderClient, url: str, form: Mapping[str, str] | None = None, authorization: str | None = None
) -> dict[str, Any]:
    is_private = client.issuer in plane.private_issuers
    try:
        async with issuer_keys.bounded():
            return await issuer_keys.read_object(
                url, is_private_allowed=is_private, organization_id=client.organization_id, form=form, authorization=authorization
            )
    except KeysUnavailable as unavailable:
        if form is not None and isinstance(unavailable, AnswerRefused) and unavailable.status in (400, 401):
            raise refuse(plane, client.id, f"the provider refused the code or the client: {unavailable}") from None
        raise _unreachable(plane, client, str(unavailable)) from None
    except TimeoutError:
        raise _unreachable(plane, client, "it did not answer in time") from None


def _unreachable(plane: ControlPlane, client: ProviderClient, detail: str) -> Fault:
    plane.sign_ins.count(SignInMethod.PROVIDER, "failed")
    return Fault(PROVIDER_UNAVAILABLE, detail=f"{client.id}: {detail}")


def refuse(plane: ControlPlane, client_id: str, detail: str) -> Fault:
    """Return the refusal of a sign-in with a provider, which is in the log. `client_id`: of the ProviderClient."""
    plane.log({"event": "sign_in_refused", "method": SignInMethod.PROVIDER, "connection_id": client_id, "detail": detail})
    return Refused(SignInMethod.PROVIDER, None)


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
