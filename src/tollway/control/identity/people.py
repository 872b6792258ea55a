"""People of an organization and their groups: records with roles. A person acts with keys of their own, which hold what the person
holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from tollway.control import publish
from tollway.control.bounds import quotas
from tollway.control.identity import roles
from tollway.domain import ids
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.pages import Page, PageWindow
from tollway.domain.people import Assignment, User, UserGroup
from tollway.domain.quotas import Quota, QuotaSizes
from tollway.domain.roles import Grant, Role
from tollway.storage import keys as stored_keys
from tollway.storage import people as storage
from tollway.storage import roles as stored_roles
from tollway.storage import sessions as stored_sessions
from tollway.storage import sign_in as stored_sign_in
from tollway.storage.database import TenantTx


@dataclass(frozen=True, slots=True)
class Member:
    """A person in the organization or in one of its projects, with the role by which they belong to it (None: without one), since
    `added_at` (UTC microseconds)."""

    user: User
    role: Role | None
    added_at: int


# ---- People -------------------------------------------------------------------------------------------------------------


def add_user(tx: TenantTx, *, id: str, email: str, name: str, role: Role, own: Sequence[Grant], sizes: QuotaSizes, now: int) -> Member:
    """Add a person with a role in the organization. Raises STATE_CONFLICT if one has the address, or the directory deactivated one who had
    it; GRANT_EXCEEDS_GRANTOR, QUOTA_EXCEEDED."""
    publish.lock(tx)  # takes turns with other creations
    roles.require_covered(own, [Grant(role)])
    if storage.find_user_by_email(tx, email) is not None:
        raise Fault(STATE_CONFLICT, param="email", message="A person with this address is in the organization already.")
    if storage.is_deactivated(tx, email):
        raise Fault(
            STATE_CONFLICT, param="email", message="The directory of the organization has deactivated the person with this address."
        )
    quotas.require_creation(tx, sizes, Quota.USERS, now)
    user = User(id=id, email=email, name=name, added_at=now)
    storage.insert_user(tx, user)
    stored_roles.put_assignment(tx, Assignment(holder_id=id, role_id=role.id, project_id=None, is_membership=True, assigned_at=now))
    return Member(user, role, now)


def get_user(tx: TenantTx, user_id: str) -> User:
    """Return a person. Raises RESOURCE_UNKNOWN."""
    user = storage.find_user(tx, user_id) if ids.is_id(ids.USER, user_id) else None
    if user is None:
        raise Fault(RESOURCE_UNKNOWN)
    return user


def get_member(tx: TenantTx, user_id: str) -> Member:
    """Return a person with their role in the organization. Raises RESOURCE_UNKNOWN."""
    user = get_user(tx, user_id)
    return Member(user, stored_roles.list_memberships(tx, [user_id], None).get(user_id), user.added_at)


def list_members(tx: TenantTx, emails: Sequence[str], window: PageWindow) -> Page[Member]:
    """Return the people of the organization: those with the addresses `emails`, or all of them if there are none."""
    page = storage.list_users(tx, emails, window)
    held = stored_roles.list_memberships(tx, [user.id for user in page.items], None)
    return Page([Member(user, held.get(user.id), user.added_at) for user in page.items], page.has_more)


def change_role(tx: TenantTx, user_id: str, role_id: str, *, own: Sequence[Grant], now: int) -> Member:
    """Give a person another role in the organization. Raises RESOURCE_UNKNOWN, PARAMETER_INVALID (the role), GRANT_EXCEEDS_GRANTOR where
    the role before or the new one has more than `own`."""
    publish.lock(tx)
    member = get_member(tx, user_id)
    _move(tx, user_id, None, member.role, roles.require_role(tx, role_id, None), own, now)
    return get_member(tx, user_id)


def remove_user(tx: TenantTx, user_id: str, *, own: Sequence[Grant], now: int) -> None:
    """Remove a person with all that they hold, and revoke their keys and end their sessions from the next request on. Raises
    RESOURCE_UNKNOWN, GRANT_EXCEEDS_GRANTOR."""
    publish.lock(tx)
    get_user(tx, user_id)
    roles.require_covered(own, stored_roles.list_user_grants(tx, tx.organization_id, user_id))
    stored_keys.revoke_user_keys(tx, user_id, now)
    stored_sessions.delete_user_sessions(tx, user_id)
    stored_sign_in.delete_credentials(tx, user_id)
    storage.remove_user(tx, user_id, now)


# ---- People and groups of a project -------------------------------------------------------------------------------------


def add_project_member(tx: TenantTx, project_id: str, holder_id: str, role_id: str, *, own: Sequence[Grant], now: int) -> Assignment:
    """Add a user or a group of the organization to a project with a role there. Raises RESOURCE_UNKNOWN, STATE_CONFLICT (archived, or it is
    there already), PARAMETER_INVALID (the role), GRANT_EXCEEDS_GRANTOR."""
    publish.lock(tx)
    roles.require_place(tx, project_id)
    roles.require_holder(tx, holder_id)
    if stored_roles.find_membership(tx, holder_id, project_id) is not None:
        raise Fault(STATE_CONFLICT, message="The project has this member already.")
    role = roles.require_role(tx, role_id, project_id)
    _move(tx, holder_id, project_id, None, role, own, now)
    return Assignment(holder_id=holder_id, role_id=role.id, project_id=project_id, is_membership=True, assigned_at=now)


def find_project_user_id(tx: TenantTx, user_id: str | None, email: str | None) -> str:
    """Return the id of the person whom a body names by id or address. Raises PARAMETER_INVALID unless it is exactly one,
    RESOURCE_UNKNOWN."""
    if (user_id is None) == (email is None):
        raise Fault(PARAMETER_INVALID, param="user_id", message="Name the person by `user_id` or by `email`, and not by both.")
    if email is None:
        return user_id or ""
    user = storage.find_user_by_email(tx, email)
    if user is None:
        raise Fault(RESOURCE_UNKNOWN)
    return user.id


def get_project_member(tx: TenantTx, project_id: str, holder_id: str) -> Assignment:
    """Return the membership of a user or a group in a project. Raises RESOURCE_UNKNOWN."""
    roles.require_place(tx, project_id, active=False)
    roles.require_holder(tx, holder_id)
    found = stored_roles.find_membership(tx, holder_id, project_id)
    if found is None:
        raise Fault(RESOURCE_UNKNOWN)
    return found


def get_project_user(tx: TenantTx, project_id: str, user_id: str) -> Member:
    """Return a person in a project. Raises RESOURCE_UNKNOWN."""
    user = get_user(tx, user_id)
    found = get_project_member(tx, project_id, user_id)
    return Member(user, roles.find_role(tx, found.role_id, project_id), found.assigned_at)


def list_project_users(tx: TenantTx, project_id: str, window: PageWindow) -> Page[Member]:
    """Return the people in a project. Raises RESOURCE_UNKNOWN."""
    roles.require_place(tx, project_id, active=False)
    page = stored_roles.list_member_ids(tx, project_id, ids.USER, window)
    holders = [each.holder_id for each in page.items]
    people, held = storage.find_users(tx, holders), stored_roles.list_memberships(tx, holders, project_id)
    items = [Member(people[each.holder_id], held.get(each.holder_id), each.assigned_at) for each in page.items]
    return Page(items, page.has_more)


def change_project_role(tx: TenantTx, project_id: str, user_id: str, role_id: str, *, own: Sequence[Grant], now: int) -> Member:
    """Give a person another role in a project. Raises as `change_role`; STATE_CONFLICT where the project is archived."""
    publish.lock(tx)
    roles.require_place(tx, project_id)
    member = get_project_user(tx, project_id, user_id)
    _move(tx, user_id, project_id, member.role, roles.require_role(tx, role_id, project_id), own, now)
    return get_project_user(tx, project_id, user_id)


def remove_project_member(tx: TenantTx, project_id: str, holder_id: str, *, own: Sequence[Grant]) -> None:
    """Take a user or a group out of a project, with every role that it holds there. Raises RESOURCE_UNKNOWN, GRANT_EXCEEDS_GRANTOR."""
    publish.lock(tx)
    get_project_member(tx, project_id, holder_id)
    held = stored_roles.list_grants(tx, tx.organization_id, [holder_id])
    roles.require_covered(own, [grant for grant in held if grant.project_id == project_id])
    stored_roles.delete_assignments(tx, holder_id, project_id)


def list_project_groups(tx: TenantTx, project_id: str, window: PageWindow) -> Page[tuple[UserGroup, Assignment]]:
    """Return the groups in a project, each with its membership. Raises RESOURCE_UNKNOWN."""
    roles.require_place(tx, project_id, active=False)
    page = stored_roles.list_member_ids(tx, project_id, ids.GROUP, window)
    groups = storage.find_groups(tx, [each.holder_id for each in page.items])
    return Page([(groups[each.holder_id], each) for each in page.items], page.has_more)


def _move(tx: TenantTx, holder_id: str, project_id: str | None, before: Role | None, after: Role, own: Sequence[Grant], now: int) -> None:
    """Make `after` the role by which a holder belongs to a place, in place of `before`."""
    changed = [Grant(role, project_id) for role in (before, after) if role is not None]
    roles.require_covered(own, changed)
    stored_roles.delete_assignments(tx, holder_id, project_id, membership=True)
    stored_roles.put_assignment(
        tx, Assignment(holder_id=holder_id, role_id=after.id, project_id=project_id, is_membership=True, assigned_at=now)
    )


# ---- Groups -------------------------------------------------------------------------------------------------------------


def create_group(tx: TenantTx, *, id: str, name: str, sizes: QuotaSizes, now: int) -> UserGroup:
    """Create a group without members and roles. Raises STATE_CONFLICT (the name is taken), QUOTA_EXCEEDED."""
    publish.lock(tx)
    require_group_name(tx, name, id)
    quotas.require_creation(tx, sizes, Quota.GROUPS, now)
    group = UserGroup(id=id, name=name, created_at=now)
    storage.insert_group(tx, group)
    return group


def get_group(tx: TenantTx, group_id: str) -> UserGroup:
    """Return a group. Raises RESOURCE_UNKNOWN."""
    group = storage.find_group(tx, group_id) if ids.is_id(ids.GROUP, group_id) else None
    if group is None:
        raise Fault(RESOURCE_UNKNOWN)
    return group


def list_groups(tx: TenantTx, window: PageWindow) -> Page[UserGroup]:
    """Return the groups of the organization."""
    return storage.list_groups(tx, window)


def rename_group(tx: TenantTx, group_id: str, name: str) -> UserGroup:
    """Give a group another name. Raises RESOURCE_UNKNOWN, STATE_CONFLICT (the name is taken, the directory manages the group)."""
    publish.lock(tx)
    _require_unmanaged(get_group(tx, group_id))
    require_group_name(tx, name, group_id)
    storage.rename_group(tx, group_id, name)
    return get_group(tx, group_id)


def delete_group(tx: TenantTx, group_id: str, *, own: Sequence[Grant], now: int) -> None:
    """Delete a group; its members lose what it held. Raises RESOURCE_UNKNOWN, GRANT_EXCEEDS_GRANTOR."""
    publish.lock(tx)
    get_group(tx, group_id)
    _require_group_covered(tx, group_id, own)
    storage.delete_group(tx, group_id, now)


def add_group_member(tx: TenantTx, group_id: str, user_id: str, *, own: Sequence[Grant], now: int) -> None:
    """Add a person to a group, whose roles they hold from then on. Doing it again changes nothing. Raises RESOURCE_UNKNOWN,
    STATE_CONFLICT (the directory manages the group), GRANT_EXCEEDS_GRANTOR."""
    publish.lock(tx)
    _require_unmanaged(get_group(tx, group_id))
    get_user(tx, user_id)
    _require_group_covered(tx, group_id, own)
    storage.put_member(tx, group_id, user_id, now)


def get_group_member(tx: TenantTx, group_id: str, user_id: str) -> User:
    """Return a person in a group. Raises RESOURCE_UNKNOWN."""
    get_group(tx, group_id)
    user = get_user(tx, user_id)
    if not storage.is_member(tx, group_id, user_id):
        raise Fault(RESOURCE_UNKNOWN)
    return user


def list_group_members(tx: TenantTx, group_id: str, window: PageWindow) -> Page[User]:
    """Return the people in a group. Raises RESOURCE_UNKNOWN."""
    get_group(tx, group_id)
    return storage.list_members(tx, group_id, window)


def remove_group_member(tx: TenantTx, group_id: str, user_id: str, *, own: Sequence[Grant]) -> None:
    """Take a person out of a group. Raises RESOURCE_UNKNOWN, STATE_CONFLICT (the directory manages the group), GRANT_EXCEEDS_GRANTOR."""
    publish.lock(tx)
    get_group_member(tx, group_id, user_id)
    _require_unmanaged(get_group(tx, group_id))
    _require_group_covered(tx, group_id, own)
    storage.delete_member(tx, group_id, user_id)


def _require_group_covered(tx: TenantTx, group_id: str, own: Sequence[Grant]) -> None:
    roles.require_covered(own, stored_roles.list_grants(tx, tx.organization_id, [group_id]))


def _require_unmanaged(group: UserGroup) -> None:
    if group.is_scim_managed:
        raise Fault(STATE_CONFLICT, message="The directory of the organization manages this group: change it there.")


def require_group_name(tx: TenantTx, name: str, but: str) -> None:
    """Raise STATE_CONFLICT if another group than `but` has the name."""
    if storage.is_group_name_taken(tx, name, but):
        raise Fault(STATE_CONFLICT, param="name", message="Another group has this name.")
