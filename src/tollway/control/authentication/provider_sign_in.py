"""Signing in with the identity provider of an organization: who the person is whom the provider proved (`provider_flow`).

A person is who their subject was before; or who has their verified address; or joins, by an invitation or by the domain of that address.
"""

from collections.abc import Mapping
from typing import Any

from tollway.control import publish
from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.authentication import provider_flow, sign_in
from tollway.control.authentication.provider_flow import Proven, ProviderClient
from tollway.control.authentication.sign_in import Visitor
from tollway.control.identity import invites, people, roles
from tollway.control.identity.credentials import Account
from tollway.control.identity.sessions import Begun
from tollway.control.languages.texts import mark
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.audit import Actor, ActorKind
from tollway.domain.faults import SIGN_IN_REFUSED, Fault
from tollway.domain.people import User
from tollway.domain.roles import Grant
from tollway.domain.sessions import SignInMethod
from tollway.storage import people as stored_people
from tollway.storage import sign_in_connections as storage
from tollway.storage.database import TenantTx
from tollway.storage.sessions import ProviderProof
from tollway.storage.sign_in_connections import SignInConnection

SUBJECT_CHARACTERS_MAX = 255
"""Longest subject (OpenID Connect Core 1.0, section 2)."""

GROUPS_MAX = 1_000
"""Groups of one ID token that are looked at."""


def find_connection(plane: ControlPlane, connection_id: str) -> SignInConnection:
    """Return an enabled connection. Raises SIGN_IN_REFUSED."""
    found = None
    if ids.is_id(ids.SIGN_IN_CONNECTION, connection_id):
        with plane.database.platform(write=False) as tx:
            found = storage.find_enabled(tx, connection_id)
    if found is None:
        raise Fault(SIGN_IN_REFUSED, message=mark("There is no such sign-in. Ask your administrator for the address."))
    return found


def make_client(plane: ControlPlane, connection: SignInConnection) -> ProviderClient:
    """Return this platform as a client of the provider of a connection."""

    def read_secret() -> str | None:
        if connection.client_secret is None:
            return None
        return plane.open_sign_in_vault(connection.organization_id).unseal(connection.client_secret, context=connection.id)

    return ProviderClient(
        connection.id, connection.organization_id, connection.issuer, connection.client_id, bool(connection.groups), read_secret
    )


def enter(plane: ControlPlane, connection: SignInConnection, proven: Proven, visitor: Visitor) -> Begun:
    """Begin a session of whom the provider signed in. Raises SIGN_IN_REFUSED."""
    account = _find_account(plane, connection, proven.claims)
    session_id = plane.new_id(ids.SESSION)
    proof = ProviderProof(connection.id, provider_flow.seal_id_token(plane, proven.id_token, session_id))
    return sign_in.begin(plane, account, SignInMethod.PROVIDER, visitor, session_id=session_id, proof=proof)


# ---- The person ---------------------------------------------------------------------------------------------------------


def _find_account(plane: ControlPlane, connection: SignInConnection, claims: Mapping[str, Any]) -> Account:
    """Return the person of a verified ID token, who joins if they may. Their groups are brought to what it says."""
    subject, now = claims["sub"], plane.now()
    if not 1 <= len(subject) <= SUBJECT_CHARACTERS_MAX or not subject.isprintable():
        raise provider_flow.refuse(plane, connection.id, "the subject is not one")
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
                raise provider_flow.refuse(plane, connection.id, "the address is missing or not verified")
            user = stored_people.find_user_by_email(tx, email) or _add(plane, tx, connection, email, claims, now)
            if user is None:
                raise provider_flow.refuse(plane, connection.id, "nobody with this address is in the organization")
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
