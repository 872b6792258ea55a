"""Standing of invoices at their connectors, at rest."""

from collections.abc import Collection, Iterator
from typing import Any

import msgspec
import sqlalchemy as sa

from tollway.domain.connectors import Connector, InvoiceSync, SyncState
from tollway.domain.invoices import InvoiceState
from tollway.domain.pages import Page, PageWindow
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema_invoices import invoices
from tollway.storage.schema_payments import invoice_syncs

ROWS_FETCHED = 500
"""Rows that are read at once where there may be many."""


def insert_sync(tx: PlatformTx, sync: InvoiceSync) -> None:
    """Store that a connector is to collect an invoice."""
    tx.connection.execute(invoice_syncs.insert().values(msgspec.structs.asdict(sync)))


def find_sync(tx: Transaction, invoice_id: str) -> InvoiceSync | None:
    """Return the standing of an invoice at its connector; None if it has no connector."""
    row = tx.connection.execute(sa.select(invoice_syncs).where(invoice_syncs.c.invoice_id == invoice_id)).one_or_none()
    return None if row is None else _sync(row)


def find_by_external_id(tx: Transaction, connector: Connector, external_id: str) -> InvoiceSync | None:
    """Return the standing of the invoice that a connector calls so."""
    table = invoice_syncs.c
    row = tx.connection.execute(sa.select(invoice_syncs).where(table.connector == connector, table.external_id == external_id)).first()
    return None if row is None else _sync(row)


def replace_sync(tx: PlatformTx, old: InvoiceSync, new: InvoiceSync) -> bool:
    """Store a new standing in place of the one that was read; return whether nothing had changed it meanwhile."""
    values = {**msgspec.structs.asdict(new), "version": old.version + 1}
    table = invoice_syncs.c
    update = invoice_syncs.update().where(table.invoice_id == old.invoice_id, table.version == old.version).values(values)
    return tx.connection.execute(update).rowcount == 1


def wake(tx: PlatformTx, invoice_ids: Collection[str], now: int) -> None:
    """Have connectors asked at once about those of these invoices that they have or are getting, also about parked ones."""
    table = invoice_syncs.c
    is_there = sa.and_(table.invoice_id.in_(invoice_ids), table.state.in_([SyncState.ISSUING_SYNC, SyncState.PAYMENT_PENDING]))
    values = {"attempts": 0, "next_at": now, "problem": "", "changed_at": now, "version": table.version + 1}
    tx.connection.execute(invoice_syncs.update().where(is_there).values(values))


def list_due(tx: PlatformTx, now: int, *, limit: int) -> list[InvoiceSync]:
    """Return invoices for which a connector is to be asked by now, but for voided drafts: who waits for longest at the top."""
    query = (
        sa.select(invoice_syncs)
        .join(invoices, invoices.c.id == invoice_syncs.c.invoice_id)
        .where(invoice_syncs.c.next_at <= now, invoices.c.state != InvoiceState.VOID)
        .order_by(invoice_syncs.c.next_at, invoice_syncs.c.invoice_id)
    )
    return [_sync(row) for row in tx.connection.execute(query.limit(limit))]


def iterate_syncs(tx: PlatformTx) -> Iterator[InvoiceSync]:
    """Yield the standing of every invoice that has a connector: for verification."""
    query = sa.select(invoice_syncs).order_by(invoice_syncs.c.invoice_id).execution_options(yield_per=ROWS_FETCHED)
    for row in tx.connection.execute(query):
        yield _sync(row)


def list_syncs(tx: PlatformTx, window: PageWindow, *, organization_id: str | None) -> Page[InvoiceSync]:
    """Return the invoices that have a connector, by invoice, of everyone or of one organization."""
    query = sa.select(invoice_syncs)
    if organization_id is not None:
        query = query.where(invoice_syncs.c.organization_id == organization_id)
    return fetch_page(tx, query, invoice_syncs.c.invoice_id, window, _sync)


def _sync(row: Any) -> InvoiceSync:
    return InvoiceSync(**{**row._mapping, "connector": Connector(row.connector), "state": SyncState(row.state)})
