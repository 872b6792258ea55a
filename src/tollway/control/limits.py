"""Limits: read and replaced as a whole, at the level that they limit."""

from tollway.control import publish
from tollway.domain import ids
from tollway.domain.faults import RESOURCE_UNKNOWN, Fault
from tollway.domain.limits import Limits
from tollway.domain.snapshot import KeyEntry, OrganizationEntry, ProjectEntry
from tollway.storage import limits as storage
from tollway.storage.database import TenantTx


def get_organization_limits(tx: TenantTx) -> Limits:
    """The organization's own limits. Raises RESOURCE_UNKNOWN if it is archived."""
    return _known(storage.find_organization_limits(tx))


def put_organization_limits(tx: TenantTx, limits: Limits, now: int) -> Limits:
    """Replace the organization's own limits."""
    publish.lock(tx)
    if not storage.put_organization_limits(tx, limits):
        raise Fault(RESOURCE_UNKNOWN)
    publish.publish(tx, OrganizationEntry, [tx.organization_id], now)
    return limits


def get_project_limits(tx: TenantTx, project_id: str) -> Limits:
    """The limits of an active project. Raises RESOURCE_UNKNOWN."""
    return _known(storage.find_project_limits(tx, project_id) if ids.is_id(ids.PROJECT, project_id) else None)


def put_project_limits(tx: TenantTx, project_id: str, limits: Limits, now: int) -> Limits:
    """Replace the limits of an active project. Raises RESOURCE_UNKNOWN."""
    publish.lock(tx)
    get_project_limits(tx, project_id)
    storage.put_project_limits(tx, project_id, limits)
    publish.publish(tx, ProjectEntry, [project_id], now)
    return limits


def get_key_limits(tx: TenantTx, project_id: str, key_id: str) -> Limits:
    """The limits of a project's key. Raises RESOURCE_UNKNOWN."""
    well_formed = ids.is_id(ids.PROJECT, project_id) and ids.is_id(ids.KEY, key_id)
    return _known(storage.find_key_limits(tx, project_id, key_id) if well_formed else None)


def put_key_limits(tx: TenantTx, project_id: str, key_id: str, limits: Limits, now: int) -> Limits:
    """Replace the limits of a project's key. Raises RESOURCE_UNKNOWN."""
    publish.lock(tx)
    get_key_limits(tx, project_id, key_id)
    storage.put_key_limits(tx, project_id, key_id, limits)
    publish.publish(tx, KeyEntry, [key_id], now)
    return limits


def _known(limits: Limits | None) -> Limits:
    if limits is None:
        raise Fault(RESOURCE_UNKNOWN)
    return limits
