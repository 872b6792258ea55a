"""Keys: made once, shown once, revoked permanently.

The secret exists in the answer to its creation and nowhere else: what is stored is a digest under a pepper that the database never
sees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tollway.control import publish
from tollway.control.bounds import quotas
from tollway.control.bounds.limits import check_limits
from tollway.control.identity import roles
from tollway.domain import ids
from tollway.domain import keys as domain
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import GRANT_EXCEEDS_GRANTOR, PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.keys import Key, KeyOrigin, KeyType, Operator, Rotation
from tollway.domain.limits import UNLIMITED, Limits
from tollway.domain.pages import Page, PageWindow
from tollway.domain.quotas import Quota, QuotaSizes
from tollway.domain.roles import OPERATOR, Grant, Role
from tollway.domain.rotation_schedules import RotationSchedule
from tollway.domain.snapshot import KeyEntry
from tollway.domain.tenants import ServiceAccount, Status
from tollway.storage import keys as storage
from tollway.storage import roles as stored_roles
from tollway.storage import tenants as stored_tenants
from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.keys import Digest


@dataclass(frozen=True, slots=True)
class Pepper:
    """Key of the digest of secrets: 32 bytes that are not in the database, and their version, which is."""

    version: int
    value: bytes = field(repr=False)

    def digest(self, secret: str) -> Digest:
        """Return what is kept of `secret`."""
        return Digest(self.version, domain.digest(self.value, secret.encode()))


@dataclass(frozen=True, slots=True)
class Ingredients:
    """Inputs of a new key: fresh random bytes (domain.keys.RANDOM_BYTES) and the pepper it is digested under."""

    random_bytes: bytes = field(repr=False)
    pepper: Pepper


@dataclass(frozen=True, slots=True)
class Grantor:
    """The key with which another one is made or rotated: what it makes expires with it at the latest, and holds no permission that it does
    not hold. `expires_at`: None for a key that does not expire."""

    key_id: str
    expires_at: int | None = None
    grants: tuple[Grant, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedKey:
    """Requested properties of a new key. `expires_at` is exclusive; `models` limits the key to these models, None allows all of its
    project. `endpoints`, `addresses`, `output_tokens_max`, `tags`: as those of a `Key`. `grantor`: the key with which it is made; None for
    the settings. `grant`: the role of an admin key; or `user_id`: the person whose key it is. `schedule`: of its rotation."""

    type: KeyType
    name: str
    expires_at: int | None = None
    models: tuple[str, ...] | None = None
    limits: Limits = UNLIMITED
    service_account: ServiceAccount | None = None
    grantor: Grantor | None = None
    endpoints: tuple[Endpoint, ...] | None = None
    addresses: tuple[str, ...] | None = None
    output_tokens_max: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    grant: Grant | None = None
    user_id: str | None = None
    schedule: RotationSchedule | None = None


@dataclass(frozen=True, slots=True)
class ShownKey:
    """A key at the one moment when its secret is known."""

    key: Key
    secret: str


def create_project_key(
    tx: TenantTx, project_id: str, wanted: WantedKey, *, id: str, ingredients: Ingredients, sizes: QuotaSizes, now: int
) -> ShownKey:
    """Create an inference key of a project. `sizes`: of the quotas. Raises RESOURCE_UNKNOWN, STATE_CONFLICT (archived), PARAMETER_INVALID
    (expiry), QUOTA_EXCEEDED."""
    publish.lock(tx)
    assert wanted.type in (KeyType.LIVE, KeyType.TEST)
    _get_project(tx, project_id, active=True)
    quotas.require_creation(tx, sizes, Quota.API_KEYS, now)
    shown = _insert(tx, project_id, wanted, id, ingredients, now)
    publish.publish(tx, KeyEntry, [id], now)
    return shown


def get_project_key(tx: TenantTx, project_id: str, key_id: str) -> Key:
    """A key of a project. Raises RESOURCE_UNKNOWN."""
    key = None
    if ids.is_id(ids.PROJECT, project_id) and ids.is_id(ids.KEY, key_id):
        key = storage.find_project_key(tx, project_id, key_id)
    if key is None:
        raise Fault(RESOURCE_UNKNOWN)
    return key


def list_project_keys(tx: TenantTx, project_id: str, window: PageWindow) -> Page[Key]:
    """The keys of a project. Raises RESOURCE_UNKNOWN if there is no such project."""
    _get_project(tx, project_id, active=False)
    return storage.list_project_keys(tx, project_id, window)


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """Changes of a project's key. `bounds`: new values by the names of fields of `Key`. `expires_at`: another expiry; None keeps it."""

    bounds: Mapping[str, Any]
    expires_at: int | None = None


