"""Rotation: a key gets another secret and keeps its id, its limits and its history.

For a stated grace both secrets are valid, so that whoever uses the key can change over without an outage; two at most, at any time. The
grace never reaches past the instant at which the secret before would have expired anyway. Gateways report which secret they saw last, which
says when the one before is not needed any more.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from tollway.control import publish
from tollway.control.identity import roles
from tollway.control.identity.keys import (
    Grantor,
    Ingredients,
    ShownKey,
    bound_expiry,
    find_lifetime_max,
    get_admin_key,
    get_project_key,
)
from tollway.domain import keys as domain
from tollway.domain.faults import PARAMETER_INVALID, STATE_CONFLICT, Fault
from tollway.domain.keys import ROTATION_PAUSE_SECONDS, Key, PreviousSecret, Rotation, SecretUse
from tollway.domain.roles import Grant
from tollway.domain.rotation_schedules import GRACE_SECONDS_DEFAULT
from tollway.domain.snapshot import KeyEntry
from tollway.domain.tenants import Status
from tollway.storage import keys as storage
from tollway.storage import tenants as stored_tenants
from tollway.storage.database import PlatformTx, TenantTx


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedRotation:
    """Wishes for a rotation. `grace_seconds`: time for which the secret before stays valid, 0 to GRACE_SECONDS_MAX. `expires_at`: another
    expiry of the key (UTC microseconds, exclusive); None keeps the one that it has. `grantor`: the key with which it is rotated."""

    grace_seconds: int = GRACE_SECONDS_DEFAULT
    expires_at: int | None = None
    grantor: Grantor | None = None


@dataclass(frozen=True, slots=True)
class Rotated:
    """A key with its new secret, and the version of the snapshot at which every gateway takes it."""

    shown: ShownKey
    version: int


def rotate_project_key(
    tx: TenantTx, project_id: str, key_id: str, wanted: WantedRotation, *, ingredients: Ingredients, now: int
) -> Rotated:
    """Give a project's key another secret. Raises RESOURCE_UNKNOWN; STATE_CONFLICT where the project is archived, the key has expired, or
    the rotation before is not over; PARAMETER_INVALID for an expiry that is not in the future; and as `keys.bound_expiry` does."""
    publish.lock(tx)  # rotations take turns as well
    key = get_project_key(tx, project_id, key_id)
    project = stored_tenants.find_project(tx, project_id)
    if project is None or project.status is not Status.ACTIVE:
        raise Fault(STATE_CONFLICT, message="The project is archived.")
    shown = _rotate(tx, key, wanted, ingredients, now)
    return Rotated(shown, publish.publish(tx, KeyEntry, [key_id], now))


def rotate_admin_key(tx: TenantTx, key_id: str, wanted: WantedRotation, *, ingredients: Ingredients, now: int) -> ShownKey:
    """Give an admin key another secret. Gateways never receive it. Raises as `rotate_project_key`; GRANT_EXCEEDS_GRANTOR where the key
    holds a permission that the one with which it is rotated does not hold, because the new secret is shown to whoever rotates."""
    storage.lock_key(tx, key_id)
    key = get_admin_key(tx, key_id)
    if wanted.grantor is not None:
        roles.require_covered(wanted.grantor.grants, roles.list_grants_of(tx, key_id))
    return _rotate(tx, key, wanted, ingredients, now)


def retire_project_secret(tx: TenantTx, project_id: str, key_id: str, now: int) -> int:
    """End the grace of a project's key at once. Return the version at which no gateway takes the secret before any more. Raises
    RESOURCE_UNKNOWN, STATE_CONFLICT if no secret before is valid."""
    publish.lock(tx)
    _require_previous(get_project_key(tx, project_id, key_id), now)
    storage.retire_previous_secret(tx, key_id)
    return publish.publish(tx, KeyEntry, [key_id], now)


def retire_admin_secret(tx: TenantTx, key_id: str, *, own: Sequence[Grant], now: int) -> None:
    """End the grace of an admin key, from the next request on. Raises as `retire_project_secret`; GRANT_EXCEEDS_GRANTOR where the key
    holds a permission that `own` does not hold."""
    storage.lock_key(tx, key_id)
    key = get_admin_key(tx, key_id)
    roles.require_covered(own, roles.list_grants_of(tx, key_id))
    _require_previous(key, now)
    storage.retire_previous_secret(tx, key_id)


def note_uses(tx: PlatformTx, uses: Sequence[SecretUse], now: int) -> None:
    """Store when secrets were used, as gateways report it; an instant that is not over yet counts as now."""
    storage.note_uses(tx, [use if use.used_at <= now else SecretUse(use.key_id, use.digest, now) for use in uses])


def _rotate(tx: TenantTx, key: Key, wanted: WantedRotation, ingredients: Ingredients, now: int) -> ShownKey:
    if key.expires_at is not None and key.expires_at <= now:
        raise Fault(STATE_CONFLICT, message="The key has expired. Create another one.")
    if wanted.expires_at is not None and wanted.expires_at <= now:
        raise Fault(PARAMETER_INVALID, param="expires_at", message="A key cannot expire before its rotation.")
    if key.rotation is not None:
        if key.rotation.find_valid(now) is not None:
            message = "The secret before the latest rotation is still valid. Retire it, or wait for the end of its grace."
            raise Fault(STATE_CONFLICT, message=message)
        if now - key.rotation.rotated_at < ROTATION_PAUSE_SECONDS * 1_000_000:
            raise Fault(STATE_CONFLICT, message=f"The key was rotated less than {ROTATION_PAUSE_SECONDS} seconds ago.")
    bounds = [now + wanted.grace_seconds * 1_000_000, key.expires_at, wanted.expires_at]
    last_used_at = key.last_used_at if key.rotation is None else key.rotation.last_used_at
    previous = PreviousSecret(key.redacted, min(each for each in bounds if each is not None), last_used_at)
    made = domain.new_key(key.type, ingredients.random_bytes)
    expires_at = (
        key.expires_at if wanted.expires_at is None else bound_expiry(wanted.expires_at, wanted.grantor, find_lifetime_max(tx), now)
    )
    changed = dataclasses.replace(key, redacted=made.redacted, expires_at=expires_at, rotation=Rotation(now, None, previous))
    storage.rotate_key(tx, changed, previous, ingredients.pepper.digest(made.secret), now)
    return ShownKey(changed, made.secret)


def _require_previous(key: Key, now: int) -> None:
    if key.rotation is None or key.rotation.find_valid(now) is None:
        raise Fault(STATE_CONFLICT, message="No secret before the present one is valid.")
