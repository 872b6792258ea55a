"""Watermarks at rest: how far the records of each epoch have been ingested."""

from typing import Any

import sqlalchemy as sa

from tollway.domain.epochs import Watermark
from tollway.storage.bulk_statements import by_bytes
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.schema_money import epochs


def lock_watermark(tx: PlatformTx, node_id: str, epoch: int, first_chain: bytes, now: int) -> Watermark:
    """Return the watermark of an epoch, created if it is new, under a lock that lasts until the transaction ends."""
    new = tx.insert(epochs).values(
        node_id=node_id,
        epoch=epoch,
        next_seq=1,
        chain=first_chain,
        archive_bytes=0,
        first_seen_at=now,
        seen_at=now,
    )
    tx.connection.execute(new.on_conflict_do_nothing())
    query = sa.select(epochs).where(epochs.c.node_id == node_id, epochs.c.epoch == epoch).with_for_update()
    return _watermark(tx.connection.execute(query).one())


def find_next_seq(tx: PlatformTx, node_id: str, epoch: int) -> int:
    """Return the record of an epoch that is expected next; 1 for an epoch that is unknown."""
    query = sa.select(epochs.c.next_seq).where(epochs.c.node_id == node_id, epochs.c.epoch == epoch)
    return tx.connection.execute(query).scalar_one_or_none() or 1


def move_watermark(tx: PlatformTx, to: Watermark, *, ticked_at: int | None, now: int) -> None:
    """Store the new watermark of a locked epoch. `ticked_at`: the instant of the latest TICK that it passed, None for none."""
    values: dict[str, Any] = {
        "next_seq": to.next_seq,
        "chain": to.chain,
        "archive_bytes": to.archive_bytes,
        "closed_at": to.closed_at,
        "seen_at": now,
    }
    if ticked_at is not None:
        values |= {"ticked_at": ticked_at, "tick_seen_at": now}
    where = sa.and_(epochs.c.node_id == to.node_id, epochs.c.epoch == to.epoch)
    tx.connection.execute(epochs.update().where(where).values(values))


def list_watermarks(tx: PlatformTx) -> list[Watermark]:
    """Return the watermark of every epoch, ordered by node and epoch."""
    query = sa.select(epochs).order_by(by_bytes(tx, epochs.c.node_id), epochs.c.epoch)
    return [_watermark(row) for row in tx.connection.execute(query)]


def find_archive_bytes(tx: Transaction, node_id: str, epoch: int) -> int:
    """Return how many bytes of an epoch's archive file count; 0 for an epoch that is unknown."""
    query = sa.select(epochs.c.archive_bytes).where(epochs.c.node_id == node_id, epochs.c.epoch == epoch)
    return tx.connection.execute(query).scalar_one_or_none() or 0


def _watermark(row: Any) -> Watermark:
    return Watermark(row.node_id, row.epoch, row.next_seq, row.chain, row.archive_bytes, row.closed_at, row.ticked_at)