def update_project_key(tx: TenantTx, project_id: str, key_id: str, changes: KeyChanges, *, grantor: Grantor, now: int) -> tuple[Key, int]:
    """Change the name, the bounds or the expiry of a key. Return it with the version of the snapshot at which every gateway knows them.
    Requests that run go on as they began. Raises RESOURCE_UNKNOWN; STATE_CONFLICT where the project is archived or the key has expired; and
    as `bound_expiry` does."""
    publish.lock(tx)
    _get_project(tx, project_id, active=True)
    key = get_project_key(tx, project_id, key_id)
    if key.expires_at is not None and key.expires_at <= now:
        raise Fault(STATE_CONFLICT, message="The key has expired. Create another one.")
    changed = replace(key, **changes.bounds)
    if changes.expires_at is not None:
        expires_at = bound_expiry(changes.expires_at, grantor, find_lifetime_max(tx), now)
        changed = replace(changed, expires_at=expires_at, rotation=_end_grace(changed.rotation, expires_at))
    storage.update_key(tx, changed)
    return changed, publish.publish(tx, KeyEntry, [key_id], now)


def revoke_project_key(tx: TenantTx, project_id: str, key_id: str, now: int) -> int:
    """Revoke a key. Returns the version at which no gateway takes it any more. Raises RESOURCE_UNKNOWN."""
    publish.lock(tx)
    get_project_key(tx, project_id, key_id)
    return publish.publish(tx, KeyEntry, storage.revoke_key(tx, key_id, now), now)


# ---- Admin keys -------------------------------------------------------------------------------------------------------


def create_admin_key(tx: TenantTx, wanted: WantedKey, *, id: str, ingredients: Ingredients, sizes: QuotaSizes, now: int) -> ShownKey:
    """Create an admin key of the organization. It is not published to gateways. `sizes`: of the quotas. Raises STATE_CONFLICT,
    PARAMETER_INVALID (expiry), QUOTA_EXCEEDED."""
    publish.lock(tx)  # takes turns with the archiving of the organization, and with other creations
    organization = stored_tenants.find_organization(tx)
    if organization is None or organization.status is not Status.ACTIVE:
        raise Fault(STATE_CONFLICT, message="The organization is archived.")
    assert wanted.type is KeyType.ADMIN and (wanted.grant is None) != (wanted.user_id is None)
    if wanted.grant is not None and wanted.grant.project_id is not None:
        _get_project(tx, wanted.grant.project_id, active=True)
    if wanted.grantor is not None:
        roles.require_covered(wanted.grantor.grants, _list_wanted(tx, wanted))
    quotas.require_creation(tx, sizes, Quota.ADMIN_KEYS, now)
    return _insert(tx, None, wanted, id, ingredients, now)


def get_admin_key(tx: TenantTx, key_id: str) -> Key:
    """An admin key of the organization. Raises RESOURCE_UNKNOWN."""
    key = storage.find_admin_key(tx, key_id) if ids.is_id(ids.KEY, key_id) else None
    if key is None:
        raise Fault(RESOURCE_UNKNOWN)
    return key


def list_admin_keys(tx: TenantTx, window: PageWindow) -> Page[Key]:
    """The admin keys of the organization."""
    return storage.list_admin_keys(tx, window)


