"""Operators who sign in, and their sessions, at rest. A session that ended has no row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from tollway.domain.keys import KeyOrigin, KeyType, Operator
from tollway.domain.pages import Page, PageWindow
from tollway.domain.roles import Role, find_built_in
from tollway.domain.sessions import LIFETIMES, OperatorSession, SessionKind, SignInMethod
from tollway.storage.database import PlatformTx
from tollway.storage.pages import fetch_page
from tollway.storage.schema import api_keys
from tollway.storage.schema_sign_in import operator_sessions, operator_sign_in_links, operators
from tollway.storage.sessions import REMOVED_MAX, SessionTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedInOperator:
    """An operator as the identity provider described them at the latest sign-in. `role`: None if they have none any more. `signed_in_at`:
    UTC microseconds."""

    id: str
    issuer: str
    subject: str
    email: str
    name: str
    role: Role | None
    origin: KeyOrigin
    signed_in_at: int


KEY_ISSUER = "key"
"""Issuer of operators who signed in with a key of theirs, whose id is their subject: no provider has it, whose issuers are addresses."""


def put_operator(tx: PlatformTx, operator: SignedInOperator) -> None:
    """Store an operator who signs in."""
    values = {name: getattr(operator, name) for name in SignedInOperator.__dataclass_fields__ if name != "role"}
    values["role_id"] = None if operator.role is None else operator.role.id
    changed = {name: value for name, value in values.items() if name not in ("id", "issuer", "subject")}
    insert = tx.insert(operators).values(values)
    tx.connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changed))


def find_operator(tx: PlatformTx, operator_id: str) -> SignedInOperator | None:
    """Return an operator who signed in before."""
    row = tx.connection.execute(sa.select(operators).where(operators.c.id == operator_id)).one_or_none()
    return None if row is None else _operator(row)


def list_operators(tx: PlatformTx, window: PageWindow) -> Page[SignedInOperator]:
    """Return the operators who signed in, those without a role among them."""
    return fetch_page(tx, sa.select(operators), operators.c.id, window, _operator)


def take_role(tx: PlatformTx, operator_id: str) -> None:
    """Take the role from an operator, until they sign in again."""
    tx.connection.execute(operators.update().where(operators.c.id == operator_id).values(role_id=None))


# ---- Links --------------------------------------------------------------------------------------------------------------


def insert_link(tx: PlatformTx, digest: bytes, operator_id: str, expires_at: int) -> None:
    """Store a link that signs an operator in once, in place of the one that they have."""
    columns = operator_sign_in_links.c
    tx.connection.execute(operator_sign_in_links.delete().where(columns.operator_id == operator_id))
    values = {"digest": digest, "operator_id": operator_id, "expires_at": expires_at}
    tx.connection.execute(operator_sign_in_links.insert().values(values))


def find_link(tx: PlatformTx, digest: bytes, now: int) -> SignedInOperator | None:
    """Return whom a link signs in at `now`; None if it was used, has expired, or the key of its operator may not act any more."""
    columns = operator_sign_in_links.c
    query = (
        sa.select(operators)
        .join(operator_sign_in_links, columns.operator_id == operators.c.id)
        .where(columns.digest == digest, columns.expires_at > now, operators.c.role_id.is_not(None), _has_valid_key(now))
    )
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _operator(row)


def use_link(tx: PlatformTx, digest: bytes, now: int) -> bool:
    """Remove a link. Return whether it could still be used at `now`."""
    columns = operator_sign_in_links.c
    own = operator_sign_in_links.delete().where(columns.digest == digest, columns.expires_at > now)
    return bool(tx.connection.execute(own).rowcount)


# ---- Sessions -----------------------------------------------------------------------------------------------------------


def insert_session(tx: PlatformTx, session: OperatorSession, tokens: SessionTokens, id_token: bytes | None) -> None:
    """Store a new session. `id_token`: of the sign-in, sealed."""
    values = {name: getattr(session, name) for name in OperatorSession.__dataclass_fields__ if name not in ("email", "name")}
    values |= {
        "digest": tokens.digest,
        "refresh_id": tokens.refresh_id,
        "refresh_digest": tokens.refresh_digest,
        "token_expires_at": tokens.token_expires_at,
        "id_token": id_token,
    }
    tx.connection.execute(operator_sessions.insert().values(values))


def find_live(tx: PlatformTx, issuer: str | None, digests: Sequence[bytes], now: int) -> Operator | None:
    """Return who has the session with one of `digests`, if it may act at `now`: it has not ended, and its operator has a role, by the
    provider `issuer`, or by a key that may act. `issuer`: None without a provider."""
    columns = operator_sessions.c
    token_is_valid = sa.or_(columns.token_expires_at.is_(None), columns.token_expires_at > now)
    row = _find(tx, issuer, now, columns.digest.in_(digests), token_is_valid)
    return None if row is None else _acting(row)


def find_live_by_id(tx: PlatformTx, issuer: str, session_id: str, now: int) -> Operator | None:
    """Return who has the session with this id, if it may act at `now`."""
    row = _find(tx, issuer, now, operator_sessions.c.id == session_id)
    return None if row is None else _acting(row)


def find_by_refresh_id(tx: PlatformTx, issuer: str, refresh_id: str, now: int) -> tuple[Operator, bytes] | None:
    """Return who has the session that a refresh token is or was of, if it may act at `now`, with the digest of the valid one."""
    row = _find(tx, issuer, now, operator_sessions.c.refresh_id == refresh_id)
    return None if row is None else (_acting(row), bytes(row.refresh_digest))


def find_id_token(tx: PlatformTx, session_id: str) -> bytes | None:
    """Return the sealed ID token of the sign-in of a session."""
    query = sa.select(operator_sessions.c.id_token).where(operator_sessions.c.id == session_id)
    found = tx.connection.execute(query).scalar_one_or_none()
    return None if found is None else bytes(found)


def note_use(tx: PlatformTx, session_id: str, now: int) -> None:
    """Store that a session was used now."""
    tx.connection.execute(operator_sessions.update().where(operator_sessions.c.id == session_id).values(last_used_at=now))


def replace_tokens(tx: PlatformTx, session_id: str, tokens: SessionTokens, before: bytes, now: int) -> bool:
    """Store other secrets of a session, which was used now. Return False if it ended, or does not have the digest `before` of the refresh
    token any more."""
    own = operator_sessions.update().where(operator_sessions.c.id == session_id, operator_sessions.c.refresh_digest == before)
    values = {
        "digest": tokens.digest,
        "token_expires_at": tokens.token_expires_at,
        "refresh_digest": tokens.refresh_digest,
        "last_used_at": now,
    }
    return bool(tx.connection.execute(own.values(values)).rowcount)


def list_sessions(tx: PlatformTx, operator_id: str, now: int) -> list[OperatorSession]:
    """Return the sessions of an operator that have not ended, the one that was used last first."""
    columns = operator_sessions.c
    query = _joined().where(columns.operator_id == operator_id, columns.expires_at > now)
    rows = tx.connection.execute(query.order_by(columns.last_used_at.desc(), columns.id.desc()))
    return [session for session in map(_session, rows) if session.ends_at() > now]


def delete_session(tx: PlatformTx, operator_id: str, session_id: str) -> bool:
    """End a session of an operator. Return whether there was one."""
    columns = operator_sessions.c
    own = operator_sessions.delete().where(columns.operator_id == operator_id, columns.id == session_id)
    return bool(tx.connection.execute(own).rowcount)


def delete_sessions(tx: PlatformTx, operator_id: str) -> None:
    """End all sessions of an operator."""
    tx.connection.execute(operator_sessions.delete().where(operator_sessions.c.operator_id == operator_id))


def remove_ended(tx: PlatformTx, now: int) -> int:
    """Remove sessions that have ended, REMOVED_MAX at most, and links that have expired. Return how many sessions."""
    tx.connection.execute(operator_sign_in_links.delete().where(operator_sign_in_links.c.expires_at <= now))
    columns = operator_sessions.c
    idle = columns.last_used_at <= now - LIFETIMES[SessionKind.BROWSER].idle_seconds * 1_000_000
    ended = sa.select(columns.id).where(sa.or_(columns.expires_at <= now, idle)).limit(REMOVED_MAX)
    return tx.connection.execute(operator_sessions.delete().where(columns.id.in_(ended))).rowcount


def _joined() -> sa.Select[Any]:
    columns = (operators.c.email, operators.c.name, operators.c.role_id, operators.c.origin)
    return sa.select(operator_sessions, *columns).join(operators, operators.c.id == operator_sessions.c.operator_id)


def _find(tx: PlatformTx, issuer: str | None, now: int, *conditions: sa.ColumnElement[bool]) -> Any:
    """Return the row of the session that meets the conditions, if it may act at `now`; None otherwise. Its operator signed in with the
    provider `issuer`, or with a key that may still act."""
    is_known = _has_valid_key(now)
    if issuer is not None:
        is_known = sa.or_(operators.c.issuer == issuer, is_known)
    query = _joined().where(*conditions, operator_sessions.c.expires_at > now, is_known, operators.c.role_id.is_not(None))
    row = tx.connection.execute(query).one_or_none()
    return None if row is None or _session(row).ends_at() <= now else row


def _has_valid_key(now: int) -> sa.ColumnElement[bool]:
    """Return the condition that an operator is known by a key that may act at `now`."""
    key = sa.select(api_keys.c.id).where(
        api_keys.c.id == operators.c.subject,
        api_keys.c.type == KeyType.PLATFORM,
        api_keys.c.revoked_at.is_(None),
        sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now),
    )
    return sa.and_(operators.c.issuer == KEY_ISSUER, key.exists())


def _acting(row: Any) -> Operator:
    role = find_built_in(row.role_id)
    assert role is not None, "only built-in roles are stored"
    return Operator(row.operator_id, KeyOrigin(row.origin), role, _session(row))


def _session(row: Any) -> OperatorSession:
    fields = {name: getattr(row, name) for name in OperatorSession.__dataclass_fields__}
    return OperatorSession(**fields | {"kind": SessionKind(row.kind), "method": SignInMethod(row.method)})


def _operator(row: Any) -> SignedInOperator:
    fields = {name: getattr(row, name) for name in SignedInOperator.__dataclass_fields__ if name not in ("role", "origin")}
    role = None if row.role_id is None else find_built_in(row.role_id)
    return SignedInOperator(**fields, role=role, origin=KeyOrigin(row.origin))
