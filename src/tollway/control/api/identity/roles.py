"""Roles of an organization and of its projects, who holds them, and why something is allowed."""

from typing import Annotated

from fastapi import Depends, Query
from starlette.requests import Request
from starlette.routing import Match

from tollway.control.api import routes
from tollway.control.api.identity.people_schemas import (
    AssignmentCreate,
    ExplanationOut,
    GroupRoleOut,
    NextListOut,
    RoleCreate,
    RoleDeleted,
    RoleOut,
    RoleUpdate,
    Unassigned,
    UserRoleOut,
    explanation_out,
    group_summary,
    next_list_out,
    role_out,
    user_out,
)
from tollway.control.api.routes import ApiRoute, Plane, may
from tollway.control.api.schemas import PageQuery
from tollway.control.identity import explanations, people, roles
from tollway.control.identity.access import Tenant
from tollway.control.identity.explanations import Rule, Subject, SubjectKind
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, Fault
from tollway.domain.roles import Permission

router = routes.router(tags=["roles"])

Reader = Annotated[Tenant, Depends(may(Permission.ROLES_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.ROLES_WRITE))]

# ---- Roles of the organization ------------------------------------------------------------------------------------------


@router.get("/v1/organization/roles")
def list_roles(caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()]) -> NextListOut[RoleOut]:
    """The roles that can be held in the organization, built-in ones included."""
    return _list(caller, plane, None, query)


@router.post("/v1/organization/roles")
def create_role(caller: Writer, plane: Plane, body: RoleCreate) -> RoleOut:
    """Create a role. It contains no permission that the key presented does not have."""
    return _create(caller, plane, None, body)


@router.get("/v1/organization/roles/{role_id}")
def retrieve_role(caller: Reader, plane: Plane, role_id: str) -> RoleOut:
    """One role."""
    return _retrieve(caller, plane, None, role_id)


@router.post("/v1/organization/roles/{role_id}")
def update_role(caller: Writer, plane: Plane, role_id: str, body: RoleUpdate) -> RoleOut:
    """Change a role. Whoever holds it holds its new permissions from the next request on."""
    return _update(caller, plane, None, role_id, body)


@router.delete("/v1/organization/roles/{role_id}")
def delete_role(caller: Writer, plane: Plane, role_id: str) -> RoleDeleted:
    """Delete a role that nobody holds."""
    return _delete(caller, plane, None, role_id)


# ---- Roles of a project -------------------------------------------------------------------------------------------------


@router.get("/v1/projects/{project_id}/roles")
def list_project_roles(caller: Reader, plane: Plane, project_id: str, query: Annotated[PageQuery, Query()]) -> NextListOut[RoleOut]:
    """The roles that can be held in a project, built-in ones included."""
    return _list(caller, plane, project_id, query)


@router.post("/v1/projects/{project_id}/roles")
def create_project_role(caller: Writer, plane: Plane, project_id: str, body: RoleCreate) -> RoleOut:
    """Create a role of a project."""
    return _create(caller, plane, project_id, body)


@router.get("/v1/projects/{project_id}/roles/{role_id}")
def retrieve_project_role(caller: Reader, plane: Plane, project_id: str, role_id: str) -> RoleOut:
    """One role of a project."""
    return _retrieve(caller, plane, project_id, role_id)


@router.post("/v1/projects/{project_id}/roles/{role_id}")
def update_project_role(caller: Writer, plane: Plane, project_id: str, role_id: str, body: RoleUpdate) -> RoleOut:
    """Change a role of a project."""
    return _update(caller, plane, project_id, role_id, body)


@router.delete("/v1/projects/{project_id}/roles/{role_id}")
def delete_project_role(caller: Writer, plane: Plane, project_id: str, role_id: str) -> RoleDeleted:
    """Delete a role of a project that nobody holds."""
    return _delete(caller, plane, project_id, role_id)


def _list(caller: Tenant, plane: ControlPlane, project_id: str | None, query: PageQuery) -> NextListOut[RoleOut]:
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return next_list_out(roles.list_roles(tx, project_id, query.window()), role_out)


