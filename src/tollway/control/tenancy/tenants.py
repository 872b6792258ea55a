"""Organizations, projects and service accounts: what may be done with them, and what follows from it.

An id of another tenant and one that never was are the same here: RESOURCE_UNKNOWN.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from tollway.control import publish
from tollway.control.bounds import quotas
from tollway.control.identity import keys
from tollway.control.identity.keys import Grantor, Ingredients
from tollway.domain import ids
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.keys import KeyType
from tollway.domain.leaked_keys import LeakPolicy
from tollway.domain.pages import Page, PageWindow
from tollway.domain.project_policies import ModelMode, ModelPermissions, ServiceTiers
from tollway.domain.quotas import Quota, QuotaSizes
from tollway.domain.rotation_schedules import RotationSchedule
from tollway.domain.snapshot import KeyEntry, OrganizationEntry, ProjectEntry
from tollway.domain.tenants import Organization, Project, ServiceAccount, Status
from tollway.storage import content_logs, stored_responses
from tollway.storage import keys as stored_keys
from tollway.storage import periods as stored_periods
from tollway.storage import sessions as stored_sessions
from tollway.storage import tenants as storage
from tollway.storage.database import PlatformTx, TenantTx

# ---- Organizations ----------------------------------------------------------------------------------------------------


def create_organization(tx: TenantTx, *, name: str, currency: str, time_zone: str, queue_weight: int = 1, now: int) -> Organization:
    """Create the organization that `tx` was bound to beforehand, billed in `currency` (which never changes), by months of `time_zone`.

    Raises STATE_CONFLICT if an active organization has the name: files and reports name organizations. `publish.lock` lets one
    creation at a time through, in all processes, so two with one name cannot pass this check together."""
    publish.lock(tx)
    with tx.as_platform() as platform:
        is_taken = storage.is_organization_name_taken(platform, name)
    if is_taken:
        raise Fault(STATE_CONFLICT, param="name", message="An active organization has this name already.")
    organization = Organization(
        id=tx.organization_id,
        name=name,
        currency=currency,
        status=Status.ACTIVE,
        created_at=now,
        time_zone=time_zone,
        queue_weight=queue_weight,
    )
    storage.insert_organization(tx, organization)
    publish.publish(tx, OrganizationEntry, [organization.id], now)
    return organization


def get_organization(tx: TenantTx) -> Organization:
    """The organization that `tx` is bound to. Raises RESOURCE_UNKNOWN."""
    organization = storage.find_organization(tx)
    if organization is None:
        raise Fault(RESOURCE_UNKNOWN)
    return organization


def set_time_zone(tx: TenantTx, time_zone: str) -> Organization:
    """Cut billing periods by the months of another time zone from the next new one on. Gateways know no zones, so they are told nothing."""
    require_active_organization(tx)
    stored_periods.lock_organization(tx, tx.organization_id)
    storage.set_time_zone(tx, time_zone)
    return get_organization(tx)


def set_key_lifetime_max(tx: TenantTx, seconds: int | None) -> Organization:
    """Bound the lifetime of keys that are made or rotated from now on; None for no bound. Keys that exist keep their expiry."""
    require_active_organization(tx)
    storage.set_key_lifetime_max(tx, seconds)
    return get_organization(tx)


def set_leaked_key_policy(tx: TenantTx, policy: LeakPolicy) -> Organization:
    """Say what is done with secrets that are reported as leaked from now on. Raises STATE_CONFLICT (archived)."""
    require_active_organization(tx)
    storage.set_leaked_key_policy(tx, policy)
    return get_organization(tx)


def set_rotation_schedule(tx: TenantTx, schedule: RotationSchedule | None) -> Organization:
    """Rotate the keys of the organization's projects by a schedule; None for none. It counts from each key's latest rotation."""
    require_active_organization(tx)
    storage.set_rotation_schedule(tx, schedule)
    return get_organization(tx)


def set_queue_weight(tx: TenantTx, weight: int, now: int) -> Organization:
    """Give the organization another share in the queues of models. What waits already keeps its share."""
    publish.lock(tx)
    require_active_organization(tx)
    storage.set_queue_weight(tx, weight)
    publish.publish(tx, OrganizationEntry, [tx.organization_id], now)
    return get_organization(tx)


def list_organizations(tx: PlatformTx, window: PageWindow, *, include_archived: bool) -> Page[Organization]:
    """All organizations, for operators."""
    return storage.list_organizations(tx, window, include_archived=include_archived)


def archive_organization(tx: TenantTx, now: int) -> tuple[Organization, int]:
    """Archive the organization, its projects and all of its keys. Doing it again changes nothing but the version.

    Returns the organization and the version at which no gateway serves it any more.
    """
    publish.lock(tx)
    get_organization(tx)
    revoked = stored_keys.revoke_organization_keys(tx, now)
    stored_sessions.delete_organization_sessions(tx)
    archived = storage.archive_organization(tx, now)
    content_logs.end_logging(tx)
    content_logs.delete_content(tx)
    stored_responses.delete_all(tx)  # nothing more is stored, because the organization is archived before
    publish.publish(tx, KeyEntry, revoked, now)
    publish.publish(tx, ProjectEntry, archived, now)
    version = publish.publish(tx, OrganizationEntry, [tx.organization_id], now)
    return get_organization(tx), version


def require_active_organization(tx: TenantTx) -> None:
    """Raise STATE_CONFLICT if the organization is archived: an operator may still look at it, and no more."""
    if get_organization(tx).status is not Status.ACTIVE:
        raise Fault(STATE_CONFLICT, message="The organization is archived.")


# ---- Projects ---------------------------------------------------------------------------------------------------------


def create_project(tx: TenantTx, *, id: str, name: str, residency: tuple[str, ...] | None = None, sizes: QuotaSizes, now: int) -> Project:
    """Create a project with no keys and no limits. `residency`: the regions that may serve it, None for any. `sizes`: of the quotas. Raises
    STATE_CONFLICT (archived), QUOTA_EXCEEDED."""
    publish.lock(tx)
    require_active_organization(tx)
    quotas.require_creation(tx, sizes, Quota.PROJECTS, now)
    project = Project(id=id, organization_id=tx.organization_id, name=name, status=Status.ACTIVE, created_at=now, residency=residency)
    storage.insert_project(tx, project)
    publish.publish(tx, ProjectEntry, [id], now)
    return project


def get_project(tx: TenantTx, project_id: str) -> Project:
    """A project, archived or not. Raises RESOURCE_UNKNOWN."""
    project = storage.find_project(tx, project_id) if ids.is_id(ids.PROJECT, project_id) else None
    if project is None:
        raise Fault(RESOURCE_UNKNOWN)
    return project


def get_active_project(tx: TenantTx, project_id: str) -> Project:
    """A project that may act. Raises RESOURCE_UNKNOWN, or STATE_CONFLICT if it is archived."""
    project = get_project(tx, project_id)
    if project.status is not Status.ACTIVE:
        raise Fault(STATE_CONFLICT, message="The project is archived.")
    return project


def list_projects(tx: TenantTx, window: PageWindow, *, include_archived: bool) -> Page[Project]:
    """The organization's projects."""
    return storage.list_projects(tx, window, include_archived=include_archived)


