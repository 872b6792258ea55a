"""Epochs at rest, as those see them who must know whether all of them has arrived: watermarks, signs of life, and what is lost."""

from typing import Any

import sqlalchemy as sa

from tollway.domain.epochs import Epoch, Lost, SilentNode
from tollway.storage.database import PlatformTx
from tollway.storage.schema import nodes
from tollway.storage.schema_money import epochs
from tollway.storage.schema_periods import lost_declarations

EPOCHS_LISTED_MAX = 1000
"""In one answer: a month of daily restarts of thirty gateways."""


def list_epochs(tx: PlatformTx, node_id: str | None, *, only_lost: bool = False) -> list[Epoch]:
    """Epochs, the latest heard of first; EPOCHS_LISTED_MAX at most."""
    query = _with_lost().order_by(epochs.c.seen_at.desc(), epochs.c.node_id, epochs.c.epoch.desc()).limit(EPOCHS_LISTED_MAX)
    if node_id is not None:
        query = query.where(epochs.c.node_id == node_id)
    if only_lost:
        query = query.where(lost_declarations.c.epoch.is_not(None))
    return [_epoch(row) for row in tx.connection.execute(query)]


def find_epoch(tx: PlatformTx, node_id: str, epoch: int) -> Epoch | None:
    """One epoch."""
    query = _with_lost().where(epochs.c.node_id == node_id, epochs.c.epoch == epoch)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _epoch(row)


def list_all(tx: PlatformTx) -> list[Epoch]:
    """Return every epoch, by node and epoch: for verification."""
    return [_epoch(row) for row in tx.connection.execute(_with_lost().order_by(epochs.c.node_id, epochs.c.epoch))]


def list_overlapping(tx: PlatformTx, start_at: int, end_at: int) -> list[Epoch]:
    """Every epoch that may hold something of the time from `start_at` to `end_at`, by node and epoch.

    One began before the end, by its own clock or by ours, and was not over before the start.
    """
    query = _with_lost().where(
        sa.or_(epochs.c.epoch < end_at, epochs.c.first_seen_at < end_at),
        sa.or_(epochs.c.closed_at.is_(None), epochs.c.closed_at >= start_at, epochs.c.seen_at >= start_at),
        sa.or_(lost_declarations.c.declared_at.is_(None), lost_declarations.c.declared_at >= start_at, epochs.c.seen_at >= start_at),
    )
    return [_epoch(row) for row in tx.connection.execute(query.order_by(epochs.c.node_id, epochs.c.epoch))]


def list_silent_nodes(tx: PlatformTx, end_at: int, silence_us: int) -> list[SilentNode]:
    """Return gateways, revoked ones included, that were first heard of before `end_at` and follow or followed the snapshot, but whose
    latest run has sent no record for `silence_us`.

    A gateway that runs has an open epoch and ships a sign of life every few seconds. If all epochs that we know of it are closed and
    it was heard of later than that, there is a life we know nothing about, unless that was declared lost since.
    """
    known = (
        sa.select(
            epochs.c.node_id,
            sa.func.max(epochs.c.seen_at).label("seen_at"),
            sa.func.max(epochs.c.closed_at).label("closed_at"),
            sa.func.count().filter(epochs.c.closed_at.is_(None)).label("open"),
        )
        .group_by(epochs.c.node_id)
        .subquery()
    )
    declared = (
        sa.select(lost_declarations.c.node_id, sa.func.max(lost_declarations.c.declared_at).label("at"))
        .group_by(lost_declarations.c.node_id)
        .subquery()
    )
    query = (
        sa.select(nodes.c.id, nodes.c.seen_at)
        .outerjoin(known, known.c.node_id == nodes.c.id)
        .outerjoin(declared, declared.c.node_id == nodes.c.id)
        .where(
            nodes.c.first_seen_at < end_at,
            sa.func.coalesce(known.c.open, 0) == 0,
            sa.or_(known.c.closed_at.is_(None), known.c.closed_at < end_at),
            sa.or_(known.c.seen_at.is_(None), known.c.seen_at + silence_us < nodes.c.seen_at),
            sa.or_(declared.c.at.is_(None), declared.c.at < nodes.c.seen_at),
        )
        .order_by(nodes.c.id)
    )
    return [SilentNode(row.id, row.seen_at) for row in tx.connection.execute(query)]


def lock_epoch(tx: PlatformTx, node_id: str, epoch: int) -> None:
    """Keep other transactions from ingesting records of an epoch until this one ends."""
    query = sa.select(epochs.c.epoch).where(epochs.c.node_id == node_id, epochs.c.epoch == epoch)
    tx.connection.execute(query.with_for_update()).one_or_none()


def insert_lost(tx: PlatformTx, lost: Lost) -> bool:
    """Store a declaration, whose approval must be stored; False if the epoch was declared lost before."""
    row = {
        "node_id": lost.node_id,
        "epoch": lost.epoch,
        "next_seq": lost.next_seq,
        "reason": lost.reason,
        "actor": lost.actor,
        "approver": lost.approver,
        "declared_at": lost.declared_at,
    }
    insert = tx.insert(lost_declarations).values(row).on_conflict_do_nothing()
    return tx.connection.execute(insert.returning(lost_declarations.c.epoch)).one_or_none() is not None


def count_lost(tx: PlatformTx) -> int:
    """Epochs that were ever declared lost."""
    found: int = tx.connection.execute(sa.select(sa.func.count()).select_from(lost_declarations)).scalar_one()
    return found


def _with_lost() -> sa.Select[Any]:
    lost = lost_declarations.c
    named = (lost.next_seq.label("lost_next_seq"), lost.reason, lost.actor, lost.approver, lost.declared_at)
    joined = epochs.outerjoin(lost_declarations, sa.and_(lost.node_id == epochs.c.node_id, lost.epoch == epochs.c.epoch))
    return sa.select(epochs, *named).select_from(joined)


def _epoch(row: Any) -> Epoch:
    lost = None
    if row.declared_at is not None:
        lost = Lost(row.node_id, row.epoch, row.lost_next_seq, row.reason, row.actor, row.approver, row.declared_at)
    return Epoch(
        node_id=row.node_id,
        epoch=row.epoch,
        next_seq=row.next_seq,
        chain=row.chain,
        ticked_at=row.ticked_at,
        tick_seen_at=row.tick_seen_at,
        closed_at=row.closed_at,
        first_seen_at=row.first_seen_at,
        seen_at=row.seen_at,
        lost=lost,
    )
