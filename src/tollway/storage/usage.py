"""Usage at rest: watermarks, events, rated lines, rollups; what the collector writes and what tenants read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from tollway.domain.money import PICO
from tollway.domain.prices import BillingClass, PriceVersion, RatedLine
from tollway.domain.usage import Admit, Final, Outcome, Quantities, UsageEvent, UsageSource
from tollway.storage import prices as stored_prices
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.schema import organizations
from tollway.storage.schema_money import (
    ROLLUP_COSTS,
    ROLLUP_KEY,
    ROLLUP_QUANTITIES,
    epochs,
    event_conflicts,
    quarantined_records,
    rated_lines,
    usage_events,
    usage_rollups,
)

IDS_MAX = 5_000
"""Ids named in one query: below SQLite's 32,766 parameters, and few queries for a batch of 4 MiB."""


# ---- Watermarks -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far the records of an epoch have been taken in: `next_seq` is expected next, `chain` is that of the record before it."""

    node_id: str
    epoch: int
    next_seq: int
    chain: bytes
    archive_bytes: int
    closed_at: int | None


def lock_watermark(tx: PlatformTx, node_id: str, epoch: int, first_chain: bytes, now: int) -> Watermark:
    """The watermark of an epoch, made if it is new, and nobody else's until this transaction ends."""
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
    """The record expected next of an epoch; 1 for one that was never heard of."""
    query = sa.select(epochs.c.next_seq).where(epochs.c.node_id == node_id, epochs.c.epoch == epoch)
    return tx.connection.execute(query).scalar_one_or_none() or 1


def move_watermark(tx: PlatformTx, to: Watermark, *, ticked_at: int | None, now: int) -> None:
    """Store where a locked epoch stands now."""
    values: dict[str, Any] = {
        "next_seq": to.next_seq,
        "chain": to.chain,
        "archive_bytes": to.archive_bytes,
        "closed_at": to.closed_at,
        "seen_at": now,
    }
    if ticked_at is not None:
        values["ticked_at"] = ticked_at
    where = sa.and_(epochs.c.node_id == to.node_id, epochs.c.epoch == to.epoch)
    tx.connection.execute(epochs.update().where(where).values(values))


def list_watermarks(tx: PlatformTx) -> list[Watermark]:
    """Every epoch ever heard of."""
    query = sa.select(epochs).order_by(epochs.c.node_id, epochs.c.epoch)
    return [_watermark(row) for row in tx.connection.execute(query)]


def _watermark(row: Any) -> Watermark:
    return Watermark(row.node_id, row.epoch, row.next_seq, row.chain, row.archive_bytes, row.closed_at)


# ---- What rating needs ------------------------------------------------------------------------------------------------


def list_currencies(tx: PlatformTx, organization_ids: Iterable[str]) -> dict[str, str]:
    """The currency of each organization that exists, archived or not: what was used is owed."""
    query = sa.select(organizations.c.id, organizations.c.currency).where(organizations.c.id.in_(list(organization_ids)))
    return {row.id: row.currency for row in tx.connection.execute(query)}


def list_prices(tx: PlatformTx, price_ids: Iterable[str]) -> dict[str, PriceVersion]:
    """The price versions that exist, by id."""
    found = {price_id: stored_prices.find_price(tx, price_id) for price_id in price_ids}
    return {price_id: price for price_id, price in found.items() if price is not None}


# ---- Events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stray:
    """A record that did not become an event: another one has its id, or it cannot be rated."""

    node_id: str
    epoch: int
    seq: int
    event_id: str | None
    payload: bytes
    content_hash: bytes
    reason: str


def find_hashes(tx: PlatformTx, event_ids: Sequence[str]) -> dict[str, bytes]:
    """The content hash of each event that is known already, by id."""
    known: dict[str, bytes] = {}
    for start in range(0, len(event_ids), IDS_MAX):
        query = sa.select(usage_events.c.event_id, usage_events.c.content_hash).where(
            usage_events.c.event_id.in_(event_ids[start : start + IDS_MAX])
        )
        known.update((row.event_id, row.content_hash) for row in tx.connection.execute(query))
    return known


