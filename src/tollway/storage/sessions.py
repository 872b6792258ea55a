"""Sessions of people at rest: the digests of their secrets, never the secrets. A session that ended has no row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from tollway.domain.people import User
from tollway.domain.roles import Grant
from tollway.domain.sessions import LIFETIMES, Session, SessionKind, SignInMethod
from tollway.domain.tenants import Status
from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.device_logins import delete_user_logins
from tollway.storage.roles import list_user_grants
from tollway.storage.schema import organizations
from tollway.storage.schema_people import users
from tollway.storage.schema_sign_in import user_sessions

REMOVED_MAX = 500
"""Expired sessions that one transaction removes."""


@dataclass(frozen=True, slots=True)
class SessionTokens:
    """Digests of the secrets of a session. `digest`: of the cookie, or of the access token, which ends at `token_expires_at`. The
    others are of a command line: the part that all its refresh tokens have in common, and the digest of the valid one."""

    digest: bytes = field(repr=False)
    token_expires_at: int | None = None
    refresh_id: str | None = field(default=None, repr=False)
    refresh_digest: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ProviderProof:
    """Proof of a sign-in with an identity provider, as a session keeps it: its connection, and the ID token, sealed; None if it is not
    kept."""

    connection_id: str
    id_token: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A session that may act now, with its person, their organization, and the roles that they hold."""

    session: Session
    user: User
    organization_id: str
    grants: tuple[Grant, ...]


def insert_session(tx: TenantTx, session: Session, tokens: SessionTokens, proof: ProviderProof | None = None) -> None:
    """Store a new session of a person of the organization."""
    tx.connection.execute(
        user_sessions.insert().values(
            id=session.id,
            organization_id=tx.organization_id,
            user_id=session.user_id,
            kind=session.kind,
            method=session.method,
            digest=tokens.digest,
            refresh_id=tokens.refresh_id,
            refresh_digest=tokens.refresh_digest,
            token_expires_at=tokens.token_expires_at,
            address=session.address,
            agent=session.agent,
            created_at=session.created_at,
            last_used_at=session.last_used_at,
            expires_at=session.expires_at,
            connection_id=None if proof is None else proof.connection_id,
            id_token=None if proof is None else proof.id_token,
        )
    )


def find_live_session(tx: PlatformTx, digests: Sequence[bytes], now: int) -> LiveSession | None:
    """Return the session with one of `digests` if it may act at `now`: it has not ended, its person was not removed, and their
    organization is active."""
    token_is_valid = sa.or_(user_sessions.c.token_expires_at.is_(None), user_sessions.c.token_expires_at > now)
    row = _find_live(tx, now, user_sessions.c.digest.in_(digests), token_is_valid)
    return None if row is None else _live_session(tx, row)


def find_session_by_refresh_id(tx: PlatformTx, refresh_id: str, now: int) -> tuple[LiveSession, bytes] | None:
    """Return the session that a refresh token is or was of, if it may act at `now`, with the digest of the valid one."""
    row = _find_live(tx, now, user_sessions.c.refresh_id == refresh_id)
    return None if row is None else (_live_session(tx, row), bytes(row.refresh_digest))


def _find_live(tx: PlatformTx, now: int, *conditions: sa.ColumnElement[bool]) -> Any:
    """Return the row of the session that meets the conditions, with its person, if it may act at `now`; None otherwise."""
    columns = user_sessions.c
    query = (
        sa.select(user_sessions, users.c.email, users.c.name, users.c.added_at)
        .join(users, sa.and_(users.c.organization_id == columns.organization_id, users.c.id == columns.user_id))
        .join(organizations, organizations.c.id == columns.organization_id)
        .where(*conditions, columns.expires_at > now, users.c.removed_at.is_(None), organizations.c.status == Status.ACTIVE)
    )
    row = tx.connection.execute(query).one_or_none()
    return None if row is None or _session(row).ends_at() <= now else row


def _live_session(tx: PlatformTx, row: Any) -> LiveSession:
    grants = tuple(list_user_grants(tx, row.organization_id, row.user_id))
    user = User(id=row.user_id, email=row.email, name=row.name, added_at=row.added_at)
    return LiveSession(_session(row), user, row.organization_id, grants)


