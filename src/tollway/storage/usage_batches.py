"""Batches of usage: which events a transaction of the collector stored, in parts. They are kept while somebody follows usage, and numbered
after their commit, as events are (`outbox`): so whoever follows the numbers misses none, of whatever gateway, in order for each."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from tollway.domain.sinks import Stream
from tollway.storage import usage_hours
from tollway.storage.database import PlatformTx
from tollway.storage.schema import organizations
from tollway.storage.schema_events import event_counters, sink_positions, telemetry_exports, usage_batches
from tollway.storage.schema_money import usage_events

COUNTER = "usage"
"""Owner of the batches in `event_counters`."""

EVENTS_MAX = 500
"""Events of one batch: a sink that stores one after the other, each on its disk, has time for them within one attempt."""

NUMBERED_MAX = 500
"""Batches that one transaction numbers."""

_B = usage_batches.c
_E = usage_events.c


class UsageBatch(NamedTuple):
    """Events of one epoch, by sequence number; both ends are included. `first_id`, `last_id`: the least and the greatest of their ids."""

    node_id: str
    epoch: int
    first_seq: int
    last_seq: int
    first_id: str
    last_id: str


def is_followed(tx: PlatformTx) -> bool:
    """Return whether somebody follows usage."""
    by_sink = sa.exists().where(sink_positions.c.stream == Stream.USAGE)
    by_export = sa.exists().where(telemetry_exports.c.usage_position.is_not(None))
    return bool(tx.connection.execute(sa.select(sa.or_(by_sink, by_export))).scalar_one())


def append(tx: PlatformTx, batch: UsageBatch, now: int) -> None:
    """Store a batch. One that is stored already gets another number: of its records, one that was quarantined is an event now."""
    key = ["node_id", "epoch", "first_seq", "last_seq"]
    stored = tx.insert(usage_batches).values(**batch._asdict(), recorded_at=now)
    tx.connection.execute(stored.on_conflict_do_update(index_elements=key, set_={"sequence": sa.null(), "recorded_at": now}))


def has_unnumbered(tx: PlatformTx) -> bool:
    """Return whether a batch has no number yet."""
    return tx.connection.execute(sa.select(_B.node_id).where(_B.sequence.is_(None)).limit(1)).first() is not None


def number(tx: PlatformTx) -> int:
    """Give their numbers to batches without one, NUMBERED_MAX at most, and return how many. Whoever else numbers waits until the
    transaction ends."""
    ordered = (_B.node_id, _B.epoch, _B.first_seq, _B.last_seq)
    unnumbered = sa.select(*ordered).where(_B.sequence.is_(None)).order_by(*ordered).limit(NUMBERED_MAX)
    if tx.connection.execute(unnumbered.limit(1)).first() is None:
        return 0
    tx.connection.execute(tx.insert(event_counters).values(owner=COUNTER, sequence=0).on_conflict_do_nothing())
    counter = event_counters.c.owner == COUNTER
    last = int(tx.connection.execute(sa.select(event_counters.c.sequence).where(counter).with_for_update()).scalar_one())
    rows = tx.connection.execute(unnumbered).all()
    for sequence, row in enumerate(rows, last + 1):
        own = sa.and_(*(column == value for column, value in zip(ordered, row, strict=True)))
        tx.connection.execute(usage_batches.update().where(own).values(sequence=sequence))
    tx.connection.execute(event_counters.update().where(counter).values(sequence=last + len(rows)))
    return len(rows)


def find_last(tx: PlatformTx) -> int:
    """Return the number of the latest batch; 0 if there was none."""
    query = sa.select(event_counters.c.sequence).where(event_counters.c.owner == COUNTER)
    return tx.connection.execute(query).scalar_one_or_none() or 0


def find_next(tx: PlatformTx, after: int) -> tuple[int, UsageBatch] | None:
    """Return the first batch with a greater number, with its number."""
    query = sa.select(usage_batches).where(_B.sequence > after).order_by(_B.sequence).limit(1)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else (row.sequence, UsageBatch(*(getattr(row, name) for name in UsageBatch._fields)))


def list_events(tx: PlatformTx, batch: UsageBatch, organization_id: str | None = None) -> list[Mapping[str, Any]]:
    """Return the events of a batch in order, with the columns of `usage_hours`; of one organization, if it is given."""
    columns = [organizations.c.currency if name == "currency" else _E[name] for name in usage_hours.COLUMNS]
    query = (
        sa.select(*columns)
        .select_from(usage_events.join(organizations, organizations.c.id == _E.organization_id))
        .where(_E.event_id >= batch.first_id, _E.event_id <= batch.last_id, _E.node_id == batch.node_id, _E.epoch == batch.epoch)
        .where(_E.seq >= batch.first_seq, _E.seq <= batch.last_seq)
    )
    if organization_id is not None:
        query = query.where(_E.organization_id == organization_id)
    return [dict(row) for row in tx.connection.execute(query.order_by(_E.seq)).mappings()]


def remove(tx: PlatformTx, recorded_before: int) -> int:
    """Remove batches that every follower has got, and those that were stored before an instant. Return how many."""
    of_sinks = sa.select(sink_positions.c.position.label("position")).where(sink_positions.c.stream == Stream.USAGE)
    exported = telemetry_exports.c.usage_position
    followers = of_sinks.union_all(sa.select(exported).where(exported.is_not(None))).subquery()
    got = sa.select(sa.func.min(followers.c.position)).scalar_subquery()
    unneeded = sa.or_(got.is_(None), _B.sequence <= got, _B.recorded_at < recorded_before)
    return tx.connection.execute(usage_batches.delete().where(unneeded)).rowcount
