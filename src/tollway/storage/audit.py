"""Chains of the audit trail: appending under the lock of a chain, reading in order, checkpoints, and the removal of old records."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from tollway.domain.audit import GENESIS, Actor, AuditRecord, Checkpoint, Target
from tollway.domain.pages import Page
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.schema_audit import audit_checkpoints, audit_cuts, audit_heads, audit_records

RECORDS_PER_READ = 1_000
"""Records that are read at a time while a chain is verified or exported: a few MiB."""


class ChainEnd(NamedTuple):
    """The latest record of a chain, or the one after which the chain begins."""

    sequence: int
    hash: bytes


class SignedCheckpoint(NamedTuple):
    """A checkpoint with the key that signed it."""

    checkpoint: Checkpoint
    public_key: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Conditions on the records of a list; an empty tuple or None admits all. Instants are UTC microseconds, `until` is exclusive.
    `after_sequence`: only records with a greater number, the oldest first."""

    since: int | None = None
    until: int | None = None
    events: tuple[str, ...] = ()
    actor_ids: tuple[str, ...] = ()
    project_ids: tuple[str, ...] = ()
    target_ids: tuple[str, ...] = ()
    after_sequence: int | None = None


def lock_chain(tx: Transaction, chain: str) -> ChainEnd:
    """Return the end of a chain. Whoever else appends to it waits until this transaction ends."""
    tx.connection.execute(tx.insert(audit_heads).values(chain=chain, sequence=0, hash=GENESIS).on_conflict_do_nothing())
    query = sa.select(audit_heads.c.sequence, audit_heads.c.hash).where(audit_heads.c.chain == chain).with_for_update()
    row = tx.connection.execute(query).one()
    return ChainEnd(row.sequence, bytes(row.hash))


def append_record(tx: Transaction, record: AuditRecord) -> None:
    """Store a record at the end of its chain, which must be locked."""
    tx.connection.execute(
        audit_records.insert().values(
            chain=record.chain,
            sequence=record.sequence,
            id=record.id,
            recorded_at=record.recorded_at,
            event=record.event,
            operation=record.operation,
            actor_kind=record.actor.kind,
            actor_id=record.actor.id,
            address=record.actor.address,
            request_id=record.actor.request_id,
            target_kind=record.target.kind,
            target_id=record.target.id,
            project_id=record.target.project_id,
            changes=record.changes,
            omitted=record.omitted,
            hash=record.hash,
            salt=record.salt,
        )
    )
    head = audit_heads.update().where(audit_heads.c.chain == record.chain)
    tx.connection.execute(head.values(sequence=record.sequence, hash=record.hash))


def list_heads(tx: PlatformTx) -> dict[str, ChainEnd]:
    """Return the end of every chain, by its name."""
    rows = tx.connection.execute(sa.select(audit_heads).order_by(audit_heads.c.chain))
    return {row.chain: ChainEnd(row.sequence, bytes(row.hash)) for row in rows}


def list_chains(tx: PlatformTx) -> list[str]:
    """Return the name of every chain that has a record, a head, a checkpoint or a cut, whichever of them it still has."""
    tables = (audit_heads, audit_records, audit_checkpoints, audit_cuts)
    names = sa.union(*(sa.select(table.c.chain) for table in tables)).order_by("chain")
    return list(tx.connection.execute(names).scalars())


def iterate_records(tx: Transaction, chain: str, after: int = 0) -> Iterator[AuditRecord]:
    """Yield the records of a chain after the sequence number `after`, in order."""
    while True:
        query = sa.select(audit_records).where(audit_records.c.chain == chain, audit_records.c.sequence > after)
        rows = tx.connection.execute(query.order_by(audit_records.c.sequence).limit(RECORDS_PER_READ)).all()
        yield from map(_record, rows)
        if len(rows) < RECORDS_PER_READ:
            return
        after = rows[-1].sequence


