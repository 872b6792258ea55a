"""Credentials of people, one-time links and attempts to sign in, at rest.

Secrets are stored as digests or sealed: a copy of the database signs nobody in.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import sqlalchemy as sa

from tollway.domain.people import User
from tollway.domain.tenants import Status
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.schema import organizations
from tollway.storage.schema_people import users
from tollway.storage.schema_sign_in import sign_in_attempts, sign_in_links, user_credentials, user_identities

REMOVED_MAX = 100
"""Expired rows that one transaction removes: more than it adds, and few enough to be quick."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Means by which a person proves who they are. `password_hash`: Argon2id with parameters and salt, None without a password.
    `code_secret`: of the authenticator app, sealed, None without one; `code_step`: of the code that was accepted last. `recovery_digests`:
    SHA-256 of each recovery code that was not used."""

    password_hash: str | None = field(default=None, repr=False)
    password_set_at: int | None = None
    code_secret: bytes | None = field(default=None, repr=False)
    code_step: int | None = None
    recovery_digests: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Account:
    """A person with the organization that they belong to."""

    organization_id: str
    user: User


def find_accounts(tx: PlatformTx, email: str, organization_id: str | None, count_max: int) -> list[Account]:
    """Return the people with an address (lower case) in active organizations, or in one of them; `count_max` at most."""
    query = (
        sa.select(users)
        .join(organizations, organizations.c.id == users.c.organization_id)
        .where(users.c.email == email, users.c.removed_at.is_(None), organizations.c.status == Status.ACTIVE)
    )
    if organization_id is not None:
        query = query.where(users.c.organization_id == organization_id)
    return [
        Account(row.organization_id, User(id=row.id, email=row.email, name=row.name, added_at=row.added_at))
        for row in tx.connection.execute(query.order_by(users.c.id).limit(count_max))
    ]


def find_credentials(tx: TenantTx, user_id: str) -> Credentials:
    """Return the credentials of a person; without anything in them where they have none."""
    row = tx.connection.execute(sa.select(user_credentials).where(*_own(tx, user_id))).one_or_none()
    if row is None:
        return Credentials()
    return Credentials(
        password_hash=None if row.password_hash is None else bytes(row.password_hash).decode(),
        password_set_at=row.password_set_at,
        code_secret=None if row.code_secret is None else bytes(row.code_secret),
        code_step=row.code_step,
        recovery_digests=() if row.recovery_digests is None else msgspec.json.decode(row.recovery_digests, type=tuple[str, ...]),
    )


def lock_credentials(tx: TenantTx, user_id: str) -> Credentials:
    """Return the credentials of a person, which nobody else changes before the transaction ends."""
    tx.connection.execute(
        sa.select(users.c.id).where(users.c.organization_id == tx.organization_id, users.c.id == user_id).with_for_update()
    )
    return find_credentials(tx, user_id)


def put_credentials(tx: TenantTx, user_id: str, credentials: Credentials) -> None:
    """Store the credentials of a person in place of those before."""
    values: dict[str, Any] = {
        "password_hash": None if credentials.password_hash is None else credentials.password_hash.encode(),
        "password_set_at": credentials.password_set_at,
        "code_secret": credentials.code_secret,
        "code_step": credentials.code_step,
        "recovery_digests": msgspec.json.encode(credentials.recovery_digests) if credentials.recovery_digests else None,
    }
    own = {"organization_id": tx.organization_id, "user_id": user_id}
    insert = tx.insert(user_credentials).values(own | values)
    tx.connection.execute(insert.on_conflict_do_update(index_elements=["organization_id", "user_id"], set_=values))


def delete_credentials(tx: TenantTx, user_id: str) -> None:
    """Remove the credentials of a person, and the links and identities that sign them in."""
    identities = user_identities.c
    tx.connection.execute(user_identities.delete().where(identities.organization_id == tx.organization_id, identities.user_id == user_id))
    tx.connection.execute(user_credentials.delete().where(*_own(tx, user_id)))
    columns = sign_in_links.c
    tx.connection.execute(sign_in_links.delete().where(columns.organization_id == tx.organization_id, columns.user_id == user_id))


def _own(tx: TenantTx, user_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (user_credentials.c.organization_id == tx.organization_id, user_credentials.c.user_id == user_id)


# ---- Links --------------------------------------------------------------------------------------------------------------


def insert_link(tx: TenantTx, digest: bytes, user_id: str, created_by: str, expires_at: int) -> None:
    """Store a link that signs a person in once, in place of the one that they have."""
    columns = sign_in_links.c
    tx.connection.execute(sign_in_links.delete().where(columns.organization_id == tx.organization_id, columns.user_id == user_id))
    values = {
        "digest": digest,
        "organization_id": tx.organization_id,
        "user_id": user_id,
        "created_by": created_by,
        "expires_at": expires_at,
    }
    tx.connection.execute(sign_in_links.insert().values(values))


def find_link(tx: PlatformTx, digest: bytes, now: int) -> Account | None:
    """Return whom a link signs in at `now`; None if it was used, has expired, or its person was removed."""
    columns = sign_in_links.c
    query = (
        sa.select(users)
        .join(sign_in_links, columns.user_id == users.c.id)
        .join(organizations, organizations.c.id == users.c.organization_id)
        .where(columns.digest == digest, columns.expires_at > now, users.c.removed_at.is_(None), organizations.c.status == Status.ACTIVE)
    )
    row = tx.connection.execute(query).one_or_none()
    if row is None:
        return None
    return Account(row.organization_id, User(id=row.id, email=row.email, name=row.name, added_at=row.added_at))


def use_link(tx: TenantTx, digest: bytes, now: int) -> bool:
    """Remove a link. Return whether it could still be used at `now`."""
    columns = sign_in_links.c
    own = sign_in_links.delete().where(columns.organization_id == tx.organization_id, columns.digest == digest, columns.expires_at > now)
    return bool(tx.connection.execute(own).rowcount)


def remove_expired_links(tx: PlatformTx, now: int) -> int:
    """Remove links that have expired, REMOVED_MAX at most. Return how many."""
    expired = sa.select(sign_in_links.c.digest).where(sign_in_links.c.expires_at <= now).limit(REMOVED_MAX)
    return tx.connection.execute(sign_in_links.delete().where(sign_in_links.c.digest.in_(expired))).rowcount


# ---- Attempts -----------------------------------------------------------------------------------------------------------


def count_attempt(tx: Transaction, digest: bytes, attempts_max: int, *, now: int, window_us: int) -> bool:
    """Count an attempt before it is made. Return False, and count nothing, if there were `attempts_max` in this window.

    Some windows that are over are removed: afterwards, and only those that nobody else is counting in, because two attempts would deadlock
    if each removed the window in which the other one is about to be counted."""
    columns = sign_in_attempts.c
    is_over = columns.window_ends_at <= now
    insert = tx.insert(sign_in_attempts).values(digest=digest, attempts=1, window_ends_at=now + window_us)
    counted = insert.on_conflict_do_update(
        index_elements=["digest"],
        set_={
            "attempts": sa.case((is_over, 1), else_=columns.attempts + 1),
            "window_ends_at": sa.case((is_over, now + window_us), else_=columns.window_ends_at),
        },
        where=sa.or_(is_over, columns.attempts < attempts_max),
    ).returning(columns.attempts)
    may_try = tx.connection.execute(counted).one_or_none() is not None
    over = sa.select(columns.digest).where(is_over, columns.digest != digest).limit(REMOVED_MAX).with_for_update(skip_locked=True)
    tx.connection.execute(sign_in_attempts.delete().where(columns.digest.in_(over)))
    return may_try


def take_back_attempt(tx: Transaction, digest: bytes) -> None:
    """Count one attempt less: it was none, because what was entered was right."""
    columns = sign_in_attempts.c
    own = sign_in_attempts.update().where(columns.digest == digest, columns.attempts > 0)
    tx.connection.execute(own.values(attempts=columns.attempts - 1))


def forget_attempts(tx: Transaction, digest: bytes) -> None:
    """Forget the attempts of an account whose person signed in."""
    tx.connection.execute(sign_in_attempts.delete().where(sign_in_attempts.c.digest == digest))
