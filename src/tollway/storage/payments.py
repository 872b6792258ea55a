"""Payments at rest: movements of money, what they settle, entries of bank statements, and dunning."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from tollway.domain.billing_parties import DunningAction
from tollway.domain.events import EventType, new_event
from tollway.domain.ledger import Entry
from tollway.domain.pages import Page, PageWindow
from tollway.domain.payments import (
    BankEntry,
    BankStatementRecord,
    DunningLetter,
    DunningNotice,
    Payment,
    PaymentKind,
    PaymentOrigin,
    ReturnedDebit,
    Settlement,
)
from tollway.storage import invoice_syncs, ledger, open_items, outbox
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.pages import fetch_page, split_ids
from tollway.storage.schema_payments import (
    bank_entries,
    bank_returns,
    bank_statements,
    dunning_holds,
    dunning_letters,
    dunning_notices,
    payments,
    settlements,
)
from tollway.storage.schema_payments import open_items as items

ROWS_FETCHED = 500
"""Rows that are read at once where there may be many."""

# ---- Payments -----------------------------------------------------------------------------------------------------------


def insert_payment(tx: PlatformTx, payment: Payment, entries: tuple[Entry, ...], now: int) -> None:
    """Store a payment and book it. The caller has seen to it that the entries sum to zero, and that it is not there."""
    ledger.post_entries(tx, [(payment.id, entries)], now)
    values = {**msgspec.structs.asdict(payment), "external_id": payment.external_id or None}
    tx.connection.execute(payments.insert(), [values])
    said = {"id": payment.id, "kind": str(payment.kind)}
    outbox.append(tx, [new_event(EventType.PAYMENT_RECORDED, payment.organization_id, at=payment.created_at, data=said)])


def find_payment(tx: Transaction, payment_id: str) -> Payment | None:
    """Return a payment of whatever organization that the transaction may see."""
    row = tx.connection.execute(sa.select(payments).where(payments.c.id == payment_id)).one_or_none()
    return None if row is None else _payment(row)


def find_by_external_id(tx: Transaction, external_id: str) -> Payment | None:
    """Return the payment that a bank calls so."""
    row = tx.connection.execute(sa.select(payments).where(payments.c.external_id == external_id)).one_or_none()
    return None if row is None else _payment(row)


def find_by_reference(tx: Transaction, organization_id: str, origin: PaymentOrigin, reference: str) -> Payment | None:
    """Return what an organization has paid from a source under a reference; None if nothing."""
    table = payments.c
    query = sa.select(payments).where(table.organization_id == organization_id, table.origin == origin, table.reference == reference)
    row = tx.connection.execute(query.where(table.kind == PaymentKind.PAYMENT).order_by(table.id)).first()
    return None if row is None else _payment(row)


def find_return(tx: Transaction, payment_id: str) -> Payment | None:
    """Return the return of a payment, if the bank took it back."""
    row = tx.connection.execute(sa.select(payments).where(payments.c.returns_id == payment_id)).one_or_none()
    return None if row is None else _payment(row)


def list_payments(tx: Transaction, window: PageWindow, *, organization_id: str | None) -> Page[Payment]:
    """Return payments in the order in which they were recorded, of everyone or of one organization."""
    query = sa.select(payments)
    if organization_id is not None:
        query = query.where(payments.c.organization_id == organization_id)
    return fetch_page(tx, query, payments.c.id, window, _payment)


def iterate_payments(tx: PlatformTx) -> Iterator[tuple[Payment, tuple[Entry, ...]]]:
    """Yield every payment with its entries: for verification."""
    query = sa.select(payments).order_by(payments.c.id).execution_options(yield_per=ROWS_FETCHED)
    for rows in tx.connection.execute(query).partitions():
        entries = ledger.list_entries(tx, [row.id for row in rows])
        for row in rows:
            yield _payment(row), entries.get(row.id, ())


def _payment(row: Any) -> Payment:
    return Payment(
        id=row.id,
        organization_id=row.organization_id,
        kind=PaymentKind(row.kind),
        amount_minor=row.amount_minor,
        currency=row.currency,
        value_on=row.value_on,
        origin=PaymentOrigin(row.origin),
        reference=row.reference,
        external_id=row.external_id or "",
        returns_id=row.returns_id,
        actor=row.actor,
        created_at=row.created_at,
    )


# ---- Settlements --------------------------------------------------------------------------------------------------------


def insert_settlements(tx: PlatformTx, organization_id: str, settled: Sequence[Settlement], now: int) -> None:
    """Store settlements of an organization, which must be locked. Connectors are asked at once about the invoices of which another amount
    is open now."""
    last = sa.select(sa.func.coalesce(sa.func.max(settlements.c.number), 0)).where(settlements.c.organization_id == organization_id)
    first = int(tx.connection.execute(last).scalar_one()) + 1
    rows = [
        {"organization_id": organization_id, "number": number, "settled_at": now, **msgspec.structs.asdict(each)}
        for number, each in enumerate(settled, first)
    ]
    if rows:
        tx.connection.execute(settlements.insert(), rows)
        invoice_syncs.wake(tx, {each.target_id for each in settled}, now)


def list_settlements_by(tx: Transaction, organization_id: str, source_ids: Iterable[str]) -> list[Settlement]:
    """Return what some sources of an organization gave, in the order in which they did."""
    return _list_settlements(tx, organization_id, settlements.c.source_id, source_ids)


def list_settlements_of(tx: Transaction, organization_id: str, target_ids: Iterable[str]) -> list[Settlement]:
    """Return what some targets of an organization took, in the order in which they did."""
    return _list_settlements(tx, organization_id, settlements.c.target_id, target_ids)


def _list_settlements(tx: Transaction, organization_id: str, column: sa.Column[str], ids: Iterable[str]) -> list[Settlement]:
    found: list[tuple[int, Settlement]] = []
    for some in split_ids(ids):
        query = sa.select(settlements).where(settlements.c.organization_id == organization_id, column.in_(some))
        found += [(row.number, _settlement(row)) for row in tx.connection.execute(query)]
    return [settled for _, settled in sorted(found, key=lambda each: each[0])]


def iterate_settlements(tx: PlatformTx) -> Iterator[tuple[str, Settlement]]:
    """Yield every settlement with its organization, in order: for verification."""
    query = sa.select(settlements).order_by(settlements.c.organization_id, settlements.c.number)
    for row in tx.connection.execute(query.execution_options(yield_per=ROWS_FETCHED)):
        yield row.organization_id, _settlement(row)


def _settlement(row: Any) -> Settlement:
    return Settlement(source_id=row.source_id, target_id=row.target_id, amount_minor=row.amount_minor)


# ---- Bank statements ----------------------------------------------------------------------------------------------------


def insert_statement(tx: PlatformTx, statement: BankStatementRecord) -> None:
    """Store that a bank statement was imported."""
    tx.connection.execute(bank_statements.insert().values(msgspec.structs.asdict(statement)))


def has_statement(tx: Transaction, iban: str, digest: str) -> bool:
    """Return whether a statement of an account was imported, by the digest of its content."""
    query = sa.select(bank_statements.c.id).where(bank_statements.c.iban == iban, bank_statements.c.digest == digest)
    return tx.connection.execute(query).one_or_none() is not None


def get_statement(tx: Transaction, statement_id: str) -> BankStatementRecord:
    """Return a statement that is there."""
    return BankStatementRecord(
        **tx.connection.execute(sa.select(bank_statements).where(bank_statements.c.id == statement_id)).one()._mapping
    )


def find_statement_before(tx: Transaction, iban: str, closing_on: str, opening_minor: int) -> BankStatementRecord | None:
    """Return the statement of an account that one follows which opens with a balance and closes on a day (YYYY-MM-DD): it closes with that
    balance on the same day, of which there can be several in whatever order, or on the last day before on which one closes."""
    table = bank_statements.c
    day_before = sa.select(sa.func.max(table.closing_on)).where(table.iban == iban, table.closing_on < closing_on).scalar_subquery()
    query = sa.select(bank_statements).where(table.iban == iban, table.closing_minor == opening_minor)
    query = query.where(sa.or_(table.closing_on == closing_on, table.closing_on == day_before))
    row = tx.connection.execute(query.order_by(table.closing_on.desc(), table.id.desc()).limit(1)).one_or_none()
    return None if row is None else BankStatementRecord(**row._mapping)


def has_statement_before(tx: Transaction, iban: str, closing_on: str, closing_minor: int) -> bool:
    """Return whether a statement of an account, of those that state their balances, comes before one that closes on a day with a balance:
    it closes on an earlier day, or on the same day and none of that day opens with the balance."""
    table = bank_statements.c
    of_day = sa.select(table.id).where(table.iban == iban, table.closing_on == closing_on)
    earlier = sa.select(table.id).where(table.iban == iban, table.closing_on < closing_on)
    if tx.connection.execute(earlier.limit(1)).first() is not None:
        return True
    follows = tx.connection.execute(of_day.where(table.opening_minor == closing_minor).limit(1)).first() is not None
    return not follows and tx.connection.execute(of_day.limit(1)).first() is not None


def iterate_statements(tx: PlatformTx) -> Iterator[BankStatementRecord]:
    """Yield every statement: for verification."""
    query = sa.select(bank_statements).order_by(bank_statements.c.id).execution_options(yield_per=ROWS_FETCHED)
    for row in tx.connection.execute(query):
        yield BankStatementRecord(**row._mapping)


def insert_entries(tx: PlatformTx, entries: Sequence[BankEntry]) -> None:
    """Store credits of a statement that are not there yet."""
    if entries:
        tx.connection.execute(bank_entries.insert(), [msgspec.structs.asdict(each) for each in entries])


def iterate_entries(tx: PlatformTx) -> Iterator[BankEntry]:
    """Yield every credit: for verification."""
    query = sa.select(bank_entries).order_by(bank_entries.c.id).execution_options(yield_per=ROWS_FETCHED)
    for row in tx.connection.execute(query):
        yield BankEntry(**row._mapping)


def insert_returned(tx: PlatformTx, returned: ReturnedDebit) -> None:
    """Store a returned debit."""
    tx.connection.execute(bank_returns.insert().values(msgspec.structs.asdict(returned)))


def has_returned(tx: Transaction, returned_id: str) -> bool:
    """Return whether a returned debit is stored."""
    return tx.connection.execute(sa.select(bank_returns.c.id).where(bank_returns.c.id == returned_id)).one_or_none() is not None


def list_returned_before(tx: Transaction, iban: str, paid: Payment, end_to_end_id: str) -> list[ReturnedDebit]:
    """Return the debits that came back to an account, by reference and amount those of a payment, which the bank has reported before the
    payment. The day of a return is not before that of its debit: an earlier one is of an earlier debit."""
    table = bank_returns.c
    query = sa.select(bank_returns).join(bank_statements, bank_statements.c.id == table.statement_id)
    query = query.where(table.payment_id.is_(None), table.end_to_end_id == end_to_end_id, table.value_on >= paid.value_on)
    query = query.where(sa.or_(table.amount_minor.is_(None), table.amount_minor == paid.amount_minor), bank_statements.c.iban == iban)
    return [ReturnedDebit(**row._mapping) for row in tx.connection.execute(query.order_by(table.value_on, table.id))]


def put_returned_payment(tx: PlatformTx, returned_id: str, payment_id: str) -> None:
    """Store which return of a payment was made of a returned debit."""
    tx.connection.execute(bank_returns.update().where(bank_returns.c.id == returned_id).values(payment_id=payment_id))


def iterate_returned(tx: PlatformTx) -> Iterator[ReturnedDebit]:
    """Yield every returned debit: for verification."""
    query = sa.select(bank_returns).order_by(bank_returns.c.id).execution_options(yield_per=ROWS_FETCHED)
    for row in tx.connection.execute(query):
        yield ReturnedDebit(**row._mapping)


def find_entry(tx: Transaction, entry_id: str) -> BankEntry | None:
    """Return a credit of a statement."""
    row = tx.connection.execute(sa.select(bank_entries).where(bank_entries.c.id == entry_id)).one_or_none()
    return None if row is None else BankEntry(**row._mapping)


def lock_entry(tx: PlatformTx, entry_id: str) -> BankEntry | None:
    """Return a credit of a statement under a lock that lasts to the end of the transaction."""
    row = tx.connection.execute(sa.select(bank_entries).where(bank_entries.c.id == entry_id).with_for_update()).one_or_none()
    return None if row is None else BankEntry(**row._mapping)


def list_entries(tx: Transaction, window: PageWindow) -> Page[BankEntry]:
    """Return the credits for which no payment was made yet, by id."""
    query = sa.select(bank_entries).where(bank_entries.c.payment_id.is_(None))
    return fetch_page(tx, query, bank_entries.c.id, window, lambda row: BankEntry(**row._mapping))


def put_entry_payment(tx: PlatformTx, entry_id: str, payment_id: str) -> None:
    """Store which payment was made of a credit."""
    tx.connection.execute(bank_entries.update().where(bank_entries.c.id == entry_id).values(payment_id=payment_id))


# ---- Dunning ------------------------------------------------------------------------------------------------------------


def read_json(tx: Transaction, column: sa.Column[str]) -> sa.ColumnElement[Any]:
    """Return a column of text as the JSON that it holds."""
    return sa.type_coerce(column, sa.JSON) if tx.connection.dialect.name == "sqlite" else sa.cast(column, sa.JSON)


def is_dunned() -> sa.ColumnElement[bool]:
    """Return the condition that an open item is an invoice that is not held."""
    is_held = sa.exists().where(dunning_holds.c.invoice_id == items.c.id)
    return sa.and_(*open_items.is_open_invoice(), ~is_held)


def list_overdue_ids(tx: PlatformTx, today: str, *, after: str, limit: int) -> list[str]:
    """Return open invoices that were due before a day (YYYY-MM-DD) and are not held, by id; those behind the id `after`."""
    query = sa.select(items.c.id).where(items.c.due_on < today, items.c.id > after, is_dunned())
    return list(tx.connection.execute(query.order_by(items.c.id).limit(limit)).scalars())


def insert_notice(tx: PlatformTx, organization_id: str, notice: DunningNotice) -> None:
    """Store that a step of dunning was taken; one that is there stays."""
    insert = tx.insert(dunning_notices).values(organization_id=organization_id, **msgspec.structs.asdict(notice))
    if tx.connection.execute(insert.on_conflict_do_nothing().returning(dunning_notices.c.step)).first() is not None:
        said = {"id": notice.invoice_id, "step": notice.step, "action": str(notice.action)}
        outbox.append(tx, [new_event(EventType.INVOICE_OVERDUE, organization_id, at=notice.noticed_at, data=said)])


def insert_letter(tx: PlatformTx, letter: DunningLetter) -> None:
    """Store that a letter is to be sent; one that is there stays."""
    tx.connection.execute(tx.insert(dunning_letters).values(msgspec.structs.asdict(letter)).on_conflict_do_nothing())


def list_letters(tx: PlatformTx, *, limit: int) -> list[DunningLetter]:
    """Return letters that are to be sent, those that failed least often at the top."""
    table = dunning_letters.c
    query = sa.select(dunning_letters).order_by(table.attempts, table.invoice_id, table.step).limit(limit)
    return [DunningLetter(**{**row._mapping, "action": DunningAction(row.action)}) for row in tx.connection.execute(query)]


def put_letter_attempts(tx: PlatformTx, letter: DunningLetter, attempts: int) -> None:
    """Store how often a letter failed."""
    tx.connection.execute(dunning_letters.update().where(*_is_letter(letter)).values(attempts=attempts))


def delete_letter(tx: PlatformTx, letter: DunningLetter) -> None:
    """Remove a letter that was sent, or is not to be sent."""
    tx.connection.execute(dunning_letters.delete().where(*_is_letter(letter)))


def _is_letter(letter: DunningLetter) -> tuple[sa.ColumnElement[bool], ...]:
    return dunning_letters.c.invoice_id == letter.invoice_id, dunning_letters.c.step == letter.step


def list_notices_of(tx: Transaction, invoice_id: str) -> list[DunningNotice]:
    """Return the steps of dunning that were taken for an invoice, in order."""
    query = sa.select(dunning_notices).where(dunning_notices.c.invoice_id == invoice_id).order_by(dunning_notices.c.step)
    return [_notice(row) for row in tx.connection.execute(query)]


def _notice(row: Any) -> DunningNotice:
    return DunningNotice(invoice_id=row.invoice_id, step=row.step, action=DunningAction(row.action), noticed_at=row.noticed_at)


def list_open_notices(tx: Transaction, window: PageWindow, organization_id: str | None) -> Page[DunningNotice]:
    """Return the steps of dunning that were taken for invoices that are open, of one organization or of all, by invoice and step. The id
    of one is `<invoice>/<step>`. Raises ValueError for a window behind anything else."""
    table = dunning_notices.c
    key = (table.invoice_id, table.step)
    query = sa.select(dunning_notices).join(items, items.c.id == table.invoice_id).where(*open_items.is_open_invoice())
    if organization_id is not None:
        query = query.where(items.c.organization_id == organization_id)
    if window.after is not None:
        invoice_id, _, step = window.after.rpartition("/")
        place, after = sa.tuple_(*key), sa.tuple_(sa.literal(invoice_id), sa.literal(int(step)))
        query = query.where(place < after if window.descending else place > after)
    ordered = query.order_by(*(each.desc() if window.descending else each for each in key))
    rows = tx.connection.execute(ordered.limit(window.limit + 1)).all()
    return Page([_notice(row) for row in rows[: window.limit]], len(rows) > window.limit)


def list_to_restrict(tx: Transaction, organization_id: str | None = None) -> list[str]:
    """Return the organizations, or the one if it is of them, that a step of dunning restricts: for an invoice that is open and not held."""
    query = sa.select(items.c.organization_id).join(dunning_notices, dunning_notices.c.invoice_id == items.c.id).distinct()
    query = query.where(dunning_notices.c.action == DunningAction.RESTRICT, is_dunned())
    if organization_id is not None:
        query = query.where(items.c.organization_id == organization_id)
    return sorted(tx.connection.execute(query).scalars())


def put_hold(tx: PlatformTx, organization_id: str, invoice_id: str, reason: str, now: int) -> None:
    """Store that an invoice is not dunned, and the reason, in place of an earlier one."""
    values = {"organization_id": organization_id, "reason": reason, "held_at": now}
    insert = tx.insert(dunning_holds).values(invoice_id=invoice_id, **values)
    tx.connection.execute(insert.on_conflict_do_update(index_elements=["invoice_id"], set_=values))


def delete_hold(tx: PlatformTx, invoice_id: str) -> None:
    """Store that an invoice is dunned again."""
    tx.connection.execute(dunning_holds.delete().where(dunning_holds.c.invoice_id == invoice_id))


def find_hold(tx: Transaction, invoice_id: str) -> str | None:
    """Return the reason for which an invoice is not dunned; None if it is."""
    return tx.connection.execute(sa.select(dunning_holds.c.reason).where(dunning_holds.c.invoice_id == invoice_id)).scalar_one_or_none()
