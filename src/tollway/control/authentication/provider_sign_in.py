"""Signing in with the identity provider of an organization: OpenID Connect, authorization code with PKCE (RFC 7636).

What the provider must send back is kept in a cookie of the browser that began, sealed: the state, so that nobody is signed in by a link of
somebody else; the nonce of the ID token; the secret of PKCE. A state counts once. The address to which the provider leads back names the
connection, and the issuer must be the one that it names (RFC 9207), so that no provider can be taken for another one. A person is who their
subject was before; or who has their verified address; or joins, by an invitation or by the domain of that address.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from tollway.control import publish
from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.authentication import sign_in
from tollway.control.authentication.sign_in import Refused, Visitor
from tollway.control.identity import invites, issuer_keys, people, roles
from tollway.control.identity.credentials import Account
from tollway.control.identity.issuer_keys import AnswerRefused, KeysUnavailable
from tollway.control.identity.provider_metadata import ProviderMetadata
from tollway.control.identity.sessions import Begun
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.audit import Actor, ActorKind
from tollway.domain.faults import PROVIDER_UNAVAILABLE, SIGN_IN_REFUSED, Fault
from tollway.domain.people import User
from tollway.domain.roles import Grant
from tollway.domain.sessions import SignInMethod
from tollway.domain.tokens import TokenInvalid, check_claims
from tollway.storage import federation as stored_federation
from tollway.storage import people as stored_people
from tollway.storage import sign_in_connections as storage
from tollway.storage.database import TenantTx
from tollway.storage.sign_in_connections import SignInConnection
from tollway.wire.json_web_tokens import load_key, read_token, verify
from tollway.worker_threads import run_in_thread

FLOW_SECONDS = 600
"""Time from the beginning to the return from the provider: people type passwords and codes there."""

TOKEN_AGE_SECONDS_MAX = 86_400
"""Longest lifetime of an ID token."""

SUBJECT_CHARACTERS_MAX = 255
"""Longest subject (OpenID Connect Core 1.0, section 2)."""

GROUPS_MAX = 1_000
"""Groups of one ID token that are looked at."""

_SCOPES = "openid email profile"
"""Scopes that are always asked for. The scope `groups` is added for a provider that names it in its metadata: others refuse it, and put
groups into the ID token without it."""

_CONTEXT = "provider_sign_in"


class _Flow(msgspec.Struct, frozen=True):
    """State of a sign-in while the person is at the provider."""

    connection_id: str
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
    """Claims of a verified ID token, and the path that the person wanted."""

    claims: Mapping[str, Any] = field(repr=False)
    path: str


def find_connection(plane: ControlPlane, connection_id: str) -> SignInConnection:
    """Return an enabled connection. Raises SIGN_IN_REFUSED."""
    found = None
    if ids.is_id(ids.SIGN_IN_CONNECTION, connection_id):
        with plane.database.platform(write=False) as tx:
            found = storage.find_enabled(tx, connection_id)
    if found is None:
        raise Fault(SIGN_IN_REFUSED, message="There is no such sign-in. Ask your administrator for the address.")
    return found


async def begin(plane: ControlPlane, connection: SignInConnection, redirect_uri: str, path: str) -> BegunFlow:
    """Return where a person signs in. Raises PROVIDER_UNAVAILABLE."""
    metadata = await _find_metadata(plane, connection)
    state, nonce, verifier = (_encode(plane.random_bytes(32)) for _ in range(3))
    query = {
        "response_type": "code",
        "client_id": connection.client_id,
        "redirect_uri": redirect_uri,
        "scope": _SCOPES + (" groups" if connection.groups and "groups" in metadata.scopes_supported else ""),
        "state": state,
        "nonce": nonce,
        "code_challenge": _encode(hashlib.sha256(verifier.encode()).digest()),
        "code_challenge_method": "S256",
    }
    flow = _Flow(connection.id, state, nonce, verifier, path, plane.now() + FLOW_SECONDS * 1_000_000)
    sealed = plane.vault.seal_bytes(msgspec.json.encode(flow), context=_CONTEXT).hex()
    separator = "&" if urlsplit(metadata.authorization_endpoint).query else "?"
    return BegunFlow(f"{metadata.authorization_endpoint}{separator}{urlencode(query, quote_via=quote)}", sealed)


async def redeem(plane: ControlPlane, connection: SignInConnection, returned: Returned, redirect_uri: str) -> Proven:
    """Return what the provider says of whoever comes back from it, which it is asked for. Returns are not counted as attempts: there is
    nothing to guess. Raises SIGN_IN_REFUSED, PROVIDER_UNAVAILABLE."""
    flow = await run_in_thread(_use_flow, plane, connection, returned)
    if returned.error is not None or not returned.code:
        raise _refuse(plane, connection, "the provider refused")
    metadata = await _find_metadata(plane, connection)
    if returned.issuer != connection.issuer and (returned.issuer is not None or metadata.authorization_response_iss_parameter_supported):
        raise _refuse(plane, connection, "another issuer answered")
    return Proven(await _redeem(plane, connection, metadata, returned.code, redirect_uri, flow), flow.path)


def enter(plane: ControlPlane, connection: SignInConnection, proven: Proven, visitor: Visitor) -> Begun:
    """Begin a session of whom the provider signed in. Raises SIGN_IN_REFUSED."""
    return sign_in.begin(plane, _find_account(plane, connection, proven.claims), SignInMethod.PROVIDER, visitor)


def _use_flow(plane: ControlPlane, connection: SignInConnection, returned: Returned) -> _Flow:
    """Return the flow that this browser began, once."""
    try:
        opened = plane.vault.unseal_bytes(bytes.fromhex(returned.sealed or ""), context=_CONTEXT)
        flow = msgspec.json.decode(opened, type=_Flow)
    except ValueError:
        raise _refuse(plane, connection, "the browser did not begin it") from None
    is_own = hmac.compare_digest(flow.state.encode(), (returned.state or "").encode())
    if not is_own or flow.connection_id != connection.id or flow.ends_at <= plane.now():
        raise _refuse(plane, connection, "the state is not the one that the browser has, or it took too long")
    with plane.database.platform() as tx:
        digest = hashlib.sha256(f"{_CONTEXT}\0{flow.state}".encode()).digest()
        if not stored_federation.use_assertion(tx, digest, now=plane.now(), expires_at=flow.ends_at):
            raise _refuse(plane, connection, "the state was used before")
    return flow


async def _redeem(
    plane: ControlPlane, connection: SignInConnection, metadata: ProviderMetadata, code: str, redirect_uri: str, flow: _Flow
) -> dict[str, Any]:
    """Return the claims of the ID token that a code is exchanged for, after all checks of OpenID Connect Core 1.0, section 3.1.3.7."""
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri, "code_verifier": flow.verifier}
    authorization = None
    if connection.client_secret is None:
        form["client_id"] = connection.client_id
    else:
        vault = await run_in_thread(plane.open_sign_in_vault, connection.organization_id)
        secret = vault.unseal(connection.client_secret, context=connection.id)
        if "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
            pair = f"{quote(connection.client_id, safe='')}:{quote(secret, safe='')}"
            authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": connection.client_id, "client_secret": secret}
    answer = await _read(plane, connection, metadata.token_endpoint, form, authorization)
    keys = await _read(plane, connection, metadata.jwks_uri)
    token = answer.get("id_token")
    try:
        if not isinstance(token, str):
            raise TokenInvalid("there is no ID token")
        read = read_token(token.encode("ascii", "replace"))
        verify(read, {key.id: key for key in map(load_key, issuer_keys.read_keys(keys))})
        check_claims(read.claims, connection.issuer, connection.client_id, plane.now(), TOKEN_AGE_SECONDS_MAX)
    except (TokenInvalid, ValueError) as invalid:
        raise _refuse(plane, connection, f"the ID token is refused: {invalid}") from None
    nonce, party = read.claims.get("nonce"), read.claims.get("azp")
    if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), flow.nonce.encode()):
        raise _refuse(plane, connection, "the ID token has another nonce")
    has_others = isinstance(read.claims["aud"], list) and len(read.claims["aud"]) > 1
    if party not in (None, connection.client_id) or (party is None and has_others):
        raise _refuse(plane, connection, "the ID token is for another client")
    return read.claims


# ---- The person ---------------------------------------------------------------------------------------------------------


def _find_account(plane: ControlPlane, connection: SignInConnection, claims: Mapping[str, Any]) -> Account:
    """Return the person of a verified ID token, who joins if they may. Their groups are brought to what it says."""
    subject, now = claims["sub"], plane.now()
    if not 1 <= len(subject) <= SUBJECT_CHARACTERS_MAX or not subject.isprintable():
        raise _refuse(plane, connection, "the subject is not one")
    actor = Actor(kind=ActorKind.PROVIDER, id=connection.id)
    operation = AuditedOperation(event="user.provisioned", operation="finish_provider_sign_in", actor=actor)
    recorder = audit.record_changes(operation, new_id=plane.new_id, now=plane.now)
    with plane.database.recording(recorder).tenant(connection.organization_id) as tx:
        publish.lock(tx)  # two first sign-ins of a person take turns
        user_id = storage.find_identity(tx, connection.id, subject)
        user = None if user_id is None else stored_people.find_user(tx, user_id)
        if user is None:
            email = _find_verified_address(connection, claims)
            if email is None:
                raise _refuse(plane, connection, "the address is missing or not verified")
            user = stored_people.find_user_by_email(tx, email) or _add(plane, tx, connection, email, claims, now)
            if user is None:
                raise _refuse(plane, connection, "nobody with this address is in the organization")
            storage.insert_identity(tx, connection.id, subject, user.id)
        _bring_groups(tx, connection, user, claims, now)
    return Account(connection.organization_id, user)


def _find_verified_address(connection: SignInConnection, claims: Mapping[str, Any]) -> str | None:
    """Return the address in lower case, if the provider says that it is the person's."""
    email, is_verified = claims.get("email"), claims.get("email_verified")
    if not isinstance(email, str) or email.count("@") != 1 or not email.isascii() or not email.isprintable() or len(email) > 320:
        return None
    return email.lower() if is_verified is True or (connection.trusts_addresses and is_verified is None) else None


