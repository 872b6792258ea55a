"""People, groups and invitations at rest.

Removed people, deleted groups and answered invitations keep their rows, because records of what happened name them, and are otherwise as if
they had never been. The row of a removed person has no address and no name.
"""

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from tollway.domain.pages import Page, PageWindow
from tollway.domain.people import Invite, User, UserGroup
from tollway.domain.roles import Grant, find_built_in
from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.keys import Digest, read_grant
from tollway.storage.pages import fetch_page, split_ids
from tollway.storage.roles import ROLE_COLUMNS, delete_holder, list_user_grants, names_role
from tollway.storage.schema import api_keys, organizations
from tollway.storage.schema_people import custom_roles, group_members, invites, scim_groups, scim_users, user_groups, users
from tollway.storage.schema_sign_in import operators

# ---- People -------------------------------------------------------------------------------------------------------------


def insert_user(tx: TenantTx, user: User) -> None:
    """Store a new person of the organization."""
    values = {"id": user.id, "email": user.email, "name": user.name, "added_at": user.added_at}
    tx.connection.execute(users.insert().values(organization_id=tx.organization_id, **values))


def find_user(tx: TenantTx, user_id: str) -> User | None:
    """Return a person who was not removed."""
    row = tx.connection.execute(_live_users(tx).where(users.c.id == user_id)).one_or_none()
    return None if row is None else _user(row)


def find_user_by_email(tx: TenantTx, email: str) -> User | None:
    """Return the person with that address (in lower case), if they were not removed."""
    row = tx.connection.execute(_live_users(tx).where(users.c.email == email)).one_or_none()
    return None if row is None else _user(row)


def find_users(tx: TenantTx, user_ids: Sequence[str]) -> dict[str, User]:
    """Return those of the people that were not removed, by id; as many as one page has."""
    return {row.id: _user(row) for row in tx.connection.execute(_live_users(tx).where(users.c.id.in_(user_ids)))}


def list_users(tx: TenantTx, emails: Sequence[str], window: PageWindow) -> Page[User]:
    """Return the people of the organization: those with the addresses `emails`, or all of them if there are none."""
    query = _live_users(tx)
    if emails:
        query = query.where(users.c.email.in_(emails))
    return fetch_page(tx, query, users.c.id, window, _user)


def remove_user(tx: TenantTx, user_id: str, now: int) -> None:
    """Mark a person as removed, without their address and name; they are in no group any more, hold no role, and the directory has no part
    in them."""
    own = sa.and_(users.c.organization_id == tx.organization_id, users.c.id == user_id)
    tx.connection.execute(users.update().where(own).values(removed_at=now, email="", name=""))
    columns = group_members.c
    tx.connection.execute(group_members.delete().where(columns.organization_id == tx.organization_id, columns.user_id == user_id))
    delete_holder(tx, user_id)
    managed = scim_users.c
    tx.connection.execute(scim_users.delete().where(managed.organization_id == tx.organization_id, managed.user_id == user_id))


def is_deactivated(tx: TenantTx, email: str) -> bool:
    """Return whether the directory deactivated a person with that address (in lower case)."""
    managed = scim_users.c
    query = (
        sa.select(users.c.id)
        .join(scim_users, sa.and_(managed.organization_id == users.c.organization_id, managed.user_id == users.c.id))
        .where(users.c.organization_id == tx.organization_id, users.c.email == email, ~managed.is_active)
    )
    return tx.connection.execute(query.limit(1)).first() is not None


_USER_IS_MANAGED = sa.exists().where(scim_users.c.organization_id == users.c.organization_id, scim_users.c.user_id == users.c.id)
_GROUP_IS_MANAGED = sa.exists().where(
    scim_groups.c.organization_id == user_groups.c.organization_id, scim_groups.c.group_id == user_groups.c.id
)


def _live_users(tx: TenantTx) -> sa.Select[Any]:
    own = sa.and_(users.c.organization_id == tx.organization_id, users.c.removed_at.is_(None))
    return sa.select(users, _USER_IS_MANAGED.label("is_managed")).where(own)


def _user(row: Any) -> User:
    return User(id=row.id, email=row.email, name=row.name, added_at=row.added_at, is_scim_managed=row.is_managed)


# ---- Groups -------------------------------------------------------------------------------------------------------------


def insert_group(tx: TenantTx, group: UserGroup) -> None:
    """Store a new group of the organization."""
    values = {"id": group.id, "name": group.name, "created_at": group.created_at}
    tx.connection.execute(user_groups.insert().values(organization_id=tx.organization_id, **values))


def find_group(tx: TenantTx, group_id: str) -> UserGroup | None:
    """Return a group that was not deleted."""
    row = tx.connection.execute(_live_groups(tx).where(user_groups.c.id == group_id)).one_or_none()
    return None if row is None else _group(row)


