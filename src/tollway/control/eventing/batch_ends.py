"""Ends of batches: gateways tell control of them, at least once, and control appends an event for each."""

from collections.abc import Mapping, Sequence

from tollway.domain.batches import BatchEnd, BatchStatus
from tollway.domain.events import EventType, new_event
from tollway.storage import outbox
from tollway.storage.database import PlatformTx

TYPES: Mapping[BatchStatus, EventType] = {
    BatchStatus.COMPLETED: EventType.BATCH_COMPLETED,
    BatchStatus.FAILED: EventType.BATCH_FAILED,
    BatchStatus.EXPIRED: EventType.BATCH_EXPIRED,
    BatchStatus.CANCELLED: EventType.BATCH_CANCELLED,
}
"""Type of event by the state in which a batch ended."""


def append_ends(tx: PlatformTx, ends: Sequence[BatchEnd]) -> None:
    """Append an event for each batch that has ended; none for those of organizations that do not exist here. Telling twice appends one."""
    known = outbox.list_known_organizations(tx, {each.organization_id for each in ends})
    events = [
        new_event(
            TYPES[each.status],
            each.organization_id,
            at=each.ended_at * 1_000_000,
            data={"id": each.id, "project_id": each.project_id, "succeeded": each.succeeded, "failed": each.failed},
        )
        for each in ends
        if each.organization_id in known
    ]
    outbox.append(tx, events)
