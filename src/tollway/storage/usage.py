"""Usage at rest: watermarks, events with what they cost, rollups; what the collector writes and what tenants read."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from tollway.domain.money import PICO
from tollway.domain.prices import BillingClass, PriceVersion, RatedLine, rate
from tollway.domain.usage import Admit, Amounts, Anomaly, Final, Outcome, Quantities, ServiceTier, UsageEvent, UsageSource, billed
from tollway.storage import prices as stored_prices
from tollway.storage.bulk import NULL, Duplicate, Upsert, any_of, by_bytes, copy_line, copy_lines, insert_prepared, upsert_rows
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.pages import Page, Window, fetch_page
from tollway.storage.partitions import find_partition
from tollway.storage.schema_money import (
    ROLLUP_COSTS,
    ROLLUP_KEY,
    ROLLUP_QUANTITIES,
    epochs,
    event_conflicts,
    quarantined_records,
    usage_events,
    usage_rollups,
)

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
    """Every epoch ever heard of, ordered by node and epoch."""
    query = sa.select(epochs).order_by(by_bytes(tx, epochs.c.node_id), epochs.c.epoch)
    return [_watermark(row) for row in tx.connection.execute(query)]


def _watermark(row: Any) -> Watermark:
    return Watermark(row.node_id, row.epoch, row.next_seq, row.chain, row.archive_bytes, row.closed_at)


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
    if not event_ids:
        return {}
    column = usage_events.c.event_id
    query = sa.select(column, usage_events.c.content_hash).where(
        any_of(tx, column, event_ids), column >= min(event_ids), column <= max(event_ids)
    )  # from the bounds the planner sees which months cannot hold any of them
    return {row.event_id: row.content_hash for row in tx.connection.execute(query)}


class EventRace(Exception):
    """Another transaction took in an event of the same id. Look again: then it is known."""


@dataclass(frozen=True, slots=True)
class Shared:
    """The columns that thousands of events have in common: as values, and as the end of a line of a COPY."""

    values: tuple[object, ...]
    line: str

    @classmethod
    def of(cls, node_id: str, epoch: int, final: Final) -> "Shared":
        """Of all events of one epoch that are like this one."""
        admit = final.admit
        values = (
            node_id,
            epoch,
            admit.organization_id,
            admit.project_id,
            admit.key_id,
            admit.model,
            admit.endpoint,
            admit.stream,
            admit.price_version,
            admit.service_tier.value,  # the driver of SQLite looks for a conversion of what is not exactly a str
            admit.outcome_policy,
            final.outcome.value,
            final.source.value,
            final.deployment_id,
            final.attempts,
            final.error,
            None if final.anomaly is None else final.anomaly.value,
        )
        return cls(values, copy_line(values))


EventRow = tuple[str, int, int, int | None, int, int, int, int, int, int, int, int, int, int, int, bytes, Shared]
"""An event as its row: the columns that are its own, in the order of OWN_COLUMNS, and those that it shares."""

OWN_COLUMNS = (
    "event_id",
    "seq",
    "admitted_at",
    "first_token_at",
    "ended_at",
    "input",
    "cached_input",
    "output",
    "reasoning",
    "input_pico",
    "cached_input_pico",
    "output_pico",
    "reasoning_pico",
    "request_pico",
    "period_at",
    "content_hash",
)

EVENT_COLUMNS = (
    *OWN_COLUMNS,
    "node_id",
    "epoch",
    "organization_id",
    "project_id",
    "key_id",
    "model",
    "endpoint",
    "stream",
    "price_version",
    "service_tier",
    "outcome_policy",
    "outcome",
    "source",
    "deployment_id",
    "attempts",
    "error",
    "anomaly",
)
"""All columns, in the order of an EventRow and of `Shared.values`."""


def insert_events(tx: PlatformTx, rows: Iterable[EventRow], first_id: str, last_id: str, meanwhile: Callable[[], None]) -> None:
    """Store new events, none of whose ids lies outside of these two, while they are being made. Raises EventRace if one of them is not
    new; then none is stored, and the transaction goes on.

    `meanwhile` is called after the last row was made; the database may be still busy with the rows.
    """
    try:
        if tx.connection.dialect.name == "sqlite":
            insert_prepared(tx, usage_events, EVENT_COLUMNS, ((*row[:-1], *row[-1].values) for row in rows))
            meanwhile()
        else:
            # To the month's own partition, where the server stores page by page instead of row by row.
            partition = find_partition(tx, first_id, last_id)
            copy_lines(tx, partition or usage_events.name, EVENT_COLUMNS, map(_event_line, rows), meanwhile)
    except Duplicate as error:
        raise EventRace from error


def _event_line(row: EventRow) -> str:
    """A row as a line for `copy_lines`. All text is visible ASCII: the collector lets nothing else through."""
    event_id, seq, admitted_at, first_at, ended_at, i, c, o, r, i_pico, c_pico, o_pico, r_pico, q_pico, period_at, hashed, shared = row
    if "\\" in event_id:
        event_id = event_id.replace("\\", r"\\")
    return (
        f"{event_id}\t{seq}\t{admitted_at}\t{NULL if first_at is None else first_at}\t{ended_at}\t{i}\t{c}\t{o}\t{r}\t"
        f"{i_pico}\t{c_pico}\t{o_pico}\t{r_pico}\t{q_pico}\t{period_at}\t\\\\x{hashed.hex()}\t{shared.line}"
    )


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
        service_tier=ServiceTier(row.service_tier),
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
        anomaly=None if row.anomaly is None else Anomaly(row.anomaly),
    )
    amounts = Amounts(row.input_pico, row.cached_input_pico, row.output_pico, row.reasoning_pico, row.request_pico)
    return UsageEvent(
        node_id=row.node_id,
        epoch=row.epoch,
        seq=row.seq,
        final=final,
        content_hash=row.content_hash,
        amounts=amounts,
        period_at=row.period_at,
    )


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
    """What a group of events used and cost: requests, tokens as billed, pico-currency by billing class (beyond 64 bits, if need be)."""

    requests: int = 0
    input: int = 0
    cached_input: int = 0
    output: int = 0
    reasoning: int = 0
    input_pico: int = 0
    cached_input_pico: int = 0
    output_pico: int = 0
    reasoning_pico: int = 0
    request_pico: int = 0

    @property
    def costs(self) -> dict[BillingClass, int]:
        """Pico-currency by billing class, those of no cost left out."""
        picos = (self.input_pico, self.cached_input_pico, self.output_pico, self.reasoning_pico, self.request_pico)
        return {billing_class: pico for billing_class, pico in zip(BillingClass, picos, strict=True) if pico}

    def add(self, other: "Sums") -> None:
        """Add a group that has no event in common with this one."""
        self.requests += other.requests
        self.input += other.input
        self.cached_input += other.cached_input
        self.output += other.output
        self.reasoning += other.reasoning
        self.input_pico += other.input_pico
        self.cached_input_pico += other.cached_input_pico
        self.output_pico += other.output_pico
        self.reasoning_pico += other.reasoning_pico
        self.request_pico += other.request_pico


RollupKey = tuple[str, int, int, str, str, str, str]
"""organization, width in seconds, start (microseconds), project, key, model, endpoint: the columns of ROLLUP_KEY."""


RollupRow = tuple[str | int, ...]


def rollup_rows(sums: Mapping[RollupKey, Sums]) -> list[RollupRow]:
    """The rows for `add_rollups`: ordered by key, so that two collectors that meet wait for each other instead of deadlocking."""
    return [(*key, *_rollup_values(sums[key])) for key in sorted(sums)]


def add_rollups(tx: PlatformTx, rows: Sequence[RollupRow]) -> None:
    """Add to the rollups."""
    if rows:
        upsert_rows(tx, _ADD_ROLLUPS, rows)


def _added() -> Iterator[tuple[str, str]]:
    """What each column of a rollup becomes when the row `excluded` is added; pico beyond a whole unit are carried over."""
    for name in ROLLUP_QUANTITIES:
        yield name, f"usage_rollups.{name} + excluded.{name}"
    for name in ROLLUP_COSTS:
        pico = f"(usage_rollups.{name}_pico + excluded.{name}_pico)"
        yield f"{name}_units", f"usage_rollups.{name}_units + excluded.{name}_units + {pico} / {PICO}"
        yield f"{name}_pico", f"{pico} % {PICO}"


_ADD_ROLLUPS = Upsert(usage_rollups, key=ROLLUP_KEY, changes=dict(_added()))


def _rollup_values(sums: Sums) -> tuple[int, ...]:
    """The columns after the key."""
    return (
        sums.requests,
        sums.input,
        sums.cached_input,
        sums.output,
        sums.reasoning,
        *divmod(sums.input_pico, PICO),
        *divmod(sums.cached_input_pico, PICO),
        *divmod(sums.output_pico, PICO),
        *divmod(sums.reasoning_pico, PICO),
        *divmod(sums.request_pico, PICO),
    )


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
    picos = (int(getattr(row, f"{name}_units")) * PICO + int(getattr(row, f"{name}_pico")) for name in ROLLUP_COSTS)
    return Sums(*(int(getattr(row, name)) for name in ROLLUP_QUANTITIES), *picos)


# ---- Receipts, and reading everything again ------------------------------------------------------------------------------


def find_event(tx: TenantTx, request_id: str) -> UsageEvent | None:
    """The event of one of the organization's requests; None if it is unknown, another's, or not yet taken in."""
    query = sa.select(usage_events).where(usage_events.c.event_id == request_id, usage_events.c.organization_id == tx.organization_id)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else read_event(row)


@dataclass(frozen=True, slots=True)
class BookedEvent:
    """An event with all that its correction needs: its price, its rated lines, the currency."""

    event: UsageEvent
    price: PriceVersion
    lines: list[RatedLine]
    currency: str


def find_booked_event(tx: PlatformTx, request_id: str) -> BookedEvent | None:
    """The event of a request of whatever organization; None if it is unknown or not yet taken in."""
    query = sa.select(usage_events).where(usage_events.c.event_id == request_id)
    row = tx.connection.execute(query).one_or_none()
    if row is None:
        return None
    event = read_event(row)
    price = stored_prices.find_prices(tx, [event.final.admit.price_version])[event.final.admit.price_version]
    return BookedEvent(event, price, rate(*billed(event.final), price), price.currency)


def list_period_events(
    tx: Transaction, organization_id: str, period_at: int, *, limit: int, after: str = "", first: str = ""
) -> list[tuple[UsageEvent, list[RatedLine]]]:
    """Events of an organization that are booked in the period that begins at `period_at`, with their rated lines, by event id: at most
    `limit` of those behind `after` and not before `first`."""
    table = usage_events.c
    query = sa.select(usage_events).where(
        table.organization_id == organization_id, table.period_at == period_at, table.event_id > after, table.event_id >= first
    )
    rows = tx.connection.execute(query.order_by(table.event_id).limit(limit)).all()
    prices = stored_prices.find_prices(tx, {row.price_version for row in rows})
    events = [read_event(row) for row in rows]
    return [(event, rate(*billed(event.final), prices[event.final.admit.price_version])) for event in events]


def find_archive_bytes(tx: Transaction, node_id: str, epoch: int) -> int:
    """What of an epoch's archive file counts; 0 for an epoch that was never heard of."""
    query = sa.select(epochs.c.archive_bytes).where(epochs.c.node_id == node_id, epochs.c.epoch == epoch)
    return tx.connection.execute(query).scalar_one_or_none() or 0


