"""Keys: a project's, in the shape of OpenAI's `/v1/organization/projects/{id}/api_keys` with creation added, and admin keys."""

from typing import Annotated, Literal

from fastapi import Depends, Query

from tollway.control import publish
from tollway.control.api import routes
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import (
    AdminKeyCreate,
    AdminKeyCreated,
    AdminKeyOut,
    Deleted,
    KeyCreate,
    KeyCreated,
    KeyOut,
    KeyRetired,
    KeyRotate,
    KeyRotated,
    KeyUpdate,
    KeyUpdated,
    ListOut,
    PageQuery,
    admin_key_created,
    admin_key_out,
    find_schedule,
    key_out,
    list_out,
)
from tollway.control.identity import keys, people, roles, rotation, scheduled_rotation
from tollway.control.identity.access import Tenant
from tollway.control.identity.keys import WantedKey
from tollway.domain import ids
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.keys import KeyType
from tollway.domain.roles import Permission

router = routes.router(tags=["keys"])

Reader = Annotated[Tenant, Depends(may(Permission.API_KEYS_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.API_KEYS_WRITE))]
AdminKeyReader = Annotated[Tenant, Depends(may(Permission.ADMIN_KEYS_READ))]
AdminKeyWriter = Annotated[Tenant, Depends(may(Permission.ADMIN_KEYS_WRITE))]

# ---- Keys of a project ------------------------------------------------------------------------------------------------


@router.get("/v1/organization/projects/{project_id}/api_keys")
def list_project_keys(
    caller: Reader,
    plane: Plane,
    project_id: str,
    query: Annotated[PageQuery, Query()],
    owner_project_access: Literal["active", "inactive", "any"] = "any",
) -> ListOut[KeyOut]:
    """The keys of a project. Deleting an owner revokes its keys, so none has an inactive one."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = keys.list_project_keys(tx, project_id, query.window())
    now = plane.now()
    if owner_project_access == "inactive":
        return ListOut(data=[], first_id=None, last_id=None, has_more=False)
    return list_out(page, lambda key: key_out(key, now))


@router.post("/v1/organization/projects/{project_id}/api_keys")
def create_project_key(caller: Writer, plane: Plane, project_id: str, body: KeyCreate) -> KeyCreated:
    """Create a key. Its secret is in this answer and nowhere else."""
    now = plane.now()
    wanted = WantedKey(
        type=KeyType(body.type),
        name=body.name,
        expires_at=None if body.expires_at is None else body.expires_at * 1_000_000,
        models=None if body.models is None else tuple(body.models),
        limits=body.limits.limits(),
        grantor=caller.grantor,
        endpoints=None if body.endpoints is None else tuple(body.endpoints),
        addresses=None if body.addresses is None else tuple(body.addresses),
        output_tokens_max=body.output_tokens_max,
        tags=body.tags,
        schedule=find_schedule(body.rotation_schedule),
    )
    with plane.database.tenant(caller.organization_id) as tx:
        shown = keys.create_project_key(
            tx, project_id, wanted, id=plane.new_id(ids.KEY), ingredients=plane.new_ingredients(), sizes=plane.quotas, now=now
        )
    return KeyCreated(**key_out(shown.key, now).model_dump(), value=shown.secret)


@router.get("/v1/organization/projects/{project_id}/api_keys/{key_id}")
def retrieve_project_key(caller: Reader, plane: Plane, project_id: str, key_id: str) -> KeyOut:
    """One key, without its secret."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return key_out(keys.get_project_key(tx, project_id, key_id), plane.now())


@router.post("/v1/organization/projects/{project_id}/api_keys/{key_id}")
def update_project_key(caller: Writer, plane: Plane, project_id: str, key_id: str, body: KeyUpdate) -> KeyUpdated:
    """Change the name, the bounds or the expiry of a key. Answers when every gateway that is alive has confirmed, or names those that have
    not."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        key, version = keys.update_project_key(tx, project_id, key_id, body.changes(now), grantor=caller.grantor, now=now)
    pending = publish.confirm(plane.database, plane.publications, version, now)
    return KeyUpdated(**key_out(key, now).model_dump(), pending_nodes=pending)


@router.delete("/v1/organization/projects/{project_id}/api_keys/{key_id}")
def delete_project_key(caller: Writer, plane: Plane, project_id: str, key_id: str) -> Deleted:
    """Revoke a key permanently. Answers when every gateway that is alive has confirmed, or names those that have not."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        version = keys.revoke_project_key(tx, project_id, key_id, now)
    pending = publish.confirm(plane.database, plane.publications, version, now)
    return Deleted(object="organization.project.api_key.deleted", id=key_id, pending_nodes=pending)


