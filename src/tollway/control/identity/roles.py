"""Roles: those that every installation has and those that an organization or a project makes, and who holds them.

Whoever gives a role to somebody, takes it from them, or changes what it contains must hold each of its permissions in the same place
(`require_covered`): nobody can raise themselves, directly or through another person, a group, a role or a key.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tollway.control import publish
from tollway.control.bounds import quotas
from tollway.domain import ids
from tollway.domain import roles as domain
from tollway.domain.faults import GRANT_EXCEEDS_GRANTOR, PARAMETER_INVALID, PARAMETER_MISSING, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.pages import Page, PageWindow
from tollway.domain.people import Assignment
from tollway.domain.quotas import Quota, QuotaSizes
from tollway.domain.roles import BUILT_IN, OWNER, PROJECT_PERMISSIONS, TENANT_PERMISSIONS, Grant, Permission, Role, RoleScope
from tollway.domain.tenants import Status
from tollway.storage import keys as stored_keys
from tollway.storage import people as stored_people
from tollway.storage import roles as storage
from tollway.storage import tenants as stored_tenants
from tollway.storage.database import TenantTx

HOLDER_ROLES_MAX = 100
"""Roles of one user or group in one place: each is read with every request of the user's keys."""


def require_covered(own: Sequence[Grant], given: Iterable[Grant]) -> None:
    """Raise GRANT_EXCEEDS_GRANTOR if `given` holds a permission that `own` does not hold in the same place."""
    excess = domain.find_excess(own, given)
    if excess is not None:
        message = f"This needs the permission {excess} in the same place, which the key presented does not have."
        raise Fault(GRANT_EXCEEDS_GRANTOR, param="role", message=message)


def scope_of(project_id: str | None) -> RoleScope:
    """Return the scope of the roles that can be held in a project, or in the organization (None)."""
    return RoleScope.ORGANIZATION if project_id is None else RoleScope.PROJECT


def find_role(tx: TenantTx, name: str, project_id: str | None) -> Role | None:
    """Return the role that can be held in a project, or in the organization (None), with the id `name`; or the built-in one of that
    name."""
    made = {}
    if ids.is_id(ids.ROLE, name):
        made = storage.find_roles(tx, [name])
    return choose_role(made, name, project_id)


def choose_role(made: Mapping[str, Role], name: str, project_id: str | None) -> Role | None:
    """As `find_role`, among the built-in roles and `made` by id."""
    scope = scope_of(project_id)
    role = domain.find_named(scope, name) or domain.find_built_in(name) or made.get(name)
    if role is None or role.scope is not scope or role.project_id not in (None, project_id):
        return None
    return role


def get_role(tx: TenantTx, role_id: str, project_id: str | None) -> Role:
    """As `find_role`. Raises RESOURCE_UNKNOWN."""
    role = find_role(tx, role_id, project_id)
    if role is None:
        raise Fault(RESOURCE_UNKNOWN)
    return role


def require_role(tx: TenantTx, name: str, project_id: str | None) -> Role:
    """As `find_role`, of a role that a body names. Raises PARAMETER_INVALID."""
    role = find_role(tx, name, project_id)
    if role is None:
        raise Fault(PARAMETER_INVALID, param="role", message=f"There is no such role of the scope {scope_of(project_id)}.")
    return role


def choose_grant(tx: TenantTx, role: str | None, project_id: str | None, own: Sequence[Grant]) -> Grant:
    """Return the grant of a new admin key from the name or id of a role, in the project `project_id` or (None) in the organization.

    Without a role it is that of the key which makes it, `own`; `owner` where that holds everything. Raises PARAMETER_INVALID for a role
    that does not exist there, PARAMETER_MISSING where a role must be named."""
    if role is not None:
        return Grant(require_role(tx, role, project_id), project_id)
    if project_id is None:
        if len(own) == 1 and own[0].role.scope is not RoleScope.PLATFORM:
            return replace(own[0], holder_id=None)
        if domain.find_excess(own, [Grant(OWNER)]) is None:
            return Grant(OWNER)
    raise Fault(PARAMETER_MISSING, param="role", message="Name the role of the key.")


# ---- Roles of an organization -------------------------------------------------------------------------------------------


