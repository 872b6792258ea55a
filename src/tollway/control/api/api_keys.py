"""Keys: a project's, in the shape of OpenAI's `/v1/organization/projects/{id}/api_keys` with creation added, and admin keys."""

from typing import Annotated, Literal

from fastapi import Query

from tollway.control import keys, publish
from tollway.control.api import routes
from tollway.control.api.routes import OrganizationAdmin, Plane
from tollway.control.api.schemas import (
    AdminKeyCreate,
    AdminKeyCreated,
    AdminKeyOut,
    Deleted,
    KeyCreate,
    KeyCreated,
    KeyOut,
    ListOut,
    PageQuery,
    admin_key_created,
    admin_key_out,
    key_out,
    list_out,
)
from tollway.control.keys import WantedKey
from tollway.domain import ids
from tollway.domain.keys import KeyType

router = routes.router(tags=["keys"])

# ---- Keys of a project ------------------------------------------------------------------------------------------------


@router.get("/v1/organization/projects/{project_id}/api_keys")
def list_project_keys(
    caller: OrganizationAdmin,
    plane: Plane,
    project_id: str,
    query: Annotated[PageQuery, Query()],
    owner_project_access: Literal["active", "inactive", "any"] = "any",
) -> ListOut[KeyOut]:
    """The keys of a project. Deleting an owner revokes its keys, so none has an inactive one."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = keys.list_project_keys(tx, project_id, query.window())
    if owner_project_access == "inactive":
        return ListOut(data=[], first_id=None, last_id=None, has_more=False)
    return list_out(page, key_out)


@router.post("/v1/organization/projects/{project_id}/api_keys")
def create_project_key(caller: OrganizationAdmin, plane: Plane, project_id: str, body: KeyCreate) -> KeyCreated:
    """Create a key. Its secret is in this answer and nowhere else."""
    wanted = WantedKey(
        type=KeyType(body.type),
        name=body.name,
        expires_at=None if body.expires_at is None else body.expires_at * 1_000_000,
        models=None if body.models is None else tuple(body.models),
        limits=body.limits.limits(),
        created_by=caller.key_id,
    )
    with plane.database.tenant(caller.organization_id) as tx:
        shown = keys.create_project_key(
            tx, project_id, wanted, id=plane.new_id(ids.KEY), ingredients=plane.new_ingredients(), now=plane.now()
        )
    return KeyCreated(**key_out(shown.key).model_dump(), value=shown.secret)


@router.get("/v1/organization/projects/{project_id}/api_keys/{key_id}")
def retrieve_project_key(caller: OrganizationAdmin, plane: Plane, project_id: str, key_id: str) -> KeyOut:
    """One key, without its secret."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return key_out(keys.get_project_key(tx, project_id, key_id))


@router.delete("/v1/organization/projects/{project_id}/api_keys/{key_id}")
def delete_project_key(caller: OrganizationAdmin, plane: Plane, project_id: str, key_id: str) -> Deleted:
    """Revoke a key permanently. Answers when every gateway that is alive has confirmed, or names those that have not."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        version = keys.revoke_project_key(tx, project_id, key_id, now)
    pending = publish.confirm(plane.database, plane.publications, version, now)
    return Deleted(object="organization.project.api_key.deleted", id=key_id, pending_nodes=pending)


# ---- Admin keys of the organization -----------------------------------------------------------------------------------


@router.get("/v1/organization/admin_api_keys")
def list_admin_keys(caller: OrganizationAdmin, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[AdminKeyOut]:
    """The organization's admin keys."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = keys.list_admin_keys(tx, query.window())
    return list_out(page, admin_key_out)


@router.post("/v1/organization/admin_api_keys")
def create_admin_key(caller: OrganizationAdmin, plane: Plane, body: AdminKeyCreate) -> AdminKeyCreated:
    """Create an admin key. Its secret is in this answer and nowhere else."""
    now = plane.now()
    expires_at = routes.expiry(body.expires_in_seconds, now)
    wanted = WantedKey(type=KeyType.ADMIN, name=body.name, expires_at=expires_at, created_by=caller.key_id)
    with plane.database.tenant(caller.organization_id) as tx:
        shown = keys.create_admin_key(tx, wanted, id=plane.new_id(ids.KEY), ingredients=plane.new_ingredients(), now=now)
    return admin_key_created(shown)


@router.get("/v1/organization/admin_api_keys/{key_id}")
def retrieve_admin_key(caller: OrganizationAdmin, plane: Plane, key_id: str) -> AdminKeyOut:
    """One admin key, without its secret."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return admin_key_out(keys.get_admin_key(tx, key_id))


@router.delete("/v1/organization/admin_api_keys/{key_id}")
def delete_admin_key(caller: OrganizationAdmin, plane: Plane, key_id: str) -> Deleted:
    """Revoke an admin key permanently. Gateways never receive admin keys, so there is nothing to wait for."""
    with plane.database.tenant(caller.organization_id) as tx:
        keys.revoke_admin_key(tx, key_id, plane.now())
    return Deleted(object="organization.admin_api_key.deleted", id=key_id, pending_nodes=[])