@router.post("/v1/organization/projects/{project_id}/api_keys/{key_id}/rotate")
def rotate_project_key(caller: Writer, plane: Plane, project_id: str, key_id: str, body: KeyRotate) -> KeyRotated:
    """Give a key another secret, which is in this answer and nowhere else. The secret before stays valid for the grace. Answers when every
    gateway that is alive takes the new one, or names those that have not confirmed."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        rotated = rotation.rotate_project_key(
            tx, project_id, key_id, body.wanted(caller.grantor), ingredients=plane.new_ingredients(), now=now
        )
    pending = publish.confirm(plane.database, plane.publications, rotated.version, now)
    return KeyRotated(**key_out(rotated.shown.key, now).model_dump(), value=rotated.shown.secret, pending_nodes=pending)


@router.post("/v1/organization/projects/{project_id}/api_keys/{key_id}/retire")
def retire_project_key_secret(caller: Writer, plane: Plane, project_id: str, key_id: str) -> KeyRetired:
    """Revoke the secret before the latest rotation permanently, before its grace ends. Answers as a revocation."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        version = rotation.retire_project_secret(tx, project_id, key_id, now)
        key = keys.get_project_key(tx, project_id, key_id)
    pending = publish.confirm(plane.database, plane.publications, version, now)
    return KeyRetired(**key_out(key, now).model_dump(), pending_nodes=pending)


@router.post("/v1/organization/projects/{project_id}/api_keys/{key_id}/collect")
def collect_project_key_secret(caller: Writer, plane: Plane, project_id: str, key_id: str) -> KeyCreated:
    """Collect the secret that the schedule of a key made, once: it is in this answer and nowhere else from now on."""
    vault = plane.data_keys.open(caller.organization_id)
    with plane.database.tenant(caller.organization_id) as tx:
        key, secret = scheduled_rotation.collect(tx, project_id, key_id, vault)
    return KeyCreated(**key_out(key, plane.now()).model_dump(), value=secret)


# ---- Admin keys of the organization -----------------------------------------------------------------------------------


@router.get("/v1/organization/admin_api_keys")
def list_admin_keys(caller: AdminKeyReader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[AdminKeyOut]:
    """The organization's admin keys."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = keys.list_admin_keys(tx, query.window())
    now = plane.now()
    return list_out(page, lambda key: admin_key_out(key, now))


@router.post("/v1/organization/admin_api_keys")
def create_admin_key(caller: AdminKeyWriter, plane: Plane, body: AdminKeyCreate) -> AdminKeyCreated:
    """Create an admin key. Its secret is in this answer and nowhere else."""
    now = plane.now()
    expires_at = routes.expiry(body.expires_in_seconds, now)
    if body.user_id is not None and (body.role is not None or body.project_id is not None):
        raise Fault(PARAMETER_INVALID, param="user_id", message="A person's key has the roles of the person, and none of its own.")
    with plane.database.tenant(caller.organization_id) as tx:
        grant = None
        if body.user_id is not None:
            people.get_user(tx, body.user_id)
        else:
            grant = roles.choose_grant(tx, body.role, body.project_id, caller.grants)
        wanted = WantedKey(
            type=KeyType.ADMIN, name=body.name, expires_at=expires_at, grantor=caller.grantor, grant=grant, user_id=body.user_id
        )
        shown = keys.create_admin_key(
            tx, wanted, id=plane.new_id(ids.KEY), ingredients=plane.new_ingredients(), sizes=plane.quotas, now=now
        )
    return admin_key_created(shown, now)


@router.get("/v1/organization/admin_api_keys/{key_id}")
def retrieve_admin_key(caller: AdminKeyReader, plane: Plane, key_id: str) -> AdminKeyOut:
    """One admin key, without its secret."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return admin_key_out(keys.get_admin_key(tx, key_id), plane.now())


@router.delete("/v1/organization/admin_api_keys/{key_id}")
def delete_admin_key(caller: AdminKeyWriter, plane: Plane, key_id: str) -> Deleted:
    """Revoke an admin key permanently. Gateways never receive admin keys, so there is nothing to wait for."""
    with plane.database.tenant(caller.organization_id) as tx:
        keys.revoke_admin_key(tx, key_id, own=caller.grants, now=plane.now())
    return Deleted(object="organization.admin_api_key.deleted", id=key_id, pending_nodes=[])


@router.post("/v1/organization/admin_api_keys/{key_id}/rotate")
def rotate_admin_key(caller: AdminKeyWriter, plane: Plane, key_id: str, body: KeyRotate) -> AdminKeyCreated:
    """Give an admin key another secret, which is in this answer and nowhere else. The secret before stays valid for the grace."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        shown = rotation.rotate_admin_key(tx, key_id, body.wanted(caller.grantor), ingredients=plane.new_ingredients(), now=now)
    return admin_key_created(shown, now)


@router.post("/v1/organization/admin_api_keys/{key_id}/retire")
def retire_admin_key_secret(caller: AdminKeyWriter, plane: Plane, key_id: str) -> AdminKeyOut:
    """Revoke the secret before the latest rotation permanently, before its grace ends: from the next request on."""
    now = plane.now()
    with plane.database.tenant(caller.organization_id) as tx:
        rotation.retire_admin_secret(tx, key_id, own=caller.grants, now=now)
        return admin_key_out(keys.get_admin_key(tx, key_id), now)
