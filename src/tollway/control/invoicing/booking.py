"""Booking of issued documents: a transaction for each, whose id derives from the document, so that it is booked once."""

from tollway.control.money.ledger import PLATFORM
from tollway.domain.ids import TRANSACTION, derive_id
from tollway.domain.invoices import Document, list_movements
from tollway.domain.ledger import Account, Entry


def issue_id(invoice_id: str, issued_at: int) -> str:
    """Return the id of the transaction of a document that was issued at an instant."""
    return derive_id(TRANSACTION, issued_at, f"invoice/{invoice_id}")


def entries_of(document: Document) -> tuple[Entry, ...]:
    """Return the entries that a document books: the organization owes its gross amount, in place of what was unbilled."""
    return tuple(
        Entry(Account(document.organization_id if each.is_own else PLATFORM, each.account, document.currency), each.amount_pico)
        for each in list_movements(document)
    )
