"""A row that was changed in the database stops every export that has it, with what each side comes to; on each database, without its
guards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.control.invoicing.parties import ENTITY_ID, add_parties
from tests.control.invoicing.test_documents import draft, issue
from tests.control.invoicing.test_exports import set_bookkeeping
from tests.control.metering.test_collect import take
from tests.control.money.test_periods import SEPTEMBER, close
from tests.control.verification.test_tampering import Books, copy_without_triggers
from tests.link.samples import ORGANIZATION, admit, final, frames
from tests.storage.databases import become_owner, fill
from tollway.control.invoicing import books as seller_books
from tollway.control.invoicing import documents, focus_export, pdf
from tollway.control.metering.period_exports import write_closed
from tollway.domain.billing_classes import Quantities
from tollway.domain.faults import Fault
from tollway.domain.usage import Tick
from tollway.storage import schema_invoices, schema_money
from tollway.storage.database import Database
from tollway.storage.invoices import StoredInvoice
from tollway.storage.parquet_files import UsageFiles
from tollway.storage.record_archive import Archive

INVOICES, FILES, ENTRIES, EVENTS = (
    schema_invoices.invoices,
    schema_invoices.invoice_files,
    schema_money.ledger_entries,
    schema_money.usage_events,
)

DOCUMENT = {"focus of the provider", "focus of the tenant", "books and DATEV", "json", "pdf", "ubl", "cii"}
"""Exports of an issued document."""

USAGE = {"focus of the provider", "focus of the tenant", "parquet"}
"""Exports of what was used."""


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def books(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Books]:
    """Books with a closed month, an invoice of 642.60 EUR for it, and a seller that has its books kept in DATEV."""
    directory = tmp_path_factory.mktemp("exports")
    archive = Archive(directory / "archive")
    with request.getfixturevalue(f"{request.param}_template").copied(directory) as url:
        database = Database.open(url)
        fill(database)
        large = final(admit(1), used=Quantities(2_000_000_000))
        take(database, archive, frames([large.admit, large, Tick(at=SEPTEMBER.end_at)]))
        close(database, SEPTEMBER.start_at)
        add_parties(database)
        set_bookkeeping(database)
        issue(database, draft(database)[0].id)
        unguarded = copy_without_triggers(database, directory / "unguarded.db") if database.is_sqlite else database
        yield Books(database, unguarded, archive)
        unguarded.close()
        database.close()


def export_all(database: Database, directory: Path) -> dict[str, str]:
    """Try every export. Return the reason of each that is refused."""
    with database.platform(write=False) as tx:
        invoice_id = tx.connection.execute(sa.select(INVOICES.c.id)).scalar_one()
    refused: dict[str, str] = {}

    def attempt(name: str, export: Callable[[Any, StoredInvoice], object], *, is_own: bool = False) -> None:
        try:
            if is_own:
                with database.tenant(ORGANIZATION, write=False) as tx:
                    export(tx, documents.get_own_invoice(tx, invoice_id))
            else:
                with database.platform(write=False) as platform:
                    export(platform, documents.get_invoice(platform, invoice_id))
        except Fault as fault:
            refused[name] = fault.message

    def read(format: str) -> Callable[[Any, StoredInvoice], object]:
        return lambda tx, invoice: (documents.read_document(tx, invoice), documents.read_file(tx, invoice, format))

    attempt("focus of the provider", lambda tx, invoice: list(focus_export.write(tx, invoice, is_daily=True)))
    attempt("focus of the tenant", lambda tx, invoice: list(focus_export.write(tx, invoice, is_daily=False)), is_own=True)
    attempt("books and DATEV", lambda tx, _: seller_books.export(tx, ENTITY_ID, "2026-12"))
    attempt("pdf", lambda tx, invoice: pdf.render(documents.read_document(tx, invoice)), is_own=True)
    for format in (documents.CANONICAL, documents.UBL, documents.CII):
        attempt(format, read(format))
    files = UsageFiles(directory)
    files.put_position(0)
    for line in write_closed(database, files, SEPTEMBER.end_at, lambda: False):
        if line["event"] != "usage_period_written":
            refused["parquet"] = str(line["detail"])
    return refused


@contextmanager
def changed(database: Database, table: sa.Table, row: sa.ColumnElement[bool], column: str, change: Callable[[Any], Any]) -> Iterator[None]:
    """Change a column of a row as somebody with all rights would, and change it back."""
    with database.platform(write=False) as tx:
        before = tx.connection.execute(sa.select(table.c[column]).where(row)).scalar_one()

    def put(value: Any) -> None:
        with database.platform() as tx:
            if not database.is_sqlite:
                become_owner(tx)
                tx.connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
            assert tx.connection.execute(table.update().where(row).values({column: value})).rowcount == 1

    put(change(before))
    try:
        yield
    finally:
        put(before)


def add(pico: int) -> Callable[[int], int]:
    return lambda before: before + pico


def replace(old: str, new: str) -> Callable[[Any], Any]:
    def change(text: Any) -> Any:
        assert text.count(old) >= 1, old
        return text.replace(old, new)

    return change


def test_what_is_as_it_was_issued_is_exported(books: Books, tmp_path: Path) -> None:
    assert export_all(books.unguarded, tmp_path) == {}


@pytest.mark.parametrize(
    ("table", "row", "column", "change", "refused", "said"),
    [
        (ENTRIES, ENTRIES.c.account_id.like("%/receivable/%"), "amount_pico", add(10**10), DOCUMENT, ("642.60", "642.61")),
        (ENTRIES, ENTRIES.c.account_id.like("%/vat_payable%"), "amount_pico", add(-(10**10)), DOCUMENT, ("-102.61", "vat_payable")),
        (INVOICES, sa.true(), "document", replace('"gross_minor":64260', '"gross_minor":64261'), DOCUMENT, ("642.60", "642.61")),
        (INVOICES, sa.true(), "document", replace('minor":54000,"number"', 'minor":54001,"number"'), DOCUMENT, ("642.61", "642.60")),
        (INVOICES, sa.true(), "document", replace("PO-77", "PO-78"), DOCUMENT, ("digest",)),
        (INVOICES, sa.true(), "document", lambda text: text[:-1], DOCUMENT, ("cannot be read",)),
        (FILES, FILES.c.format == "ubl", "content", lambda content: bytes(content) + b" ", {"ubl"}, ("digest",)),
        (EVENTS, sa.true(), "input_pico", add(-270), USAGE, ("540", "539.99")),
    ],
    ids=["receivable", "tax", "payable", "line", "text", "form", "file", "event"],
)  # fmt: skip
def test_a_changed_row_is_exported_by_nothing(
    books: Books, tmp_path: Path, table: sa.Table, row: Any, column: str, change: Any, refused: set[str], said: tuple[str, ...]
) -> None:
    with changed(books.unguarded, table, row, column, change):
        found = export_all(books.unguarded, tmp_path)
    assert found.keys() == refused
    assert all(each in reason for reason in found.values() for each in said), found
    assert export_all(books.unguarded, tmp_path) == {}