def create_role(
    tx: TenantTx,
    *,
    id: str,
    name: str,
    description: str,
    permissions: Iterable[str],
    project_id: str | None,
    own: Sequence[Grant],
    sizes: QuotaSizes,
    now: int,
) -> Role:
    """Create a role of the organization (`project_id` None) or of a project. Raises RESOURCE_UNKNOWN, STATE_CONFLICT (the name is taken,
    the project is archived), PARAMETER_INVALID (permissions), GRANT_EXCEEDS_GRANTOR, QUOTA_EXCEEDED."""
    publish.lock(tx)  # takes turns with other creations
    require_place(tx, project_id)
    role = Role(
        id=id,
        name=name,
        scope=scope_of(project_id),
        permissions=_parse(permissions, project_id),
        description=description,
        project_id=project_id,
    )
    require_covered(own, [Grant(role, project_id)])
    _require_name(tx, role)
    quotas.require_creation(tx, sizes, Quota.ROLES, now)
    storage.insert_role(tx, role, now)
    return role


def list_roles(tx: TenantTx, project_id: str | None, window: PageWindow) -> Page[Role]:
    """Return the roles that can be held in a project, or in the organization (None), the built-in ones among them. Raises
    RESOURCE_UNKNOWN."""
    require_place(tx, project_id, active=False)
    made = storage.list_roles(tx, project_id, window)
    built_in = [role for role in BUILT_IN if role.scope is scope_of(project_id) and _follows(role, window)]
    items = sorted([*made.items, *built_in], key=lambda role: role.id, reverse=window.descending)
    return Page(items[: window.limit], made.has_more or len(items) > window.limit)


def update_role(
    tx: TenantTx,
    role_id: str,
    project_id: str | None,
    *,
    name: str | None,
    description: str | None,
    permissions: Iterable[str] | None,
    own: Sequence[Grant],
) -> Role:
    """Change what is given of a role; None leaves it. Whoever holds it holds the new permissions from the next request on. Raises as
    `create_role`; STATE_CONFLICT for a built-in role."""
    publish.lock(tx)
    role = _get_made(tx, role_id, project_id)
    changed = replace(
        role,
        name=role.name if name is None else name,
        description=role.description if description is None else description,
        permissions=role.permissions if permissions is None else _parse(permissions, project_id),
    )
    require_covered(own, [Grant(role, project_id), Grant(changed, project_id)])
    _require_name(tx, changed)
    storage.update_role(tx, changed)
    return changed


def delete_role(tx: TenantTx, role_id: str, project_id: str | None, *, own: Sequence[Grant], now: int) -> None:
    """Delete a role that nobody holds. Raises RESOURCE_UNKNOWN, STATE_CONFLICT, GRANT_EXCEEDS_GRANTOR."""
    publish.lock(tx)
    role = _get_made(tx, role_id, project_id)
    require_covered(own, [Grant(role, project_id)])
    if storage.is_held(tx, role_id, now):
        raise Fault(STATE_CONFLICT, message="A user, a group, a key or an invitation has this role.")
    storage.delete_role(tx, role_id, now)


def _get_made(tx: TenantTx, role_id: str, project_id: str | None) -> Role:
    role = get_role(tx, role_id, project_id)
    if role.is_built_in or role.id != role_id:
        raise Fault(STATE_CONFLICT, message="Built-in roles cannot be changed.")
    return role


def _parse(permissions: Iterable[str], project_id: str | None) -> frozenset[Permission]:
    known = TENANT_PERMISSIONS if project_id is None else PROJECT_PERMISSIONS
    by_name = {str(each): each for each in known}
    wanted = list(permissions)
    unknown = next((name for name in wanted if name not in by_name), None)
    if unknown is not None:
        raise Fault(PARAMETER_INVALID, param="permissions", message=f"A role of the scope {scope_of(project_id)} has no such permission.")
    return frozenset(by_name[name] for name in wanted)


def _require_name(tx: TenantTx, role: Role) -> None:
    is_reserved = role.name in (domain.READER, domain.NO_ROLE) or domain.find_named(role.scope, role.name) is not None
    if is_reserved or storage.is_name_taken(tx, role.name, role.project_id, role.id):
        raise Fault(STATE_CONFLICT, param="role_name", message="Another role has this name.")


def _follows(role: Role, window: PageWindow) -> bool:
    return window.after is None or (role.id < window.after if window.descending else role.id > window.after)


# ---- Who holds which ----------------------------------------------------------------------------------------------------


