"""Approvals: what an operator may move alone, and when a second person must agree.

One limit holds for corrections and for write-offs of quarantined records. It counts by currency and day (UTC), over all keys of one
origin, because whoever holds one of them can make the others (`domain.keys.KeyOrigin`).

Whoever approves must not be who asked. An operator who signed in has the origin that their groups give them at that time, and the keys that
they made keep the origin of before; so beside the origins the makers of both keys are compared.
"""

from tollway.domain.keys import Operator
from tollway.storage import corrections as stored_corrections
from tollway.storage import keys as stored_keys
from tollway.storage import rejected_records
from tollway.storage.database import PlatformTx

DAY_US = 86_400_000_000

SAME_ORIGIN = (
    "This needs a second person: not the operator who asked, nor a key that they made, and a key that does not descend from the same key of"
    " the settings as the one that asked for it (TOLLWAY_PLATFORM_KEY and TOLLWAY_SECOND_PLATFORM_KEY)."
)


def may_approve(tx: PlatformTx, asked: Operator, approver: Operator) -> bool:
    """Return whether one operator may approve what another asked for: not if one person can have held both keys. That is so where their
    origins are the same, where one of them made the key of the other, and where the same operator made both keys."""
    if asked.origin is approver.origin:
        return False
    return stored_keys.list_makers(tx, asked.key_id).isdisjoint(stored_keys.list_makers(tx, approver.key_id))


def sum_moved_today(tx: PlatformTx, actor: Operator, currency: str, now: int) -> int:
    """Return what keys of the actor's origin have asked to move in a currency since the day (UTC) began, in pico. None of them asks for
    anything else until the transaction ends."""
    stored_keys.lock_origin(tx, actor.origin)
    since = now - now % DAY_US
    corrected_pico = stored_corrections.sum_moved(tx, actor.origin, currency, since)
    return corrected_pico + rejected_records.sum_write_offs(tx, actor.origin, currency, since)
