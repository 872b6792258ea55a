"""Operators who sign in with the identity provider of the platform, or with a key of operators, and their sessions.

What an operator may do follows from the groups that the provider names at each sign-in; the settings say which groups. An operator is
known by issuer and subject, never by an address. A session lasts twelve hours at most, and a login of the command line ends with the
sign-in of the browser that approved it, so that whoever lost the group at the provider is out after that time, or at once where an operator
takes the role away here. Keys of operators do not depend on any of it.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tollway.control.identity.keys import Pepper
from tollway.domain import ids, keys
from tollway.domain.faults import DATABASE_UNAVAILABLE, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.keys import KeyOrigin, Operator
from tollway.domain.pages import Page, PageWindow
from tollway.domain.roles import AUDITOR, OPERATOR, Role
from tollway.domain.sessions import (
    AGENT_CHARACTERS_MAX,
    LIFETIMES,
    SESSIONS_MAX,
    USE_SECONDS,
    OperatorSession,
    SessionKind,
    SignInMethod,
)
from tollway.storage import operators as storage
from tollway.storage.database import Database, PlatformTx
from tollway.storage.operators import KEY_ISSUER as KEY_ISSUER  # of `begin_session`, for sign-in
from tollway.storage.operators import SignedInOperator as SignedInOperator  # of `list_operators`, for the API
from tollway.storage.sessions import SessionTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSignIn:
    """The identity provider of the platform, as the settings name it. `client_secret`: None for a public client. The groups are the
    provider's names, as the claim `groups_claim` of the ID token lists them."""

    issuer: str
    client_id: str
    client_secret: str | None = field(repr=False)
    groups_claim: str
    operator_groups: frozenset[str]
    second_operator_groups: frozenset[str]
    auditor_groups: frozenset[str]


@dataclass(frozen=True, slots=True)
class MappedRole:
    """Right that groups of the provider give: a role, and the origin that its holder has for approvals."""

    role: Role
    origin: KeyOrigin


def map_groups(sign_in: OperatorSignIn, groups: Collection[str]) -> MappedRole | None:
    """Return what a member of `groups` is; None if nothing. Whoever is in groups of both origins has the first one, so that no person can
    both ask and approve."""
    named = frozenset(groups)
    if named & sign_in.operator_groups:
        return MappedRole(OPERATOR, KeyOrigin.FIRST)
    if named & sign_in.second_operator_groups:
        return MappedRole(OPERATOR, KeyOrigin.SECOND)
    return MappedRole(AUDITOR, KeyOrigin.FIRST) if named & sign_in.auditor_groups else None


def make_operator_id(issuer: str, subject: str) -> str:
    """Return the id of whom a provider knows as `subject`: always the same."""
    known_as = f"{issuer}\0{subject}"
    return f"{ids.OPERATOR}_{hashlib.sha256(known_as.encode()).hexdigest()[:32]}"


def note_sign_in(tx: PlatformTx, operator: SignedInOperator) -> None:
    """Store an operator as the provider describes them. Without a role their sessions end."""
    storage.put_operator(tx, operator)
    if operator.role is None:
        storage.delete_sessions(tx, operator.id)


LINK_SECONDS = 900
"""Time in which a link can be used: whoever makes it opens it."""


@dataclass(frozen=True, slots=True)
class ShownLink:
    """The token of a link at the one moment when it is known. `expires_at`: UTC microseconds."""

    token: str = field(repr=False)
    expires_at: int


def describe_key(key_id: str, origin: KeyOrigin, role: Role, now: int) -> SignedInOperator:
    """Return whoever has a key of operators, as one who signs in with it."""
    return SignedInOperator(
        id=make_operator_id(KEY_ISSUER, key_id),
        issuer=KEY_ISSUER,
        subject=key_id,
        email="",
        name=key_id,
        role=role,
        origin=origin,
        signed_in_at=now,
    )


def create_link(tx: PlatformTx, caller: Operator, *, random_bytes: bytes, pepper: Pepper, now: int) -> ShownLink:
    """Create a link that signs whoever presented a key of operators in once, in place of the one before. Raises STATE_CONFLICT for an
    operator who signed in, who has a session already."""
    if caller.live is not None:
        raise Fault(STATE_CONFLICT, message="A link is made with a key of operators. You have signed in already.")
    operator = describe_key(caller.key_id, caller.origin, caller.role, now)
    storage.put_operator(tx, operator)
    made = keys.new_link_token(random_bytes)
    expires_at = now + LINK_SECONDS * 1_000_000
    storage.insert_link(tx, pepper.digest(made.secret).value, operator.id, expires_at)
    return ShownLink(made.secret, expires_at)


@dataclass(frozen=True, slots=True)
class FoundLink:
    """A link that can be used, and whom it signs in."""

    digest: bytes = field(repr=False)
    operator: SignedInOperator