def revoke_admin_key(tx: TenantTx, key_id: str, *, own: Sequence[Grant], now: int) -> None:
    """Revoke an admin key, from the next request on. Raises RESOURCE_UNKNOWN; GRANT_EXCEEDS_GRANTOR where it holds a permission that `own`
    does not hold."""
    get_admin_key(tx, key_id)
    roles.require_covered(own, roles.list_grants_of(tx, key_id))
    storage.revoke_key(tx, key_id, now)


SEEDED = "Key of the settings"
SECOND_SEEDED = "Second key of the settings"
"""Names of the keys that the settings hold; no other key can be given one."""

# ---- Keys of the platform ---------------------------------------------------------------------------------------------


def seed_platform_key(tx: PlatformTx, origin: KeyOrigin, secret: str, *, id: str, pepper: Pepper, now: int) -> None:
    """Make `secret` the only valid key of the settings of this origin. Doing it again changes nothing.

    Raises ValueError if it is not a well-formed key of an operator, if it was replaced before (nothing resurrects a revoked key), or if it
    is another key already: one that an operator made, or that of the other origin.
    """
    if domain.find_type(secret) is not KeyType.PLATFORM:
        raise ValueError("the platform key of the settings is not a whole key of that type (tw_platform_...)")
    digest = pepper.digest(secret)
    name = SEEDED if origin is KeyOrigin.FIRST else SECOND_SEEDED
    key = Key(
        id=id,
        type=KeyType.PLATFORM,
        project_id=None,
        name=name,
        redacted=domain.redact(secret),
        created_at=now,
        origin=origin,
        grant=Grant(OPERATOR),
    )
    stored = storage.put_platform_key(tx, key, digest)
    if stored is None:
        raise ValueError("the platform key of the settings was replaced by another before, and is revoked: make a new one")
    if (stored.name, stored.origin) != (name, origin):
        raise ValueError(f"the platform key of the settings is known as {stored.name!r}: each key of the settings must be one of its own")
    storage.revoke_other_platform_keys(tx, KeyType.PLATFORM, digest, now, name=name)


def withdraw_second_key(tx: PlatformTx, now: int) -> None:
    """Revoke the second platform key, because the settings no longer hold one. Keys that were made with it stay."""
    storage.revoke_other_platform_keys(tx, KeyType.PLATFORM, None, now, name=SECOND_SEEDED)


def create_operator_key(tx: PlatformTx, *, name: str, role: Role, maker: Operator, id: str, ingredients: Ingredients, now: int) -> ShownKey:
    """Create one more key with a role of the platform, of the origin of its maker's: each person needs one of their own, so that it is on
    record who did what.

    Raises PARAMETER_INVALID for a name that is the settings' own.
    """
    if name in (SEEDED, SECOND_SEEDED):
        raise Fault(PARAMETER_INVALID, param="name", message="This name is that of a key of the settings.")
    made = domain.new_key(KeyType.PLATFORM, ingredients.random_bytes)
    key = Key(
        id=id,
        type=KeyType.PLATFORM,
        project_id=None,
        name=name,
        redacted=made.redacted,
        created_at=now,
        created_by=maker.key_id,
        origin=maker.origin,
        grant=Grant(role),
    )
    storage.put_platform_key(tx, key, ingredients.pepper.digest(made.secret))
    return ShownKey(key, made.secret)


def list_operator_keys(tx: PlatformTx, window: PageWindow) -> Page[Key]:
    """The keys of operators, that of the settings among them."""
    return storage.list_platform_keys(tx, window, KeyType.PLATFORM)


def revoke_operator_key(tx: PlatformTx, key_id: str, now: int) -> None:
    """Revoke an operator's key, from the next request on. Raises RESOURCE_UNKNOWN; STATE_CONFLICT for the settings' own, which ends with
    the settings."""
    key = storage.find_platform_key(tx, KeyType.PLATFORM, key_id)
    if key is None:
        raise Fault(RESOURCE_UNKNOWN)
    if key.name in (SEEDED, SECOND_SEEDED):
        raise Fault(STATE_CONFLICT, message="The key of the settings is replaced in the settings.")
    storage.revoke_platform_key(tx, key_id, now)


