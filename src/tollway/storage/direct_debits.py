"""Files of direct debits and their debits, at rest."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from tollway.domain.direct_debits import Debit, DebitFile, DebitOutcome, Mandate, SequenceType
from tollway.domain.pages import Page, PageWindow
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.payments import ROWS_FETCHED, is_dunned, read_json
from tollway.storage.schema_invoices import invoices
from tollway.storage.schema_payments import direct_debit_files, direct_debits, open_items

FILES_FETCHED = 20
"""Files that are read at once where there may be many: each has about a megabyte at most."""


class Candidate(NamedTuple):
    """An open invoice that says that it is collected. `document`: its canonical document. `open_minor`: what of it is open."""

    id: str
    organization_id: str
    document: str
    open_minor: int


def list_candidates(tx: PlatformTx, entity_id: str, collect_on: str, invoice_ids: Collection[str], *, limit: int) -> list[Candidate]:
    """Return the invoices of a seller that are open, not held, due by a day and to be collected, and of which no debit is under way; of
    `invoice_ids` alone, if any are named. Those that are due first are at the top."""
    item = open_items.c
    is_under_way = sa.exists().where(direct_debits.c.outcome == DebitOutcome.OPEN, direct_debits.c.invoice_id == item.id)
    query = (
        sa.select(item.id, item.organization_id, invoices.c.document, item.left_minor)
        .join(invoices, invoices.c.id == item.id)
        .where(
            item.legal_entity_id == entity_id,
            item.due_on <= collect_on,
            is_dunned(),
            ~is_under_way,
            read_json(tx, invoices.c.document)[("direct_debit", "mandate_reference")].as_string().is_not(None),
        )
    )
    if invoice_ids:
        query = query.where(item.id.in_(invoice_ids))
    return [Candidate(*row) for row in tx.connection.execute(query.order_by(item.due_on, item.id).limit(limit))]


def insert_file(tx: PlatformTx, file: DebitFile, debits: Sequence[Debit]) -> None:
    """Store a file with its debits."""
    tx.connection.execute(direct_debit_files.insert().values(msgspec.structs.asdict(file)))
    rows = [
        {**msgspec.structs.asdict(each), "mandate": msgspec.json.encode(each.mandate).decode(), "mandate_reference": each.mandate.reference}
        for each in debits
    ]
    tx.connection.execute(direct_debits.insert(), rows)


def find_file(tx: Transaction, file_id: str) -> DebitFile | None:
    """Return a file."""
    row = tx.connection.execute(sa.select(direct_debit_files).where(direct_debit_files.c.id == file_id)).one_or_none()
    return None if row is None else DebitFile(**row._mapping)


def list_files(tx: PlatformTx, window: PageWindow) -> Page[DebitFile]:
    """Return files in the order in which they were made."""
    return fetch_page(tx, sa.select(direct_debit_files), direct_debit_files.c.id, window, lambda row: DebitFile(**row._mapping))


def list_debits(tx: Transaction, file_id: str) -> list[Debit]:
    """Return the debits of a file, by invoice."""
    query = sa.select(direct_debits).where(direct_debits.c.file_id == file_id).order_by(direct_debits.c.invoice_id)
    return [_debit(row) for row in tx.connection.execute(query)]


def iterate_debits(tx: PlatformTx) -> Iterator[Debit]:
    """Yield every debit: for verification."""
    query = sa.select(direct_debits).order_by(direct_debits.c.file_id, direct_debits.c.invoice_id)
    for row in tx.connection.execute(query.execution_options(yield_per=ROWS_FETCHED)):
        yield _debit(row)


def iterate_files(tx: PlatformTx) -> Iterator[DebitFile]:
    """Yield every file: for verification."""
    query = sa.select(direct_debit_files).order_by(direct_debit_files.c.id).execution_options(yield_per=FILES_FETCHED)
    for row in tx.connection.execute(query):
        yield DebitFile(**row._mapping)


def count_outcomes(tx: Transaction, file_ids: Collection[str]) -> Mapping[str, Mapping[DebitOutcome, int]]:
    """Return how many debits of each file have which outcome."""
    table = direct_debits.c
    query = (
        sa.select(table.file_id, table.outcome, sa.func.count()).where(table.file_id.in_(file_ids)).group_by(table.file_id, table.outcome)
    )
    counts: dict[str, dict[DebitOutcome, int]] = {}
    for file_id, outcome, count in tx.connection.execute(query):
        counts.setdefault(file_id, {})[DebitOutcome(outcome)] = count
    return counts


def list_by_reference(tx: Transaction, end_to_end_id: str, entity_ids: Collection[str]) -> list[Debit]:
    """Return the debits of some sellers that have a reference, the newest at the top."""
    table = direct_debits.c
    query = sa.select(direct_debits).join(direct_debit_files, direct_debit_files.c.id == table.file_id)
    query = query.where(table.end_to_end_id == end_to_end_id, direct_debit_files.c.legal_entity_id.in_(entity_ids))
    return [_debit(row) for row in tx.connection.execute(query.order_by(table.file_id.desc()))]


def list_uses(tx: Transaction, entity_id: str, references: Collection[str]) -> Mapping[str, str]:
    """Return the day of the last collection by each of some mandates of a seller, by their references; cancelled ones do not count."""
    table = direct_debits.c
    query = sa.select(table.mandate_reference, sa.func.max(direct_debit_files.c.collect_on))
    query = query.join(direct_debit_files, direct_debit_files.c.id == table.file_id)
    query = query.where(direct_debit_files.c.legal_entity_id == entity_id, table.mandate_reference.in_(references))
    query = query.where(table.outcome != DebitOutcome.CANCELLED).group_by(table.mandate_reference)
    return {row[0]: row[1] for row in tx.connection.execute(query)}


def find_used(tx: Transaction, entity_id: str, reference: str) -> Mandate | None:
    """Return a mandate of a seller as it was last used; None if it was not."""
    table = direct_debits.c
    query = sa.select(table.mandate).join(direct_debit_files, direct_debit_files.c.id == table.file_id)
    query = query.where(direct_debit_files.c.legal_entity_id == entity_id, table.mandate_reference == reference)
    query = query.where(table.outcome != DebitOutcome.CANCELLED).order_by(table.file_id.desc()).limit(1)
    found = tx.connection.execute(query).scalar_one_or_none()
    return None if found is None else msgspec.json.decode(found, type=Mandate)


def list_returned(tx: Transaction, invoice_ids: Collection[str]) -> Mapping[str, str]:
    """Return those of some invoices of which the bank returned a debit, with the reason of the last one."""
    table = direct_debits.c
    query = sa.select(table.invoice_id, table.reason).where(table.invoice_id.in_(invoice_ids), table.outcome == DebitOutcome.RETURNED)
    return {row.invoice_id: row.reason for row in tx.connection.execute(query.order_by(table.file_id))}


def put_paid(tx: PlatformTx, invoice_id: str, end_to_end_id: str, amount_minor: int, payment_id: str) -> bool:
    """Store that a debit of an invoice that is under way was paid, if reference and amount are its own; return whether there is one."""
    table = direct_debits.c
    update = direct_debits.update().where(table.invoice_id == invoice_id, table.outcome == DebitOutcome.OPEN)
    update = update.where(table.end_to_end_id == end_to_end_id, table.amount_minor == amount_minor)
    return tx.connection.execute(update.values(outcome=DebitOutcome.PAID, payment_id=payment_id)).rowcount == 1


def put_returned(tx: PlatformTx, payment_id: str, reason: str) -> None:
    """Store that the bank returned the debit of a payment, if it is one."""
    update = direct_debits.update().where(direct_debits.c.payment_id == payment_id)
    tx.connection.execute(update.values(outcome=DebitOutcome.RETURNED, reason=reason))


def cancel(tx: PlatformTx, file_id: str, invoice_ids: Collection[str]) -> int:
    """Store that the debits of a file that are under way are not collected; of `invoice_ids` alone, if any are named. Returns how many."""
    table = direct_debits.c
    update = direct_debits.update().where(table.file_id == file_id, table.outcome == DebitOutcome.OPEN)
    if invoice_ids:
        update = update.where(table.invoice_id.in_(invoice_ids))
    return tx.connection.execute(update.values(outcome=DebitOutcome.CANCELLED)).rowcount


def _debit(row: Any) -> Debit:
    fields = dict(row._mapping)
    del fields["mandate_reference"]
    changed = {
        "sequence": SequenceType(row.sequence),
        "outcome": DebitOutcome(row.outcome),
        "mandate": msgspec.json.decode(row.mandate, type=Mandate),
    }
    return Debit(**{**fields, **changed})