def _create(caller: Tenant, plane: ControlPlane, project_id: str | None, body: RoleCreate) -> RoleOut:
    with plane.database.tenant(caller.organization_id) as tx:
        role = roles.create_role(
            tx,
            id=plane.new_id(ids.ROLE),
            name=body.role_name,
            description=body.description or "",
            permissions=body.permissions,
            project_id=project_id,
            own=caller.grants,
            sizes=plane.quotas,
            now=plane.now(),
        )
    return role_out(role)


def _retrieve(caller: Tenant, plane: ControlPlane, project_id: str | None, role_id: str) -> RoleOut:
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        roles.require_place(tx, project_id, active=False)
        return role_out(roles.get_role(tx, role_id, project_id))


def _update(caller: Tenant, plane: ControlPlane, project_id: str | None, role_id: str, body: RoleUpdate) -> RoleOut:
    with plane.database.tenant(caller.organization_id) as tx:
        role = roles.update_role(
            tx,
            role_id,
            project_id,
            name=body.role_name,
            description=body.description,
            permissions=body.permissions,
            own=caller.grants,
        )
    return role_out(role)


def _delete(caller: Tenant, plane: ControlPlane, project_id: str | None, role_id: str) -> RoleDeleted:
    with plane.database.tenant(caller.organization_id) as tx:
        roles.delete_role(tx, role_id, project_id, own=caller.grants, now=plane.now())
    return RoleDeleted(id=role_id)


# ---- Who holds which ----------------------------------------------------------------------------------------------------


@router.get("/v1/organization/users/{user_id}/roles")
def list_user_roles(caller: Reader, plane: Plane, user_id: str, query: Annotated[PageQuery, Query()]) -> NextListOut[RoleOut]:
    """The roles that a person holds itself in the organization."""
    return _list_held(caller, plane, user_id, ids.USER, None, query)


@router.post("/v1/organization/users/{user_id}/roles")
def create_user_role(caller: Writer, plane: Plane, user_id: str, body: AssignmentCreate) -> UserRoleOut:
    """Give a person a role in the organization. Doing it again changes nothing."""
    with plane.database.tenant(caller.organization_id) as tx:
        _require_kind(user_id, ids.USER)
        role = roles.assign_role(tx, user_id, body.role_id, None, own=caller.grants, now=plane.now())
        return UserRoleOut(role=role_out(role), user=user_out(people.get_member(tx, user_id)))


@router.get("/v1/organization/users/{user_id}/roles/{role_id}")
def retrieve_user_role(caller: Reader, plane: Plane, user_id: str, role_id: str) -> RoleOut:
    """One role that a person holds itself in the organization."""
    return _retrieve_held(caller, plane, user_id, ids.USER, None, role_id)


@router.delete("/v1/organization/users/{user_id}/roles/{role_id}")
def delete_user_role(caller: Writer, plane: Plane, user_id: str, role_id: str) -> Unassigned:
    """Take a role in the organization from a person."""
    return _delete_held(caller, plane, user_id, ids.USER, None, role_id)


@router.get("/v1/projects/{project_id}/users/{user_id}/roles")
def list_project_user_roles(
    caller: Reader, plane: Plane, project_id: str, user_id: str, query: Annotated[PageQuery, Query()]
) -> NextListOut[RoleOut]:
    """The roles that a person holds itself in a project."""
    return _list_held(caller, plane, user_id, ids.USER, project_id, query)


@router.post("/v1/projects/{project_id}/users/{user_id}/roles")
def create_project_user_role(caller: Writer, plane: Plane, project_id: str, user_id: str, body: AssignmentCreate) -> UserRoleOut:
    """Give a person a role in a project. Doing it again changes nothing."""
    with plane.database.tenant(caller.organization_id) as tx:
        _require_kind(user_id, ids.USER)
        role = roles.assign_role(tx, user_id, body.role_id, project_id, own=caller.grants, now=plane.now())
        return UserRoleOut(role=role_out(role), user=user_out(people.get_member(tx, user_id)))