def find_lifetime_max(tx: TenantTx) -> int | None:
    """Return the longest lifetime of new keys of the organization in seconds; None for no bound."""
    organization = stored_tenants.find_organization(tx)
    return None if organization is None else organization.key_lifetime_seconds_max


def bound_expiry(wanted: int | None, grantor: Grantor | None, lifetime_seconds: int | None, now: int) -> int | None:
    """Return the expiry of a key that is to expire at `wanted` (None: as late as it may), where the organization allows it to live for
    `lifetime_seconds` (None: without bound).

    Raises GRANT_EXCEEDS_GRANTOR for an expiry after the grantor's own; PARAMETER_INVALID for one after the organization's longest lifetime.
    """
    latest = None if lifetime_seconds is None else now + lifetime_seconds * 1_000_000
    granted = None if grantor is None else grantor.expires_at
    if wanted is None:
        return min((each for each in (latest, granted) if each is not None), default=None)
    if granted is not None and wanted > granted:
        raise Fault(GRANT_EXCEEDS_GRANTOR, param="expires_at", message="A key cannot expire later than the key with which it is made.")
    if latest is not None and wanted > latest:
        message = f"Keys of this organization expire {lifetime_seconds} seconds after they are made or rotated, at the latest."
        raise Fault(PARAMETER_INVALID, param="expires_at", message=message)
    return wanted


def _end_grace(rotation: Rotation | None, expires_at: int | None) -> Rotation | None:
    """Return a rotation whose secret before ends with the key at the latest: gateways know both secrets with an expiry of each."""
    if rotation is None or rotation.previous is None or expires_at is None:
        return rotation
    previous = replace(rotation.previous, expires_at=min(rotation.previous.expires_at, expires_at))
    return replace(rotation, previous=previous)


def _list_wanted(tx: TenantTx, wanted: WantedKey) -> list[Grant]:
    if wanted.user_id is not None:
        return stored_roles.list_user_grants(tx, tx.organization_id, wanted.user_id)
    return [] if wanted.grant is None else [wanted.grant]


def _get_project(tx: TenantTx, project_id: str, *, active: bool) -> None:
    project = stored_tenants.find_project(tx, project_id) if ids.is_id(ids.PROJECT, project_id) else None
    if project is None:
        raise Fault(RESOURCE_UNKNOWN)
    if active and project.status is not Status.ACTIVE:
        raise Fault(STATE_CONFLICT, message="The project is archived.")


def _insert(tx: TenantTx, project_id: str | None, wanted: WantedKey, id: str, ingredients: Ingredients, now: int) -> ShownKey:
    if wanted.expires_at is not None and wanted.expires_at <= now:
        raise Fault(PARAMETER_INVALID, param="expires_at", message="A key cannot expire before it exists.")
    organization = stored_tenants.find_organization(tx)
    lifetime_seconds = None if organization is None else organization.key_lifetime_seconds_max
    expires_at = bound_expiry(wanted.expires_at, wanted.grantor, lifetime_seconds, now)
    check_limits(wanted.limits, "limits.")
    made = domain.new_key(wanted.type, ingredients.random_bytes)
    key = Key(
        id=id,
        type=wanted.type,
        project_id=project_id,
        name=wanted.name,
        redacted=made.redacted,
        created_at=now,
        expires_at=expires_at,
        models=wanted.models,
        limits=wanted.limits,
        service_account=wanted.service_account,
        created_by=None if wanted.grantor is None else wanted.grantor.key_id,
        endpoints=wanted.endpoints,
        addresses=wanted.addresses,
        output_tokens_max=wanted.output_tokens_max,
        tags=wanted.tags,
        grant=wanted.grant,
        user_id=wanted.user_id,
        schedule=wanted.schedule,
        inherited_schedule=None if project_id is None or organization is None else organization.rotation_schedule,
    )
    storage.insert_key(tx, key, ingredients.pepper.digest(made.secret))
    return ShownKey(key, made.secret)