def require_place(tx: TenantTx, project_id: str | None, *, active: bool = True) -> None:
    """Raise RESOURCE_UNKNOWN if there is no such project, STATE_CONFLICT if it is archived and must not be. None is the organization."""
    if project_id is None:
        return
    project = stored_tenants.find_project(tx, project_id) if ids.is_id(ids.PROJECT, project_id) else None
    if project is None:
        raise Fault(RESOURCE_UNKNOWN)
    if active and project.status is not Status.ACTIVE:
        raise Fault(STATE_CONFLICT, message="The project is archived.")


def is_active_project(tx: TenantTx, project_id: str) -> bool:
    """Return whether there is such a project and it is not archived."""
    project = stored_tenants.find_project(tx, project_id)
    return project is not None and project.status is Status.ACTIVE


def require_holder(tx: TenantTx, holder_id: str) -> None:
    """Raise RESOURCE_UNKNOWN unless there is such a user or group."""
    is_user = ids.is_id(ids.USER, holder_id) and stored_people.find_user(tx, holder_id) is not None
    if not is_user and not (ids.is_id(ids.GROUP, holder_id) and stored_people.find_group(tx, holder_id) is not None):
        raise Fault(RESOURCE_UNKNOWN)


def assign_role(tx: TenantTx, holder_id: str, role_id: str, project_id: str | None, *, own: Sequence[Grant], now: int) -> Role:
    """Give a role to a user or a group, in a project or (None) in the organization. Raises RESOURCE_UNKNOWN, STATE_CONFLICT (archived, or
    too many roles), PARAMETER_INVALID (the role), GRANT_EXCEEDS_GRANTOR."""
    publish.lock(tx)
    require_place(tx, project_id)
    require_holder(tx, holder_id)
    role = require_role(tx, role_id, project_id)
    require_covered(own, [Grant(role, project_id)])
    if len(storage.list_held_roles(tx, holder_id, project_id, PageWindow(None, HOLDER_ROLES_MAX, False)).items) >= HOLDER_ROLES_MAX:
        raise Fault(STATE_CONFLICT, message=f"A user or a group can hold {HOLDER_ROLES_MAX} roles in one place.")
    storage.put_assignment(
        tx, Assignment(holder_id=holder_id, role_id=role.id, project_id=project_id, is_membership=False, assigned_at=now)
    )
    return role


def list_held_roles(tx: TenantTx, holder_id: str, project_id: str | None, window: PageWindow) -> Page[Role]:
    """Return the roles that a user or a group holds itself in one place. Raises RESOURCE_UNKNOWN."""
    require_place(tx, project_id, active=False)
    require_holder(tx, holder_id)
    return storage.list_held_roles(tx, holder_id, project_id, window)


def get_held_role(tx: TenantTx, holder_id: str, role_id: str, project_id: str | None) -> Role:
    """Return a role that a user or a group holds itself in one place. Raises RESOURCE_UNKNOWN."""
    require_place(tx, project_id, active=False)
    require_holder(tx, holder_id)
    for grant in storage.list_grants(tx, tx.organization_id, [holder_id]):
        if grant.role.id == role_id and grant.project_id == project_id:
            return grant.role
    raise Fault(RESOURCE_UNKNOWN)


def unassign_role(tx: TenantTx, holder_id: str, role_id: str, project_id: str | None, *, own: Sequence[Grant]) -> None:
    """Take a role from a user or a group. Raises RESOURCE_UNKNOWN, GRANT_EXCEEDS_GRANTOR."""
    publish.lock(tx)
    role = get_held_role(tx, holder_id, role_id, project_id)
    require_covered(own, [Grant(role, project_id)])
    storage.delete_assignments(tx, holder_id, project_id, role_id=role_id)


def list_grants_of(tx: TenantTx, subject_id: str) -> list[Grant]:
    """Return what an admin key or a user holds, by themselves and by their groups. Raises RESOURCE_UNKNOWN."""
    if ids.is_id(ids.USER, subject_id):
        require_holder(tx, subject_id)
        return storage.list_user_grants(tx, tx.organization_id, subject_id)
    key = stored_keys.find_admin_key(tx, subject_id) if ids.is_id(ids.KEY, subject_id) else None
    if key is None:
        raise Fault(RESOURCE_UNKNOWN)
    if key.user_id is not None:
        return storage.list_user_grants(tx, tx.organization_id, key.user_id)
    return [] if key.grant is None else [key.grant]
