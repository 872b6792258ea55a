"""Limits at rest: two columns on each level that can be limited."""

import sqlalchemy as sa

from tollway.domain.limits import Limits
from tollway.domain.tenants import Status
from tollway.storage.database import TenantTx
from tollway.storage.schema import api_keys, organizations, projects


def find_organization_limits(tx: TenantTx) -> Limits | None:
    """The organization's own limits; None if it is archived."""
    return _find(tx, organizations, _organization(tx))


def put_organization_limits(tx: TenantTx, limits: Limits) -> bool:
    """Replace the organization's own limits. Returns whether there was anything to limit."""
    return _put(tx, organizations, _organization(tx), limits)


def find_project_limits(tx: TenantTx, project_id: str) -> Limits | None:
    """The limits of a project; None if there is none or it is archived."""
    return _find(tx, projects, _project(tx, project_id))


def put_project_limits(tx: TenantTx, project_id: str, limits: Limits) -> bool:
    """Replace the limits of a project. Returns whether there was anything to limit."""
    return _put(tx, projects, _project(tx, project_id), limits)


def find_key_limits(tx: TenantTx, project_id: str, key_id: str) -> Limits | None:
    """The limits of a project's key; None if there is none or it is revoked."""
    return _find(tx, api_keys, _key(tx, project_id, key_id))


def put_key_limits(tx: TenantTx, project_id: str, key_id: str, limits: Limits) -> bool:
    """Replace the limits of a project's key. Returns whether there was anything to limit."""
    return _put(tx, api_keys, _key(tx, project_id, key_id), limits)


def _organization(tx: TenantTx) -> sa.ColumnElement[bool]:
    return sa.and_(organizations.c.id == tx.organization_id, organizations.c.status == Status.ACTIVE)


def _project(tx: TenantTx, project_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        projects.c.organization_id == tx.organization_id,
        projects.c.id == project_id,
        projects.c.status == Status.ACTIVE,
    )


def _key(tx: TenantTx, project_id: str, key_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        api_keys.c.organization_id == tx.organization_id,
        api_keys.c.project_id == project_id,
        api_keys.c.id == key_id,
        api_keys.c.revoked_at.is_(None),
    )


def _find(tx: TenantTx, table: sa.Table, where: sa.ColumnElement[bool]) -> Limits | None:
    query = sa.select(table.c.requests_per_minute, table.c.concurrent_requests).where(where)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else Limits(requests_per_minute=row[0], concurrent_requests=row[1])


def _put(tx: TenantTx, table: sa.Table, where: sa.ColumnElement[bool], limits: Limits) -> bool:
    update = (
        table.update().where(where).values(requests_per_minute=limits.requests_per_minute, concurrent_requests=limits.concurrent_requests)
    )
    return tx.connection.execute(update).rowcount > 0