@router.get("/v1/projects/{project_id}/users/{user_id}/roles/{role_id}")
def retrieve_project_user_role(caller: Reader, plane: Plane, project_id: str, user_id: str, role_id: str) -> RoleOut:
    """One role that a person holds itself in a project."""
    return _retrieve_held(caller, plane, user_id, ids.USER, project_id, role_id)


@router.delete("/v1/projects/{project_id}/users/{user_id}/roles/{role_id}")
def delete_project_user_role(caller: Writer, plane: Plane, project_id: str, user_id: str, role_id: str) -> Unassigned:
    """Take a role in a project from a person."""
    return _delete_held(caller, plane, user_id, ids.USER, project_id, role_id)


@router.get("/v1/organization/groups/{group_id}/roles")
def list_group_roles(caller: Reader, plane: Plane, group_id: str, query: Annotated[PageQuery, Query()]) -> NextListOut[RoleOut]:
    """The roles that a group holds itself in the organization."""
    return _list_held(caller, plane, group_id, ids.GROUP, None, query)


@router.post("/v1/organization/groups/{group_id}/roles")
def create_group_role(caller: Writer, plane: Plane, group_id: str, body: AssignmentCreate) -> GroupRoleOut:
    """Give a group a role in the organization. Doing it again changes nothing."""
    with plane.database.tenant(caller.organization_id) as tx:
        _require_kind(group_id, ids.GROUP)
        role = roles.assign_role(tx, group_id, body.role_id, None, own=caller.grants, now=plane.now())
        return GroupRoleOut(role=role_out(role), group=group_summary(people.get_group(tx, group_id)))


@router.get("/v1/organization/groups/{group_id}/roles/{role_id}")
def retrieve_group_role(caller: Reader, plane: Plane, group_id: str, role_id: str) -> RoleOut:
    """One role that a group holds itself in the organization."""
    return _retrieve_held(caller, plane, group_id, ids.GROUP, None, role_id)


@router.delete("/v1/organization/groups/{group_id}/roles/{role_id}")
def delete_group_role(caller: Writer, plane: Plane, group_id: str, role_id: str) -> Unassigned:
    """Take a role in the organization from a group."""
    return _delete_held(caller, plane, group_id, ids.GROUP, None, role_id)


@router.get("/v1/projects/{project_id}/groups/{group_id}/roles")
def list_project_group_roles(
    caller: Reader, plane: Plane, project_id: str, group_id: str, query: Annotated[PageQuery, Query()]
) -> NextListOut[RoleOut]:
    """The roles that a group holds itself in a project."""
    return _list_held(caller, plane, group_id, ids.GROUP, project_id, query)


@router.post("/v1/projects/{project_id}/groups/{group_id}/roles")
def create_project_group_role(caller: Writer, plane: Plane, project_id: str, group_id: str, body: AssignmentCreate) -> GroupRoleOut:
    """Give a group a role in a project. Doing it again changes nothing."""
    with plane.database.tenant(caller.organization_id) as tx:
        _require_kind(group_id, ids.GROUP)
        role = roles.assign_role(tx, group_id, body.role_id, project_id, own=caller.grants, now=plane.now())
        return GroupRoleOut(role=role_out(role), group=group_summary(people.get_group(tx, group_id)))


@router.get("/v1/projects/{project_id}/groups/{group_id}/roles/{role_id}")
def retrieve_project_group_role(caller: Reader, plane: Plane, project_id: str, group_id: str, role_id: str) -> RoleOut:
    """One role that a group holds itself in a project."""
    return _retrieve_held(caller, plane, group_id, ids.GROUP, project_id, role_id)


@router.delete("/v1/projects/{project_id}/groups/{group_id}/roles/{role_id}")
def delete_project_group_role(caller: Writer, plane: Plane, project_id: str, group_id: str, role_id: str) -> Unassigned:
    """Take a role in a project from a group."""
    return _delete_held(caller, plane, group_id, ids.GROUP, project_id, role_id)


def _require_kind(holder_id: str, prefix: str) -> None:
    """Raise RESOURCE_UNKNOWN for an id of another kind, such as that of a group where a user is named."""
    if not ids.is_id(prefix, holder_id):
        raise Fault(RESOURCE_UNKNOWN)


