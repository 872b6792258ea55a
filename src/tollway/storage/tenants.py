"""Organizations, projects and service accounts at rest. All but the operator's list are bound to one organization by `TenantTx`."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from tollway.domain.leaked_keys import LeakPolicy
from tollway.domain.pages import Page, PageWindow
from tollway.domain.project_policies import ALL_TIERS, ModelPermissions, ServiceTiers
from tollway.domain.rotation_schedules import RotationSchedule
from tollway.domain.tenants import Organization, Project, ServiceAccount, Status
from tollway.storage.bulk_statements import any_of
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.limits import delete_model_limits
from tollway.storage.pages import fetch_page, split_ids
from tollway.storage.schema import limit_overrides, organizations, projects, service_accounts

# ---- Organizations ----------------------------------------------------------------------------------------------------


def insert_organization(tx: TenantTx, organization: Organization) -> None:
    """Store a new organization; `tx` must already be bound to its id."""
    assert organization.id == tx.organization_id
    tx.connection.execute(
        organizations.insert().values(
            id=organization.id,
            name=organization.name,
            currency=organization.currency,
            status=organization.status,
            created_at=organization.created_at,
            time_zone=organization.time_zone,
            queue_weight=organization.queue_weight,
        )
    )


def is_organization_name_taken(tx: PlatformTx, name: str) -> bool:
    """Return whether an active organization has the name."""
    query = sa.select(organizations.c.id).where(organizations.c.name == name, organizations.c.status == Status.ACTIVE).limit(1)
    return tx.connection.execute(query).first() is not None


def find_organization(tx: TenantTx) -> Organization | None:
    """The organization that `tx` is bound to."""
    query = sa.select(organizations).where(organizations.c.id == tx.organization_id)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _organization(row)


def share_organization(tx: TenantTx) -> Organization | None:
    """Return the organization that `tx` is bound to, and let nobody change it until this transaction ends."""
    query = sa.select(organizations).where(organizations.c.id == tx.organization_id)
    row = tx.connection.execute(query.with_for_update(read=True)).one_or_none()
    return None if row is None else _organization(row)


def list_organizations(tx: PlatformTx, window: PageWindow, *, include_archived: bool) -> Page[Organization]:
    """All organizations, for operators."""
    query = sa.select(organizations)
    if not include_archived:
        query = query.where(organizations.c.status == Status.ACTIVE)
    return fetch_page(tx, query, organizations.c.id, window, _organization)


def set_time_zone(tx: TenantTx, time_zone: str) -> None:
    """Store another time zone of the organization."""
    tx.connection.execute(organizations.update().where(organizations.c.id == tx.organization_id).values(time_zone=time_zone))


def set_key_lifetime_max(tx: TenantTx, seconds: int | None) -> None:
    """Store another longest lifetime of new keys of the organization; None for no bound."""
    own = organizations.update().where(organizations.c.id == tx.organization_id)
    tx.connection.execute(own.values(key_lifetime_seconds_max=seconds))


def set_rotation_schedule(tx: TenantTx, schedule: RotationSchedule | None) -> None:
    """Store another schedule of the rotation of the organization's keys; None for none."""
    own = organizations.update().where(organizations.c.id == tx.organization_id)
    tx.connection.execute(
        own.values(
            rotation_interval_seconds=None if schedule is None else schedule.interval_seconds,
            rotation_grace_seconds=None if schedule is None else schedule.grace_seconds,
        )
    )


def set_queue_weight(tx: TenantTx, weight: int) -> None:
    """Store another weight of the organization in the queues of models."""
    tx.connection.execute(organizations.update().where(organizations.c.id == tx.organization_id).values(queue_weight=weight))


def set_response_retention(tx: TenantTx, seconds: int | None) -> None:
    """Store for how long responses of the organization are stored; None for not at all."""
    own = organizations.update().where(organizations.c.id == tx.organization_id)
    tx.connection.execute(own.values(response_retention_seconds=seconds))


def set_leaked_key_policy(tx: TenantTx, policy: LeakPolicy) -> None:
    """Store what is done with secrets of the organization that leaked."""
    tx.connection.execute(organizations.update().where(organizations.c.id == tx.organization_id).values(leaked_key_policy=policy))


def archive_organization(tx: TenantTx, now: int) -> list[str]:
    """Mark the organization and all of its projects as archived. Returns the projects that were active until now."""
    tx.connection.execute(
        organizations.update().where(organizations.c.id == tx.organization_id).values(status=Status.ARCHIVED, archived_at=now, plan_id=None)
    )
    tx.connection.execute(limit_overrides.delete().where(limit_overrides.c.organization_id == tx.organization_id))
    archived = (
        projects.update()
        .where(projects.c.organization_id == tx.organization_id, projects.c.status == Status.ACTIVE)
        .values(status=Status.ARCHIVED, archived_at=now)
        .returning(projects.c.id)
    )
    ids = sorted(tx.connection.execute(archived).scalars())
    accounts = sa.select(service_accounts.c.id).where(service_accounts.c.organization_id == tx.organization_id)
    delete_model_limits(tx, [*ids, *tx.connection.execute(accounts).scalars(), tx.organization_id])
    return ids


