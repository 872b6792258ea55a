"""People and groups as the directory of an organization says they are: SCIM 2.0 (RFC 7643, RFC 7644).

Whoever holds `scim.write` decides who is in which group, and so can give anybody what a group holds. An owner alone can give that
permission.
A person has no role from the directory but those of their groups. One who is deactivated keeps their groups and roles, and is nobody until
they are active again: keys, sessions and the way to sign in are gone, and so are the keys of projects that they made in their own name.
"""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

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

NAME_CHARACTERS_MAX = 256

Read = Callable[[Resource], Resource]
"""From a resource as it is to what is wanted of it."""

Each = TypeVar("Each", ScimUser, ScimGroup)


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
    publish.lock(tx)
    values = _read_user(body)
    _require_free(tx, id, values)
    quotas.require_creation(tx, sizes, Quota.USERS, now)
    stored_people.insert_user(tx, User(id=id, email=_find_email(values), name=_find_name(values), added_at=now))
    user = _with_values(ScimUser(id=id, email="", is_active=True, created_at=now, updated_at=now), values, now)
    storage.put_user(tx, user, _find_name(values))
    return show_user(user, base)


def change_user(tx: TenantTx, user_id: str, change: Change, base: str, now: int) -> tuple[Resource, int | None]:
    """Change a person. Return them with the version of the snapshot in which keys of theirs are revoked; None if none was. Raises
    RESOURCE_UNKNOWN, PRECONDITION_FAILED, VALUE_TAKEN, and as `change.read` does."""
    publish.lock(tx)
    before = _get_user(tx, user_id)
    _require_version(change.if_match, show_user(before, base))
    values = change.read(before.values)
    _require_free(tx, user_id, values)
    user = _with_values(before, values, now)
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
    """Return people."""
    return _list(tx, query, storage.list_users, lambda found: [show_user(each, base) for each in found])


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


def create_group(tx: TenantTx, body: Mapping[str, Any], base: str, *, id: str, sizes: QuotaSizes, now: int) -> Resource:
    """Add a group. Raises as `create_user`."""
    publish.lock(tx)
    values = read_resource(body, GROUP_ATTRIBUTES)
    _require_group_name(tx, values, id)
    people.create_group(tx, id=id, name=values["displayName"], sizes=sizes, now=now)
    return _store_group(tx, ScimGroup(id=id, is_managed=True, values={}, created_at=now, updated_at=now), [], values, base, now)


def change_group(tx: TenantTx, group_id: str, change: Change, base: str, now: int) -> Resource:
    """Change a group. Raises RESOURCE_UNKNOWN, PRECONDITION_FAILED, VALUE_TAKEN, and as `change.read` does."""
    publish.lock(tx)
    before = _get_group(tx, group_id)
    members = storage.list_members(tx, [group_id]).get(group_id, [])
    _require_version(change.if_match, show_group(before, members, base))
    values = change.read({**before.values, "members": [{"value": each} for each in members]})
    _require_group_name(tx, values, group_id)
    return _store_group(tx, before, members, values, base, now)


def delete_group(tx: TenantTx, group_id: str, if_match: str | None, base: str, now: int) -> None:
    """Delete a group; its members lose what it held. Raises RESOURCE_UNKNOWN, PRECONDITION_FAILED."""
    publish.lock(tx)
    _require_version(if_match, get_group(tx, group_id, base))
    stored_people.delete_group(tx, group_id, now)


def get_group(tx: TenantTx, group_id: str, base: str) -> Resource:
    """Return a group. Raises RESOURCE_UNKNOWN."""
    group = _get_group(tx, group_id)
    return show_group(group, storage.list_members(tx, [group_id]).get(group_id, []), base)


def list_groups(tx: TenantTx, query: Query, base: str) -> Found:
    """Return groups. Members are read only for an answer or a filter that has them."""

    def show(found: Sequence[ScimGroup]) -> list[Resource]:
        needs_members = query.filter is not None or query.selection.needs("members")
        members = storage.list_members(tx, [each.id for each in found]) if needs_members else {}
        return [show_group(each, members.get(each.id, []), base) for each in found]

    return _list(tx, query, storage.list_groups, show)


def show_group(group: ScimGroup, members: Sequence[str], base: str) -> Resource:
    """Return a group in the shape of RFC 7643, section 4.2."""
    shown = {"schemas": [GROUP_SCHEMA], "id": group.id, **group.values}
    if members:
        shown["members"] = [{"value": each, "$ref": f"{base}/Users/{each}"} for each in members]
    return _with_meta(shown, "Group", f"{base}/Groups/{group.id}", group.created_at, group.updated_at)


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


def _store_group(tx: TenantTx, group: ScimGroup, before: Sequence[str], values: Resource, base: str, now: int) -> Resource:
    members = sorted({str(each.get("value")) for each in values.pop("members", [])})
    added, removed = sorted({*members} - {*before}), sorted({*before} - {*members})
    if not {*added} <= storage.find_known(tx, added):
        raise Fault(PARAMETER_INVALID, param="members", message="Invalid value for members: there is no such person.")
    for user_id in added:
        stored_people.put_member(tx, group.id, user_id, now)
    for user_id in removed:
        stored_people.delete_member(tx, group.id, user_id)
    stored = replace(group, values=values, is_managed=True, updated_at=now)
    storage.put_group(tx, stored)
    return show_group(stored, members, base)


# ---- Both ---------------------------------------------------------------------------------------------------------------


def list_all(tx: TenantTx, query: Query, base: str) -> Found:
    """Return people and groups together, the people first."""
    wanted = replace(query, filter=query.filter or Filter(lambda _resource: True), start_index=1, count=sys.maxsize)
    people_found, groups_found = list_users(tx, wanted, base), list_groups(tx, wanted, base)
    both = [*people_found.resources, *groups_found.resources]
    offset = query.start_index - 1
    return Found(len(both), both[offset : offset + query.count])


def _list(
    tx: TenantTx,
    query: Query,
    read: Callable[[TenantTx, Any, int, int | None], tuple[int, list[Each]]],
    show: Callable[[Sequence[Each]], list[Resource]],
) -> Found:
    """Return the resources that a query asks for. Without a filter the database finds the page; with one all resources are looked at, or
    those alone that can match."""
    offset = query.start_index - 1
    if query.filter is None:
        total, found = read(tx, None, offset, query.count)
        return Found(total, [query.selection.choose(each) for each in show(found)])
    _, found = read(tx, query.filter.equality, 0, None)
    matching = [each for each in show(found) if query.filter.matches(each)]
    return Found(len(matching), [query.selection.choose(each) for each in matching[offset : offset + query.count]])


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