def _add(plane: ControlPlane, tx: TenantTx, connection: SignInConnection, email: str, claims: Mapping[str, Any], now: int) -> User | None:
    """Add somebody who has an invitation, or whose address has a domain of the connection; None if neither is so, or the directory has
    deactivated them."""
    if stored_people.is_deactivated(tx, email):
        return None
    claimed = claims.get("name")
    name = claimed if isinstance(claimed, str) and 1 <= len(claimed) <= 256 and claimed.isprintable() else email
    invite_id = storage.find_pending_invite(tx, email, now)
    if invite_id is not None:
        added = invites.add_invited(tx, invite_id, name=name, user_id=plane.new_id(ids.USER), sizes=plane.quotas, now=now)
        return added.user
    if connection.role_id is None or email.partition("@")[2] not in connection.domains:
        return None
    role = roles.find_role(tx, connection.role_id, None)
    if role is None:
        return None
    user_id = plane.new_id(ids.USER)
    return people.add_user(tx, id=user_id, email=email, name=name, role=role, own=[Grant(role)], sizes=plane.quotas, now=now).user


def _bring_groups(tx: TenantTx, connection: SignInConnection, user: User, claims: Mapping[str, Any], now: int) -> None:
    """Make the person a member of the groups that the provider's groups stand for, and of no other of those. Groups that the directory
    manages stay as it says."""
    listed = claims.get(connection.groups_claim)
    named = {each for each in listed[:GROUPS_MAX] if isinstance(each, str)} if isinstance(listed, list) else set[str]()
    wanted = {group_id for name, group_id in connection.groups.items() if name in named}
    for group_id in sorted(set(connection.groups.values())):
        group = stored_people.find_group(tx, group_id)
        if group is None or group.is_scim_managed:
            continue
        is_in = stored_people.is_member(tx, group_id, user.id)
        if group_id in wanted and not is_in:
            stored_people.put_member(tx, group_id, user.id, now)
        elif group_id not in wanted and is_in:
            stored_people.delete_member(tx, group_id, user.id)


