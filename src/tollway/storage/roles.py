"""Roles of organizations at rest, and who holds which."""

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from tollway.domain.pages import Page, PageWindow
from tollway.domain.people import Assignment
from tollway.domain.roles import Grant, Permission, Role, RoleScope, find_built_in
from tollway.storage.database import TenantTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema import api_keys
from tollway.storage.schema_people import custom_roles, group_members, invites, role_assignments

ROLE_COLUMNS = tuple(
    column.label(f"custom_{column.name}")
    for column in (custom_roles.c.name, custom_roles.c.description, custom_roles.c.permissions, custom_roles.c.project_id)
)
"""Columns of a role that an organization made, for a query that joins `custom_roles` by `role_id`."""


def read_role(row: Any) -> Role | None:
    """Return the role that the `role_id` of a row names, read with ROLE_COLUMNS; None if there is none."""
    if row.role_id is None:
        return None
    return find_built_in(row.role_id) or (None if row.custom_permissions is None else _role(row, row.role_id, "custom_"))


# ---- Roles of an organization -------------------------------------------------------------------------------------------


def insert_role(tx: TenantTx, role: Role, now: int) -> None:
    """Store a new role of the organization, or of one of its projects."""
    tx.connection.execute(
        custom_roles.insert().values(
            id=role.id,
            organization_id=tx.organization_id,
            project_id=role.project_id,
            name=role.name,
            description=role.description,
            permissions=_encode(role),
            created_at=now,
        )
    )


def find_role(tx: TenantTx, role_id: str) -> Role | None:
    """Return a role that the organization, or a project of it, made and did not delete."""
    row = tx.connection.execute(_live_roles(tx).where(custom_roles.c.id == role_id)).one_or_none()
    return None if row is None else _role(row, row.id)


def find_roles(tx: TenantTx, role_ids: Collection[str]) -> dict[str, Role]:
    """Return those of `role_ids` that the organization, or a project of it, made and did not delete."""
    if not role_ids:
        return {}
    rows = tx.connection.execute(_live_roles(tx).where(custom_roles.c.id.in_(sorted(role_ids))))
    return {row.id: _role(row, row.id) for row in rows}


def list_roles(tx: TenantTx, project_id: str | None, window: PageWindow) -> Page[Role]:
    """Return the roles that the organization (None) or a project of it made."""
    query = _live_roles(tx).where(_is_of(project_id))
    return fetch_page(tx, query, custom_roles.c.id, window, lambda row: _role(row, row.id))


def is_name_taken(tx: TenantTx, name: str, project_id: str | None, but: str) -> bool:
    """Return whether another role of the same owner than `but` has the name."""
    query = _live_roles(tx).where(_is_of(project_id), custom_roles.c.name == name, custom_roles.c.id != but)
    return tx.connection.execute(query.limit(1)).first() is not None


def update_role(tx: TenantTx, role: Role) -> None:
    """Store another name, description and other permissions of a role."""
    own = sa.and_(custom_roles.c.organization_id == tx.organization_id, custom_roles.c.id == role.id)
    values = {"name": role.name, "description": role.description, "permissions": _encode(role)}
    tx.connection.execute(custom_roles.update().where(own).values(values))


def delete_role(tx: TenantTx, role_id: str, now: int) -> None:
    """Mark a role as deleted."""
    own = sa.and_(custom_roles.c.organization_id == tx.organization_id, custom_roles.c.id == role_id)
    tx.connection.execute(custom_roles.update().where(own).values(deleted_at=now))


def is_held(tx: TenantTx, role_id: str, now: int) -> bool:
    """Return whether a user, a group or a key holds the role, or a pending invitation promises it."""
    own = tx.organization_id
    assigned = sa.select(sa.literal(1)).where(role_assignments.c.organization_id == own, role_assignments.c.role_id == role_id)
    keys = sa.select(sa.literal(1)).where(api_keys.c.organization_id == own, api_keys.c.role_id == role_id, api_keys.c.revoked_at.is_(None))
    promised = sa.select(sa.literal(1)).where(
        invites.c.organization_id == own,
        sa.or_(invites.c.role_id == role_id, invites.c.project_roles.contains(role_id, autoescape=True)),
        invites.c.accepted_at.is_(None),
        invites.c.deleted_at.is_(None),
        invites.c.expires_at > now,
    )
    return any(tx.connection.execute(query.limit(1)).first() is not None for query in (assigned, keys, promised))


# ---- Who holds which ----------------------------------------------------------------------------------------------------


def put_assignment(tx: TenantTx, assignment: Assignment) -> None:
    """Store that somebody holds a role. One that is held already stays as it is, except that it becomes a membership if it is to be one."""
    values = {
        "organization_id": tx.organization_id,
        "holder_id": assignment.holder_id,
        "project_id": assignment.project_id or "",
        "role_id": assignment.role_id,
        "is_membership": assignment.is_membership,
        "assigned_at": assignment.assigned_at,
    }
    insert = tx.insert(role_assignments).values(values)
    if assignment.is_membership:
        key = ["organization_id", "holder_id", "project_id", "role_id"]
        tx.connection.execute(insert.on_conflict_do_update(index_elements=key, set_={"is_membership": True}))
    else:
        tx.connection.execute(insert.on_conflict_do_nothing())


