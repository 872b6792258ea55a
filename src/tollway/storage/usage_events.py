"""Usage events at rest, with what each class costs. The collector writes them in bulk; receipts, exports and verification read them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from msgspec.structs import astuple

from tollway.domain import ids
from tollway.domain.billing_classes import OTHER_CLASSES, QUANTITY_CLASSES, TEXT_CLASSES, Amounts, BillingClass, Quantities
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import Period
from tollway.domain.prices import PriceVersion, RatedLine, rate
from tollway.domain.request_filters import RequestFilter
from tollway.domain.usage import Admit, Anomaly, Final, Outcome, ServiceTier, UsageEvent, UsageSource, billed
from tollway.storage import prices as stored_prices
from tollway.storage.bulk_statements import NULL, UNIQUE_VIOLATION, Duplicate, any_of, copy_line, copy_lines, insert_prepared
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.partitions import find_partition
from tollway.storage.schema_money import usage_events

CACHE_EVENTS_SUMMED = 20_000
"""Events whose cached input one statement sums."""

# ---- Writing ----------------------------------------------------------------------------------------------------------


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
    """Another transaction inserted an event of the same id. Begin again: then its id is known."""


@dataclass(slots=True)
class EventColumns:
    """The columns that thousands of events have in common: the values of TEMPLATE_COLUMNS. `budgets`: the budgets that their records name,
    which no column holds."""

    values: tuple[int | str | None, ...]
    budgets: tuple[str, ...] = ()
    _line: str | None = field(default=None, init=False)

    @property
    def line(self) -> str:
        """The values as the end of a line of a COPY."""
        if self._line is None:
            self._line = copy_line(self.values)
        return self._line

    @classmethod
    def of(cls, node_id: str, epoch: int, final: Final) -> "EventColumns":
        """Return the template of all events of one epoch that are like this one but for id, instants and counts."""
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
            admit.test,
            admit.price_hash,
            admit.choices,
        )
        return cls(values, admit.budgets)


class EventRow(msgspec.Struct, frozen=True, gc=False):
    """An event as its row: the columns that are its own, and those of its template."""

    event_id: str
    seq: int
    admitted_at: int
    first_token_at: int | None
    ended_at: int
    used: Quantities
    amounts: Amounts
    period_at: int
    content_hash: bytes
    template: EventColumns

    def columns(self) -> tuple[Any, ...]:
        """Return the values of EVENT_COLUMNS."""
        return (
            self.event_id,
            self.seq,
            self.admitted_at,
            self.first_token_at,
            self.ended_at,
            *_count_columns(self.used, self.amounts),
            self.period_at,
            self.content_hash,
            *self.template.values,
        )


AMOUNT_COLUMNS = tuple(f"{billing_class}_pico" for billing_class in BillingClass)

COUNT_COLUMNS = (
    *(name for name in map(str, QUANTITY_CLASSES) if name not in OTHER_CLASSES),
    *(f"{billing_class}_pico" for billing_class in BillingClass if billing_class not in OTHER_CLASSES),
    *map(str, OTHER_CLASSES),
    *(f"{billing_class}_pico" for billing_class in OTHER_CLASSES),
)
"""Quantities and amounts: those of the classes that all requests use, then those of the others, which are null where there is none."""


def _count_columns(used: Quantities, amounts: Amounts, null: object = None) -> tuple[Any, ...]:
    """Return the values of COUNT_COLUMNS, with `null` in place of a null."""
    all_use = (*used.text_quantities(), *amounts.text_quantities(), amounts.request)
    if used.other is None and amounts.other is None:
        return (*all_use, *(null,) * (2 * len(OTHER_CLASSES)))
    count = len(TEXT_CLASSES)
    return (*all_use, *(value or null for value in (*used.quantities()[count:], *amounts.quantities()[count:])))


TEMPLATE_COLUMNS = (
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
    "test",
    "price_hash",
    "choices",
)

EVENT_COLUMNS = (
    "event_id",
    "seq",
    "admitted_at",
    "first_token_at",
    "ended_at",
    *COUNT_COLUMNS,
    "period_at",
    "content_hash",
    *TEMPLATE_COLUMNS,
)
"""All columns, in the order of `EventRow.columns`."""

_LINE = "%s\t%d\t%d\t%s\t%d\t{}%d\t\\\\x%s\t%s"
"""An event as a line of a COPY: the columns of its own, with those of its counts, then the line of its template."""

_ALL_LINE = _LINE.format("%s\t" * len(COUNT_COLUMNS))
_TEXT_LINE = _LINE.format("%d\t" * (2 * len(TEXT_CLASSES) + 1))

_OTHER_COLUMNS = {*map(str, OTHER_CLASSES), *(f"{each}_pico" for each in OTHER_CLASSES)}
TEXT_COLUMNS = tuple(name for name in EVENT_COLUMNS if name not in _OTHER_COLUMNS)
"""The columns of events that have nothing of OTHER_CLASSES, in the order of EVENT_COLUMNS."""


def insert_events(
    tx: PlatformTx, rows: Iterable[EventRow], first_id: str, last_id: str, meanwhile: Callable[[], None], *, is_text: bool
) -> None:
    """Insert new events, whose ids all lie between these two, while the rows are being made. `is_text`: none of them has anything of
    OTHER_CLASSES.

    `meanwhile` is called after the last row was made; the database may still be busy with the rows. Raises EventRace if an event is not
    new; then none is inserted, and the transaction goes on.
    """
    columns = TEXT_COLUMNS if is_text else EVENT_COLUMNS
    try:
        if tx.connection.dialect.name == "sqlite":
            insert_prepared(tx, usage_events, columns, map(_text_columns, rows) if is_text else (row.columns() for row in rows))
            meanwhile()
        else:
            # Into the month's own partition, where the server stores page by page instead of row by row.
            partition = find_partition(tx, first_id, last_id)
            lines = map(_text_line if is_text else _event_line, rows)
            if partition is not None:
                copy_lines(tx, partition, columns, lines, meanwhile)
            else:
                _copy_aside(tx, columns, lines, meanwhile)
    except Duplicate as error:
        raise EventRace from error


def _copy_aside(tx: PlatformTx, names: Sequence[str], lines: Iterable[str], meanwhile: Callable[[], None]) -> None:
    """Insert events of several months through a table that ends with the transaction: the table of all months takes no COPY, because it
    has row security. Raises Duplicate."""
    run, columns = tx.connection.exec_driver_sql, ", ".join(names)
    run("CREATE TEMPORARY TABLE IF NOT EXISTS incoming_events (LIKE usage_events) ON COMMIT DROP")
    run("TRUNCATE incoming_events")
    copy_lines(tx, "incoming_events", names, lines, meanwhile)
    try:
        with tx.connection.begin_nested():
            run(f"INSERT INTO usage_events ({columns}) SELECT {columns} FROM incoming_events")
    except sa.exc.IntegrityError as error:
        if getattr(error.orig, "sqlstate", None) == UNIQUE_VIOLATION:
            raise Duplicate from error
        raise


def _event_line(row: EventRow) -> str:
    """Return a row as a line for `copy_lines`. All text is visible ASCII: the collector validates it."""
    event_id, seq, admitted_at, first_at, ended_at, used, amounts, period_at, hashed, template = astuple(row)
    if "\\" in event_id:
        event_id = event_id.replace("\\", r"\\")
    return _ALL_LINE % (
        event_id,
        seq,
        admitted_at,
        NULL if first_at is None else first_at,
        ended_at,
        *_count_columns(used, amounts, NULL),
        period_at,
        hashed.hex(),
        template.line,
    )


def _text_line(row: EventRow) -> str:
    """Return what `_event_line` does, of TEXT_COLUMNS."""
    event_id, seq, admitted_at, first_at, ended_at, used, amounts, period_at, hashed, template = astuple(row)
    if "\\" in event_id:
        event_id = event_id.replace("\\", r"\\")
    return _TEXT_LINE % (
        event_id,
        seq,
        admitted_at,
        NULL if first_at is None else first_at,
        ended_at,
        used.input,
        used.cached_input,
        used.output,
        used.reasoning,
        amounts.input,
        amounts.cached_input,
        amounts.output,
        amounts.reasoning,
        amounts.request,
        period_at,
        hashed.hex(),
        template.line,
    )


def _text_columns(row: EventRow) -> tuple[Any, ...]:
    """Return the values of TEXT_COLUMNS."""
    event_id, seq, admitted_at, first_at, ended_at, used, amounts, period_at, hashed, template = astuple(row)
    counts = (*used.text_quantities(), *amounts.text_quantities(), amounts.request)
    return (event_id, seq, admitted_at, first_at, ended_at, *counts, period_at, hashed, *template.values)


_NAMES = usage_events.c.keys()
_QUANTITIES = slice(_NAMES.index(QUANTITY_CLASSES[0]), _NAMES.index(QUANTITY_CLASSES[-1]) + 1)
_AMOUNTS = slice(_NAMES.index(AMOUNT_COLUMNS[0]), _NAMES.index(AMOUNT_COLUMNS[-1]) + 1)
"""The places of quantities and of amounts in a row of the table: one slice costs a tenth of fourteen names."""

assert (*_NAMES[_QUANTITIES], *_NAMES[_AMOUNTS]) == (*QUANTITY_CLASSES, *AMOUNT_COLUMNS), "the columns stand in the order of the classes"


def _read_counts(values: Sequence[Any]) -> Quantities:
    """Return quantities or amounts from their columns, that of the request last, in which null stands for nothing."""
    input, cached_input, output, reasoning, *other, request = values
    if not any(other):
        return Quantities(input, cached_input, output, reasoning, request)
    return Quantities.from_values(value or 0 for value in values)


def read_event(row: Any) -> UsageEvent:
    """An event from a row with all columns of the table."""
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
        price_hash=row.price_hash,
        outcome_policy=row.outcome_policy,
        service_tier=ServiceTier(row.service_tier),
        test=row.test,
        choices=row.choices,
    )
    final = Final(
        admit=admit,
        outcome=Outcome(row.outcome),
        used=_read_counts((*row[_QUANTITIES], 0)),
        source=UsageSource(row.source),
        ended_at=row.ended_at,
        deployment_id=row.deployment_id,
        attempts=row.attempts,
        first_token_at=row.first_token_at,
        error=row.error,
        anomaly=None if row.anomaly is None else Anomaly(row.anomaly),
    )
    return UsageEvent(
        node_id=row.node_id,
        epoch=row.epoch,
        seq=row.seq,
        final=final,
        content_hash=row.content_hash,
        amounts=_read_counts(row[_AMOUNTS]),
        period_at=row.period_at,
    )


# ---- Reading ----------------------------------------------------------------------------------------------------------


def find_event(tx: TenantTx, request_id: str) -> UsageEvent | None:
    """The event of one of the organization's requests; None if it is unknown, another's, or not yet ingested."""
    query = sa.select(usage_events).where(usage_events.c.event_id == request_id, usage_events.c.organization_id == tx.organization_id)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else read_event(row)


@dataclass(frozen=True, slots=True)
class RequestPage:
    """Events, the latest first. `next_after`: the id behind which to go on; None at the end. It may be one that meets no condition."""

    events: list[UsageEvent]
    next_after: str | None


EXAMINED_MAX = 10_000
"""Events that one page is searched in. A condition that few requests meet then costs some tens of milliseconds a page, however long the
span is."""


def list_events(tx: TenantTx, period_starts: Sequence[int], wanted: RequestFilter, *, after: str | None, limit: int) -> RequestPage:
    """Return the latest of the organization's events that meet the conditions: at most `limit`, older than the request `after`, from the
    first EXAMINED_MAX that are in the span and booked in the periods that begin at `period_starts`."""
    table, conditions = usage_events.c, list(_conditions(wanted))
    end = ids.first_id(ids.REQUEST, wanted.until)
    end = end if after is None else min(end, after)
    span = [table.event_id >= ids.first_id(ids.REQUEST, wanted.since), table.event_id < end]
    own = [[table.organization_id == tx.organization_id, table.period_at == start_at] for start_at in period_starts]
    if not own:
        return RequestPage([], None)
    last = None
    if conditions:
        # The last one that is examined, found in the index alone; without conditions each one that is examined is on the page.
        ids_alone = [sa.select(table.event_id).where(*each, *span) for each in own]
        last = tx.connection.execute(_merge_latest(ids_alone, 1, offset=EXAMINED_MAX - 1)).scalar()
    if last is not None:
        span.append(table.event_id >= last)
    whole = [sa.select(usage_events).where(*each, *span, *conditions) for each in own]
    rows = tx.connection.execute(_merge_latest(whole, limit + 1)).all()
    if len(rows) > limit:
        return RequestPage([read_event(row) for row in rows[:limit]], rows[limit - 1].event_id)
    return RequestPage([read_event(row) for row in rows], last)


def _merge_latest(parts: Sequence[sa.Select[Any]], count: int, *, offset: int = 0) -> sa.CompoundSelect[Any]:
    """Return the latest `count` rows behind `offset` of several queries together. Databases merge them in the order of their index, and
    read no more than that."""
    return sa.union_all(*parts).order_by(sa.desc("event_id")).limit(count).offset(offset)


def _conditions(wanted: RequestFilter) -> Iterator[sa.ColumnElement[bool]]:
    table = usage_events.c
    named = (
        (table.project_id, wanted.project_ids),
        (table.key_id, wanted.key_ids),
        (table.model, wanted.models),
        (table.endpoint, wanted.endpoints),
        (table.outcome, wanted.outcomes),
    )
    yield from (column.in_(values) for column, values in named if values)


@dataclass(frozen=True, slots=True)
class BookedEvent:
    """An event with all that its correction needs: its price, its rated lines, the currency."""

    event: UsageEvent
    price: PriceVersion
    lines: list[RatedLine]
    currency: str


def find_booked_event(tx: PlatformTx, request_id: str) -> BookedEvent | None:
    """The event of a request of whatever organization; None if it is unknown or not yet ingested."""
    query = sa.select(usage_events).where(usage_events.c.event_id == request_id)
    row = tx.connection.execute(query).one_or_none()
    if row is None:
        return None
    event = read_event(row)
    price = stored_prices.find_prices(tx, [event.final.admit.price_version])[event.final.admit.price_version]
    return BookedEvent(event, price, rate(billed(event.final), price.unit_prices), price.currency)


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
    return [(event, rate(billed(event.final), prices[event.final.admit.price_version].unit_prices)) for event in events]


class Admission(NamedTuple):
    """Conditions under which events were admitted: the id of the price, the hash of price and terms, the version of the outcome policy."""

    price_version: str
    price_hash: str
    outcome_policy: int


def list_admissions(tx: Transaction, organization_id: str, period_at: int, event_ids: Sequence[str]) -> set[Admission]:
    """Return what the events of an organization were admitted under: those booked in the period that begins at `period_at`, and those of
    `event_ids`."""
    # Distinct by a scan of the period's events: 2 us for each on SQLite with 205,000 of them, where verifying one takes 120 us.
    table = usage_events.c
    query = sa.select(*(table[name] for name in Admission._fields)).where(table.organization_id == organization_id).distinct()
    found = list(tx.connection.execute(query.where(table.period_at == period_at)))
    if event_ids:
        found += tx.connection.execute(query.where(any_of(tx, table.event_id, event_ids)))
    return {Admission(*row) for row in found}


def list_anomalies(tx: PlatformTx, window: PageWindow, *, kind: Anomaly | None, deployment_id: str | None) -> Page[UsageEvent]:
    """The events whose engine's report was not believed; the window's cursor is a request id."""
    query = sa.select(usage_events).where(usage_events.c.anomaly.is_not(None))
    if kind is not None:
        query = query.where(usage_events.c.anomaly == kind)
    if deployment_id is not None:
        query = query.where(usage_events.c.deployment_id == deployment_id)
    return fetch_page(tx, query, usage_events.c.event_id, window, read_event)


class CacheSum(NamedTuple):
    """Requests of one model at one price that cost something, with the input that an engine read from its prefix cache and that it wrote
    to one, in tokens. `events`: all that were counted, those that cost nothing too."""

    model: str
    price_version: str
    read_tokens: int
    written_tokens: int
    events: int


def iterate_cache_sums(tx: TenantTx, period: Period) -> Iterator[CacheSum]:
    """Yield the cached input of the events that are booked in a period. The same model and price can come again: a statement sums
    CACHE_EVENTS_SUMMED events, so that none reaches its deadline however many there are."""
    event = usage_events.c
    has_cost = sa.or_(*(event[f"{each}_pico"] > 0 for each in BillingClass))
    read = sa.case((has_cost, event.cached_input), else_=0).label("read")
    written = sa.case((has_cost, sa.func.coalesce(event.cache_write, 0)), else_=0).label("written")
    own = sa.select(event.event_id, event.model, event.price_version, read, written).where(
        event.organization_id == tx.organization_id, event.period_at == period.start_at
    )
    after, events = "", CACHE_EVENTS_SUMMED
    while events == CACHE_EVENTS_SUMMED:
        part = own.where(event.event_id > after).order_by(event.event_id).limit(CACHE_EVENTS_SUMMED).subquery().c
        sums = (sa.func.sum(part.read).label("read"), sa.func.sum(part.written).label("written"))
        counted = (sa.func.count().label("events"), sa.func.max(part.event_id).label("last"))
        query = sa.select(part.model, part.price_version, *sums, *counted).group_by(part.model, part.price_version)
        rows = tx.connection.execute(query).all()
        for row in rows:
            yield CacheSum(row.model, row.price_version, int(row.read), int(row.written), row.events)
        events, after = sum(row.events for row in rows), max((row.last for row in rows), default="")


def find_rows(tx: PlatformTx, event_ids: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The rows of those of the events that are there, by id, in the order of EVENT_COLUMNS: for verification."""
    if not event_ids:
        return {}
    query = sa.select(*(usage_events.c[name] for name in EVENT_COLUMNS)).where(
        any_of(tx, usage_events.c.event_id, event_ids),
        usage_events.c.event_id >= min(event_ids),
        usage_events.c.event_id <= max(event_ids),
    )
    return {row[0]: tuple(row) for row in tx.connection.execute(query).all()}


def count_by_epoch(tx: PlatformTx) -> dict[tuple[str, int], int]:
    """Return the number of events of each node and epoch: for verification."""
    place = (usage_events.c.node_id, usage_events.c.epoch)
    rows = tx.connection.execute(sa.select(*place, sa.func.count().label("events")).group_by(*place))
    return {(row.node_id, row.epoch): row.events for row in rows}


def iterate_places(tx: PlatformTx, node_id: str, epoch: int) -> Iterator[tuple[int, str]]:
    """Seq and id of every event of an epoch, by seq: for verification, when something is wrong (it reads all events)."""
    query = sa.select(usage_events.c.seq, usage_events.c.event_id).where(usage_events.c.node_id == node_id, usage_events.c.epoch == epoch)
    ordered = query.order_by(usage_events.c.seq, usage_events.c.event_id).execution_options(yield_per=1000)
    for row in tx.connection.execute(ordered):
        yield row.seq, row.event_id