def _organization(row: Any) -> Organization:
    schedule = None
    if row.rotation_interval_seconds is not None:
        schedule = RotationSchedule(row.rotation_interval_seconds, row.rotation_grace_seconds)
    return Organization(
        id=row.id,
        name=row.name,
        currency=row.currency,
        status=Status(row.status),
        created_at=row.created_at,
        time_zone=row.time_zone,
        key_lifetime_seconds_max=row.key_lifetime_seconds_max,
        plan_id=row.plan_id,
        queue_weight=row.queue_weight,
        response_retention_seconds=row.response_retention_seconds,
        rotation_schedule=schedule,
        leaked_key_policy=LeakPolicy(row.leaked_key_policy),
    )


# ---- Projects ---------------------------------------------------------------------------------------------------------


def insert_project(tx: TenantTx, project: Project) -> None:
    """Store a new project of the organization."""
    assert project.organization_id == tx.organization_id
    tx.connection.execute(
        projects.insert().values(
            id=project.id,
            organization_id=project.organization_id,
            name=project.name,
            status=project.status,
            created_at=project.created_at,
            residency=None if project.residency is None else json.dumps(project.residency),
        )
    )


def find_project(tx: TenantTx, project_id: str) -> Project | None:
    """A project of the organization, archived ones included."""
    query = sa.select(projects).where(projects.c.organization_id == tx.organization_id, projects.c.id == project_id)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _project(row)


def share_project(tx: TenantTx, project_id: str) -> Project | None:
    """Return a project of the organization, and let nobody change it until this transaction ends."""
    query = sa.select(projects).where(projects.c.organization_id == tx.organization_id, projects.c.id == project_id)
    row = tx.connection.execute(query.with_for_update(read=True)).one_or_none()
    return None if row is None else _project(row)


def list_projects(tx: TenantTx, window: PageWindow, *, include_archived: bool) -> Page[Project]:
    """The organization's projects."""
    query = sa.select(projects).where(projects.c.organization_id == tx.organization_id)
    if not include_archived:
        query = query.where(projects.c.status == Status.ACTIVE)
    return fetch_page(tx, query, projects.c.id, window, _project)


def name_projects(tx: TenantTx, ids: Sequence[str]) -> dict[str, str]:
    """Return the names of those of the projects that are the organization's, by id."""
    query = sa.select(projects.c.id, projects.c.name).where(projects.c.organization_id == tx.organization_id)
    return {row.id: row.name for row in tx.connection.execute(query.where(any_of(tx, projects.c.id, ids)))}


def put_project(tx: TenantTx, project: Project) -> None:
    """Store another name and residency of a project."""
    tx.connection.execute(
        projects.update()
        .where(projects.c.organization_id == tx.organization_id, projects.c.id == project.id)
        .values(name=project.name, residency=None if project.residency is None else json.dumps(project.residency))
    )


def archive_project(tx: TenantTx, project_id: str, now: int) -> None:
    """Mark a project as archived."""
    tx.connection.execute(
        projects.update()
        .where(projects.c.organization_id == tx.organization_id, projects.c.id == project_id)
        .values(status=Status.ARCHIVED, archived_at=now)
    )
    own = service_accounts.c.organization_id == tx.organization_id
    accounts = sa.select(service_accounts.c.id).where(own, service_accounts.c.project_id == project_id)
    delete_model_limits(tx, [project_id, *tx.connection.execute(accounts).scalars()])


def find_model_permissions(tx: TenantTx, project_id: str) -> ModelPermissions | None:
    """Return what a project says of models; None if it says nothing."""
    query = sa.select(projects.c.model_permissions).where(projects.c.organization_id == tx.organization_id, projects.c.id == project_id)
    return read_model_permissions(tx.connection.execute(query).one())


def read_model_permissions(row: Any) -> ModelPermissions | None:
    """Return what a row of a project says of models."""
    return None if row.model_permissions is None else msgspec.json.decode(row.model_permissions, type=ModelPermissions)


def set_model_permissions(tx: TenantTx, project_id: str, permissions: ModelPermissions | None) -> None:
    """Store what a project says of models; None says nothing."""
    text = None if permissions is None else msgspec.json.encode(permissions).decode()
    own = projects.update().where(projects.c.organization_id == tx.organization_id, projects.c.id == project_id)
    tx.connection.execute(own.values(model_permissions=text))


