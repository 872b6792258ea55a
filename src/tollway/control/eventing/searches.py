"""Events that no transaction brings about, because they happen by time alone; and the end of old events."""

from collections.abc import Callable

from tollway.domain.events import EXPIRING_SECONDS, KEPT_SECONDS, EventType, new_event
from tollway.storage import outbox
from tollway.storage.database import Database

REMOVED_MAX = 1_000
"""Events that one transaction removes."""


def tell_of_what_is_due(database: Database, now: int) -> int:
    """Store events of keys that expire within EXPIRING_SECONDS and of credit that has expired, of each once. Return how many."""
    ahead = EXPIRING_SECONDS * 1_000_000
    with database.platform() as tx:
        keys = outbox.search(tx, EventType.API_KEY_EXPIRING, now + ahead, outbox.find_expiring_keys)
        events = [
            new_event(
                EventType.API_KEY_EXPIRING,
                each.organization_id,
                at=each.at - ahead,
                data={"id": each.id, "project_id": each.project_id, "expires_at": each.at // 1_000_000},
            )
            for each in keys
        ]
        for each in outbox.search(tx, EventType.CREDIT_EXPIRED, now, outbox.find_expired_grants):
            events.append(new_event(EventType.CREDIT_EXPIRED, each.organization_id, at=each.at, data={"id": each.id}))
        outbox.append(tx, events)
    return len(events)


def remove_old(database: Database, now: int, is_over: Callable[[], bool]) -> int:
    """Remove events that are older than KEPT_SECONDS, with their deliveries. Return how many."""
    removed = 0
    while not is_over():
        with database.platform() as tx:
            count = outbox.remove_before(tx, now - KEPT_SECONDS * 1_000_000, REMOVED_MAX)
        removed += count
        if count < REMOVED_MAX:
            break
    return removed