# ---- The provider -------------------------------------------------------------------------------------------------------


async def _find_metadata(plane: ControlPlane, connection: SignInConnection) -> ProviderMetadata:
    return await plane.provider_metadata.find(connection.id, lambda: _fetch_metadata(plane, connection))


async def _fetch_metadata(plane: ControlPlane, connection: SignInConnection) -> ProviderMetadata:
    document = await _read(plane, connection, connection.issuer.rstrip("/") + issuer_keys.METADATA_PATH)
    try:
        metadata = msgspec.convert(document, ProviderMetadata)
    except msgspec.ValidationError:
        raise _unreachable(plane, connection, "its metadata are not complete") from None
    if metadata.issuer != connection.issuer:
        raise _unreachable(plane, connection, "its metadata name another issuer")
    is_private = connection.issuer in plane.private_issuers
    for url in (metadata.authorization_endpoint, metadata.token_endpoint, metadata.jwks_uri):
        if not is_private and issuer_keys.find_address_error(url) is not None:
            raise _unreachable(plane, connection, "its metadata name an address that is not public")
    if urlsplit(metadata.authorization_endpoint).scheme not in ("https", "http"):
        raise _unreachable(plane, connection, "its metadata name an address that is none")
    return metadata


async def _read(
    plane: ControlPlane, connection: SignInConnection, url: str, form: Mapping[str, str] | None = None, authorization: str | None = None
) -> dict[str, Any]:
    is_private = connection.issuer in plane.private_issuers
    try:
        async with issuer_keys.open_client() as client, issuer_keys.bounded():
            return await issuer_keys.read_object(client, url, is_private_allowed=is_private, form=form, authorization=authorization)
    except KeysUnavailable as unavailable:
        if form is not None and isinstance(unavailable, AnswerRefused) and unavailable.status in (400, 401):
            raise _refuse(plane, connection, f"the provider refused the code or the client: {unavailable}") from None
        raise _unreachable(plane, connection, str(unavailable)) from None
    except TimeoutError:
        raise _unreachable(plane, connection, "it did not answer in time") from None


def _unreachable(plane: ControlPlane, connection: SignInConnection, detail: str) -> Fault:
    plane.sign_ins.count(SignInMethod.PROVIDER, "failed")
    return Fault(PROVIDER_UNAVAILABLE, detail=f"{connection.id}: {detail}")


def _refuse(plane: ControlPlane, connection: SignInConnection, detail: str) -> Fault:
    plane.log({"event": "sign_in_refused", "method": SignInMethod.PROVIDER, "connection_id": connection.id, "detail": detail})
    return Refused(SignInMethod.PROVIDER, None)


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