class EventRace(Exception):
    """Another transaction took in an event of the same id at the same time. Begin again: then it is known."""


def insert_events(tx: PlatformTx, events: Sequence[UsageEvent], lines: Mapping[str, Sequence[RatedLine]]) -> None:
    """Store new events and their rated lines. Raises EventRace if one of them is not new any more."""
    if not events:
        return
    insert = tx.insert(usage_events).on_conflict_do_nothing()
    counted = tx.connection.execution_options(preserve_rowcount=True)  # else psycopg counts the last of several statements only
    result = counted.execute(insert, [_event_row(event) for event in events])
    if result.rowcount != len(events):
        raise EventRace
    rows = [
        {
            "event_id": event_id,
            "billing_class": line.billing_class,
            "quantity": line.quantity,
            "unit_pico": line.unit_pico,
            "amount_pico": line.amount_pico,
        }
        for event_id, of_event in lines.items()
        for line in of_event
    ]
    if rows:
        tx.connection.execute(rated_lines.insert(), rows)


def _event_row(event: UsageEvent) -> dict[str, object]:
    final, admit, used = event.final, event.final.admit, event.final.used
    return {
        "event_id": admit.request_id,
        "organization_id": admit.organization_id,
        "project_id": admit.project_id,
        "key_id": admit.key_id,
        "model": admit.model,
        "endpoint": admit.endpoint,
        "stream": admit.stream,
        "node_id": event.node_id,
        "epoch": event.epoch,
        "seq": event.seq,
        "admitted_at": admit.admitted_at,
        "first_token_at": final.first_token_at,
        "ended_at": final.ended_at,
        "outcome": final.outcome,
        "source": final.source,
        "input": used.input,
        "cached_input": used.cached_input,
        "output": used.output,
        "reasoning": used.reasoning,
        "price_version": admit.price_version,
        "outcome_policy": admit.outcome_policy,
        "deployment_id": final.deployment_id,
        "attempts": final.attempts,
        "error": final.error,
        "content_hash": event.content_hash,
    }


def read_event(row: Any) -> UsageEvent:
    """An event from its row."""
    admit = Admit(
        request_id=row.event_id,
        admitted_at=row.admitted_at,
        organization_id=row.organization_id,
        project_id=row.project_id,
        key_id=row.key_id,
        model=row.model,
        endpoint=row.endpoint,
        stream=row.stream,
        price_version=row.price_version,
        outcome_policy=row.outcome_policy,
    )
    final = Final(
        admit=admit,
        outcome=Outcome(row.outcome),
        used=Quantities(row.input, row.cached_input, row.output, row.reasoning),
        source=UsageSource(row.source),
        ended_at=row.ended_at,
        deployment_id=row.deployment_id,
        attempts=row.attempts,
        first_token_at=row.first_token_at,
        error=row.error,
    )
    return UsageEvent(node_id=row.node_id, epoch=row.epoch, seq=row.seq, final=final, content_hash=row.content_hash)


def insert_strays(tx: PlatformTx, conflicts: Sequence[Stray], quarantined: Sequence[Stray], now: int) -> None:
    """Keep what did not become an event, as it came."""
    if conflicts:
        tx.connection.execute(event_conflicts.insert(), [_stray_row(stray, now, "content_hash") for stray in conflicts])
    if quarantined:
        tx.connection.execute(quarantined_records.insert(), [_stray_row(stray, now, "reason") for stray in quarantined])


def _stray_row(stray: Stray, now: int, extra: str) -> dict[str, object]:
    return {
        "node_id": stray.node_id,
        "epoch": stray.epoch,
        "seq": stray.seq,
        "event_id": stray.event_id,
        "payload": stray.payload,
        "received_at": now,
        extra: getattr(stray, extra),
    }