def name_projects(tx: TenantTx, ids: Sequence[str]) -> dict[str, str]:
    """Return the names of those of the projects that are the organization's, by id."""
    return storage.name_projects(tx, ids)


def update_project(tx: TenantTx, project_id: str, changed: dict[str, object], now: int) -> tuple[Project, int | None]:
    """Change the name or the residency of a project; what is not named stays.

    Returns the project, and the version at which every gateway keeps to its residency; None if that stays: gateways know no names, so
    they are told nothing of one.
    """
    publish.lock(tx)
    before = get_active_project(tx, project_id)
    project = msgspec.structs.replace(before, **changed)
    storage.put_project(tx, project)
    version = None if project.residency == before.residency else publish.publish(tx, ProjectEntry, [project_id], now)
    return project, version


def archive_project(tx: TenantTx, project_id: str, now: int) -> tuple[Project, int]:
    """Archive a project and revoke its keys; it keeps its history. Doing it again changes nothing but the version."""
    publish.lock(tx)
    project = get_project(tx, project_id)
    publish.publish(tx, KeyEntry, stored_keys.revoke_project_keys(tx, project_id, now), now)
    if project.status is Status.ACTIVE:
        storage.archive_project(tx, project_id, now)
        content_logs.delete_content(tx, project_id)
    version = publish.publish(tx, ProjectEntry, [project_id], now)
    return get_project(tx, project_id), version


def get_model_permissions(tx: TenantTx, project_id: str) -> ModelPermissions:
    """Return which models the keys of a project may use: every published one, if it says nothing. Raises RESOURCE_UNKNOWN."""
    get_project(tx, project_id)
    return storage.find_model_permissions(tx, project_id) or ModelPermissions(mode=ModelMode.DENY_LIST, models=())


def set_model_permissions(tx: TenantTx, project_id: str, permissions: ModelPermissions | None, now: int) -> ModelPermissions:
    """Say which models the keys of a project may use; None lets them use every published one. Raises RESOURCE_UNKNOWN, STATE_CONFLICT."""
    publish.lock(tx)
    get_active_project(tx, project_id)
    storage.set_model_permissions(tx, project_id, permissions)
    publish.publish(tx, ProjectEntry, [project_id], now)
    return get_model_permissions(tx, project_id)


def get_service_tiers(tx: TenantTx, project_id: str) -> ServiceTiers:
    """Return the service tiers of a project. Raises RESOURCE_UNKNOWN."""
    get_project(tx, project_id)
    return storage.find_service_tiers(tx, project_id)