def find_proof(tx: TenantTx, session_id: str) -> ProviderProof | None:
    """Return what a session keeps of the sign-in with an identity provider; None if it began otherwise."""
    columns = user_sessions.c
    query = sa.select(columns.connection_id, columns.id_token).where(
        *_own(tx), columns.id == session_id, columns.connection_id.is_not(None)
    )
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else ProviderProof(row.connection_id, None if row.id_token is None else bytes(row.id_token))


def note_session_use(tx: TenantTx, session_id: str, now: int) -> None:
    """Store that a session was used now."""
    tx.connection.execute(user_sessions.update().where(*_own(tx), user_sessions.c.id == session_id).values(last_used_at=now))


def replace_tokens(tx: TenantTx, session_id: str, tokens: SessionTokens, before: bytes | None, now: int) -> bool:
    """Store other secrets of a session, which was used now. Return False if it ended, or does not have the digest `before` of the refresh
    token any more (None: whatever that is)."""
    values = {"digest": tokens.digest, "token_expires_at": tokens.token_expires_at, "last_used_at": now}
    if tokens.refresh_digest is not None:
        values["refresh_digest"] = tokens.refresh_digest
    own = user_sessions.update().where(*_own(tx), user_sessions.c.id == session_id)
    if before is not None:
        own = own.where(user_sessions.c.refresh_digest == before)
    return bool(tx.connection.execute(own.values(values)).rowcount)


def list_user_sessions(tx: TenantTx, user_id: str, now: int) -> list[Session]:
    """Return the sessions of a person that have not ended, the one that was used last first."""
    query = sa.select(user_sessions).where(*_own(tx), user_sessions.c.user_id == user_id, user_sessions.c.expires_at > now)
    found = map(_session, tx.connection.execute(query.order_by(user_sessions.c.last_used_at.desc(), user_sessions.c.id.desc())))
    return [session for session in found if session.ends_at() > now]


def delete_session(tx: TenantTx, user_id: str, session_id: str) -> bool:
    """End a session of a person. Return whether there was one."""
    own = user_sessions.delete().where(*_own(tx), user_sessions.c.user_id == user_id, user_sessions.c.id == session_id)
    return bool(tx.connection.execute(own).rowcount)


def delete_user_sessions(tx: TenantTx, user_id: str, *, but: str | None = None) -> None:
    """End all sessions of a person, but one, and the logins that they approved and no device has asked for yet."""
    with tx.as_platform() as platform:
        delete_user_logins(platform, user_id)
    conditions = [*_own(tx), user_sessions.c.user_id == user_id]
    if but is not None:
        conditions.append(user_sessions.c.id != but)
    tx.connection.execute(user_sessions.delete().where(*conditions))


def delete_organization_sessions(tx: TenantTx) -> None:
    """End all sessions of the organization."""
    tx.connection.execute(user_sessions.delete().where(*_own(tx)))


def remove_ended_sessions(tx: PlatformTx, now: int) -> int:
    """Remove sessions that have ended, REMOVED_MAX at most. Return how many."""
    columns = user_sessions.c
    idle = sa.or_(
        *(sa.and_(columns.kind == kind, columns.last_used_at <= now - each.idle_seconds * 1_000_000) for kind, each in LIFETIMES.items())
    )
    ended = sa.select(columns.id).where(sa.or_(columns.expires_at <= now, idle)).limit(REMOVED_MAX)
    return tx.connection.execute(user_sessions.delete().where(columns.id.in_(ended))).rowcount


def _own(tx: TenantTx) -> tuple[sa.ColumnElement[bool], ...]:
    return (user_sessions.c.organization_id == tx.organization_id,)


def _session(row: Any) -> Session:
    return Session(
        id=row.id,
        user_id=row.user_id,
        kind=SessionKind(row.kind),
        method=SignInMethod(row.method),
        address=row.address,
        agent=row.agent,
        created_at=row.created_at,
        last_used_at=row.last_used_at,
        expires_at=row.expires_at,
    )
