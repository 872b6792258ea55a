"""Copies of usage that `bench.invoicing` makes: as the collector stores it, and billed to the same amounts."""

from pathlib import Path

import msgspec
import sqlalchemy as sa

from bench import invoicing
from bench.invoicing import START_AT, organization_id
from tollway.control.metering.retention import keep_months
from tollway.control.money.ledger import UNBILLED
from tollway.domain.invoices import Document, decode_document
from tollway.storage import ledger, schema_invoices, schema_money, usage_events
from tollway.storage import periods as stored_periods
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

COLLECTED, ORGANIZATIONS, EVENTS = 10, 30, 4


def test_an_organization_with_copied_usage_is_billed_as_the_one_that_it_was_copied_from(database: Database, tmp_path: Path) -> None:
    for _ in keep_months(database, now=START_AT, retention_months=0):
        pass
    invoicing.fill(database, ORGANIZATIONS)
    invoicing.take_events(database, Archive(tmp_path / "archive"), COLLECTED, EVENTS)
    invoicing.copy_usage(database, ORGANIZATIONS, COLLECTED)

    with database.platform(write=False) as tx:
        for number in range(ORGANIZATIONS):
            booked = ledger.sum_account(tx, [(organization_id(number), START_AT)], UNBILLED)
            events = usage_events.list_period_events(tx, organization_id(number), START_AT, limit=EVENTS + 1)
            assert len(events) == EVENTS
            assert sum(event.amounts.total for event, _ in events) == sum(booked.values()) > 0
            assert stored_periods.find_period_at(tx, organization_id(number), START_AT) is not None
        books = tx.connection.execute(sa.select(schema_money.balances.c.posted_pico)).scalars()
        assert sum(books) == 0

    invoicing.close_months(database, ORGANIZATIONS)
    invoicing.issue_invoices(database, ORGANIZATIONS)
    documents = _read_documents(database)
    for number in range(COLLECTED, ORGANIZATIONS):
        assert _bill(documents[number]) == _bill(documents[number % COLLECTED])


def _read_documents(database: Database) -> list[Document]:
    with database.platform(write=False) as tx:
        query = sa.select(schema_invoices.invoices.c.document).order_by(schema_invoices.invoices.c.organization_id)
        return [decode_document(text) for text in tx.connection.execute(query).scalars()]


def _bill(document: Document) -> object:
    return msgspec.to_builtins((document.lines, document.allowances, document.tax, document.totals))
