"""Sessions of people: begun when somebody signed in, found by their secret at each request, and ended.

A session has no rights of its own. It acts as its person, with the roles that they hold at the time of the request; so a role that was
taken away, and a person who was removed, count from the next request on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tollway.control.identity import people, roles
from tollway.control.identity.keys import Pepper
from tollway.domain import ids, keys
from tollway.domain.faults import DATABASE_UNAVAILABLE, RESOURCE_UNKNOWN, Fault
from tollway.domain.roles import Grant
from tollway.domain.sessions import (
    AGENT_CHARACTERS_MAX,
    LIFETIMES,
    SESSIONS_MAX,
    USE_SECONDS,
    Session,
    SessionKind,
    SignInMethod,
)
from tollway.storage import roles as stored_roles
from tollway.storage import sessions as storage
from tollway.storage import sign_in as stored_sign_in
from tollway.storage.database import Database, TenantTx
from tollway.storage.sessions import LiveSession as LiveSession  # of `find_session`, for access and the API
from tollway.storage.sessions import ProviderProof, SessionTokens


@dataclass(frozen=True, slots=True)
class Begun:
    """A session at the one moment when its secret is known."""

    session: Session
    secret: str = field(repr=False)


def begin_session(
    tx: TenantTx,
    user_id: str,
    *,
    id: str,
    method: SignInMethod,
    address: str,
    agent: str,
    random_bytes: bytes,
    pepper: Pepper,
    now: int,
    proof: ProviderProof | None = None,
) -> Begun:
    """Begin a session of a browser. The secret is always a new one, so that nobody can have known it before the sign-in. `proof`: of a
    sign-in with an identity provider."""
    made = keys.new_session_secret(random_bytes)
    session = make_session(user_id, SessionKind.BROWSER, id=id, method=method, address=address, agent=agent, now=now)
    insert_session(tx, session, SessionTokens(pepper.digest(made.secret).value), now, proof)
    return Begun(session, made.secret)


def make_session(user_id: str, kind: SessionKind, *, id: str, method: SignInMethod, address: str, agent: str, now: int) -> Session:
    """Return a session that begins now."""
    return Session(
        id=id,
        user_id=user_id,
        kind=kind,
        method=method,
        address=address[:64],
        agent="".join(each if each.isprintable() else " " for each in agent[:AGENT_CHARACTERS_MAX]),
        created_at=now,
        last_used_at=now,
        expires_at=now + LIFETIMES[kind].seconds * 1_000_000,
    )


def insert_session(tx: TenantTx, session: Session, tokens: SessionTokens, now: int, proof: ProviderProof | None = None) -> None:
    """Store a new session, and end those that were used longest ago above SESSIONS_MAX."""
    live = storage.list_user_sessions(tx, session.user_id, now)
    for oldest in live[SESSIONS_MAX - 1 :]:
        storage.delete_session(tx, session.user_id, oldest.id)
    storage.insert_session(tx, session, tokens, proof)


def find_session(database: Database, peppers: Mapping[int, bytes], secret: str, now: int) -> LiveSession | None:
    """Return the session of a browser with this secret, if it may act at `now`; it was used now. What is not even shaped like a secret
    costs no query."""
    if not keys.is_session_secret(secret):
        return None
    return find_by_secret(database, peppers, secret, now)


def find_by_secret(database: Database, peppers: Mapping[int, bytes], secret: str, now: int) -> LiveSession | None:
    """As `find_session`, for the well-formed secret of a session of any kind."""
    digests = [keys.digest(pepper, secret.encode()) for pepper in peppers.values()]
    with database.platform(write=False) as tx:
        live = storage.find_live_session(tx, digests, now)
    if live is not None and now - live.session.last_used_at >= USE_SECONDS * 1_000_000:
        try:
            with database.tenant(live.organization_id) as tenant:
                storage.note_session_use(tenant, live.session.id, now)
        except Fault as fault:
            if fault.kind is not DATABASE_UNAVAILABLE:  # what is only read must be answered all the same
                raise
    return live


def renew_secret(tx: TenantTx, session: Session, *, random_bytes: bytes, pepper: Pepper, now: int) -> str:
    """Give a session of a browser another secret, because what its person can do with it has changed. Raises RESOURCE_UNKNOWN if it
    ended meanwhile."""
    made = keys.new_session_secret(random_bytes)
    if not storage.replace_tokens(tx, session.id, SessionTokens(pepper.digest(made.secret).value), None, now):
        raise Fault(RESOURCE_UNKNOWN)
    return made.secret


def list_sessions(tx: TenantTx, user_id: str, now: int) -> Sequence[Session]:
    """Return the live sessions of a person, the one that was used last first. Raises RESOURCE_UNKNOWN."""
    people.get_user(tx, user_id)
    return storage.list_user_sessions(tx, user_id, now)


def end_session(tx: TenantTx, user_id: str, session_id: str, *, own: Sequence[Grant] | None) -> None:
    """End a session of a person, from the next request on. `own`: what the caller holds, who is somebody else; None for the person
    themselves. Raises RESOURCE_UNKNOWN, GRANT_EXCEEDS_GRANTOR."""
    people.get_user(tx, user_id)
    if own is not None:
        roles.require_covered(own, stored_roles.list_user_grants(tx, tx.organization_id, user_id))
    if not ids.is_id(ids.SESSION, session_id) or not storage.delete_session(tx, user_id, session_id):
        raise Fault(RESOURCE_UNKNOWN)


def end_sessions(tx: TenantTx, user_id: str, *, but: str | None = None) -> None:
    """End all sessions of a person, but one."""
    storage.delete_user_sessions(tx, user_id, but=but)


def remove_ended(database: Database, now: int) -> int:
    """Remove some of the sessions and links that have ended. Return how many."""
    with database.platform() as tx:
        return storage.remove_ended_sessions(tx, now) + stored_sign_in.remove_expired_links(tx, now)
