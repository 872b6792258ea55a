"""Runs of gateways whose records control has refused because of the instant at which they began."""

from typing import Any

import sqlalchemy as sa

from tollway.domain.epochs import RefusalReason, RefusedEpoch
from tollway.storage.database import PlatformTx
from tollway.storage.schema import refused_epochs
from tollway.storage.schema_money import epochs
from tollway.storage.schema_periods import lost_declarations

_refused = refused_epochs.c


def note(tx: PlatformTx, refused: RefusedEpoch, rows_max: int) -> bool:
    """Store a refusal, or that an epoch was refused again. A node has `rows_max` at most that are open (`list_open`): those that were
    declared lost must not keep others from being known. Returns True if it is a new one."""
    again = refused_epochs.update().where(_refused.node_id == refused.node_id, _refused.epoch == refused.epoch)
    if tx.connection.execute(again.values(refused_at=refused.refused_at).returning(_refused.epoch)).one_or_none() is not None:
        return False
    if len(list_open(tx, refused.node_id)) >= rows_max:
        return False
    row = {
        "node_id": refused.node_id,
        "epoch": refused.epoch,
        "reason": refused.reason,
        "first_refused_at": refused.first_refused_at,
        "refused_at": refused.refused_at,
    }
    tx.connection.execute(tx.insert(refused_epochs).values(row).on_conflict_do_nothing())
    return True


def may_arrive(tx: PlatformTx, node_id: str, epoch: int) -> bool:
    """Return whether records of an epoch were ingested before, or an operator has accepted it."""
    known = sa.select(epochs.c.epoch).where(epochs.c.node_id == node_id, epochs.c.epoch == epoch)
    accepted = sa.select(_refused.epoch).where(_refused.node_id == node_id, _refused.epoch == epoch, _refused.accepted_at.is_not(None))
    return tx.connection.execute(sa.union_all(known, accepted).limit(1)).one_or_none() is not None


def list_open(tx: PlatformTx, node_id: str | None = None) -> list[RefusedEpoch]:
    """Return the refused epochs, by node and epoch, of which no record has arrived since and that are not declared lost."""
    lost = lost_declarations.c
    query = (
        sa.select(refused_epochs)
        .outerjoin(epochs, sa.and_(epochs.c.node_id == _refused.node_id, epochs.c.epoch == _refused.epoch))
        .outerjoin(lost_declarations, sa.and_(lost.node_id == _refused.node_id, lost.epoch == _refused.epoch))
        .where(epochs.c.epoch.is_(None), lost.epoch.is_(None))
        .order_by(_refused.node_id, _refused.epoch)
    )
    if node_id is not None:
        query = query.where(_refused.node_id == node_id)
    return [_refused_epoch(row) for row in tx.connection.execute(query)]


def accept(tx: PlatformTx, node_id: str, epoch: int, *, reason: str, actor: str, now: int) -> RefusedEpoch | None:
    """Store who accepts a refused epoch, and why; the first acceptance stays. Returns None if the epoch was never refused."""
    this = sa.and_(_refused.node_id == node_id, _refused.epoch == epoch)
    update = refused_epochs.update().where(this, _refused.accepted_at.is_(None))
    tx.connection.execute(update.values(accepted_at=now, accepted_by=actor, accepted_because=reason))
    row = tx.connection.execute(sa.select(refused_epochs).where(this)).one_or_none()
    return None if row is None else _refused_epoch(row)


def remove_arrived(tx: PlatformTx, node_id: str) -> None:
    """Remove the refusals of a node's epochs whose records have arrived since, without which the rows of a node would only grow."""
    arrived = sa.select(epochs.c.epoch).where(epochs.c.node_id == node_id)
    tx.connection.execute(refused_epochs.delete().where(_refused.node_id == node_id, _refused.epoch.in_(arrived)))


def _refused_epoch(row: Any) -> RefusedEpoch:
    return RefusedEpoch(
        node_id=row.node_id,
        epoch=row.epoch,
        reason=RefusalReason(row.reason),
        first_refused_at=row.first_refused_at,
        refused_at=row.refused_at,
        accepted_at=row.accepted_at,
        accepted_by=row.accepted_by,
    )