def list_following(tx: PlatformTx, chain: str, after: int, count_max: int) -> list[AuditRecord]:
    """Return the next records of a chain after the sequence number `after`, in order."""
    query = sa.select(audit_records).where(audit_records.c.chain == chain, audit_records.c.sequence > after)
    return [_record(row) for row in tx.connection.execute(query.order_by(audit_records.c.sequence).limit(count_max))]


def count_records(tx: Transaction, chain: str, *, until: int) -> int:
    """Return how many records a chain has up to the sequence number `until`."""
    query = sa.select(sa.func.count()).where(audit_records.c.chain == chain, audit_records.c.sequence <= until)
    return tx.connection.execute(query).scalar_one()


def list_records(
    tx: Transaction, chain: str, wanted: AuditFilter, *, after: str | None, before: str | None, limit: int
) -> Page[AuditRecord]:
    """Return the latest records first: at most `limit` that are older than the record with the id `after`, or, where `before` is given,
    those just newer than it. With `after_sequence` they are the oldest first."""
    column = audit_records.c
    query = sa.select(audit_records).where(column.chain == chain, *_conditions(wanted))
    if after is not None:
        query = query.where(column.sequence < _find_sequence(chain, after))
    if before is not None:
        query = query.where(column.sequence > _find_sequence(chain, before))
    is_ascending = before is not None or wanted.after_sequence is not None
    order = column.sequence.asc() if is_ascending else column.sequence.desc()
    rows = tx.connection.execute(query.order_by(order).limit(limit + 1)).all()
    found = [_record(row) for row in rows[:limit]]
    return Page(found[::-1] if before is not None and wanted.after_sequence is None else found, len(rows) > limit)


def _find_sequence(chain: str, id: str) -> sa.ScalarSelect[int]:
    query = sa.select(audit_records.c.sequence).where(audit_records.c.chain == chain, audit_records.c.id == id)
    return query.scalar_subquery()


def _conditions(wanted: AuditFilter) -> Iterator[sa.ColumnElement[bool]]:
    column = audit_records.c
    if wanted.since is not None:
        yield column.recorded_at >= wanted.since
    if wanted.until is not None:
        yield column.recorded_at < wanted.until
    if wanted.after_sequence is not None:
        yield column.sequence > wanted.after_sequence
    named: Sequence[tuple[sa.Column[Any], tuple[str, ...]]] = (
        (column.event, wanted.events),
        (column.actor_id, wanted.actor_ids),
        (column.project_id, wanted.project_ids),
        (column.target_id, wanted.target_ids),
    )
    yield from (each.in_(values) for each, values in named if values)


def find_hash(tx: Transaction, chain: str, sequence: int) -> bytes:
    """Return the hash of a record as it was written, or that with which the chain begins after a cut, or from the beginning (0)."""
    for table in (audit_records, audit_checkpoints):
        query = sa.select(table.c.hash).where(table.c.chain == chain, table.c.sequence == sequence)
        found = tx.connection.execute(query).scalar_one_or_none()
        if found is not None:
            return bytes(found)
    return GENESIS


def list_next(tx: TenantTx, after: int, count_max: int, *, target_id: str | None = None) -> list[AuditRecord]:
    """Return the next records of the organization after the sequence number `after`, or of those with a target."""
    column = audit_records.c
    query = sa.select(audit_records).where(column.chain == tx.organization_id, column.sequence > after)
    if target_id is not None:
        query = query.where(column.target_id == target_id)
    return [_record(row) for row in tx.connection.execute(query.order_by(column.sequence).limit(count_max))]


def find_records(tx: TenantTx, sequences: Collection[int]) -> list[AuditRecord]:
    """Return the records of the organization with these sequence numbers, in order."""
    column = audit_records.c
    query = sa.select(audit_records).where(column.chain == tx.organization_id, column.sequence.in_(sequences))
    return [_record(row) for row in tx.connection.execute(query.order_by(column.sequence))]


