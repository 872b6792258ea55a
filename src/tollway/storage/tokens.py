"""Signing keys of access tokens at rest, and the keys that tokens may stand for."""

from dataclasses import dataclass, field

import sqlalchemy as sa

from tollway.domain.keys import KeyType
from tollway.domain.tenants import Status
from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.schema import api_keys, projects
from tollway.storage.schema_tokens import token_signing_keys


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs access tokens. `private_key`: sealed by the vault."""

    id: str
    issuer: str
    public_key: bytes
    private_key: bytes = field(repr=False)
    created_at: int


def insert_signing_key(tx: PlatformTx, key: SigningKey) -> None:
    """Store a new signing key."""
    tx.connection.execute(
        token_signing_keys.insert().values(
            id=key.id, issuer=key.issuer, public_key=key.public_key, private_key=key.private_key, created_at=key.created_at
        )
    )


def list_signing_keys(tx: PlatformTx) -> list[SigningKey]:
    """Return all signing keys, the latest first."""
    columns = token_signing_keys.c
    rows = tx.connection.execute(sa.select(token_signing_keys).order_by(columns.created_at.desc(), columns.id.desc()))
    return [SigningKey(row.id, row.issuer, bytes(row.public_key), bytes(row.private_key), row.created_at) for row in rows]


def delete_signing_key(tx: PlatformTx, key_id: str) -> None:
    """Remove a signing key."""
    tx.connection.execute(token_signing_keys.delete().where(token_signing_keys.c.id == key_id))


@dataclass(frozen=True, slots=True)
class RepresentedKey:
    """An inference key that a token can stand for. `expires_at`: UTC microseconds, exclusive; None if it does not expire."""

    id: str
    organization_id: str
    project_id: str
    service_account_id: str | None
    expires_at: int | None


def find_represented_key(tx: TenantTx, key_id: str, now: int) -> RepresentedKey | None:
    """Return an inference key of the organization that may act at `now`; None for any other."""
    columns = api_keys.c
    query = (
        sa.select(columns.id, columns.project_id, columns.service_account_id, columns.expires_at)
        .join(projects, projects.c.id == columns.project_id)
        .where(
            columns.organization_id == tx.organization_id,
            columns.id == key_id,
            columns.type.in_([KeyType.LIVE, KeyType.TEST]),
            columns.revoked_at.is_(None),
            sa.or_(columns.expires_at.is_(None), columns.expires_at > now),
            projects.c.status == Status.ACTIVE,
        )
    )
    row = tx.connection.execute(query).one_or_none()
    if row is None:
        return None
    return RepresentedKey(row.id, tx.organization_id, row.project_id, row.service_account_id, row.expires_at)
