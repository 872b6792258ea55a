"""Open items at rest: issued invoices, credit notes and payments, with what is left of each.

An item has a row from its beginning on, and `left_minor` is what settlements have not taken from it: 0 once it is settled. Triggers of the
database keep it in the transaction that issues, pays or settles (migration 0150), so no process can leave it out, and nothing goes below
zero. Indexes have only what is left: what is open of an organization is found without its settled invoices, however many there are.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from tollway.domain.payments import OpenInvoice, OpenKind
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.pages import split_ids
from tollway.storage.schema_payments import open_items

ITEMS_FETCHED = 500
"""Items that one statement returns where there may be many."""

_TABLE = open_items.c
_IS_LEFT = _TABLE.left_minor > 0


class OpenItem(NamedTuple):
    """A row: an issued document or a payment that settles others. `left_minor`: in the smallest unit of its currency."""

    id: str
    organization_id: str
    legal_entity_id: str | None
    kind: OpenKind
    due_on: str | None
    left_minor: int


def find_open(tx: Transaction, invoice_id: str) -> int:
    """Return what is open of an invoice; 0 for one that is not issued, and for other documents."""
    query = sa.select(_TABLE.left_minor).where(_TABLE.id == invoice_id, *is_open_invoice())
    return tx.connection.execute(query).scalar_one_or_none() or 0


def read_open(tx: Transaction, organization_id: str, invoice_ids: Collection[str]) -> dict[str, int]:
    """Return what is open of those of an organization's invoices that are; the others are left out."""
    found: dict[str, int] = {}
    for some in split_ids(invoice_ids):
        query = sa.select(_TABLE.id, _TABLE.left_minor).where(_TABLE.id.in_(some), *_of(organization_id, OpenKind.INVOICE))
        found.update({row.id: row.left_minor for row in tx.connection.execute(query)})
    return found


def list_open(tx: Transaction, organization_id: str, *, after: str | None, limit: int) -> list[OpenInvoice]:
    """Return open invoices of an organization behind one of its invoices, the one that is due first at the top."""
    query = sa.select(_TABLE.id, _TABLE.left_minor).where(*_of(organization_id, OpenKind.INVOICE))
    if after is not None:
        due_on = sa.select(_TABLE.due_on).where(_TABLE.id == after, _TABLE.organization_id == organization_id).scalar_subquery()
        query = query.where(sa.tuple_(_TABLE.due_on, _TABLE.id) > sa.tuple_(due_on, sa.literal(after)))
    return [OpenInvoice(*row) for row in tx.connection.execute(query.order_by(_TABLE.due_on, _TABLE.id).limit(limit))]


def iterate_open(tx: Transaction, organization_id: str) -> Iterator[OpenInvoice]:
    """Yield the open invoices of an organization, the one that is due first at the top."""
    after: str | None = None
    while page := list_open(tx, organization_id, after=after, limit=ITEMS_FETCHED):
        yield from page
        after = page[-1].id


def list_sources(tx: Transaction, organization_id: str) -> list[tuple[str, int]]:
    """Return what is left of the sources of an organization: of credit notes, then of payments, each the oldest first."""
    query = sa.select(_TABLE.id, _TABLE.left_minor).where(_TABLE.organization_id == organization_id, _IS_LEFT)
    query = query.where(_TABLE.kind.in_([OpenKind.CREDIT_NOTE, OpenKind.PAYMENT]))
    return [(row.id, row.left_minor) for row in tx.connection.execute(query.order_by(_TABLE.kind, _TABLE.due_on, _TABLE.id))]


def sum_open(tx: Transaction, organization_id: str) -> tuple[int, int]:
    """Return what is open of an organization's invoices together, and its balance: what is left of its sources."""
    is_invoice = sa.case((_TABLE.kind == OpenKind.INVOICE, 1), else_=0)
    query = sa.select(is_invoice, sa.func.sum(_TABLE.left_minor)).where(_TABLE.organization_id == organization_id, _IS_LEFT)
    sums = {bool(row[0]): int(row[1]) for row in tx.connection.execute(query.group_by(is_invoice))}
    return sums.get(True, 0), sums.get(False, 0)


def _of(organization_id: str, kind: OpenKind) -> Sequence[sa.ColumnElement[bool]]:
    return _TABLE.organization_id == organization_id, _TABLE.kind == kind, _IS_LEFT


def is_open_invoice() -> Sequence[sa.ColumnElement[bool]]:
    """Return the conditions of rows that are invoices of which something is open."""
    return _TABLE.kind == OpenKind.INVOICE, _IS_LEFT


def iterate_items(tx: PlatformTx) -> Iterator[OpenItem]:
    """Yield every item, by id: for verification."""
    query = sa.select(open_items).order_by(_TABLE.id).execution_options(yield_per=ITEMS_FETCHED)
    for row in tx.connection.execute(query):
        yield _item(row)


def _item(row: Any) -> OpenItem:
    return OpenItem(**{**row._mapping, "kind": OpenKind(row.kind)})