def find_service_tiers(tx: TenantTx, project_id: str) -> ServiceTiers:
    """Return the service tiers of a project."""
    query = sa.select(projects.c.service_tiers).where(projects.c.organization_id == tx.organization_id, projects.c.id == project_id)
    return read_service_tiers(tx.connection.execute(query).one())


def read_service_tiers(row: Any) -> ServiceTiers:
    """Return the service tiers of a row of a project."""
    return ALL_TIERS if row.service_tiers is None else msgspec.json.decode(row.service_tiers, type=ServiceTiers)


def set_service_tiers(tx: TenantTx, project_id: str, tiers: ServiceTiers) -> None:
    """Store the service tiers of a project."""
    text = None if tiers == ALL_TIERS else msgspec.json.encode(tiers).decode()
    own = projects.update().where(projects.c.organization_id == tx.organization_id, projects.c.id == project_id)
    tx.connection.execute(own.values(service_tiers=text))


def _project(row: Any) -> Project:
    return Project(
        id=row.id,
        organization_id=row.organization_id,
        name=row.name,
        status=Status(row.status),
        created_at=row.created_at,
        archived_at=row.archived_at,
        residency=read_residency(row),
    )


def read_residency(row: Any) -> tuple[str, ...] | None:
    """Return the regions that a row of `projects` names, None if it allows any."""
    return None if row.residency is None else tuple(json.loads(row.residency))


# ---- Service accounts -------------------------------------------------------------------------------------------------


def insert_service_account(tx: TenantTx, account: ServiceAccount) -> None:
    """Store a new service account of a project of the organization."""
    assert account.organization_id == tx.organization_id
    tx.connection.execute(
        service_accounts.insert().values(
            id=account.id,
            organization_id=account.organization_id,
            project_id=account.project_id,
            name=account.name,
            role=account.role,
            created_at=account.created_at,
        )
    )


def update_service_account(tx: TenantTx, account: ServiceAccount) -> None:
    """Store another name and role of a service account."""
    own = sa.and_(service_accounts.c.organization_id == tx.organization_id, service_accounts.c.id == account.id)
    tx.connection.execute(service_accounts.update().where(own).values(name=account.name, role=account.role))


def find_service_account(tx: TenantTx, project_id: str, account_id: str) -> ServiceAccount | None:
    """A service account that was not deleted."""
    query = _live_accounts(tx, project_id).where(service_accounts.c.id == account_id)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _service_account(row)


def has_service_account(tx: TenantTx, account_id: str) -> bool:
    """Return whether the organization has a service account with this id, in any project, that was not deleted."""
    account = service_accounts.c
    own = sa.and_(account.organization_id == tx.organization_id, account.id == account_id, account.deleted_at.is_(None))
    return tx.connection.execute(sa.select(account.id).where(own)).one_or_none() is not None


def list_service_accounts(tx: TenantTx, project_id: str, window: PageWindow) -> Page[ServiceAccount]:
    """The service accounts of a project that were not deleted."""
    return fetch_page(tx, _live_accounts(tx, project_id), service_accounts.c.id, window, _service_account)


def delete_service_account(tx: TenantTx, project_id: str, account_id: str, now: int) -> None:
    """Mark a service account as deleted. The row stays: its keys and their usage still name it."""
    tx.connection.execute(
        service_accounts.update()
        .where(
            service_accounts.c.organization_id == tx.organization_id,
            service_accounts.c.project_id == project_id,
            service_accounts.c.id == account_id,
        )
        .values(deleted_at=now)
    )
    delete_model_limits(tx, [account_id])


def _live_accounts(tx: TenantTx, project_id: str) -> sa.Select[Any]:
    return sa.select(service_accounts).where(
        service_accounts.c.organization_id == tx.organization_id,
        service_accounts.c.project_id == project_id,
        service_accounts.c.deleted_at.is_(None),
    )


def _service_account(row: Any) -> ServiceAccount:
    return ServiceAccount(
        id=row.id,
        organization_id=row.organization_id,
        project_id=row.project_id,
        name=row.name,
        role=row.role,
        created_at=row.created_at,
    )


def find_project_names(tx: Transaction, project_ids: Sequence[str]) -> dict[str, str]:
    """Return the names of those of these projects that there are."""
    query = sa.select(projects.c.id, projects.c.name).where(any_of(tx, projects.c.id, project_ids))
    return {row.id: row.name for row in tx.connection.execute(query)}


def find_project_owners(tx: PlatformTx, project_ids: Iterable[str]) -> dict[str, str]:
    """Return the organization of each of the projects that exist, archived or not."""
    found: dict[str, str] = {}
    for part in split_ids(project_ids):
        query = sa.select(projects.c.id, projects.c.organization_id).where(projects.c.id.in_(part))
        found.update((row.id, row.organization_id) for row in tx.connection.execute(query))
    return found