def find_link(tx: PlatformTx, peppers: Mapping[int, bytes], token: str, now: int) -> FoundLink | None:
    """Return the link of a token; None if it does not exist, was used or has expired, or its key may not act any more."""
    if keys.is_link_token(token):
        for pepper in peppers.values():
            digest = keys.digest(pepper, token.encode())
            operator = storage.find_link(tx, digest, now)
            if operator is not None:
                return FoundLink(digest, operator)
    return None


def use_link(tx: PlatformTx, link: FoundLink, now: int) -> bool:
    """Use up a link. Return whether it could still be used."""
    return storage.use_link(tx, link.digest, now)


@dataclass(frozen=True, slots=True)
class BegunSession:
    """A session of an operator's browser at the one moment when its secret is known."""

    session: OperatorSession
    secret: str = field(repr=False)


def begin_session(
    tx: PlatformTx,
    operator: SignedInOperator,
    *,
    id: str,
    address: str,
    agent: str,
    id_token: bytes | None,
    method: SignInMethod = SignInMethod.PROVIDER,
    random_bytes: bytes,
    pepper: Pepper,
    now: int,
) -> BegunSession:
    """Begin a session of a browser. `id_token`: of the sign-in with a provider, sealed. `method`: how the operator proved who they are."""
    made = keys.new_operator_session_secret(random_bytes)
    session = OperatorSession(
        id=id,
        operator_id=operator.id,
        email=operator.email,
        name=operator.name,
        kind=SessionKind.BROWSER,
        method=method,
        address=address[:64],
        agent="".join(each if each.isprintable() else " " for each in agent[:AGENT_CHARACTERS_MAX]),
        created_at=now,
        last_used_at=now,
        expires_at=now + LIFETIMES[SessionKind.BROWSER].seconds * 1_000_000,
    )
    insert_session(tx, session, SessionTokens(pepper.digest(made.secret).value), id_token, now)
    return BegunSession(session, made.secret)


def insert_session(tx: PlatformTx, session: OperatorSession, tokens: SessionTokens, id_token: bytes | None, now: int) -> None:
    """Store a new session, and end those that were used longest ago above SESSIONS_MAX."""
    for oldest in storage.list_sessions(tx, session.operator_id, now)[SESSIONS_MAX - 1 :]:
        storage.delete_session(tx, session.operator_id, oldest.id)
    storage.insert_session(tx, session, tokens, id_token)


def find_by_secret(database: Database, peppers: Mapping[int, bytes], issuer: str | None, secret: str, now: int) -> Operator | None:
    """Return who has the session with this well-formed secret, if it may act at `now`; it was used now. `issuer`: of the identity
    provider of the platform; None without one, where operators sign in with keys alone."""
    digests = [keys.digest(pepper, secret.encode()) for pepper in peppers.values()]
    with database.platform(write=False) as tx:
        found = storage.find_live(tx, issuer, digests, now)
    if found is not None and found.live is not None and now - found.live.last_used_at >= USE_SECONDS * 1_000_000:
        try:
            with database.platform() as tx:
                storage.note_use(tx, found.live.id, now)
        except Fault as fault:
            if fault.kind is not DATABASE_UNAVAILABLE:  # what is only read must be answered all the same
                raise
    return found


def list_operators(tx: PlatformTx, window: PageWindow) -> Page[SignedInOperator]:
    """Return the operators who signed in, those without a role among them."""
    return storage.list_operators(tx, window)


def list_sessions(tx: PlatformTx, operator_id: str, now: int) -> list[OperatorSession]:
    """Return the live sessions of an operator, the one that was used last first. Raises RESOURCE_UNKNOWN."""
    _require_operator(tx, operator_id)
    return storage.list_sessions(tx, operator_id, now)


def end_session(tx: PlatformTx, operator_id: str, session_id: str) -> None:
    """End a session of an operator from its next request on. Raises RESOURCE_UNKNOWN."""
    _require_operator(tx, operator_id)
    if not ids.is_id(ids.OPERATOR_SESSION, session_id) or not storage.delete_session(tx, operator_id, session_id):
        raise Fault(RESOURCE_UNKNOWN)


def take_role(tx: PlatformTx, operator_id: str) -> None:
    """Take the role from an operator and end their sessions. Whoever is still in a group at the provider can sign in again. Raises
    RESOURCE_UNKNOWN."""
    _require_operator(tx, operator_id)
    storage.take_role(tx, operator_id)
    storage.delete_sessions(tx, operator_id)


def remove_ended(database: Database, now: int) -> int:
    """Remove some of the sessions that have ended. Return how many."""
    with database.platform() as tx:
        return storage.remove_ended(tx, now)


def _require_operator(tx: PlatformTx, operator_id: str) -> None:
    if not ids.is_id(ids.OPERATOR, operator_id) or storage.find_operator(tx, operator_id) is None:
        raise Fault(RESOURCE_UNKNOWN)
