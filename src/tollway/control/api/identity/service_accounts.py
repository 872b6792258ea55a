"""Service accounts of a project, in the shape of OpenAI's `/v1/organization/projects/{id}/service_accounts`."""

from typing import Annotated

from fastapi import Depends, Query

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import (
    Deleted,
    ListOut,
    PageQuery,
    ServiceAccountCreate,
    ServiceAccountCreated,
    ServiceAccountKeyCreate,
    ServiceAccountKeyOut,
    ServiceAccountOut,
    ServiceAccountUpdate,
    list_out,
    service_account_key_out,
    service_account_out,
)
from tollway.control.identity.access import Tenant
from tollway.control.tenancy import tenants
from tollway.domain import ids
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.roles import Permission

router = routes.router(tags=["service accounts"])

Reader = Annotated[Tenant, Depends(may(Permission.SERVICE_ACCOUNTS_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.SERVICE_ACCOUNTS_WRITE))]


@router.get("/v1/organization/projects/{project_id}/service_accounts")
def list_service_accounts(
    caller: Reader, plane: Plane, project_id: str, query: Annotated[PageQuery, Query()]
) -> ListOut[ServiceAccountOut]:
    """The service accounts of a project."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = tenants.list_service_accounts(tx, project_id, query.window())
    return list_out(page, service_account_out)


@router.post("/v1/organization/projects/{project_id}/service_accounts")
def create_service_account(caller: Writer, plane: Plane, project_id: str, body: ServiceAccountCreate) -> ServiceAccountCreated:
    """Create a service account with a live key, whose secret is in this answer and nowhere else; or without one."""
    if body.create_service_account_only and body.expires_in_seconds is not None:
        raise Fault(PARAMETER_INVALID, param="expires_in_seconds", message="There is no key that could expire.")
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        made = tenants.create_service_account(
            tx,
            project_id,
            id=plane.new_id(ids.SERVICE_ACCOUNT),
            name=body.name,
            key_id=None if body.create_service_account_only else plane.new_id(ids.KEY),
            ingredients=plane.new_ingredients(),
            expires_at=routes.expiry(body.expires_in_seconds, now),
            grantor=caller.grantor,
            sizes=plane.quotas,
            now=now,
        )
    key = None if made.key is None else service_account_key_out(made.key)
    return ServiceAccountCreated(**service_account_out(made.account).model_dump(), api_key=key)


@router.get("/v1/organization/projects/{project_id}/service_accounts/{service_account_id}")
def retrieve_service_account(caller: Reader, plane: Plane, project_id: str, service_account_id: str) -> ServiceAccountOut:
    """One service account."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return service_account_out(tenants.get_service_account(tx, project_id, service_account_id))


@router.post("/v1/organization/projects/{project_id}/service_accounts/{service_account_id}")
def update_service_account(
    caller: Writer, plane: Plane, project_id: str, service_account_id: str, body: ServiceAccountUpdate
) -> ServiceAccountOut:
    """Give a service account another name or role."""
    with plane.database.tenant(caller.organization_id) as tx:
        account = tenants.update_service_account(tx, project_id, service_account_id, name=body.name, role=body.role)
    return service_account_out(account)


@router.post("/v1/organization/projects/{project_id}/service_accounts/{service_account_id}/api_keys")
def create_service_account_key(
    caller: Writer, plane: Plane, project_id: str, service_account_id: str, body: ServiceAccountKeyCreate
) -> ServiceAccountKeyOut:
    """Make one more key of a service account. Its secret is in this answer and nowhere else."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        shown = tenants.create_service_account_key(
            tx,
            project_id,
            service_account_id,
            name=body.name,
            key_id=plane.new_id(ids.KEY),
            ingredients=plane.new_ingredients(),
            expires_at=routes.expiry(body.expires_in_seconds, now),
            grantor=caller.grantor,
            sizes=plane.quotas,
            now=now,
        )
    return service_account_key_out(shown)


@router.delete("/v1/organization/projects/{project_id}/service_accounts/{service_account_id}")
def delete_service_account(caller: Writer, plane: Plane, project_id: str, service_account_id: str) -> Deleted:
    """Delete a service account and revoke its keys."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        version = tenants.delete_service_account(tx, project_id, service_account_id, now)
    pending = publish.confirm(plane.database, plane.publications, version, now)
    return Deleted(object="organization.project.service_account.deleted", id=service_account_id, pending_nodes=pending)
