"""Positions of sinks: the number of the latest record that each has, by stream and owner."""

from collections.abc import Collection
from typing import NamedTuple

import sqlalchemy as sa

from tollway.domain.sinks import Stream
from tollway.storage import usage_batches
from tollway.storage.database import PlatformTx
from tollway.storage.schema_audit import audit_heads
from tollway.storage.schema_events import event_counters, sink_positions

NO_OWNER = ""
"""Stands for the owner of usage, whose numbers are those of batches. Of every stream this row says when the sink was last served."""

_P = sink_positions.c


class News(NamedTuple):
    """An owner with records that a sink has not got: those after `position`, up to `last` at least."""

    owner: str
    position: int
    last: int


def begin(tx: PlatformTx, sink: str, streams: Collection[Stream], now: int) -> None:
    """Let a sink begin each of the streams with what happens next, if it has not begun it yet, and note that it is served."""
    for stream in streams:
        own = sa.and_(_P.sink == sink, _P.stream == stream, _P.owner == NO_OWNER)
        if tx.connection.execute(sink_positions.update().where(own).values(moved_at=now)).rowcount:
            continue
        if stream is Stream.USAGE:
            put(tx, sink, stream, {NO_OWNER: usage_batches.find_last(tx)}, now)
        else:
            put(tx, sink, stream, {NO_OWNER: 0} | {each.owner: each.last for each in list_news(tx, sink, stream, None)}, now)


def put(tx: PlatformTx, sink: str, stream: Stream, positions: dict[str, int], now: int) -> None:
    """Store how far a sink has got, by owner."""
    if not positions:
        return
    rows = [
        {"sink": sink, "stream": stream, "owner": owner, "position": position, "moved_at": now} for owner, position in positions.items()
    ]
    insert = tx.insert(sink_positions)
    moved = {"position": insert.excluded.position, "moved_at": insert.excluded.moved_at}
    tx.connection.execute(insert.on_conflict_do_update(index_elements=["sink", "stream", "owner"], set_=moved), rows)


def list_news(tx: PlatformTx, sink: str, stream: Stream, count_max: int | None) -> list[News]:
    """Return owners with records of a stream, not of usage, that a sink has not got: those first whose turn was longest ago. `count_max`:
    None for all."""
    heads = audit_heads if stream is Stream.AUDIT else event_counters
    owner = audit_heads.c.chain if stream is Stream.AUDIT else event_counters.c.owner
    got = sa.func.coalesce(_P.position, 0)
    joined = heads.outerjoin(sink_positions, sa.and_(_P.sink == sink, _P.stream == stream, _P.owner == owner))
    query = sa.select(owner, got, heads.c.sequence).select_from(joined).where(heads.c.sequence > got)
    if stream is Stream.EVENTS:
        query = query.where(owner.not_in(["", usage_batches.COUNTER]))
    query = query.order_by(sa.func.coalesce(_P.moved_at, 0), owner).limit(count_max)
    return [News(*row) for row in tx.connection.execute(query)]


def count_waiting(tx: PlatformTx, sink: str, stream: Stream) -> int:
    """Return how many records of a stream a sink has not got; of usage, how many batches."""
    if stream is Stream.USAGE:
        return max(0, usage_batches.find_last(tx) - find_position(tx, sink))
    return sum(each.last - each.position for each in list_news(tx, sink, stream, None))


def find_position(tx: PlatformTx, sink: str) -> int:
    """Return the number of the latest batch of usage that a sink has got."""
    query = sa.select(_P.position).where(_P.sink == sink, _P.stream == Stream.USAGE, _P.owner == NO_OWNER)
    return tx.connection.execute(query).scalar_one_or_none() or 0


def remove_unserved(tx: PlatformTx, kept: Collection[tuple[str, Stream]], served_before: int) -> list[str]:
    """Forget the streams of sinks that were not served since an instant, without those to be kept, and return the names of these sinks."""
    query = sa.select(_P.sink, _P.stream).where(_P.owner == NO_OWNER, _P.moved_at < served_before)
    unserved = [row for row in tx.connection.execute(query.order_by(_P.sink, _P.stream)) if (row.sink, row.stream) not in kept]
    for sink, stream in unserved:
        tx.connection.execute(sink_positions.delete().where(_P.sink == sink, _P.stream == stream))
    return sorted({sink for sink, _ in unserved})
