"""Booking of issued documents: a transaction for each, whose id derives from the document, so that it is booked once."""

import hashlib

from tollway.control.money.ledger import PLATFORM
from tollway.domain.ids import TRANSACTION
from tollway.domain.invoices import Document, list_movements
from tollway.domain.ledger import Account, Entry


def transaction_id(cause: str, at: int) -> str:
    """Return the id of a transaction: the millisecond of an instant, so that ids sort by time, and 80 bits of a SHA-256 over the cause."""
    return f"{TRANSACTION}_{at // 1000 & 0xFFFF_FFFF_FFFF:012x}{hashlib.sha256(cause.encode()).hexdigest()[:20]}"


def issue_id(invoice_id: str, issued_at: int) -> str:
    """Return the id of the transaction of a document that was issued at an instant."""
    return transaction_id(f"invoice/{invoice_id}", issued_at)


def entries_of(document: Document) -> tuple[Entry, ...]:
    """Return the entries that a document books: the organization owes its gross amount, in place of what was unbilled."""
    return tuple(
        Entry(Account(document.organization_id if each.is_own else PLATFORM, each.account, document.currency), each.amount_pico)
        for each in list_movements(document)
    )