def delete_assignments(
    tx: TenantTx, holder_id: str, project_id: str | None, *, role_id: str | None = None, membership: bool = False
) -> None:
    """Take roles away from a holder in one place: the one that is named, the membership alone, or all of them."""
    query = role_assignments.delete().where(*_in_place(tx, holder_id, project_id))
    if role_id is not None:
        query = query.where(role_assignments.c.role_id == role_id)
    if membership:
        query = query.where(role_assignments.c.is_membership)
    tx.connection.execute(query)


def delete_holder(tx: TenantTx, holder_id: str) -> None:
    """Take all roles away from a holder, everywhere."""
    own = sa.and_(role_assignments.c.organization_id == tx.organization_id, role_assignments.c.holder_id == holder_id)
    tx.connection.execute(role_assignments.delete().where(own))


def find_membership(tx: TenantTx, holder_id: str, project_id: str | None) -> Assignment | None:
    """Return the role by which a holder belongs to a project or (None) to the organization."""
    query = _assignments(tx).where(*_in_place(tx, holder_id, project_id), role_assignments.c.is_membership)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _assignment(row)


def list_memberships(tx: TenantTx, holder_ids: Sequence[str], project_id: str | None) -> dict[str, Role]:
    """Return the role by which each of the holders belongs to a project or (None) to the organization."""
    columns = role_assignments.c
    query = _assignments(tx).where(columns.holder_id.in_(holder_ids), columns.project_id == (project_id or ""), columns.is_membership)
    read = ((row.holder_id, read_role(row)) for row in tx.connection.execute(query))
    return {holder_id: role for holder_id, role in read if role is not None}


def list_member_ids(tx: TenantTx, project_id: str, prefix: str, window: PageWindow) -> Page[Assignment]:
    """Return the memberships of a project by holder: of users or groups, as `prefix` says."""
    columns = role_assignments.c
    query = _assignments(tx).where(
        columns.project_id == project_id, columns.is_membership, columns.holder_id.startswith(f"{prefix}_", autoescape=True)
    )
    return fetch_page(tx, query, columns.holder_id, window, _assignment)


def list_held_roles(tx: TenantTx, holder_id: str, project_id: str | None, window: PageWindow) -> Page[Role]:
    """Return the roles that a holder holds itself in one place."""
    query = _assignments(tx).where(*_in_place(tx, holder_id, project_id))
    page = fetch_page(tx, query, role_assignments.c.role_id, window, read_role)
    return Page([role for role in page.items if role is not None], page.has_more)


def list_grants(tx: Transaction, organization_id: str, holder_ids: Iterable[str]) -> list[Grant]:
    """Return what holders hold themselves, everywhere, each with its holder."""
    columns = role_assignments.c
    query = (
        sa.select(role_assignments, *ROLE_COLUMNS)
        .outerjoin(custom_roles, names_role(columns.organization_id, columns.role_id))
        .where(columns.organization_id == organization_id, columns.holder_id.in_(list(holder_ids)))
        .order_by(columns.holder_id.desc(), columns.project_id, columns.role_id)  # a user's own before those of groups
    )
    read = ((row, read_role(row)) for row in tx.connection.execute(query))
    return [Grant(role, row.project_id or None, row.holder_id) for row, role in read if role is not None]


def list_user_grants(tx: Transaction, organization_id: str, user_id: str) -> list[Grant]:
    """Return what a user holds, by themselves and by their groups."""
    members = group_members.c
    groups = sa.select(members.group_id).where(members.organization_id == organization_id, members.user_id == user_id)
    return list_grants(tx, organization_id, [user_id, *tx.connection.execute(groups).scalars()])


def names_role(organization: sa.ColumnElement[Any], role_id: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Return the condition that joins `custom_roles` to a row with an organization and a role."""
    return sa.and_(custom_roles.c.organization_id == organization, custom_roles.c.id == role_id, custom_roles.c.deleted_at.is_(None))


def _assignments(tx: TenantTx) -> sa.Select[Any]:
    columns = role_assignments.c
    return (
        sa.select(role_assignments, *ROLE_COLUMNS)
        .outerjoin(custom_roles, names_role(columns.organization_id, columns.role_id))
        .where(columns.organization_id == tx.organization_id)
    )


def _in_place(tx: TenantTx, holder_id: str, project_id: str | None) -> tuple[sa.ColumnElement[bool], ...]:
    columns = role_assignments.c
    return (columns.organization_id == tx.organization_id, columns.holder_id == holder_id, columns.project_id == (project_id or ""))


def _assignment(row: Any) -> Assignment:
    return Assignment(
        holder_id=row.holder_id,
        role_id=row.role_id,
        project_id=row.project_id or None,
        is_membership=row.is_membership,
        assigned_at=row.assigned_at,
    )


def _live_roles(tx: TenantTx) -> sa.Select[Any]:
    return sa.select(custom_roles).where(custom_roles.c.organization_id == tx.organization_id, custom_roles.c.deleted_at.is_(None))


def _is_of(project_id: str | None) -> sa.ColumnElement[bool]:
    return custom_roles.c.project_id.is_(None) if project_id is None else custom_roles.c.project_id == project_id


def _encode(role: Role) -> str:
    return json.dumps(sorted(role.permissions))


def _role(row: Any, role_id: str, prefix: str = "") -> Role:
    known, project_id = set(Permission), getattr(row, f"{prefix}project_id")
    return Role(
        id=role_id,
        name=getattr(row, f"{prefix}name"),
        scope=RoleScope.ORGANIZATION if project_id is None else RoleScope.PROJECT,
        permissions=frozenset(Permission(each) for each in json.loads(getattr(row, f"{prefix}permissions")) if each in known),
        description=getattr(row, f"{prefix}description"),
        project_id=project_id,
    )
