"""Organizations, for operators."""

from typing import Annotated

from fastapi import Depends, Query

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import (
    ListOut,
    OrganizationArchived,
    OrganizationCreate,
    OrganizationCreated,
    OrganizationOut,
    OrganizationPolicy,
    OrganizationUpdate,
    PageQuery,
    admin_key_created,
    find_schedule,
    list_out,
    organization_out,
)
from tollway.control.identity import keys
from tollway.control.identity.access import Tenant
from tollway.control.identity.keys import Grantor, WantedKey
from tollway.control.tenancy import plans, stored_responses, tenants
from tollway.domain import ids
from tollway.domain.keys import KeyType, Operator
from tollway.domain.roles import OWNER, Grant, Permission

router = routes.router(tags=["organizations"])

OperatorReader = Annotated[Operator, Depends(may(Permission.PLATFORM_ORGANIZATIONS_READ))]
OperatorWriter = Annotated[Operator, Depends(may(Permission.PLATFORM_ORGANIZATIONS_WRITE))]
Reader = Annotated[Tenant, Depends(may(Permission.ORGANIZATION_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.ORGANIZATION_WRITE))]


@router.get("/v1/platform/organizations")
def list_organizations(
    _caller: OperatorReader, plane: Plane, query: Annotated[PageQuery, Query()], include_archived: bool = False
) -> ListOut[OrganizationOut]:
    """All organizations."""
    with plane.database.platform(write=False) as tx:
        page = tenants.list_organizations(tx, query.window(), include_archived=include_archived)
    return list_out(page, organization_out)


@router.post("/v1/platform/organizations")
def create_organization(caller: OperatorWriter, plane: Plane, body: OrganizationCreate) -> OrganizationCreated:
    """Create an organization and its first admin key, whose secret is in this answer only. Names of active organizations are unique."""
    now = plane.now()
    grantor = Grantor(caller.key_id, grants=(Grant(caller.role),))
    wanted = WantedKey(type=KeyType.ADMIN, name="First admin key", grantor=grantor, grant=Grant(OWNER))
    with plane.database.tenant(plane.new_id(ids.ORGANIZATION)) as tx:
        organization = tenants.create_organization(
            tx, name=body.name, currency=body.currency, time_zone=body.time_zone, queue_weight=body.queue_weight, now=now
        )
        shown = keys.create_admin_key(
            tx, wanted, id=plane.new_id(ids.KEY), ingredients=plane.new_ingredients(), sizes=plane.quotas, now=now
        )
    return OrganizationCreated(**organization_out(organization).model_dump(), admin_api_key=admin_key_created(shown, plane.now()))


@router.get("/v1/organization")
def retrieve_own_organization(caller: Reader, plane: Plane) -> OrganizationOut:
    """The organization that the key acts for."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return organization_out(tenants.get_organization(tx))


@router.post("/v1/organization")
def update_own_organization(caller: Writer, plane: Plane, body: OrganizationPolicy) -> OrganizationOut:
    """Bound the lifetime of keys that are made or rotated from now on, rotate the keys of all projects by a schedule, say for how long
    responses are stored, and what is done with secrets that leaked. Keys that exist keep their expiry; responses that are stored are
    removed by the new time."""
    with plane.database.tenant(caller.organization_id) as tx:
        if "key_lifetime_seconds_max" in body.model_fields_set:
            tenants.set_key_lifetime_max(tx, body.key_lifetime_seconds_max)
        if "rotation_schedule" in body.model_fields_set:
            tenants.set_rotation_schedule(tx, find_schedule(body.rotation_schedule))
        if "response_retention_seconds" in body.model_fields_set:
            stored_responses.set_retention(tx, body.response_retention_seconds, plane.now())
        if body.leaked_key_policy is not None:
            tenants.set_leaked_key_policy(tx, body.leaked_key_policy)
        return organization_out(tenants.get_organization(tx))


@router.get("/v1/platform/organizations/{organization_id}")
def retrieve_organization(_caller: OperatorReader, plane: Plane, organization_id: str) -> OrganizationOut:
    """One organization."""
    with plane.database.tenant(routes.organization(organization_id), write=False) as tx:
        return organization_out(tenants.get_organization(tx))


@router.post("/v1/platform/organizations/{organization_id}")
def modify_organization(_caller: OperatorWriter, plane: Plane, organization_id: str, body: OrganizationUpdate) -> OrganizationOut:
    """Change an organization's time zone, the longest lifetime and the rotation of its keys, its plan, or its weight in queues. Billing
    periods and keys that exist stay as they are."""
    with plane.database.tenant(routes.organization(organization_id)) as tx:
        if body.time_zone is not None:
            tenants.set_time_zone(tx, body.time_zone)
        if "key_lifetime_seconds_max" in body.model_fields_set:
            tenants.set_key_lifetime_max(tx, body.key_lifetime_seconds_max)
        if "rotation_schedule" in body.model_fields_set:
            tenants.set_rotation_schedule(tx, find_schedule(body.rotation_schedule))
        if body.queue_weight is not None:
            tenants.set_queue_weight(tx, body.queue_weight, plane.now())
        if "plan_id" in body.model_fields_set:
            plans.subscribe(tx, body.plan_id, new_budget_id=lambda: plane.new_id(ids.BUDGET), now=plane.now())
        return organization_out(tenants.get_organization(tx))


@router.post("/v1/platform/organizations/{organization_id}/archive")
def archive_organization(_caller: OperatorWriter, plane: Plane, organization_id: str) -> OrganizationArchived:
    """Archive an organization with its projects and revoke all of its keys. It cannot be undone; the name is free again."""
    now = plane.now()
    with plane.database.tenant(routes.organization(organization_id)) as tx:
        organization, version = tenants.archive_organization(tx, now)
    pending = publish.confirm(plane.database, plane.publications, version, now)
    return OrganizationArchived(**organization_out(organization).model_dump(), pending_nodes=pending)