def set_service_tiers(tx: TenantTx, project_id: str, tiers: ServiceTiers, now: int) -> ServiceTiers:
    """Store the service tiers of a project. Raises RESOURCE_UNKNOWN, STATE_CONFLICT, PARAMETER_INVALID (a default that is not enabled)."""
    publish.lock(tx)
    get_active_project(tx, project_id)
    if not tiers.allows(tiers.default):
        raise Fault(PARAMETER_INVALID, param="default", message="The default tier must be one of the enabled tiers.")
    storage.set_service_tiers(tx, project_id, tiers)
    publish.publish(tx, ProjectEntry, [project_id], now)
    return tiers


# ---- Service accounts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewServiceAccount:
    """A service account, and its first key at the one moment when the secret is known; None if none was asked for."""

    account: ServiceAccount
    key: keys.ShownKey | None


def create_service_account(
    tx: TenantTx,
    project_id: str,
    *,
    id: str,
    name: str,
    key_id: str | None,
    ingredients: Ingredients,
    expires_at: int | None,
    grantor: Grantor,
    sizes: QuotaSizes,
    now: int,
) -> NewServiceAccount:
    """Create a service account and, if `key_id` is given, a live key of its own made from `ingredients`. `sizes`: of the quotas. Raises
    RESOURCE_UNKNOWN, STATE_CONFLICT (archived), PARAMETER_INVALID (expiry), QUOTA_EXCEEDED."""
    publish.lock(tx)
    get_active_project(tx, project_id)
    quotas.require_creation(tx, sizes, Quota.SERVICE_ACCOUNTS, now)
    role = "member" if key_id else "none"  # OpenAI's words for an account with, and without, a part in its project
    account = ServiceAccount(id=id, organization_id=tx.organization_id, project_id=project_id, name=name, role=role, created_at=now)
    storage.insert_service_account(tx, account)
    key = None
    if key_id is not None:
        wanted = keys.WantedKey(type=KeyType.LIVE, name="Secret Key", expires_at=expires_at, service_account=account, grantor=grantor)
        key = keys.create_project_key(tx, project_id, wanted, id=key_id, ingredients=ingredients, sizes=sizes, now=now)
    return NewServiceAccount(account, key)


def get_service_account(tx: TenantTx, project_id: str, account_id: str) -> ServiceAccount:
    """A service account of a project. Raises RESOURCE_UNKNOWN."""
    account = None
    if ids.is_id(ids.PROJECT, project_id) and ids.is_id(ids.SERVICE_ACCOUNT, account_id):
        account = storage.find_service_account(tx, project_id, account_id)
    if account is None:
        raise Fault(RESOURCE_UNKNOWN)
    return account


def update_service_account(tx: TenantTx, project_id: str, account_id: str, *, name: str | None, role: str | None) -> ServiceAccount:
    """Give a service account another name or role; None leaves it. Gateways know neither. Raises RESOURCE_UNKNOWN, STATE_CONFLICT."""
    get_active_project(tx, project_id)
    account = get_service_account(tx, project_id, account_id)
    changed = msgspec.structs.replace(account, name=name or account.name, role=role or account.role)
    storage.update_service_account(tx, changed)
    return changed


def create_service_account_key(
    tx: TenantTx,
    project_id: str,
    account_id: str,
    *,
    name: str,
    key_id: str,
    ingredients: Ingredients,
    expires_at: int | None,
    grantor: Grantor,
    sizes: QuotaSizes,
    now: int,
) -> keys.ShownKey:
    """Make one more live key of a service account. Raises RESOURCE_UNKNOWN, STATE_CONFLICT (archived), PARAMETER_INVALID (expiry),
    QUOTA_EXCEEDED."""
    publish.lock(tx)
    account = get_service_account(tx, project_id, account_id)
    wanted = keys.WantedKey(type=KeyType.LIVE, name=name, expires_at=expires_at, service_account=account, grantor=grantor)
    return keys.create_project_key(tx, project_id, wanted, id=key_id, ingredients=ingredients, sizes=sizes, now=now)


def list_service_accounts(tx: TenantTx, project_id: str, window: PageWindow) -> Page[ServiceAccount]:
    """The service accounts of a project."""
    get_project(tx, project_id)
    return storage.list_service_accounts(tx, project_id, window)


def list_service_account_keys(tx: TenantTx, project_id: str, account_id: str) -> list[str]:
    """Return the ids of the keys of a service account that were not revoked: those that end when it is deleted. Raises
    RESOURCE_UNKNOWN."""
    get_service_account(tx, project_id, account_id)
    return stored_keys.list_service_account_keys(tx, account_id)


def delete_service_account(tx: TenantTx, project_id: str, account_id: str, now: int) -> int:
    """Delete a service account and revoke its keys. Returns the version at which no gateway takes them any more."""
    publish.lock(tx)
    get_service_account(tx, project_id, account_id)
    storage.delete_service_account(tx, project_id, account_id, now)
    return publish.publish(tx, KeyEntry, stored_keys.revoke_service_account_keys(tx, account_id, now), now)
