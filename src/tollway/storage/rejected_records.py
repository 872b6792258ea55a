"""Records at rest that did not become events: conflicts (the id of another event) and quarantined records (they cannot be rated)."""

from collections.abc import Sequence

import sqlalchemy as sa

from tollway.domain.usage import RejectedRecord
from tollway.storage.database import PlatformTx
from tollway.storage.schema_money import event_conflicts, quarantined_records


def insert_rejected(tx: PlatformTx, conflicts: Sequence[RejectedRecord], quarantined: Sequence[RejectedRecord], now: int) -> None:
    """Store records that did not become events, with their bytes as they came."""
    if conflicts:
        rows = [{**_row(record, now), "content_hash": record.content_hash} for record in conflicts]
        tx.connection.execute(event_conflicts.insert(), rows)
    if quarantined:
        rows = [{**_row(record, now), "reason": record.reason} for record in quarantined]
        tx.connection.execute(quarantined_records.insert(), rows)


def _row(record: RejectedRecord, now: int) -> dict[str, object]:
    return {
        "node_id": record.node_id,
        "epoch": record.epoch,
        "seq": record.seq,
        "event_id": record.event_id,
        "payload": record.payload,
        "received_at": now,
    }


def list_rejected_seqs(tx: PlatformTx, node_id: str, epoch: int) -> tuple[set[int], set[int]]:
    """Return the sequence numbers of an epoch's conflicts and of its quarantined records: for verification."""
    conflicts, quarantined = (
        {seq for (seq,) in tx.connection.execute(sa.select(table.c.seq).where(table.c.node_id == node_id, table.c.epoch == epoch))}
        for table in (event_conflicts, quarantined_records)
    )
    return conflicts, quarantined


def list_epochs_with_rejected(tx: PlatformTx) -> set[tuple[str, int]]:
    """Return node and epoch of every epoch with a conflict or a quarantined record: for verification."""
    places = sa.union(*(sa.select(table.c.node_id, table.c.epoch) for table in (event_conflicts, quarantined_records)))
    return {(node_id, epoch) for node_id, epoch in tx.connection.execute(places)}