# ---- Rollups ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sums:
    """What a group of events used and cost: requests, tokens as billed, costs in pico by billing class (classes of no cost left out)."""

    requests: int = 0
    input: int = 0
    cached_input: int = 0
    output: int = 0
    reasoning: int = 0
    costs: dict[BillingClass, int] = field(default_factory=dict)

    def add_event(self, tokens: Quantities, lines: Iterable[RatedLine]) -> None:
        """Add one event."""
        self.requests += 1
        self.input += tokens.input
        self.cached_input += tokens.cached_input
        self.output += tokens.output
        self.reasoning += tokens.reasoning
        for line in lines:
            if line.amount_pico:
                self.costs[line.billing_class] = self.costs.get(line.billing_class, 0) + line.amount_pico

    def add(self, other: "Sums") -> None:
        """Add a group that has no event in common with this one."""
        self.requests += other.requests
        self.input += other.input
        self.cached_input += other.cached_input
        self.output += other.output
        self.reasoning += other.reasoning
        for billing_class, pico in other.costs.items():
            self.costs[billing_class] = self.costs.get(billing_class, 0) + pico


RollupKey = tuple[str, int, int, str, str, str, str]
"""organization, width in seconds, start (microseconds), project, key, model, endpoint: the columns of ROLLUP_KEY."""


def add_rollups(tx: PlatformTx, sums: Mapping[RollupKey, Sums]) -> None:
    """Add to the rollups. Keys are taken in order, so that two collectors that meet wait for each other instead of deadlocking."""
    if not sums:
        return
    insert = tx.insert(usage_rollups)
    upsert = insert.on_conflict_do_update(index_elements=list(ROLLUP_KEY), set_=dict(_added(insert.excluded)))
    tx.connection.execute(upsert, [_rollup_row(key, sums[key]) for key in sorted(sums)])


def _added(new: Any) -> Iterator[tuple[str, Any]]:
    """The columns of a rollup after adding the row `new`; pico beyond a whole unit are carried over."""
    old = usage_rollups.c
    for name in ROLLUP_QUANTITIES:
        yield name, old[name] + new[name]
    for name in ROLLUP_COSTS:
        pico = old[f"{name}_pico"] + new[f"{name}_pico"]
        yield f"{name}_units", old[f"{name}_units"] + new[f"{name}_units"] + pico // PICO
        yield f"{name}_pico", pico % PICO


def _rollup_row(key: RollupKey, sums: Sums) -> dict[str, object]:
    row: dict[str, object] = dict(zip(ROLLUP_KEY, key, strict=True))
    row.update((name, getattr(sums, name)) for name in ROLLUP_QUANTITIES)
    for billing_class, name in zip(BillingClass, ROLLUP_COSTS, strict=True):
        row[f"{name}_units"], row[f"{name}_pico"] = divmod(sums.costs.get(billing_class, 0), PICO)
    return row


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which rollups to sum: `start_at` inclusive to `end_at` exclusive (multiples of the width), grouped by the columns `group_by`.

    An empty tuple in a filter means no filter.
    """

    width_seconds: int
    start_at: int
    end_at: int
    group_by: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    project_ids: tuple[str, ...] = ()
    key_ids: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """The sums of one bucket and group; `group` holds the values of the columns grouped by."""

    start_at: int
    group: dict[str, str]
    sums: Sums


def list_usage(tx: TenantTx, query: UsageQuery) -> list[UsageGroup]:
    """The organization's usage by bucket and group, in that order. Buckets without usage are left out."""
    table = usage_rollups.c
    where = [
        table.organization_id == tx.organization_id,
        table.width_seconds == query.width_seconds,
        table.start_at >= query.start_at,
        table.start_at < query.end_at,
    ]
    filters = {"endpoint": query.endpoints, "project_id": query.project_ids, "key_id": query.key_ids, "model": query.models}
    where += [table[name].in_(values) for name, values in filters.items() if values]
    groups = [table.start_at, *(table[name] for name in query.group_by)]
    statement = sa.select(*groups, *_sum_columns()).where(*where).group_by(*groups).order_by(*groups)
    return [
        UsageGroup(row.start_at, {name: getattr(row, name) for name in query.group_by}, _read_sums(row))
        for row in tx.connection.execute(statement)
    ]


