"""Every column of what banks and connectors have told, changed one at a time: `verify` finds it, or a list says why it does not matter.

On each database, without the guards of the database. What is changed in payments themselves is tried in `test_tampering`."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from tests.control.invoicing.parties import DEBTOR, SELLER, add_parties
from tests.control.invoicing.test_documents import draft, issue
from tests.control.invoicing.test_payments import GROSS, entry, next_id, statement, with_balances
from tests.control.metering.test_collect import take
from tests.control.money.test_periods import NOW, SEPTEMBER, close
from tests.control.verification.test_tampering import Books, attempt, change_text, copy_without_triggers, is_row, mutations
from tests.link.samples import ORGANIZATION, admit, final, frames
from tests.storage.databases import fill
from tollway.control.invoicing import credit_transfers, direct_debits, payments
from tollway.control.invoicing.payments import WantedPayment
from tollway.control.verification.payments import compare_payments
from tollway.control.verification.verify import verify
from tollway.domain.billing_classes import Quantities
from tollway.domain.connectors import Connector, InvoiceSync, SyncState
from tollway.domain.credit_transfers import Payee
from tollway.domain.payments import PaymentKind, PaymentOrigin
from tollway.domain.usage import Tick
from tollway.storage import invoice_syncs, schema_payments
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

TABLES = [
    schema_payments.bank_statements,
    schema_payments.bank_entries,
    schema_payments.bank_returns,
    schema_payments.direct_debits,
    schema_payments.direct_debit_files,
    schema_payments.credit_transfers,
    schema_payments.credit_transfer_files,
    schema_payments.invoice_syncs,
    schema_payments.payments,
    schema_payments.open_items,
]

WORDS = "no amount follows from it"
NEXT = "what is done next; what was done stands in payments"

HARMLESS = {
    "payments.(actor|created_at|organization_id|kind|returns_id)": "changed in test_tampering",
    "payments.reference of bank_statement": WORDS,
    "payments.(value_on|external_id) of stripe": "as Stripe told it, which has the other copy",
    "bank_statements.(name|digest|entries|actor|imported_at)": WORDS,
    "bank_statements.follows_id -> None": "a gap, as if the statement before were not there",
    "bank_entries.(debtor|text)": WORDS,
    "bank_returns.end_to_end_id": WORDS,
    "bank_returns.amount_minor -> None": "as if the bank had not told it from charges; the payment has it",
    "direct_debits.(debtor|sequence|mandate|mandate_reference|reason)": WORDS,
    "direct_debit_files.(legal_entity_id|collect_on|content|actor|created_at)": WORDS,
    "credit_transfers.(legal_entity_id|iban|bic|holder|text|reason)": WORDS,
    "credit_transfers.(outcome|file_id)": NEXT,
    "credit_transfer_files.id": "the orphans of all tables are looked for by verify",
    "credit_transfer_files.(legal_entity_id|execute_on|content|actor|created_at)": WORDS,
    "credit_transfer_files.(transfers|total_minor) more": "a transfer that was cancelled has left its file",
    "invoice_syncs.(attempts|next_at|problem|changed_at|version|connector)": NEXT,
}
"""Reasons why a change of a column, by a pattern of its name, does not matter if nobody finds it."""


def debited(amount: str, reference: str, more: str) -> str:
    details = f"<NtryDtls><TxDtls><Refs><EndToEndId>{reference}</EndToEndId></Refs>{more}</TxDtls></NtryDtls>"
    kind = "<CdtDbtInd>DBIT</CdtDbtInd><Sts><Cd>BOOK</Cd></Sts><ValDt><Dt>2026-12-17</Dt></ValDt>"
    return f"<Ntry><Amt Ccy='EUR'>{amount}</Amt>{kind}{details}</Ntry>"


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def books(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Books]:
    """Books in which a debit came back and was paid, a payment was paid back, and Stripe collected an invoice of 0.01."""
    directory = tmp_path_factory.mktemp("payments")
    archive = Archive(directory / "archive")
    with request.getfixturevalue(f"{request.param}_template").copied(directory) as url:
        database = Database.open(url)
        fill(database)
        add_payments(database, archive)
        assert verify(database, archive).differences == []
        unguarded = copy_without_triggers(database, directory / "unguarded.db") if database.is_sqlite else database
        yield Books(database, unguarded, archive)
        unguarded.close()
        database.close()


def add_payments(database: Database, archive: Archive) -> None:
    large = final(admit(1), used=Quantities(2_000_000_000))
    take(database, archive, frames([large.admit, large, Tick(at=SEPTEMBER.end_at)]))
    close(database, SEPTEMBER.start_at)
    add_parties(database, DEBTOR)
    (made,) = draft(database)
    invoice = issue(database, made.id)
    paid = entry("642.60", "debit", "C1").replace("<RltdPties>", "<Refs><EndToEndId>RE-2026-000001</EndToEndId></Refs><RltdPties>")
    reason = "<RtrInf><Rsn><Cd>AM04</Cd></Rsn></RtrInf>"
    amount = "<AmtDtls><InstdAmt><Amt Ccy='EUR'>642.60</Amt></InstdAmt></AmtDtls>"
    first = with_balances(statement(paid, entry("7.00", "of another", "U1"), name="S1"), "-100.00", "549.60")
    second = with_balances(statement(debited("645.60", "RE-2026-000001", amount + reason), name="S2"), "549.60", "-96.00")
    third = with_balances(statement(entry("700.00", "RE-2026-000001", "C2"), name="S3"), "-96.00", "604.00")
    with database.platform() as tx:
        direct_debits.collect(tx, SELLER.id, "2026-12-15", [], id=next_id("ddfile"), actor="key_1", now=NOW)
        for text in (first, second, third):
            (told,) = payments.import_statements(tx, text, new_id=next_id, actor="key_1", now=NOW)
            assert not told.is_gap
        wanted = WantedPayment(PaymentKind.REFUND, "57.40", None, "2026-12-02", "r", ())
        refund = payments.record_payment(tx, ORGANIZATION, wanted, id=next_id("pay"), actor="key_1", now=NOW)
        credit_transfers.put_payee(tx, refund.id, Payee(iban="DE02120300000000202051"))
        credit_transfers.make_file(tx, SELLER.id, "2026-12-15", id=next_id("ctfile"), actor="key_1", now=NOW)
        sync = InvoiceSync(
            invoice_id=invoice.id,
            organization_id=ORGANIZATION,
            connector=Connector.STRIPE,
            state=SyncState.SETTLED,
            external_id="in_1",
            changed_at=NOW,
        )
        invoice_syncs.insert_sync(tx, sync)
        told = payments.ExternalPayment(PaymentKind.PAYMENT, "stripe/pi_1", 1, "EUR", "2026-12-03", PaymentOrigin.STRIPE, "in_1")
        payments.record_external(tx, ORGANIZATION, told, [], id=next_id("pay"), actor="stripe", now=NOW)
    assert GROSS == 64_260


def is_harmless(column: sa.Column[Any], row: Any, value: Any) -> bool:
    was, name = getattr(row, column.name), str(column)
    named = [name, f"{name} -> {value}", f"{name} of {getattr(row, 'origin', None)}"]
    named += [f"{name} more"] if isinstance(value, int) and isinstance(was, int) and value > was else []
    return any(re.fullmatch(pattern, each) for pattern in HARMLESS for each in named)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_changed_column_is_found(books: Books, table: sa.Table) -> None:
    with books.database.platform(write=False) as tx:
        found = tx.connection.execute(sa.select(table).order_by(*table.primary_key)).all()
    if "payment_id" in table.c:  # what no payment was made of has no witness
        found = [row for row in found if row.payment_id is not None]
    if table is schema_payments.payments:
        found = [row for row in found if row.origin != PaymentOrigin.MANUAL]
    if table is schema_payments.bank_statements:  # one that follows another one
        found = [row for row in found if row.follows_id is not None]
    missed = []
    assert found
    for row in found:
        for column in table.c:
            was = getattr(row, column.name)
            is_text = was == "" or column.name in ("content", "mandate")
            for value in [change_text(was)] if is_text else mutations(column, was):
                if is_harmless(column, row, value):
                    continue
                with attempt(books, guarded=False) as tx:
                    try:
                        tx.connection.execute(table.update().where(is_row(table, row)).values({column.name: value}))
                    except sa.exc.DBAPIError:
                        continue
                    differences: list[tuple[str, str]] = []
                    compare_payments(tx, lambda table, text: differences.append((table, text)))  # noqa: B023
                if not differences:
                    missed.append(f"{column.name}: {was!r} -> {value!r}")
    assert "\n".join(missed) == ""


@pytest.mark.parametrize("table", TABLES[:3], ids=lambda table: table.name)
def test_a_row_that_is_missing_is_found(books: Books, table: sa.Table) -> None:
    with books.database.platform(write=False) as tx:
        row = tx.connection.execute(sa.select(table).order_by(*table.primary_key)).first()
    with attempt(books, guarded=False) as tx:
        tx.connection.execute(table.delete().where(is_row(table, row)))
        differences: list[str] = []
        compare_payments(tx, lambda table, text: differences.append(table))
        assert differences


def test_a_payment_that_is_changed_with_all_that_follows_from_it_is_found_by_the_statement(books: Books) -> None:
    """Amount, entries, balances and settlements of a payment are a euro less: nothing but the bank's word shows it."""
    table, settlements = schema_payments.payments, schema_payments.settlements
    with attempt(books, guarded=False) as tx:
        is_second = sa.and_(table.c.origin == PaymentOrigin.BANK_STATEMENT, table.c.amount_minor == 70_000)
        (id,) = tx.connection.execute(sa.select(table.c.id).where(is_second)).scalars()
        tx.connection.execute(table.update().where(is_second).values(amount_minor=69_900))
        is_refund = sa.and_(settlements.c.source_id == id, settlements.c.amount_minor == 5_740)
        tx.connection.execute(settlements.update().where(is_refund).values(amount_minor=5_640))
        differences: list[str] = []
        compare_payments(tx, lambda table, text: differences.append(table))
        assert "bank_entries" in differences
