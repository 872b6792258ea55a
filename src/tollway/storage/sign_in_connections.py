"""Identity providers with which people sign in, and who their subjects are, at rest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from tollway.domain.pages import Page, PageWindow
from tollway.domain.tenants import Status
from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.pages import fetch_page
from tollway.storage.schema import organizations
from tollway.storage.schema_people import invites
from tollway.storage.schema_sign_in import sign_in_connections, user_identities


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInConnection:
    """An identity provider of an organization. `client_secret`: sealed, None for a public client. `trusts_addresses`: every address that it
    names counts as verified. `domains`: of addresses whose owners join by signing in, with the role `role_id`; None: nobody does. `groups`:
    our groups by the names that the claim `groups_claim` lists."""

    id: str
    organization_id: str
    name: str
    issuer: str
    client_id: str
    client_secret: bytes | None = field(repr=False)
    trusts_addresses: bool
    domains: tuple[str, ...]
    role_id: str | None
    groups_claim: str
    groups: Mapping[str, str]
    is_enabled: bool
    created_at: int


def put_connection(tx: TenantTx, connection: SignInConnection, *, is_new: bool) -> None:
    """Store a connection."""
    values = {name: getattr(connection, name) for name in SignInConnection.__dataclass_fields__}
    values |= {"domains": json.dumps(connection.domains), "groups": json.dumps(dict(connection.groups))}
    if is_new:
        tx.connection.execute(sign_in_connections.insert().values(values))
    else:
        tx.connection.execute(sign_in_connections.update().where(_own(tx, connection.id)).values(values))


def find_connection(tx: TenantTx, connection_id: str) -> SignInConnection | None:
    """Return a connection of the organization."""
    row = tx.connection.execute(sa.select(sign_in_connections).where(_own(tx, connection_id))).one_or_none()
    return None if row is None else _connection(row)


def list_connections(tx: TenantTx, window: PageWindow) -> Page[SignInConnection]:
    """Return the connections of the organization."""
    query = sa.select(sign_in_connections).where(sign_in_connections.c.organization_id == tx.organization_id)
    return fetch_page(tx, query, sign_in_connections.c.id, window, _connection)


def delete_connection(tx: TenantTx, connection_id: str) -> None:
    """Delete a connection, and who its subjects are."""
    columns = user_identities.c
    tx.connection.execute(
        user_identities.delete().where(columns.organization_id == tx.organization_id, columns.connection_id == connection_id)
    )
    tx.connection.execute(sign_in_connections.delete().where(_own(tx, connection_id)))


def find_enabled(tx: PlatformTx, connection_id: str) -> SignInConnection | None:
    """Return an enabled connection of an active organization."""
    query = (
        sa.select(sign_in_connections)
        .join(organizations, organizations.c.id == sign_in_connections.c.organization_id)
        .where(sign_in_connections.c.id == connection_id, sign_in_connections.c.is_enabled, organizations.c.status == Status.ACTIVE)
    )
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _connection(row)


def find_identity(tx: TenantTx, connection_id: str, subject: str) -> str | None:
    """Return the person who a subject of a provider is."""
    columns = user_identities.c
    query = sa.select(columns.user_id).where(
        columns.organization_id == tx.organization_id, columns.connection_id == connection_id, columns.subject == subject
    )
    found: str | None = tx.connection.execute(query).scalar_one_or_none()
    return found


def insert_identity(tx: TenantTx, connection_id: str, subject: str, user_id: str) -> None:
    """Store who a subject of a provider is."""
    values = {"organization_id": tx.organization_id, "connection_id": connection_id, "subject": subject, "user_id": user_id}
    tx.connection.execute(user_identities.insert().values(values))


def find_pending_invite(tx: TenantTx, email: str, now: int) -> str | None:
    """Return the latest pending invitation of an address."""
    columns = invites.c
    query = sa.select(columns.id).where(
        columns.organization_id == tx.organization_id,
        columns.email == email,
        columns.accepted_at.is_(None),
        columns.deleted_at.is_(None),
        columns.expires_at > now,
    )
    found: str | None = tx.connection.execute(query.order_by(columns.id.desc()).limit(1)).scalar_one_or_none()
    return found


def _own(tx: TenantTx, connection_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(sign_in_connections.c.organization_id == tx.organization_id, sign_in_connections.c.id == connection_id)


def _connection(row: Any) -> SignInConnection:
    decoded = {"domains": tuple(json.loads(row.domains)), "groups": json.loads(row.groups)}
    secret = None if row.client_secret is None else bytes(row.client_secret)
    kept = {name: getattr(row, name) for name in SignInConnection.__dataclass_fields__ if name not in (*decoded, "client_secret")}
    return SignInConnection(**kept, **decoded, client_secret=secret)
