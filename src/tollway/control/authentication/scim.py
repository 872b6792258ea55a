"""People and groups as the directory of an organization says they are: SCIM 2.0 (RFC 7643, RFC 7644).

Whoever holds `scim.write` decides who is in which group, and so can give anybody what a group holds. An owner alone can give that
permission.
A person has no role from the directory but those of their groups. One who is deactivated keeps their groups and roles, and is nobody until
they are active again: keys, sessions and the way to sign in are gone, and so are the keys of projects that they made in their own name.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from tollway.control import publish
from tollway.control.bounds import quotas
from tollway.control.identity import people
from tollway.domain import ids
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, Fault
from tollway.domain.people import User
from tollway.domain.quotas import Quota, QuotaSizes
from tollway.domain.scim import (
    GROUP_ATTRIBUTES,
    GROUP_SCHEMA,
    PRECONDITION_FAILED,
    TOO_MANY,
    USER_ATTRIBUTES,
    USER_SCHEMA,
    VALUE_TAKEN,
    Filter,
    Resource,
    Selection,
    apply_patch,
    read_resource,
)
from tollway.domain.snapshot import KeyEntry
from tollway.storage import keys as stored_keys
from tollway.storage import people as stored_people
from tollway.storage import scim as storage
from tollway.storage import sessions as stored_sessions
from tollway.storage import sign_in as stored_sign_in
from tollway.storage.database import TenantTx
from tollway.storage.scim import ScimGroup, ScimUser

PAGE_MAX = 200
"""Most resources of one answer."""

MEMBERS_LISTED_MAX = 100_000
"""Members that one answer or filter reads: ten groups of the largest size, or a thousand of a hundred people."""

NAME_CHARACTERS_MAX = 256

Read = Callable[[Resource], Resource]
"""From a resource as it is to what is wanted of it."""


@dataclass(frozen=True, slots=True)
class Change:
    """A wanted change of a resource. `read`: makes the new values from those before. `if_match`: the versions one of which it must have;
    None: whichever."""

    read: Read
    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """Question for a list. `start_index`: of the first resource, 1 or more. `count`: of those in the answer, 0 to PAGE_MAX."""

    filter: Filter | None
    start_index: int
    count: int
    selection: Selection


@dataclass(frozen=True, slots=True)
class Found:
    """Resources of one answer, and how many there are in all."""

    total: int
    resources: list[Resource]


def replace_user(body: Mapping[str, Any]) -> Read:
    """Return what puts another person in place of the one before."""
    return lambda _before: _read_user(body)


def patch_user(body: Mapping[str, Any]) -> Read:
    """Return what changes a person by a PatchOp."""
    return lambda before: apply_patch(before, body, USER_ATTRIBUTES)


def replace_group(body: Mapping[str, Any]) -> Read:
    """Return what puts another group in place of the one before."""
    return lambda _before: read_resource(body, GROUP_ATTRIBUTES)


def patch_group(body: Mapping[str, Any]) -> Read:
    """Return what changes a group by a PatchOp."""
    return lambda before: apply_patch(before, body, GROUP_ATTRIBUTES)


# ---- People -------------------------------------------------------------------------------------------------------------


def create_user(tx: TenantTx, body: Mapping[str, Any], base: str, *, id: str, sizes: QuotaSizes, now: int) -> Resource:
    """Add a person. `base`: the address of this service. Raises PARAMETER_INVALID, PARAMETER_MISSING, VALUE_TAKEN, QUOTA_EXCEEDED."""
    values = _read_user(body)
    publish.lock(tx)
    _require_free(tx, id, values)
    quotas.require_creation(tx, sizes, Quota.USERS, now)
    stored_people.insert_user(tx, User(id=id, email=_find_email(values), name=_find_name(values), added_at=now))
    user = _with_values(ScimUser(id=id, email="", is_active=True, created_at=now, updated_at=now), values, now)
    storage.put_user(tx, user, _find_name(values))
    return show_user(user, base)


def change_user(tx: TenantTx, user_id: str, change: Change, base: str, *, sizes: QuotaSizes, now: int) -> tuple[Resource, int | None]:
    """Change a person. Return them with the version of the snapshot in which keys of theirs are revoked; None if none was. Raises
    RESOURCE_UNKNOWN, PRECONDITION_FAILED, VALUE_TAKEN, QUOTA_EXCEEDED for one who would be active again, and as `change.read` does."""
    publish.lock(tx)
    before = _get_user(tx, user_id)
    _require_version(change.if_match, show_user(before, base))
    values = change.read(before.values)
    _require_free(tx, user_id, values)
    user = _with_values(before, values, now)
    if user.is_active and not before.is_active:
        quotas.require(tx, sizes, Quota.USERS, now)
    storage.put_user(tx, user, _find_name(values))
    return show_user(user, base), None if user.is_active or not before.is_active else _revoke(tx, user_id, now)


def delete_user(tx: TenantTx, user_id: str, if_match: str | None, base: str, now: int) -> int | None:
    """Remove a person with all that they hold. Return as `change_user` does. Raises RESOURCE_UNKNOWN, PRECONDITION_FAILED."""
    publish.lock(tx)
    _require_version(if_match, get_user(tx, user_id, base))
    version = _revoke(tx, user_id, now)
    stored_people.remove_user(tx, user_id, now)
    return version


def get_user(tx: TenantTx, user_id: str, base: str) -> Resource:
    """Return a person. Raises RESOURCE_UNKNOWN."""
    return show_user(_get_user(tx, user_id), base)


def list_users(tx: TenantTx, query: Query, base: str) -> Found:
    """Return people. Without a filter the database finds the page; with one all are looked at, or those alone that can match."""
    offset, wanted = query.start_index - 1, query.filter
    if wanted is None:
        total, found = storage.list_users(tx, None, offset, query.count)
        shown = [show_user(each, base) for each in found]
    else:
        _, found = storage.list_users(tx, wanted.equality, 0, None)
        matching = [each for each in (show_user(user, base) for user in found) if wanted.matches(each)]
        total, shown = len(matching), matching[offset : offset + query.count]
    return Found(total, [query.selection.choose(each) for each in shown])


def show_user(user: ScimUser, base: str) -> Resource:
    """Return a person in the shape of RFC 7643, section 4.1."""
    shown = {"schemas": [USER_SCHEMA], "id": user.id, **user.values}
    return _with_meta(shown, "User", f"{base}/Users/{user.id}", user.created_at, user.updated_at)


def _read_user(body: Mapping[str, Any]) -> Resource:
    """Return a person whom a client sent whole, who is active unless it says otherwise."""
    return {"active": True, **read_resource(body, USER_ATTRIBUTES)}


def _get_user(tx: TenantTx, user_id: str) -> ScimUser:
    found = storage.find_user(tx, user_id) if ids.is_id(ids.USER, user_id) else None
    if found is None:
        raise Fault(RESOURCE_UNKNOWN)
    return found


def _with_values(user: ScimUser, values: Resource, now: int) -> ScimUser:
    is_active = values.get("active", user.is_active)  # one who has no such value any more is what they were
    return replace(user, email=_find_email(values), is_active=is_active, values=values, updated_at=now)


def _find_email(values: Mapping[str, Any]) -> str:
    """Return the address of a person: the primary one, or the first; without any their name, by which nobody can sign in if it is none."""
    emails = [each for each in values.get("emails", []) if "value" in each]
    primary = [each for each in emails if each.get("primary")] or emails
    found: str = primary[0]["value"] if primary else values["userName"]
    return found.lower()


def _find_name(values: Mapping[str, Any]) -> str:
    name = values.get("name", {})
    parts = " ".join(name[part] for part in ("givenName", "familyName") if part in name)
    found: str = values.get("displayName") or name.get("formatted") or parts or values["userName"]
    return found[:NAME_CHARACTERS_MAX]


def _require_free(tx: TenantTx, user_id: str, values: Mapping[str, Any]) -> None:
    """Raise VALUE_TAKEN if somebody else has the name or the address."""
    if storage.is_user_name_taken(tx, values["userName"], user_id):
        raise Fault(VALUE_TAKEN, param="userName")
    email = _find_email(values)
    other = stored_people.find_user_by_email(tx, email)
    if len(email) > 320 or (other is not None and other.id != user_id):
        raise Fault(VALUE_TAKEN if other is not None else PARAMETER_INVALID, param="emails")


def _revoke(tx: TenantTx, user_id: str, now: int) -> int | None:
    """Revoke the keys of a person, and those that they made in their own name, and end their sessions and their way to sign in. Return the
    version that says so; None if gateways know of no such key."""
    stored_keys.revoke_user_keys(tx, user_id, now)
    stored_sessions.delete_user_sessions(tx, user_id)
    stored_sign_in.delete_credentials(tx, user_id)
    revoked = [id for key_id in storage.find_keys_of_person(tx, user_id) for id in stored_keys.revoke_key(tx, key_id, now)]
    return publish.publish(tx, KeyEntry, revoked, now) if revoked else None


# ---- Groups -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """A change of a group that was worked out while others could change it too. `before` and `members`: as it was then; `values`: as it is
    to be, with `wanted_members`."""

    before: ScimGroup
    members: Sequence[str]
    values: Resource
    wanted_members: Sequence[str]


def create_group(tx: TenantTx, body: Mapping[str, Any], base: str, *, id: str, sizes: QuotaSizes, now: int) -> Resource:
    """Add a group. Raises as `create_user`."""
    values, members = _split_members(read_resource(body, GROUP_ATTRIBUTES))
    publish.lock(tx)
    _require_group_name(tx, values, id)
    people.create_group(tx, id=id, name=values["displayName"], sizes=sizes, now=now)
    group = ScimGroup(id=id, is_managed=True, values=values, created_at=now, updated_at=now)
    _store_group(tx, group, [], members)
    return show_group(group, members, base)


def plan_group_change(tx: TenantTx, group_id: str, change: Change, base: str) -> PlannedChange:
    """Work out what becomes of a group, before anything is locked: the operations of a large group take their time. Raises
    RESOURCE_UNKNOWN, PRECONDITION_FAILED, and as `change.read` does."""
    before = _get_group(tx, group_id)
    members = _find_members(tx, group_id)
    if change.if_match is not None:
        _require_version(change.if_match, show_group(before, members, base))
    values, wanted = _split_members(change.read({**before.values, "members": [{"value": each} for each in members]}))
    return PlannedChange(before, members, values, wanted)


def change_group(tx: TenantTx, planned: PlannedChange, base: str, now: int) -> Resource:
    """Change a group as it was worked out. Raises RESOURCE_UNKNOWN, VALUE_TAKEN, PARAMETER_INVALID, and PRECONDITION_FAILED if the group
    was changed meanwhile."""
    publish.lock(tx)
    before = planned.before
    if _get_group(tx, before.id) != before or _find_members(tx, before.id) != planned.members:
        raise Fault(PRECONDITION_FAILED)
    _require_group_name(tx, planned.values, before.id)
    group = replace(before, values=planned.values, is_managed=True, updated_at=now)
    _store_group(tx, group, planned.members, planned.wanted_members)
    return show_group(group, planned.wanted_members, base)


def delete_group(tx: TenantTx, group_id: str, if_match: str | None, base: str, now: int) -> None:
    """Delete a group; its members lose what it held. Raises RESOURCE_UNKNOWN, PRECONDITION_FAILED."""
    publish.lock(tx)
    _require_version(if_match, get_group(tx, group_id, base))
    stored_people.delete_group(tx, group_id, now)


def get_group(tx: TenantTx, group_id: str, base: str) -> Resource:
    """Return a group. Raises RESOURCE_UNKNOWN."""
    group = _get_group(tx, group_id)
    return show_group(group, _find_members(tx, group_id), base)


def list_groups(tx: TenantTx, query: Query, base: str) -> Found:
    """As `list_users`. Members are read for a filter that compares them, and for the groups of the answer. Raises TOO_MANY where they are
    more than MEMBERS_LISTED_MAX."""
    offset, wanted = query.start_index - 1, query.filter
    if wanted is None:
        total, found = storage.list_groups(tx, None, offset, query.count)
    else:
        _, found = storage.list_groups(tx, wanted.equality, 0, None)
        compares_members = any(name.partition(".")[0] == "members" or name == "meta.version" for name in wanted.names)
        shown = _show_groups(tx, found, base, with_members=compares_members)
        found = [group for group, each in zip(found, shown, strict=True) if wanted.matches(each)]
        total, found = len(found), found[offset : offset + query.count]
    shown = _show_groups(tx, found, base, with_members=query.selection.needs("members"))
    return Found(total, [query.selection.choose(each) for each in shown])


def show_group(group: ScimGroup, members: Sequence[str] | None, base: str) -> Resource:
    """Return a group in the shape of RFC 7643, section 4.2. `members`: None where they were not read; then it shows no version, which
    covers them."""
    shown = {"schemas": [GROUP_SCHEMA], "id": group.id, **group.values}
    if members:
        shown["members"] = [{"value": each, "$ref": f"{base}/Users/{each}"} for each in members]
    found = _with_meta(shown, "Group", f"{base}/Groups/{group.id}", group.created_at, group.updated_at)
    if members is None:
        del found["meta"]["version"]
    return found


def _show_groups(tx: TenantTx, groups: Sequence[ScimGroup], base: str, *, with_members: bool) -> list[Resource]:
    """Return groups as `show_group` does. Raises TOO_MANY."""
    if not with_members:
        return [show_group(each, None, base) for each in groups]
    group_ids = [each.id for each in groups]
    if storage.count_members(tx, group_ids) > MEMBERS_LISTED_MAX:
        message = f"These groups have more than {MEMBERS_LISTED_MAX} members. Ask for fewer groups (count), or without members."
        raise Fault(TOO_MANY, message=message)
    members = storage.list_members(tx, group_ids)
    return [show_group(each, members.get(each.id, []), base) for each in groups]


def _find_members(tx: TenantTx, group_id: str) -> list[str]:
    return storage.list_members(tx, [group_id]).get(group_id, [])


def _split_members(values: Resource) -> tuple[Resource, list[str]]:
    """Return the values of a group without its members, and who these are, by id."""
    kept = {name: value for name, value in values.items() if name != "members"}
    return kept, sorted({str(each.get("value")) for each in values.get("members", [])})


def _get_group(tx: TenantTx, group_id: str) -> ScimGroup:
    found = storage.find_group(tx, group_id) if ids.is_id(ids.GROUP, group_id) else None
    if found is None:
        raise Fault(RESOURCE_UNKNOWN)
    return found


def _require_group_name(tx: TenantTx, values: Mapping[str, Any], group_id: str) -> None:
    name = values["displayName"]
    if len(name) > NAME_CHARACTERS_MAX:
        raise Fault(PARAMETER_INVALID, param="displayName")
    if stored_people.is_group_name_taken(tx, name, group_id):
        raise Fault(VALUE_TAKEN, param="displayName")


def _store_group(tx: TenantTx, group: ScimGroup, before: Sequence[str], members: Sequence[str]) -> None:
    """Store a group with its members. Raises PARAMETER_INVALID for a member whom the directory cannot see."""
    added, removed = sorted({*members} - {*before}), sorted({*before} - {*members})
    if not {*added} <= storage.find_known(tx, added):
        raise Fault(PARAMETER_INVALID, param="members", message="Invalid value for members: there is no such person.")
    stored_people.put_members(tx, group.id, added, group.updated_at)
    stored_people.delete_members(tx, group.id, removed)
    storage.put_group(tx, group)


# ---- Both ---------------------------------------------------------------------------------------------------------------


def list_all(tx: TenantTx, query: Query, base: str) -> Found:
    """Return people and groups together, the people first."""
    people_found = list_users(tx, query, base)
    behind = replace(
        query,
        start_index=max(query.start_index - people_found.total, 1),
        count=query.count - len(people_found.resources),
    )
    groups_found = list_groups(tx, behind, base)
    return Found(people_found.total + groups_found.total, [*people_found.resources, *groups_found.resources])


def _with_meta(resource: Resource, kind: str, location: str, created_at: int, updated_at: int) -> Resource:
    """Return a resource with its `meta`. The version is a digest of all that it says, whoever changed it."""
    digest = hashlib.sha256(msgspec.json.encode(resource, order="deterministic")).hexdigest()[:32]
    meta = {
        "resourceType": kind,
        "created": _instant(created_at),
        "lastModified": _instant(updated_at),
        "location": location,
        "version": f'W/"{digest}"',
    }
    return {**resource, "meta": meta}


def _instant(at: int) -> str:
    return datetime.fromtimestamp(at // 1_000_000, UTC).isoformat().replace("+00:00", "Z")


def has_version(resource: Resource, versions: str) -> bool:
    """Return whether a resource has one of the versions that `if-match` or `if-none-match` lists (RFC 9110, section 13.1)."""
    named = {each.strip().removeprefix("W/") for each in versions.split(",")}
    return "*" in named or resource["meta"]["version"].removeprefix("W/") in named


def _require_version(if_match: str | None, resource: Resource) -> None:
    if if_match is not None and not has_version(resource, if_match):
        raise Fault(PRECONDITION_FAILED)
