"""Statements of the directory of an organization about people and groups, at rest.

People and groups that the directory has not touched are shown to it as well, as it would have made them, so that it can find and take them
over. A person whom it deactivated is removed (`users.removed_at`) with a row here that brings them back.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from tollway.domain.scim import Equality, Resource
from tollway.storage.database import TenantTx
from tollway.storage.pages import split_ids
from tollway.storage.schema import api_keys
from tollway.storage.schema_people import group_members, scim_groups, scim_users, user_groups, users


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimUser:
    """A person as the directory sees them. `email`: that of the person. `values`: attributes by name, as `domain.scim` reads them. Instants
    are UTC microseconds."""

    id: str
    email: str
    is_active: bool
    values: Resource = field(default_factory=dict)
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimGroup:
    """A group as the directory sees it. `values`: attributes by name, without the members."""

    id: str
    is_managed: bool
    values: Resource
    created_at: int
    updated_at: int


# ---- People -------------------------------------------------------------------------------------------------------------


def find_user(tx: TenantTx, user_id: str) -> ScimUser | None:
    """Return a person, deactivated or not."""
    row = tx.connection.execute(_users(tx).where(users.c.id == user_id)).one_or_none()
    return None if row is None else _user(row)


def list_users(tx: TenantTx, equality: Equality | None, offset: int, limit: int | None) -> tuple[int, list[ScimUser]]:
    """Return how many people there are, and `limit` of them by id from `offset` on (None: all). `equality`: for which they are looked up;
    some that are found so may not meet it."""
    query = _users(tx)
    managed = scim_users.c
    if equality is not None:
        folded = equality.value.lower()
        match equality.name:
            case "id":
                query = query.where(users.c.id == equality.value)
            case "externalid":
                query = query.where(managed.external_id == equality.value)
            case "username":
                query = query.where(sa.or_(managed.folded_user_name == folded, sa.and_(managed.user_id.is_(None), users.c.email == folded)))
    return _read_page(tx, query, users.c.id, offset, limit, _user)


def is_user_name_taken(tx: TenantTx, user_name: str, but: str) -> bool:
    """Return whether another person than `but` has the name (in any case)."""
    _, found = list_users(tx, Equality("username", user_name), 0, None)
    return any(each.id != but for each in found)


def put_user(tx: TenantTx, user: ScimUser, name: str) -> None:
    """Store what the directory says of a person, who has a row already; `name`: that of the person."""
    own = sa.and_(users.c.organization_id == tx.organization_id, users.c.id == user.id)
    removed_at = None if user.is_active else user.updated_at
    tx.connection.execute(users.update().where(own).values(email=user.email, name=name, removed_at=removed_at))
    kept = {name: value for name, value in user.values.items() if name not in ("userName", "externalId")}
    values = {
        "user_name": user.values["userName"],
        "folded_user_name": user.values["userName"].lower(),
        "external_id": user.values.get("externalId"),
        "attributes": json.dumps(kept),
        "is_active": user.is_active,
        "updated_at": user.updated_at,
    }
    insert = tx.insert(scim_users).values(organization_id=tx.organization_id, user_id=user.id, **values)
    tx.connection.execute(insert.on_conflict_do_update(index_elements=["organization_id", "user_id"], set_=values))


def find_keys_of_person(tx: TenantTx, user_id: str) -> list[str]:
    """Return the keys of projects that a person made in their own name, by a session or a key of theirs, and that were not revoked."""
    columns, makers = api_keys.c, api_keys.alias()
    own_keys = sa.select(makers.c.id).where(makers.c.organization_id == tx.organization_id, makers.c.user_id == user_id)
    query = sa.select(columns.id).where(
        columns.organization_id == tx.organization_id,
        columns.project_id.is_not(None),
        columns.service_account_id.is_(None),
        columns.revoked_at.is_(None),
        sa.or_(columns.created_by == user_id, columns.created_by.in_(own_keys)),
    )
    return list(tx.connection.execute(query.order_by(columns.id)).scalars())


def _users(tx: TenantTx) -> sa.Select[Any]:
    managed = scim_users.c
    is_same = sa.and_(managed.organization_id == users.c.organization_id, managed.user_id == users.c.id)
    return (
        sa.select(users, managed.user_name, managed.external_id, managed.attributes, managed.is_active, managed.updated_at)
        .outerjoin(scim_users, is_same)
        .where(users.c.organization_id == tx.organization_id, sa.or_(users.c.removed_at.is_(None), managed.user_id.is_not(None)))
    )


def _user(row: Any) -> ScimUser:
    if row.user_name is None:
        values = {"userName": row.email, "displayName": row.name, "emails": [{"value": row.email, "primary": True}], "active": True}
    else:
        values = {"userName": row.user_name, **json.loads(row.attributes)}
        if row.external_id is not None:
            values["externalId"] = row.external_id
    is_active = row.user_name is None or bool(row.is_active)
    return ScimUser(
        id=row.id,
        email=row.email,
        is_active=is_active,
        values=values,
        created_at=row.added_at,
        updated_at=row.updated_at or row.added_at,
    )


# ---- Groups -------------------------------------------------------------------------------------------------------------


def find_group(tx: TenantTx, group_id: str) -> ScimGroup | None:
    """Return a group."""
    row = tx.connection.execute(_groups(tx).where(user_groups.c.id == group_id)).one_or_none()
    return None if row is None else _group(row)


def list_groups(tx: TenantTx, equality: Equality | None, offset: int, limit: int | None) -> tuple[int, list[ScimGroup]]:
    """As `list_users`."""
    query = _groups(tx)
    folded = "" if equality is None else equality.value.lower()
    if equality is not None:
        match equality.name:
            case "id":
                query = query.where(user_groups.c.id == equality.value)
            case "externalid":
                query = query.where(scim_groups.c.external_id == equality.value)
            case "displayname" if folded.isascii():  # of other letters SQLite knows no case
                query = query.where(sa.func.lower(user_groups.c.name) == folded)
            case "members" | "members.value":
                columns = group_members.c
                of_group = sa.and_(columns.organization_id == user_groups.c.organization_id, columns.group_id == user_groups.c.id)
                named = sa.select(columns.user_id).where(of_group, columns.user_id.in_([equality.value, folded]))
                query = query.where(named.exists())
    return _read_page(tx, query, user_groups.c.id, offset, limit, _group)


def put_group(tx: TenantTx, group: ScimGroup) -> None:
    """Store what the directory says of a group, which has a row already."""
    own = sa.and_(user_groups.c.organization_id == tx.organization_id, user_groups.c.id == group.id)
    tx.connection.execute(user_groups.update().where(own).values(name=group.values["displayName"]))
    values = {"external_id": group.values.get("externalId"), "updated_at": group.updated_at}
    insert = tx.insert(scim_groups).values(organization_id=tx.organization_id, group_id=group.id, **values)
    tx.connection.execute(insert.on_conflict_do_update(index_elements=["organization_id", "group_id"], set_=values))


def list_members(tx: TenantTx, group_ids: Iterable[str]) -> dict[str, list[str]]:
    """Return the people in each of the groups, deactivated ones too, by id."""
    found: dict[str, list[str]] = {}
    for part in split_ids(group_ids):
        columns = group_members.c
        query = sa.select(columns.group_id, columns.user_id).where(
            columns.organization_id == tx.organization_id, columns.group_id.in_(part)
        )
        for row in tx.connection.execute(query.order_by(columns.group_id, columns.user_id)):
            found.setdefault(row.group_id, []).append(row.user_id)
    return found


def count_members(tx: TenantTx, group_ids: Iterable[str]) -> int:
    """Return how many members the groups have, one who is in several counted for each."""
    columns = group_members.c
    counted = sa.select(sa.func.count()).where(columns.organization_id == tx.organization_id)
    return sum(tx.connection.execute(counted.where(columns.group_id.in_(part))).scalar_one() for part in split_ids(group_ids))


def find_known(tx: TenantTx, user_ids: Sequence[str]) -> set[str]:
    """Return those of the people that the directory can see."""
    return {row.id for part in split_ids(user_ids) for row in tx.connection.execute(_users(tx).where(users.c.id.in_(part)))}


def _groups(tx: TenantTx) -> sa.Select[Any]:
    managed = scim_groups.c
    is_same = sa.and_(managed.organization_id == user_groups.c.organization_id, managed.group_id == user_groups.c.id)
    return (
        sa.select(user_groups, managed.group_id, managed.external_id, managed.updated_at)
        .outerjoin(scim_groups, is_same)
        .where(user_groups.c.organization_id == tx.organization_id, user_groups.c.deleted_at.is_(None))
    )


def _group(row: Any) -> ScimGroup:
    values = {"displayName": row.name}
    if row.external_id is not None:
        values["externalId"] = row.external_id
    return ScimGroup(
        id=row.id,
        is_managed=row.group_id is not None,
        values=values,
        created_at=row.created_at,
        updated_at=row.updated_at or row.created_at,
    )


def _read_page(
    tx: TenantTx, query: sa.Select[Any], id_column: sa.Column[str], offset: int, limit: int | None, read: Any
) -> tuple[int, list[Any]]:
    ordered = query.order_by(id_column)
    if limit is None:
        rows = tx.connection.execute(ordered).all()
        return len(rows), [read(row) for row in rows]
    total: int = tx.connection.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar_one()
    return total, [read(row) for row in tx.connection.execute(ordered.offset(offset).limit(limit))]
