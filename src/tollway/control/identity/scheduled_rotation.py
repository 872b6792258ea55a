"""Scheduled rotation: keys that get another secret at an interval, without being asked.

A job rotates each key that is due (`domain.keys.RotationSchedule`, of the key or of its organization; the shorter interval counts). The new
secret is sealed until somebody who may rotate the key collects it, once. The secret before stays valid for the grace, and never past the
expiry that the key had. A key whose secret nobody collected is not rotated again: it has two secrets at most.

Each step is an event of the audit trail and a line of the log: the rotation, half of the grace passed without collection, and the instant
from which the secret before can be retired without an outage. Secrets are in none of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from tollway.control.identity import rotation
from tollway.control.identity.keys import Ingredients, get_project_key
from tollway.control.identity.rotation import WantedRotation
from tollway.control.secrets.data_keys import DataKeys
from tollway.domain.faults import KEY_ENCRYPTION_UNAVAILABLE, STATE_CONFLICT, Fault
from tollway.domain.keys import Key
from tollway.domain.rotation_schedules import choose_schedule
from tollway.storage import keys as storage
from tollway.storage.database import Database, TenantTx
from tollway.storage.keys import KeyPlace
from tollway.storage.vault import LocalVault

ROTATE_SECONDS = 60.0
"""Interval at which keys that are due are looked for."""

KEYS_MAX = 500
"""Keys that one turn rotates; the rest waits for the next one."""

NOTICE_KEYS = 500
"""Keys that are read at once."""


class Notice(StrEnum):
    """A notice about the latest rotation of a key, given once."""

    UNCOLLECTED = "uncollected"  # half of the grace is over, and nobody has collected the new secret
    SAFE_TO_RETIRE = "safe_to_retire"  # the new secret is in use, and the one before was not for an hour


EVENTS = {Notice.UNCOLLECTED: "key_secret_uncollected", Notice.SAFE_TO_RETIRE: "key_secret_safe_to_retire"}
"""Events of the log by notice."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Parts of the process with which rotations by schedule are made. `recorded` returns the database whose changes the audit trail has
    under an event."""

    database: Database
    recorded: Callable[[str], Database]
    data_keys: DataKeys
    new_ingredients: Callable[[], Ingredients]


def rotate_due(parts: Scheduled, now: int) -> Iterator[dict[str, object]]:
    """Rotate the keys that are due at `now`, KEYS_MAX at most, each in a transaction of its own. Yield a line of the log for each.

    Keys of an organization whose data key cannot be opened now are left for a later turn, and keep nobody else's from being rotated."""
    recorded = parts.recorded("api_key.rotated")
    unopened: set[str] = set()
    remaining = KEYS_MAX
    while remaining > 0:
        with parts.database.platform(write=False) as tx:
            due = storage.list_due_rotations(tx, now, remaining, without=unopened)
        unopened_before = len(unopened)
        for place in due:
            if place.organization_id in unopened:
                continue
            try:
                vault = parts.data_keys.open(place.organization_id)
            except Fault as fault:
                if fault.kind not in (KEY_ENCRYPTION_UNAVAILABLE, STATE_CONFLICT):
                    raise
                unopened.add(place.organization_id)
                yield {"event": "key_rotation_failed", "organization_id": place.organization_id, "error": fault.kind.code}
                continue
            remaining -= 1
            with recorded.tenant(place.organization_id) as tx:
                until = _rotate(tx, parts, vault, place, now)
            if until is not None:
                yield {"event": "key_rotated_by_schedule", **_describe(place), "old_secret_until": until // 1_000_000}
        if len(unopened) == unopened_before:
            return  # otherwise those that it left out may have hidden others


def give_notices(parts: Scheduled, now: int) -> Iterator[dict[str, object]]:
    """Record what is to be said at `now` about rotations whose secret before is still valid. Yield a line of the log for each."""
    after = ""
    while True:
        with parts.database.platform(write=False) as tx:
            places = storage.list_open_rotations(tx, now, after, NOTICE_KEYS)
        for place in places:
            with parts.database.tenant(place.organization_id, write=False) as tx:
                notice = _find_notice(tx, place, now)
            if notice is None:
                continue
            with parts.recorded(f"api_key.secret_{notice}").tenant(place.organization_id) as tx:
                storage.note_rotation(tx, place.key_id, notice)
            yield {"event": EVENTS[notice], **_describe(place)}
        if len(places) < NOTICE_KEYS:
            return
        after = places[-1].key_id


def collect(tx: TenantTx, project_id: str, key_id: str, vault: LocalVault) -> tuple[Key, str]:
    """Return a key with the secret that its schedule made, and forget the secret. Raises RESOURCE_UNKNOWN; STATE_CONFLICT if there is none
    to collect."""
    storage.lock_key(tx, key_id)
    get_project_key(tx, project_id, key_id)
    sealed = storage.find_uncollected(tx, key_id)
    if sealed is None:
        raise Fault(STATE_CONFLICT, message="No secret waits to be collected: the schedule made none, or somebody has collected it.")
    secret = vault.unseal(sealed, context=_context(key_id))
    storage.keep_uncollected(tx, key_id, None)
    return get_project_key(tx, project_id, key_id), secret


def _rotate(tx: TenantTx, parts: Scheduled, vault: LocalVault, place: KeyPlace, now: int) -> int | None:
    """Rotate a key, and return until when the secret before is valid; None if it is not due any more."""
    try:
        storage.lock_key(tx, place.key_id)
        key = get_project_key(tx, place.project_id, place.key_id)
        schedule, due_at = choose_schedule(key.schedule, key.inherited_schedule), key.find_next_rotation()
        if schedule is None or due_at is None or due_at > now or key.has_uncollected_secret:
            return None
        wanted = WantedRotation(grace_seconds=schedule.grace_seconds)
        rotated = rotation.rotate_project_key(tx, place.project_id, place.key_id, wanted, ingredients=parts.new_ingredients(), now=now)
    except Fault:  # somebody revoked, archived or rotated meanwhile
        return None
    storage.keep_uncollected(tx, place.key_id, vault.seal(rotated.shown.secret, context=_context(place.key_id)))
    previous = None if rotated.shown.key.rotation is None else rotated.shown.key.rotation.previous
    return now if previous is None else previous.expires_at


def _find_notice(tx: TenantTx, place: KeyPlace, now: int) -> Notice | None:
    try:
        key = get_project_key(tx, place.project_id, place.key_id)
    except Fault:  # it was revoked meanwhile
        return None
    previous = None if key.rotation is None else key.rotation.find_valid(now)
    if key.rotation is None or previous is None:
        return None
    given = storage.find_rotation_notice(tx, place.key_id)
    if key.has_uncollected_secret:
        is_half_over = 2 * (now - key.rotation.rotated_at) >= previous.expires_at - key.rotation.rotated_at
        return Notice.UNCOLLECTED if is_half_over and given is None else None
    if key.rotation.is_safe_to_retire(now) and given != Notice.SAFE_TO_RETIRE:
        return Notice.SAFE_TO_RETIRE
    return None


def _describe(place: KeyPlace) -> dict[str, object]:
    return {"organization_id": place.organization_id, "project_id": place.project_id, "key_id": place.key_id}


def _context(key_id: str) -> str:
    """Return what the sealed secret of a key is for."""
    return f"secret of {key_id}"
