"""Invoices at rest: documents from draft to issue, their numbers and files, and what they book.

`take_number` locks the row of its series to the end of the transaction. A transaction that is rolled back gives its number back, and no
other one can have taken a later number meanwhile: numbers have no gaps.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from tollway.domain.billing_classes import BillingClass
from tollway.domain.events import EventType, new_event
from tollway.domain.invoices import InvoiceKind, InvoiceState
from tollway.domain.ledger import Entry
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import Period, PeriodState
from tollway.storage import ledger, outbox
from tollway.storage.bulk_statements import any_of
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.pages import fetch_page, split_ids
from tollway.storage.schema_credits import credit_draws, credit_grants
from tollway.storage.schema_invoices import billing_accounts, invoice_files, invoice_transactions, invoices, legal_entities, number_series
from tollway.storage.schema_money import ledger_transactions, usage_events
from tollway.storage.schema_periods import billing_periods, usage_adjustments

DAY_US = 86_400_000_000

EVENTS_SUMMED = 20_000
"""Events that one statement sums."""

ROWS_FETCHED = 500
"""Rows that are read at once where there may be many."""


class Issue(msgspec.Struct, frozen=True, kw_only=True):
    """The record of issuing a document: its number in its series, and who issued it."""

    series: str
    number: int
    digest: str
    issued_at: int
    issued_by: str
    due_on: str


class StoredInvoice(msgspec.Struct, frozen=True, kw_only=True):
    """A document with its state. `document`: its canonical encoding. `issue_at`: when a draft is issued without an approval."""

    id: str
    organization_id: str
    legal_entity_id: str
    period_id: str | None
    corrects_id: str | None
    cancels: bool
    kind: InvoiceKind
    state: InvoiceState
    document: str
    created_at: int
    issue_at: int | None = None
    voided_at: int | None = None
    issue: Issue | None = None


# ---- Documents ----------------------------------------------------------------------------------------------------------


def insert_draft(tx: PlatformTx, draft: StoredInvoice) -> None:
    """Store a new draft."""
    tx.connection.execute(
        invoices.insert().values(
            id=draft.id,
            organization_id=draft.organization_id,
            legal_entity_id=draft.legal_entity_id,
            period_id=draft.period_id,
            corrects_id=draft.corrects_id,
            cancels=draft.cancels,
            kind=draft.kind,
            state=InvoiceState.DRAFT,
            document=draft.document,
            created_at=draft.created_at,
            issue_at=draft.issue_at,
        )
    )
    said = {"id": draft.id, "organization_id": draft.organization_id}
    outbox.append(tx, [new_event(EventType.INVOICE_DRAFTED, None, at=draft.created_at, data=said)])


def void_draft(tx: PlatformTx, invoice_id: str, now: int) -> None:
    """Store that a draft is never issued."""
    void = invoices.update().where(invoices.c.id == invoice_id).values(state=InvoiceState.VOID, voided_at=now)
    owner = tx.connection.execute(void.returning(invoices.c.organization_id)).scalar_one()
    said = {"id": invoice_id, "organization_id": owner}
    outbox.append(tx, [new_event(EventType.INVOICE_VOIDED, None, at=now, data=said)])


def put_issued(tx: PlatformTx, invoice_id: str, document: str, issue: Issue) -> None:
    """Store that a draft was issued as this document."""
    stored = (
        invoices.update()
        .where(invoices.c.id == invoice_id)
        .values(state=InvoiceState.ISSUED, document=document, **msgspec.structs.asdict(issue))
    )
    owner = tx.connection.execute(stored.returning(invoices.c.organization_id)).scalar_one()
    said = {"id": invoice_id, "series": issue.series, "number": issue.number, "due_on": issue.due_on}
    outbox.append(tx, [new_event(EventType.INVOICE_ISSUED, owner, at=issue.issued_at, data=said)])


def take_number(tx: PlatformTx, legal_entity_id: str, series: str) -> int:
    """Return the next number of a series, under a lock that lasts to the end of the transaction."""
    table = number_series.c
    insert = tx.insert(number_series).values(legal_entity_id=legal_entity_id, series=series, last_number=0)
    tx.connection.execute(insert.on_conflict_do_nothing())
    of_series = (table.legal_entity_id == legal_entity_id, table.series == series)
    query = sa.select(table.last_number).where(*of_series).with_for_update()
    number = int(tx.connection.execute(query).scalar_one()) + 1
    tx.connection.execute(number_series.update().where(*of_series).values(last_number=number))
    return number


def find_invoice(tx: Transaction, invoice_id: str) -> StoredInvoice | None:
    """Return a document of whatever organization that the transaction may see."""
    row = tx.connection.execute(sa.select(invoices).where(invoices.c.id == invoice_id)).one_or_none()
    return None if row is None else _invoice(row)


def find_documents(tx: Transaction, invoice_ids: Collection[str]) -> dict[str, str]:
    """Return the canonical documents of those ids that there are."""
    found: dict[str, str] = {}
    for some in split_ids(invoice_ids):
        query = sa.select(invoices.c.id, invoices.c.document).where(invoices.c.id.in_(some))
        found.update({row.id: row.document for row in tx.connection.execute(query)})
    return found


def lock_invoice(tx: PlatformTx, invoice_id: str) -> StoredInvoice | None:
    """Return a document under a lock that lasts to the end of the transaction."""
    row = tx.connection.execute(sa.select(invoices).where(invoices.c.id == invoice_id).with_for_update()).one_or_none()
    return None if row is None else _invoice(row)


def list_numbered(tx: Transaction, series: str, number: int, legal_entity_ids: Sequence[str]) -> list[StoredInvoice]:
    """Return the documents of some legal entities that have a number of a series: each of them gives its own."""
    table = invoices.c
    query = sa.select(invoices).where(table.legal_entity_id.in_(legal_entity_ids), table.series == series, table.number == number)
    return [_invoice(row) for row in tx.connection.execute(query.order_by(table.id))]


def list_invoices(tx: Transaction, window: PageWindow, *, organization_id: str | None, state: InvoiceState | None) -> Page[StoredInvoice]:
    """Return documents in the order in which they were made, of everyone or of one organization."""
    query = sa.select(invoices)
    if organization_id is not None:
        query = query.where(invoices.c.organization_id == organization_id)
    if state is not None:
        query = query.where(invoices.c.state == state)
    return fetch_page(tx, query, invoices.c.id, window, _invoice)


def list_of_period(tx: Transaction, period_id: str) -> list[StoredInvoice]:
    """Return the documents that bill a period and are not void, by id."""
    query = sa.select(invoices).where(invoices.c.period_id == period_id, invoices.c.state != InvoiceState.VOID).order_by(invoices.c.id)
    return [_invoice(row) for row in tx.connection.execute(query)]


def list_corrections_of(tx: Transaction, invoice_id: str) -> list[StoredInvoice]:
    """Return the documents that correct another one and are not void, by id."""
    query = sa.select(invoices).where(invoices.c.corrects_id == invoice_id, invoices.c.state != InvoiceState.VOID).order_by(invoices.c.id)
    return [_invoice(row) for row in tx.connection.execute(query)]


def list_due_drafts(tx: PlatformTx, now: int, *, after: str, limit: int) -> list[str]:
    """Return drafts after an id whose grace period is over, by id: the oldest first, and what corrects a document after it."""
    query = sa.select(invoices.c.id).where(invoices.c.state == InvoiceState.DRAFT, invoices.c.issue_at <= now, invoices.c.id > after)
    return list(tx.connection.execute(query.order_by(invoices.c.id).limit(limit)).scalars())


class UnbilledPeriod(msgspec.Struct, frozen=True, kw_only=True):
    """A closed period that no document bills, of an organization whose seller has a grace period, which it got at `automatic_since`.
    `usage_pico`, `contracts_pico`: what its usage comes to, and what contracts add. `adjustments`: corrections that are booked in it."""

    id: str
    end_at: int
    usage_pico: int
    contracts_pico: int
    adjustments: int
    automatic_since: int


def list_unbilled_periods(tx: PlatformTx, *, after: str, limit: int) -> list[UnbilledPeriod]:
    """Return closed periods after an id that no document bills yet of organizations whose seller has a grace period, by id: the oldest
    first."""
    billed = sa.select(invoices.c.id).where(invoices.c.period_id == billing_periods.c.id)  # void ones too: a person decided so
    period = billing_periods.c
    query = (
        sa.select(period.id, period.end_at, period.amounts, period.adjustments, legal_entities.c.details)
        .join(billing_accounts, billing_accounts.c.organization_id == period.organization_id)
        .join(legal_entities, legal_entities.c.id == billing_accounts.c.legal_entity_id)
        .where(
            legal_entities.c.grace_days.is_not(None),
            period.state == PeriodState.CLOSED,
            sa.or_(period.events > 0, period.adjustments > 0, period.contracts_digest.is_not(None)),
            period.id > after,
            ~sa.exists(billed),
        )
    )
    return [
        UnbilledPeriod(
            id=row.id,
            end_at=row.end_at,
            usage_pico=sum(map(int, json.loads(row.amounts).get("usage", {}).values())),
            contracts_pico=int(json.loads(row.amounts).get("contracts", 0)),
            adjustments=row.adjustments,
            automatic_since=json.loads(row.details).get("automatic_since", 0),
        )
        for row in tx.connection.execute(query.order_by(period.id).limit(limit))
    ]


def list_issued(tx: PlatformTx, legal_entity_id: str, issued: range, *, limit: int) -> list[StoredInvoice]:
    """Return documents of a seller that were issued in a time (UTC microseconds), in the order of their issue; at most so many."""
    query = (
        sa.select(invoices)
        .where(invoices.c.legal_entity_id == legal_entity_id, invoices.c.state == InvoiceState.ISSUED)
        .where(invoices.c.issued_at >= issued.start, invoices.c.issued_at < issued.stop)
        .order_by(invoices.c.issued_at, invoices.c.id)
    )
    return [_invoice(row) for row in tx.connection.execute(query.limit(limit))]


def iterate_invoices(tx: PlatformTx) -> Iterator[StoredInvoice]:
    """Yield every document by legal entity, series and number, then those without: for verification."""
    order = (invoices.c.legal_entity_id, invoices.c.series, invoices.c.number, invoices.c.id)
    for row in tx.connection.execute(sa.select(invoices).order_by(*order).execution_options(yield_per=ROWS_FETCHED)):
        yield _invoice(row)


def list_series_of(tx: Transaction, legal_entity_ids: Sequence[str]) -> set[str]:
    """Return the series in which some legal entities have given numbers, also those that they have left for another one."""
    query = sa.select(number_series.c.series).where(number_series.c.legal_entity_id.in_(legal_entity_ids))
    return set(tx.connection.scalars(query))


def list_series(tx: PlatformTx) -> dict[tuple[str, str], int]:
    """Return the last number that was given, by legal entity and series."""
    return {(row.legal_entity_id, row.series): row.last_number for row in tx.connection.execute(sa.select(number_series))}


def _invoice(row: Any) -> StoredInvoice:
    issue = None
    if row.number is not None:
        issue = Issue(
            series=row.series,
            number=row.number,
            digest=row.digest,
            issued_at=row.issued_at,
            issued_by=row.issued_by,
            due_on=row.due_on,
        )
    return StoredInvoice(
        id=row.id,
        organization_id=row.organization_id,
        legal_entity_id=row.legal_entity_id,
        period_id=row.period_id,
        corrects_id=row.corrects_id,
        cancels=row.cancels,
        kind=InvoiceKind(row.kind),
        state=InvoiceState(row.state),
        document=row.document,
        created_at=row.created_at,
        issue_at=row.issue_at,
        voided_at=row.voided_at,
        issue=issue,
    )


# ---- Files --------------------------------------------------------------------------------------------------------------


class InvoiceFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was made of an issued document."""

    invoice_id: str
    format: str
    content: bytes
    digest: str