def list_anomalies(tx: PlatformTx, window: Window, *, kind: Anomaly | None, deployment_id: str | None) -> Page[UsageEvent]:
    """The events whose engine's report was not believed; the window's cursor is a request id."""
    query = sa.select(usage_events).where(usage_events.c.anomaly.is_not(None))
    if kind is not None:
        query = query.where(usage_events.c.anomaly == kind)
    if deployment_id is not None:
        query = query.where(usage_events.c.deployment_id == deployment_id)
    return fetch_page(tx, query, usage_events.c.event_id, window, read_event)


def iterate_events(tx: PlatformTx, page_rows: int = 1000) -> Iterator[UsageEvent]:
    """Every event, ordered by event id: for verification."""
    after = ""
    while True:
        query = sa.select(usage_events).where(usage_events.c.event_id > after)
        rows = tx.connection.execute(query.order_by(usage_events.c.event_id).limit(page_rows)).all()
        if not rows:
            return
        for row in rows:
            yield read_event(row)
        after = rows[-1].event_id


def find_rows(tx: PlatformTx, event_ids: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The rows of those of the events that are there, by id, in the order of EVENT_COLUMNS: for verification."""
    if not event_ids:
        return {}
    query = sa.select(*(usage_events.c[name] for name in EVENT_COLUMNS)).where(
        any_of(tx, usage_events.c.event_id, event_ids),
        usage_events.c.event_id >= min(event_ids),
        usage_events.c.event_id <= max(event_ids),
    )
    return {row.event_id: tuple(row) for row in tx.connection.execute(query)}


def count_by_epoch(tx: PlatformTx) -> dict[tuple[str, int], int]:
    """How many events there are of each node and epoch: for verification."""
    place = (usage_events.c.node_id, usage_events.c.epoch)
    rows = tx.connection.execute(sa.select(*place, sa.func.count().label("events")).group_by(*place))
    return {(row.node_id, row.epoch): row.events for row in rows}


def iterate_places(tx: PlatformTx, node_id: str, epoch: int) -> Iterator[tuple[int, str]]:
    """Seq and id of every event of an epoch, by seq: for verification, when something is wrong (it reads all events)."""
    query = sa.select(usage_events.c.seq, usage_events.c.event_id).where(usage_events.c.node_id == node_id, usage_events.c.epoch == epoch)
    ordered = query.order_by(usage_events.c.seq, usage_events.c.event_id).execution_options(yield_per=1000)
    for row in tx.connection.execute(ordered):
        yield row.seq, row.event_id


def list_stray_seqs(tx: PlatformTx, node_id: str, epoch: int) -> tuple[set[int], set[int]]:
    """Where in an epoch conflicts and quarantined records came from: for verification."""
    conflicts, quarantined = (
        {seq for (seq,) in tx.connection.execute(sa.select(table.c.seq).where(table.c.node_id == node_id, table.c.epoch == epoch))}
        for table in (event_conflicts, quarantined_records)
    )
    return conflicts, quarantined


def list_stray_epochs(tx: PlatformTx) -> set[tuple[str, int]]:
    """The epochs that have any: for verification."""
    places = sa.union(*(sa.select(table.c.node_id, table.c.epoch) for table in (event_conflicts, quarantined_records)))
    return {(node_id, epoch) for node_id, epoch in tx.connection.execute(places)}