def put_erased(tx: TenantTx, record: AuditRecord) -> None:
    """Store what is left of a record after an erasure."""
    column = audit_records.c
    own = audit_records.update().where(column.chain == tx.organization_id, column.sequence == record.sequence)
    values = {
        "changes": record.changes,
        "address": record.actor.address,
        "target_id": record.target.id,
        "salt": None,
        "erasure_id": record.erasure_id,
    }
    tx.connection.execute(own.values(values))


def put_checkpoint(tx: PlatformTx, signed: SignedCheckpoint) -> None:
    """Store a signed checkpoint, unless there is one of the same record."""
    said = signed.checkpoint
    values = {"chain": said.chain, "sequence": said.sequence, "hash": said.hash, "signed_at": said.signed_at}
    insert = tx.insert(audit_checkpoints).values(values | {"public_key": signed.public_key, "signature": signed.signature})
    tx.connection.execute(insert.on_conflict_do_nothing())


def list_checkpoints(tx: Transaction, chain: str) -> list[SignedCheckpoint]:
    """Return the checkpoints of a chain in order."""
    query = sa.select(audit_checkpoints).where(audit_checkpoints.c.chain == chain).order_by(audit_checkpoints.c.sequence)
    return [_checkpoint(row) for row in tx.connection.execute(query)]


def list_latest_checkpoints(tx: PlatformTx) -> dict[str, int]:
    """Return the sequence number of the latest checkpoint of each chain that has one."""
    column = audit_checkpoints.c
    query = sa.select(column.chain, sa.func.max(column.sequence)).group_by(column.chain)
    return {row[0]: row[1] for row in tx.connection.execute(query)}


def find_cut(tx: Transaction, chain: str) -> int:
    """Return the sequence number up to which a chain was removed; 0 for a whole chain."""
    query = sa.select(sa.func.max(audit_cuts.c.sequence)).where(audit_cuts.c.chain == chain)
    return tx.connection.execute(query).scalar_one() or 0


def find_cut_before(tx: PlatformTx, chain: str, recorded_before: int) -> int | None:
    """Return the latest checkpoint of a chain whose record, and so every record before it, is older than `recorded_before`; None if there
    is no such record left."""
    record, checkpoint = audit_records.c, audit_checkpoints.c
    joined = sa.and_(checkpoint.chain == record.chain, checkpoint.sequence == record.sequence)
    newer = sa.select(sa.func.min(record.sequence)).where(record.chain == chain, record.recorded_at >= recorded_before).scalar_subquery()
    query = sa.select(sa.func.max(record.sequence)).select_from(audit_records.join(audit_checkpoints, joined))
    query = query.where(record.chain == chain, record.recorded_at < recorded_before, sa.or_(newer.is_(None), record.sequence < newer))
    sequence: int | None = tx.connection.execute(query).scalar_one()
    return sequence


def cut(tx: PlatformTx, chain: str, sequence: int, now: int) -> int:
    """Remove the records of a chain up to `sequence`, which must have a checkpoint. Return how many were removed."""
    tx.connection.execute(audit_cuts.insert().values(chain=chain, sequence=sequence, cut_at=now))
    old = audit_records.delete().where(audit_records.c.chain == chain, audit_records.c.sequence <= sequence)
    return tx.connection.execute(old).rowcount


def _record(row: Any) -> AuditRecord:
    return AuditRecord(
        chain=row.chain,
        sequence=row.sequence,
        id=row.id,
        recorded_at=row.recorded_at,
        event=row.event,
        operation=row.operation,
        actor=Actor(kind=row.actor_kind, id=row.actor_id, address=row.address, request_id=row.request_id),
        target=Target(kind=row.target_kind, id=row.target_id, project_id=row.project_id),
        changes=row.changes,
        omitted=row.omitted,
        hash=bytes(row.hash),
        salt=bytes(row.salt or b""),
        erasure_id=row.erasure_id,
    )


def _checkpoint(row: Any) -> SignedCheckpoint:
    checkpoint = Checkpoint(chain=row.chain, sequence=row.sequence, hash=bytes(row.hash), signed_at=row.signed_at)
    return SignedCheckpoint(checkpoint, bytes(row.public_key), bytes(row.signature))