def insert_file(tx: PlatformTx, file: InvoiceFile, now: int) -> None:
    """Store a file; another process may have stored one of the format already, which then stays."""
    insert = tx.insert(invoice_files).values(**msgspec.structs.asdict(file), created_at=now)
    tx.connection.execute(insert.on_conflict_do_nothing())


def find_file(tx: Transaction, invoice_id: str, format: str) -> InvoiceFile | None:
    """Return the file of a document in a format."""
    table = invoice_files.c
    row = tx.connection.execute(sa.select(invoice_files).where(table.invoice_id == invoice_id, table.format == format)).one_or_none()
    return None if row is None else _file(row)


def iterate_files(tx: PlatformTx) -> Iterator[InvoiceFile]:
    """Yield every file: for verification."""
    query = sa.select(invoice_files).order_by(invoice_files.c.invoice_id, invoice_files.c.format)
    for row in tx.connection.execute(query.execution_options(yield_per=50)):
        yield _file(row)


def _file(row: Any) -> InvoiceFile:
    return InvoiceFile(invoice_id=row.invoice_id, format=row.format, content=bytes(row.content), digest=row.digest)


# ---- What is billed -----------------------------------------------------------------------------------------------------


class EventSum(msgspec.Struct, frozen=True, kw_only=True):
    """Sum of the events of a period that have the same model, tier and price, by billing class, in pico-currency. `is_late`: they ended
    before the period. `first_at`, `last_at`: when the first and the last of those that cost something ended; None if none does."""

    is_late: bool
    model: str
    service_tier: str
    price_version: str
    amounts: dict[str, int]
    first_at: int | None
    last_at: int | None


