"""Groups of people, who hold roles together, in the shape of OpenAI's `/v1/organization/groups`."""

from typing import Annotated

from fastapi import Depends, Query

from tollway.control.api import routes
from tollway.control.api.identity.people_schemas import (
    GroupDeleted,
    GroupOut,
    GroupUserCreate,
    GroupUserCreated,
    GroupUserOut,
    GroupWrite,
    NextListOut,
    ProjectGroupCreate,
    ProjectGroupOut,
    Unassigned,
    group_out,
    group_user_out,
    next_list_out,
    project_group_out,
)
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import PageQuery
from tollway.control.identity import people
from tollway.control.identity.access import Tenant
from tollway.domain import ids
from tollway.domain.roles import Permission

router = routes.router(tags=["groups"])

Reader = Annotated[Tenant, Depends(may(Permission.GROUPS_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.GROUPS_WRITE))]
ProjectReader = Annotated[Tenant, Depends(may(Permission.USERS_READ))]
ProjectWriter = Annotated[Tenant, Depends(may(Permission.USERS_WRITE))]

# ---- Groups -------------------------------------------------------------------------------------------------------------


@router.get("/v1/organization/groups")
def list_groups(caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()]) -> NextListOut[GroupOut]:
    """The groups of the organization."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return next_list_out(people.list_groups(tx, query.window()), group_out)


@router.post("/v1/organization/groups")
def create_group(caller: Writer, plane: Plane, body: GroupWrite) -> GroupOut:
    """Create a group without members and roles."""
    with plane.database.tenant(caller.organization_id) as tx:
        return group_out(people.create_group(tx, id=plane.new_id(ids.GROUP), name=body.name, sizes=plane.quotas, now=plane.now()))


@router.get("/v1/organization/groups/{group_id}")
def retrieve_group(caller: Reader, plane: Plane, group_id: str) -> GroupOut:
    """One group."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return group_out(people.get_group(tx, group_id))


@router.post("/v1/organization/groups/{group_id}")
def update_group(caller: Writer, plane: Plane, group_id: str, body: GroupWrite) -> GroupOut:
    """Rename a group."""
    with plane.database.tenant(caller.organization_id) as tx:
        return group_out(people.rename_group(tx, group_id, body.name))


@router.delete("/v1/organization/groups/{group_id}")
def delete_group(caller: Writer, plane: Plane, group_id: str) -> GroupDeleted:
    """Delete a group. Its members lose what it held."""
    with plane.database.tenant(caller.organization_id) as tx:
        people.delete_group(tx, group_id, own=caller.grants, now=plane.now())
    return GroupDeleted(id=group_id)


# ---- Members ------------------------------------------------------------------------------------------------------------


@router.get("/v1/organization/groups/{group_id}/users")
def list_group_users(caller: Reader, plane: Plane, group_id: str, query: Annotated[PageQuery, Query()]) -> NextListOut[GroupUserOut]:
    """The people in a group."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return next_list_out(people.list_group_members(tx, group_id, query.window()), group_user_out)


@router.post("/v1/organization/groups/{group_id}/users")
def create_group_user(caller: Writer, plane: Plane, group_id: str, body: GroupUserCreate) -> GroupUserCreated:
    """Add a person to a group, whose roles they hold from then on. The key presented holds as much."""
    with plane.database.tenant(caller.organization_id) as tx:
        people.add_group_member(tx, group_id, body.user_id, own=caller.grants, now=plane.now())
    return GroupUserCreated(group_id=group_id, user_id=body.user_id)


@router.get("/v1/organization/groups/{group_id}/users/{user_id}")
def retrieve_group_user(caller: Reader, plane: Plane, group_id: str, user_id: str) -> GroupUserOut:
    """One person in a group."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return group_user_out(people.get_group_member(tx, group_id, user_id))


@router.delete("/v1/organization/groups/{group_id}/users/{user_id}")
def delete_group_user(caller: Writer, plane: Plane, group_id: str, user_id: str) -> Unassigned:
    """Take a person out of a group."""
    with plane.database.tenant(caller.organization_id) as tx:
        people.remove_group_member(tx, group_id, user_id, own=caller.grants)
    return Unassigned(object="group.user.deleted")


# ---- Groups of a project ------------------------------------------------------------------------------------------------


@router.get("/v1/organization/projects/{project_id}/groups")
def list_project_groups(
    caller: ProjectReader, plane: Plane, project_id: str, query: Annotated[PageQuery, Query()]
) -> NextListOut[ProjectGroupOut]:
    """The groups in a project."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = people.list_project_groups(tx, project_id, query.window())
    return next_list_out(page, lambda each: project_group_out(*each))


@router.post("/v1/organization/projects/{project_id}/groups")
def create_project_group(caller: ProjectWriter, plane: Plane, project_id: str, body: ProjectGroupCreate) -> ProjectGroupOut:
    """Add a group to a project with a role there."""
    with plane.database.tenant(caller.organization_id) as tx:
        group = people.get_group(tx, body.group_id)
        membership = people.add_project_member(tx, project_id, group.id, body.role, own=caller.grants, now=plane.now())
    return project_group_out(group, membership)


@router.get("/v1/organization/projects/{project_id}/groups/{group_id}")
def retrieve_project_group(
    caller: ProjectReader,
    plane: Plane,
    project_id: str,
    group_id: str,
    group_type: Annotated[str, Query(pattern="^(group|tenant_group)$")] = "group",
) -> ProjectGroupOut:
    """One group of a project. Every group is of the type `group`."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        group = people.get_group(tx, group_id)
        return project_group_out(group, people.get_project_member(tx, project_id, group_id))


@router.delete("/v1/organization/projects/{project_id}/groups/{group_id}")
def delete_project_group(caller: ProjectWriter, plane: Plane, project_id: str, group_id: str) -> Unassigned:
    """Take a group out of a project, with every role that it holds there."""
    with plane.database.tenant(caller.organization_id) as tx:
        people.get_group(tx, group_id)
        people.remove_project_member(tx, project_id, group_id, own=caller.grants)
    return Unassigned(object="project.group.deleted")
