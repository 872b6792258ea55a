"""Limits of a project and of a key (for tenants), and of an organization (for operators). PUT replaces all limits of the level."""

from tollway.control import limits
from tollway.control.api import routes
from tollway.control.api.routes import OrganizationAdmin, Plane, PlatformOperator
from tollway.control.api.schemas import LimitsOut, LimitsWrite, limits_out

router = routes.router(tags=["limits"])


@router.get("/v1/organization/projects/{project_id}/limits")
def retrieve_project_limits(caller: OrganizationAdmin, plane: Plane, project_id: str) -> LimitsOut:
    """The limits of a project."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return limits_out(limits.get_project_limits(tx, project_id))


@router.put("/v1/organization/projects/{project_id}/limits")
def put_project_limits(caller: OrganizationAdmin, plane: Plane, project_id: str, body: LimitsWrite) -> LimitsOut:
    """Replace the limits of a project."""
    with plane.database.tenant(caller.organization_id) as tx:
        return limits_out(limits.put_project_limits(tx, project_id, body.limits(), plane.now()))


@router.get("/v1/organization/projects/{project_id}/api_keys/{key_id}/limits")
def retrieve_key_limits(caller: OrganizationAdmin, plane: Plane, project_id: str, key_id: str) -> LimitsOut:
    """The limits of a key."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return limits_out(limits.get_key_limits(tx, project_id, key_id))


@router.put("/v1/organization/projects/{project_id}/api_keys/{key_id}/limits")
def put_key_limits(caller: OrganizationAdmin, plane: Plane, project_id: str, key_id: str, body: LimitsWrite) -> LimitsOut:
    """Replace the limits of a key."""
    with plane.database.tenant(caller.organization_id) as tx:
        return limits_out(limits.put_key_limits(tx, project_id, key_id, body.limits(), plane.now()))


@router.get("/v1/platform/organizations/{organization_id}/limits")
def retrieve_organization_limits(_caller: PlatformOperator, plane: Plane, organization_id: str) -> LimitsOut:
    """The limits of an organization."""
    with plane.database.tenant(routes.organization(organization_id), write=False) as tx:
        return limits_out(limits.get_organization_limits(tx))


@router.put("/v1/platform/organizations/{organization_id}/limits")
def put_organization_limits(_caller: PlatformOperator, plane: Plane, organization_id: str, body: LimitsWrite) -> LimitsOut:
    """Replace the limits of an organization."""
    with plane.database.tenant(routes.organization(organization_id)) as tx:
        return limits_out(limits.put_organization_limits(tx, body.limits(), plane.now()))