def iterate_event_sums(tx: Transaction, period: Period) -> Iterator[EventSum]:
    """Yield what the events of a period come to. The same key can come again."""
    for row in _iterate_sums(tx, period, {}):
        yield _event_sum(row)


class ProjectSum(msgspec.Struct, frozen=True, kw_only=True):
    """Sum of the events of one project and one UTC day (since 1970-01-01)."""

    project_id: str
    day: int
    events: EventSum


def iterate_project_sums(tx: Transaction, period: Period) -> Iterator[ProjectSum]:
    """Yield what the events of a period come to, by project and UTC day. The same key can come again."""
    for row in _iterate_sums(tx, period, {"project_id": usage_events.c.project_id, "day": usage_events.c.ended_at // DAY_US}):
        yield ProjectSum(project_id=row.project_id, day=int(row.day), events=_event_sum(row))


def _iterate_sums(tx: Transaction, period: Period, keys: Mapping[str, sa.ColumnElement[Any]]) -> Iterator[Any]:
    """Yield rows of sums, by `keys` beside those of an EventSum. A statement sums EVENTS_SUMMED events, so that none reaches its deadline
    however many there are."""
    event = usage_events.c
    costs = [event[f"{each}_pico"].label(f"{each}_pico") for each in BillingClass]
    late = sa.case((event.ended_at < period.start_at, 1), else_=0).label("late")
    has_cost = sa.or_(*(event[f"{each}_pico"] > 0 for each in BillingClass))
    charged_at = sa.case((has_cost, event.ended_at)).label("charged_at")
    columns = (event.event_id, event.model, event.service_tier, event.price_version, charged_at, late, *costs)
    columns += tuple(key.label(name) for name, key in keys.items())
    own = sa.select(*columns).where(event.organization_id == period.organization_id, event.period_at == period.start_at)
    after, events = "", EVENTS_SUMMED
    while events == EVENTS_SUMMED:
        part = own.where(event.event_id > after).order_by(event.event_id).limit(EVENTS_SUMMED).subquery().c
        key = (part.late, part.model, part.service_tier, part.price_version, *(part[name] for name in keys))
        sums = [sa.func.sum(part[f"{each}_pico"]).label(f"{each}_pico") for each in BillingClass]
        spans = (sa.func.min(part.charged_at).label("first_at"), sa.func.max(part.charged_at).label("last_at"))
        counted = (sa.func.count().label("events"), sa.func.max(part.event_id).label("last"))
        rows = tx.connection.execute(sa.select(*key, *sums, *spans, *counted).group_by(*key)).all()
        yield from rows
        events, after = sum(row.events for row in rows), max((row.last for row in rows), default="")


def _event_sum(row: Any) -> EventSum:
    return EventSum(
        is_late=bool(row.late),
        model=row.model,
        service_tier=row.service_tier,
        price_version=row.price_version,
        amounts={str(each): int(pico) for each in BillingClass if (pico := row._mapping[f"{each}_pico"])},
        first_at=row.first_at,
        last_at=row.last_at,
    )


class Correction(msgspec.Struct, frozen=True, kw_only=True):
    """A correction that is booked in a period. `target_at`: the start of the period in which its request is booked; None if that is not
    kept any more."""

    model: str
    amount_pico: int
    target_at: int | None


def iterate_corrections(tx: Transaction, period: Period) -> Iterator[Correction]:
    """Yield the corrections that are booked in a period, by id."""
    booked = ledger_transactions.c
    query = (
        sa.select(usage_adjustments.c.model, usage_adjustments.c.amount_pico, usage_events.c.period_at)
        .join_from(ledger_transactions, usage_adjustments, usage_adjustments.c.id == booked.adjustment_id)
        .join(usage_events, usage_events.c.event_id == usage_adjustments.c.event_id, isouter=True)
        .where(booked.organization_id == period.organization_id, booked.period_at == period.start_at)
        .order_by(usage_adjustments.c.id)
    )
    for row in tx.connection.execute(query.execution_options(yield_per=ROWS_FETCHED)):
        yield Correction(model=row.model, amount_pico=row.amount_pico, target_at=row.period_at)


def find_standing(tx: Transaction, organization_id: str, period_at: int) -> StoredInvoice | None:
    """Return the invoice for the usage of the period that begins at `period_at`, if there is one that is neither void nor cancelled."""
    cancelling = invoices.alias()
    is_cancelled = sa.exists().where(
        cancelling.c.corrects_id == invoices.c.id, cancelling.c.cancels.is_(True), cancelling.c.state == InvoiceState.ISSUED
    )
    query = (
        sa.select(invoices)
        .join(billing_periods, billing_periods.c.id == invoices.c.period_id)
        .where(
            billing_periods.c.organization_id == organization_id,
            billing_periods.c.start_at == period_at,
            invoices.c.corrects_id.is_(None),
            invoices.c.kind == InvoiceKind.INVOICE,
            invoices.c.state != InvoiceState.VOID,
            ~is_cancelled,
        )
    )
    row = tx.connection.execute(query.order_by(invoices.c.id).limit(1)).one_or_none()
    return None if row is None else _invoice(row)


# ---- Transactions -------------------------------------------------------------------------------------------------------


class InvoiceTransaction(msgspec.Struct, frozen=True, kw_only=True):
    """The transaction of an issued document."""

    id: str
    organization_id: str
    invoice_id: str
    booked_at: int


def post(tx: PlatformTx, transaction: InvoiceTransaction, entries: tuple[Entry, ...], now: int) -> None:
    """Book the transaction of a document with its entries, and move the balances. The caller has seen to it that they sum to zero."""
    if entries:  # one that credit covers to the pico moves nothing
        ledger.post_entries(tx, [(transaction.id, entries)], now)
    tx.connection.execute(invoice_transactions.insert(), [msgspec.structs.asdict(transaction)])


def list_transactions(tx: Transaction, invoice_ids: Sequence[str]) -> dict[str, tuple[InvoiceTransaction, tuple[Entry, ...]]]:
    """Return the transactions of documents with their entries, by document."""
    query = sa.select(invoice_transactions).where(any_of(tx, invoice_transactions.c.invoice_id, list(invoice_ids)))
    rows = tx.connection.execute(query).all()
    entries = ledger.list_entries(tx, [row.id for row in rows])
    return {row.invoice_id: (_transaction(row), entries.get(row.id, ())) for row in rows}


def iterate_transactions(tx: PlatformTx) -> Iterator[tuple[InvoiceTransaction, tuple[Entry, ...]]]:
    """Yield the transaction of every document with its entries: for verification."""
    query = sa.select(invoice_transactions).order_by(invoice_transactions.c.id).execution_options(yield_per=ROWS_FETCHED)
    for rows in tx.connection.execute(query).partitions():
        entries = ledger.list_entries(tx, [row.id for row in rows])
        for row in rows:
            yield _transaction(row), entries.get(row.id, ())


def _transaction(row: Any) -> InvoiceTransaction:
    return InvoiceTransaction(id=row.id, organization_id=row.organization_id, invoice_id=row.invoice_id, booked_at=row.booked_at)


def list_burned(tx: Transaction, organization_id: str, period_at: int) -> Sequence[tuple[str, int]]:
    """Return the credit that the usage of a period burned, with the category of each grant: provisional until the period is closed."""
    query = (
        sa.select(credit_grants.c.category, credit_draws.c.drawn_pico)
        .join(credit_grants, credit_grants.c.id == credit_draws.c.grant_id)
        .where(credit_draws.c.organization_id == organization_id, credit_draws.c.period_at == period_at, credit_draws.c.drawn_pico != 0)
        .order_by(credit_grants.c.id)
    )
    return [(row.category, row.drawn_pico) for row in tx.connection.execute(query)]
