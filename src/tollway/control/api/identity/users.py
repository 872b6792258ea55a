"""People of an organization and of its projects, in the shape of OpenAI's `/v1/organization/users`."""

from typing import Annotated

from fastapi import Depends, Query
from pydantic import Field

from tollway.control.api import routes
from tollway.control.api.identity.people_schemas import (
    ProjectUserCreate,
    ProjectUserOut,
    ProjectUserUpdate,
    UserDeleted,
    UserOut,
    UserUpdate,
    project_user_out,
    role_name,
    user_out,
)
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import ListOut, PageQuery, list_out
from tollway.control.identity import people
from tollway.control.identity.access import Tenant
from tollway.domain.faults import PARAMETER_MISSING, Fault
from tollway.domain.roles import Permission

router = routes.router(tags=["users"])

Reader = Annotated[Tenant, Depends(may(Permission.USERS_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.USERS_WRITE))]


class UserQuery(PageQuery):
    """One page of the people, or of those with some addresses."""

    emails: Annotated[list[Annotated[str, Field(max_length=320)]], Field(max_length=100, default_factory=list)]


# ---- People of the organization -----------------------------------------------------------------------------------------


@router.get("/v1/organization/users")
def list_users(caller: Reader, plane: Plane, query: Annotated[UserQuery, Query()]) -> ListOut[UserOut]:
    """The people of the organization."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = people.list_members(tx, [email.lower() for email in query.emails], query.window())
    return list_out(page, user_out)


@router.get("/v1/organization/users/{user_id}")
def retrieve_user(caller: Reader, plane: Plane, user_id: str) -> UserOut:
    """One person."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return user_out(people.get_member(tx, user_id))


@router.post("/v1/organization/users/{user_id}")
def update_user(caller: Writer, plane: Plane, user_id: str, body: UserUpdate) -> UserOut:
    """Give a person another role in the organization: what they hold and what they get, the key presented holds as well."""
    role = body.role_id or (None if body.role is None else role_name(body.role))
    if role is None:
        raise Fault(PARAMETER_MISSING, param="role", message="Name the role.")
    with plane.database.tenant(caller.organization_id) as tx:
        return user_out(people.change_role(tx, user_id, role, own=caller.grants, now=plane.now()))


@router.delete("/v1/organization/users/{user_id}")
def delete_user(caller: Writer, plane: Plane, user_id: str) -> UserDeleted:
    """Remove a person with all that they hold, and revoke their keys from the next request on."""
    with plane.database.tenant(caller.organization_id) as tx:
        people.remove_user(tx, user_id, own=caller.grants, now=plane.now())
    return UserDeleted(object="organization.user.deleted", id=user_id)


# ---- People of a project ------------------------------------------------------------------------------------------------


@router.get("/v1/organization/projects/{project_id}/users")
def list_project_users(caller: Reader, plane: Plane, project_id: str, query: Annotated[PageQuery, Query()]) -> ListOut[ProjectUserOut]:
    """The people of a project."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = people.list_project_users(tx, project_id, query.window())
    return list_out(page, project_user_out)


@router.post("/v1/organization/projects/{project_id}/users")
def create_project_user(caller: Writer, plane: Plane, project_id: str, body: ProjectUserCreate) -> ProjectUserOut:
    """Add a person of the organization to a project."""
    with plane.database.tenant(caller.organization_id) as tx:
        user_id = people.find_project_user_id(tx, body.user_id, body.email)
        people.get_user(tx, user_id)
        people.add_project_member(tx, project_id, user_id, body.role, own=caller.grants, now=plane.now())
        return project_user_out(people.get_project_user(tx, project_id, user_id))


@router.get("/v1/organization/projects/{project_id}/users/{user_id}")
def retrieve_project_user(caller: Reader, plane: Plane, project_id: str, user_id: str) -> ProjectUserOut:
    """One person of a project."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return project_user_out(people.get_project_user(tx, project_id, user_id))


@router.post("/v1/organization/projects/{project_id}/users/{user_id}")
def update_project_user(caller: Writer, plane: Plane, project_id: str, user_id: str, body: ProjectUserUpdate) -> ProjectUserOut:
    """Give a person another role in a project."""
    with plane.database.tenant(caller.organization_id) as tx:
        return project_user_out(people.change_project_role(tx, project_id, user_id, body.role, own=caller.grants, now=plane.now()))


@router.delete("/v1/organization/projects/{project_id}/users/{user_id}")
def delete_project_user(caller: Writer, plane: Plane, project_id: str, user_id: str) -> UserDeleted:
    """Take a person out of a project, with every role that they hold there."""
    with plane.database.tenant(caller.organization_id) as tx:
        people.get_user(tx, user_id)
        people.remove_project_member(tx, project_id, user_id, own=caller.grants)
    return UserDeleted(object="organization.project.user.deleted", id=user_id)