def iterate_rollups(tx: PlatformTx) -> Iterator[tuple[RollupKey, Sums]]:
    """Every rollup of every organization, ordered by key: for verification."""
    query = sa.select(usage_rollups).order_by(*(usage_rollups.c[name] for name in ROLLUP_KEY))
    for row in tx.connection.execute(query.execution_options(yield_per=1000)):
        yield tuple(getattr(row, name) for name in ROLLUP_KEY), _read_sums(row)


def _sum_columns() -> list[sa.Label[Any]]:
    summed = [column for column in usage_rollups.c if column.name not in ROLLUP_KEY]
    return [sa.func.sum(column).label(column.name) for column in summed]


def _read_sums(row: Any) -> Sums:
    costs = {}
    for billing_class, name in zip(BillingClass, ROLLUP_COSTS, strict=True):
        pico = int(getattr(row, f"{name}_units")) * PICO + int(getattr(row, f"{name}_pico"))
        if pico:
            costs[billing_class] = pico
    return Sums(int(row.requests), int(row.input), int(row.cached_input), int(row.output), int(row.reasoning), costs)


# ---- Receipts, and reading everything again ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Receipt:
    """An event and what it cost, line by line."""

    event: UsageEvent
    currency: str
    lines: tuple[RatedLine, ...]


def find_receipt(tx: TenantTx, request_id: str) -> Receipt | None:
    """The receipt of one of the organization's requests; None if it is unknown, another's, or not yet taken in."""
    query = (
        sa.select(usage_events, organizations.c.currency)
        .join(organizations, organizations.c.id == usage_events.c.organization_id)
        .where(usage_events.c.event_id == request_id, usage_events.c.organization_id == tx.organization_id)
    )
    row = tx.connection.execute(query).one_or_none()
    if row is None:
        return None
    return Receipt(read_event(row), row.currency, tuple(_lines_of(tx, [request_id]).get(request_id, ())))


def iterate_events(tx: PlatformTx, page_rows: int = 1000) -> Iterator[tuple[UsageEvent, list[RatedLine]]]:
    """Every event with its rated lines, ordered by event id: for verification."""
    after = ""
    while True:
        query = sa.select(usage_events).where(usage_events.c.event_id > after)
        rows = tx.connection.execute(query.order_by(usage_events.c.event_id).limit(page_rows)).all()
        if not rows:
            return
        lines = _lines_of(tx, [row.event_id for row in rows])
        for row in rows:
            yield read_event(row), lines.get(row.event_id, [])
        after = rows[-1].event_id


def list_stray_places(tx: PlatformTx) -> tuple[set[tuple[str, int, int]], set[tuple[str, int, int]]]:
    """Where (node, epoch, seq) conflicts and quarantined records came from: for verification."""
    conflicts = sa.select(event_conflicts.c.node_id, event_conflicts.c.epoch, event_conflicts.c.seq)
    quarantined = sa.select(quarantined_records.c.node_id, quarantined_records.c.epoch, quarantined_records.c.seq)
    return (
        {(row.node_id, row.epoch, row.seq) for row in tx.connection.execute(conflicts)},
        {(row.node_id, row.epoch, row.seq) for row in tx.connection.execute(quarantined)},
    )


def _lines_of(tx: Transaction, event_ids: Sequence[str]) -> dict[str, list[RatedLine]]:
    query = sa.select(rated_lines).where(rated_lines.c.event_id.in_(event_ids))
    found: dict[str, list[RatedLine]] = {}
    for row in tx.connection.execute(query):
        line = RatedLine(BillingClass(row.billing_class), row.quantity, row.unit_pico, row.amount_pico)
        found.setdefault(row.event_id, []).append(line)
    order = list(BillingClass)
    for lines in found.values():
        lines.sort(key=lambda line: order.index(line.billing_class))
    return found