def _list_held(
    caller: Tenant, plane: ControlPlane, holder_id: str, prefix: str, project_id: str | None, query: PageQuery
) -> NextListOut[RoleOut]:
    _require_kind(holder_id, prefix)
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return next_list_out(roles.list_held_roles(tx, holder_id, project_id, query.window()), role_out)


def _retrieve_held(caller: Tenant, plane: ControlPlane, holder_id: str, prefix: str, project_id: str | None, role_id: str) -> RoleOut:
    _require_kind(holder_id, prefix)
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return role_out(roles.get_held_role(tx, holder_id, role_id, project_id))


def _delete_held(caller: Tenant, plane: ControlPlane, holder_id: str, prefix: str, project_id: str | None, role_id: str) -> Unassigned:
    _require_kind(holder_id, prefix)
    with plane.database.tenant(caller.organization_id) as tx:
        roles.unassign_role(tx, holder_id, role_id, project_id, own=caller.grants)
    return Unassigned(object=f"{prefix}.role.deleted")


# ---- Explanations -------------------------------------------------------------------------------------------------------


@router.get("/v1/organization/access")
def explain_access(
    caller: Reader,
    plane: Plane,
    request: Request,
    permission: Permission | None = None,
    operation: Annotated[
        str | None, Query(max_length=128, description="Name of an operation, in place of a permission.", examples=["create_project_key"])
    ] = None,
    method: Annotated[
        str | None, Query(max_length=16, description="Method of a request, in place of a permission.", examples=["POST"])
    ] = None,
    path: Annotated[
        str | None, Query(max_length=2048, description="Path of the request with that method.", examples=["/v1/organization/projects"])
    ] = None,
    project_id: Annotated[str | None, Query(max_length=64)] = None,
    subject_id: Annotated[str | None, Query(max_length=64)] = None,
) -> ExplanationOut:
    """Explain what allows or denies a permission, an operation by its name, or a request by its method and path, to the key presented or to
    another admin key, user, API key or service account. Ids in a path other than that of the project are not looked up."""
    by_request = method is not None or path is not None
    if [permission is not None, operation is not None, by_request].count(True) != 1 or (method is None) is not (path is None):
        raise Fault(PARAMETER_INVALID, param="permission", message="Name a permission, an operation, or a method and a path: one of them.")
    rule = None
    if permission is None:
        route, named = _find_route(request, operation, method, path)
        rule = Rule(route.name, route.access.name, route.access.permission)
        if named is not None and project_id not in (None, named):
            raise Fault(PARAMETER_INVALID, param="project_id", message="The path names another project.")
        project_id = named or project_id
        if ("{project_id}" in route.path) is not (project_id is not None):
            says = "names a project: say which" if project_id is None else "names no project"
            raise Fault(PARAMETER_INVALID, param="project_id", message=f"The path of the operation {says}.")
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        roles.require_place(tx, project_id, active=False)
        subject = _subject_of(caller) if subject_id is None else explanations.get_subject(tx, subject_id)
    if rule is None:
        assert permission is not None  # one of both is named
        return explanation_out(explanations.explain(subject, permission, project_id))
    return explanation_out(explanations.explain_operation(subject, rule, project_id))


def _subject_of(caller: Tenant) -> Subject:
    kind = SubjectKind.OPERATOR if caller.is_operator else SubjectKind.ADMIN_KEY if caller.live is None else SubjectKind.USER
    return Subject(caller.key_id, kind, caller.grants)


def _find_route(request: Request, operation: str | None, method: str | None, path: str | None) -> tuple[ApiRoute, str | None]:
    """Return the route of an operation, or of a method and a path with the project that the path names. Raises PARAMETER_INVALID."""
    for route in request.app.routes:
        if not isinstance(route, ApiRoute):
            continue
        if operation is not None:
            if route.name == operation:
                return route, None
            continue
        match, scope = route.matches({"type": "http", "method": str(method).upper(), "path": path, "path_params": {}, "root_path": ""})
        if match is Match.FULL:
            return route, scope["path_params"].get("project_id")
    raise Fault(PARAMETER_INVALID, param="operation" if operation is not None else "path", message="There is no such operation.")