def find_groups(tx: TenantTx, group_ids: Sequence[str]) -> dict[str, UserGroup]:
    """Return those of the groups that were not deleted, by id; as many as one page has."""
    return {row.id: _group(row) for row in tx.connection.execute(_live_groups(tx).where(user_groups.c.id.in_(group_ids)))}


def is_group_name_taken(tx: TenantTx, name: str, but: str) -> bool:
    """Return whether another group than `but` has the name."""
    query = _live_groups(tx).where(user_groups.c.name == name, user_groups.c.id != but).limit(1)
    return tx.connection.execute(query).first() is not None


def list_groups(tx: TenantTx, window: PageWindow) -> Page[UserGroup]:
    """Return the groups of the organization."""
    return fetch_page(tx, _live_groups(tx), user_groups.c.id, window, _group)


def rename_group(tx: TenantTx, group_id: str, name: str) -> None:
    """Store another name of a group."""
    own = sa.and_(user_groups.c.organization_id == tx.organization_id, user_groups.c.id == group_id)
    tx.connection.execute(user_groups.update().where(own).values(name=name))


def delete_group(tx: TenantTx, group_id: str, now: int) -> None:
    """Mark a group as deleted; it has no members any more, holds no role, and the directory has no part in it."""
    own = sa.and_(user_groups.c.organization_id == tx.organization_id, user_groups.c.id == group_id)
    tx.connection.execute(user_groups.update().where(own).values(deleted_at=now))
    columns = group_members.c
    tx.connection.execute(group_members.delete().where(columns.organization_id == tx.organization_id, columns.group_id == group_id))
    delete_holder(tx, group_id)
    managed = scim_groups.c
    tx.connection.execute(scim_groups.delete().where(managed.organization_id == tx.organization_id, managed.group_id == group_id))


def put_member(tx: TenantTx, group_id: str, user_id: str, now: int) -> None:
    """Store that a user is in a group."""
    values = {"organization_id": tx.organization_id, "group_id": group_id, "user_id": user_id, "added_at": now}
    tx.connection.execute(tx.insert(group_members).values(values).on_conflict_do_nothing())


def put_members(tx: TenantTx, group_id: str, user_ids: Sequence[str], now: int) -> None:
    """Store that users are in a group."""
    rows = [{"organization_id": tx.organization_id, "group_id": group_id, "user_id": each, "added_at": now} for each in user_ids]
    if rows:
        tx.connection.execute(tx.insert(group_members).on_conflict_do_nothing(), rows)


def is_member(tx: TenantTx, group_id: str, user_id: str) -> bool:
    """Return whether a user is in a group."""
    return tx.connection.execute(sa.select(group_members).where(*_membership(tx, group_id, user_id))).first() is not None


def delete_member(tx: TenantTx, group_id: str, user_id: str) -> None:
    """Take a user out of a group."""
    tx.connection.execute(group_members.delete().where(*_membership(tx, group_id, user_id)))


def delete_members(tx: TenantTx, group_id: str, user_ids: Sequence[str]) -> None:
    """Take users out of a group."""
    columns = group_members.c
    for part in split_ids(user_ids):
        of_group = sa.and_(columns.organization_id == tx.organization_id, columns.group_id == group_id)
        tx.connection.execute(group_members.delete().where(of_group, columns.user_id.in_(part)))


def list_members(tx: TenantTx, group_id: str, window: PageWindow) -> Page[User]:
    """Return the people in a group."""
    of_group = sa.select(group_members.c.user_id).where(
        group_members.c.organization_id == tx.organization_id, group_members.c.group_id == group_id
    )
    return fetch_page(tx, _live_users(tx).where(users.c.id.in_(of_group)), users.c.id, window, _user)


