"""Payments at rest: movements of money, what they settle, entries of bank statements, and dunning."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from tollway.domain.billing_parties import DunningAction
from tollway.domain.events import EventType, new_event
from tollway.domain.invoices import InvoiceKind, InvoiceState
from tollway.domain.ledger import Entry
from tollway.domain.pages import Page, PageWindow
from tollway.domain.payments import BankEntry, DunningLetter, DunningNotice, Payment, PaymentKind, PaymentOrigin, Settlement
from tollway.storage import invoice_syncs, ledger, outbox
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema_invoices import invoices
from tollway.storage.schema_payments import (
    bank_entries,
    bank_statements,
    dunning_holds,
    dunning_letters,
    dunning_notices,
    payments,
    settlements,
)

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


def list_settlements(tx: Transaction, organization_id: str) -> list[Settlement]:
    """Return the settlements of an organization in their order."""
    query = sa.select(settlements).where(settlements.c.organization_id == organization_id).order_by(settlements.c.number)
    return [_settlement(row) for row in tx.connection.execute(query)]


def sum_given(tx: Transaction, source_ids: Iterable[str]) -> Mapping[str, int]:
    """Return what sources have given, by source; those that gave nothing are left out."""
    return _sum(tx, settlements.c.source_id, source_ids)


def sum_taken(tx: Transaction, target_ids: Iterable[str]) -> Mapping[str, int]:
    """Return what targets have taken, by target; those that took nothing are left out."""
    return _sum(tx, settlements.c.target_id, target_ids)


def _sum(tx: Transaction, column: sa.Column[str], ids: Iterable[str]) -> Mapping[str, int]:
    query = sa.select(column.label("id"), sa.func.sum(settlements.c.amount_minor).label("minor"))
    rows = tx.connection.execute(query.where(column.in_(list(ids))).group_by(column))
    return {row.id: int(row.minor) for row in rows}


def iterate_settlements(tx: PlatformTx) -> Iterator[tuple[str, Settlement]]:
    """Yield every settlement with its organization, in order: for verification."""
    query = sa.select(settlements).order_by(settlements.c.organization_id, settlements.c.number)
    for row in tx.connection.execute(query.execution_options(yield_per=ROWS_FETCHED)):
        yield row.organization_id, _settlement(row)


def _settlement(row: Any) -> Settlement:
    return Settlement(source_id=row.source_id, target_id=row.target_id, amount_minor=row.amount_minor)


# ---- Bank statements ----------------------------------------------------------------------------------------------------


class StatementRow(NamedTuple):
    """A bank statement that was imported."""

    id: str
    iban: str
    name: str
    digest: str
    entries: int
    actor: str
    imported_at: int


def insert_statement(tx: PlatformTx, statement: StatementRow) -> None:
    """Store that a bank statement was imported."""
    tx.connection.execute(bank_statements.insert().values(statement._asdict()))


def has_statement(tx: Transaction, iban: str, digest: str) -> bool:
    """Return whether a statement of an account was imported, by the digest of its content."""
    query = sa.select(bank_statements.c.id).where(bank_statements.c.iban == iban, bank_statements.c.digest == digest)
    return tx.connection.execute(query).one_or_none() is not None


def insert_entry(tx: PlatformTx, entry: BankEntry) -> None:
    """Store an entry that no invoice was found for; one that is there stays."""
    tx.connection.execute(tx.insert(bank_entries).values(msgspec.structs.asdict(entry)).on_conflict_do_nothing())


def find_entry(tx: Transaction, entry_id: str) -> BankEntry | None:
    """Return such an entry."""
    row = tx.connection.execute(sa.select(bank_entries).where(bank_entries.c.id == entry_id)).one_or_none()
    return None if row is None else BankEntry(**row._mapping)


def lock_entry(tx: PlatformTx, entry_id: str) -> BankEntry | None:
    """Return such an entry under a lock that lasts to the end of the transaction."""
    row = tx.connection.execute(sa.select(bank_entries).where(bank_entries.c.id == entry_id).with_for_update()).one_or_none()
    return None if row is None else BankEntry(**row._mapping)


def list_entries(tx: Transaction, window: PageWindow) -> Page[BankEntry]:
    """Return the entries for which no payment was made yet, by id."""
    query = sa.select(bank_entries).where(bank_entries.c.payment_id.is_(None))
    return fetch_page(tx, query, bank_entries.c.id, window, lambda row: BankEntry(**row._mapping))


def put_entry_payment(tx: PlatformTx, entry_id: str, payment_id: str) -> None:
    """Store which payment was made of an entry."""
    tx.connection.execute(bank_entries.update().where(bank_entries.c.id == entry_id).values(payment_id=payment_id))


# ---- Dunning ------------------------------------------------------------------------------------------------------------


def _is_dunned(tx: Transaction) -> sa.ColumnElement[bool]:
    """Return the condition that an invoice is issued, not settled, and not held."""
    is_sqlite = tx.connection.dialect.name == "sqlite"
    encoded = sa.type_coerce(invoices.c.document, sa.JSON) if is_sqlite else sa.cast(invoices.c.document, sa.JSON)
    gross_minor = sa.cast(encoded[("totals", "gross_minor")].as_string(), sa.BigInteger)
    taken_minor = sa.select(sa.func.coalesce(sa.func.sum(settlements.c.amount_minor), 0)).where(settlements.c.target_id == invoices.c.id)
    return sa.and_(
        invoices.c.state == InvoiceState.ISSUED,
        invoices.c.kind == InvoiceKind.INVOICE,
        invoices.c.id.not_in(sa.select(dunning_holds.c.invoice_id)),
        gross_minor > taken_minor.scalar_subquery(),
    )


def list_overdue_ids(tx: PlatformTx, today: str, *, after: str, limit: int) -> list[str]:
    """Return open invoices that were due before a day (YYYY-MM-DD) and are not held, by id; those behind the id `after`."""
    query = sa.select(invoices.c.id).where(invoices.c.due_on < today, invoices.c.id > after, _is_dunned(tx))
    return list(tx.connection.execute(query.order_by(invoices.c.id).limit(limit)).scalars())


def list_issued(tx: Transaction, organization_id: str) -> list[tuple[str, InvoiceKind, str]]:
    """Return the issued documents of an organization, by due date and id: id, kind and canonical document of each."""
    columns = (invoices.c.id, invoices.c.kind, invoices.c.document)
    query = sa.select(*columns).where(invoices.c.organization_id == organization_id, invoices.c.state == InvoiceState.ISSUED)
    rows = tx.connection.execute(query.order_by(invoices.c.due_on, invoices.c.id))
    return [(row.id, InvoiceKind(row.kind), row.document) for row in rows]


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


def list_dunned(tx: Transaction) -> list[str]:
    """Return the organizations for which any step of dunning was taken."""
    return list(tx.connection.execute(sa.select(dunning_notices.c.organization_id).distinct()).scalars())


def list_to_restrict(tx: Transaction, organization_id: str | None = None) -> list[str]:
    """Return the organizations, or the one if it is of them, that a step of dunning restricts: for an invoice that is open and not held."""
    query = sa.select(invoices.c.organization_id).join(dunning_notices, dunning_notices.c.invoice_id == invoices.c.id)
    query = query.where(dunning_notices.c.action == DunningAction.RESTRICT, _is_dunned(tx))
    if organization_id is not None:
        query = query.where(invoices.c.organization_id == organization_id)
    return sorted(set(tx.connection.execute(query).scalars()))


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