def _membership(tx: TenantTx, group_id: str, user_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    columns = group_members.c
    return (columns.organization_id == tx.organization_id, columns.group_id == group_id, columns.user_id == user_id)


def _live_groups(tx: TenantTx) -> sa.Select[Any]:
    own = sa.and_(user_groups.c.organization_id == tx.organization_id, user_groups.c.deleted_at.is_(None))
    return sa.select(user_groups, _GROUP_IS_MANAGED.label("is_managed")).where(own)


def _group(row: Any) -> UserGroup:
    return UserGroup(id=row.id, name=row.name, created_at=row.created_at, is_scim_managed=row.is_managed)


# ---- Invitations --------------------------------------------------------------------------------------------------------


def insert_invite(tx: TenantTx, invite: Invite, digest: Digest, invited_by: str) -> None:
    """Store a new invitation, whose secret has `digest`."""
    tx.connection.execute(
        invites.insert().values(
            id=invite.id,
            organization_id=tx.organization_id,
            email=invite.email,
            role_id=invite.role_id,
            project_roles=json.dumps(dict(invite.project_roles)),
            pepper_version=digest.pepper_version,
            digest=digest.value,
            invited_by=invited_by,
            created_at=invite.created_at,
            expires_at=invite.expires_at,
        )
    )


def find_invite(tx: TenantTx, invite_id: str) -> Invite | None:
    """Return an invitation that was not deleted."""
    row = tx.connection.execute(_live_invites(tx).where(invites.c.id == invite_id)).one_or_none()
    return None if row is None else _invite(row)


def list_invites(tx: TenantTx, window: PageWindow) -> Page[Invite]:
    """Return the invitations of the organization, accepted and expired ones too."""
    return fetch_page(tx, _live_invites(tx), invites.c.id, window, _invite)


def accept_invite(tx: TenantTx, invite_id: str, user_id: str, now: int) -> bool:
    """Mark an invitation as accepted by the person `user_id`. Return whether it was not accepted, deleted or expired before."""
    pending = sa.and_(
        invites.c.organization_id == tx.organization_id,
        invites.c.id == invite_id,
        invites.c.accepted_at.is_(None),
        invites.c.deleted_at.is_(None),
        invites.c.expires_at > now,
    )
    return bool(tx.connection.execute(invites.update().where(pending).values(accepted_at=now, user_id=user_id)).rowcount)


def delete_invite(tx: TenantTx, invite_id: str, now: int) -> None:
    """Mark an invitation as deleted."""
    own = sa.and_(invites.c.organization_id == tx.organization_id, invites.c.id == invite_id)
    tx.connection.execute(invites.update().where(own).values(deleted_at=now))


def find_invite_owner(tx: PlatformTx, digests: Sequence[bytes], now: int) -> tuple[str, str, str] | None:
    """Return organization, id and address of the pending invitation with one of `digests`, of an organization that is not archived, whose
    sender may still act: a key, a person with a session, or an operator who signed in."""
    query = (
        sa.select(invites.c.organization_id, invites.c.id, invites.c.email)
        .join(organizations, organizations.c.id == invites.c.organization_id)
        .outerjoin(api_keys, api_keys.c.id == invites.c.invited_by)
        .outerjoin(users, sa.and_(users.c.organization_id == invites.c.organization_id, users.c.id == invites.c.invited_by))
        .outerjoin(operators, operators.c.id == invites.c.invited_by)
        .where(
            invites.c.digest.in_(digests),
            sa.or_(
                sa.and_(
                    api_keys.c.id.is_not(None),
                    api_keys.c.revoked_at.is_(None),
                    sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now),
                ),
                sa.and_(users.c.id.is_not(None), users.c.removed_at.is_(None)),
                operators.c.role_id.is_not(None),
            ),
            invites.c.accepted_at.is_(None),
            invites.c.deleted_at.is_(None),
            invites.c.expires_at > now,
            organizations.c.archived_at.is_(None),
        )
    )
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else (row.organization_id, row.id, row.email)


def find_inviter_grants(tx: PlatformTx, invite_id: str, now: int) -> list[Grant] | None:
    """Return the roles of the key, of the person, or of the operator, that sent an invitation, as they are now; None if
    it may not act any more."""
    sender = (
        sa.select(users.c.organization_id, users.c.id)
        .join(invites, sa.and_(invites.c.organization_id == users.c.organization_id, invites.c.invited_by == users.c.id))
        .where(invites.c.id == invite_id, users.c.removed_at.is_(None))
    )
    person = tx.connection.execute(sender).one_or_none()
    if person is not None:
        return list_user_grants(tx, person.organization_id, person.id)
    signed_in = sa.select(operators.c.role_id).join(invites, invites.c.invited_by == operators.c.id).where(invites.c.id == invite_id)
    role = find_built_in(tx.connection.execute(signed_in).scalar_one_or_none() or "")
    if role is not None:
        return [Grant(role)]
    query = (
        sa.select(api_keys, *ROLE_COLUMNS)
        .join(invites, invites.c.invited_by == api_keys.c.id)
        .outerjoin(custom_roles, names_role(api_keys.c.organization_id, api_keys.c.role_id))
        .where(
            invites.c.id == invite_id,
            api_keys.c.revoked_at.is_(None),
            sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now),
        )
    )
    row = tx.connection.execute(query).one_or_none()
    if row is None:
        return None
    if row.user_id is not None:
        return list_user_grants(tx, row.organization_id, row.user_id)
    grant = read_grant(row)
    return [] if grant is None else [grant]


def _live_invites(tx: TenantTx) -> sa.Select[Any]:
    return sa.select(invites).where(invites.c.organization_id == tx.organization_id, invites.c.deleted_at.is_(None))


def _invite(row: Any) -> Invite:
    return Invite(
        id=row.id,
        email=row.email,
        role_id=row.role_id,
        created_at=row.created_at,
        expires_at=row.expires_at,
        accepted_at=row.accepted_at,
        project_roles=json.loads(row.project_roles),
    )
