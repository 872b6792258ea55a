"""The check of an issued document before any export of it: what its lines come to is what it asks for, and what the ledger has.

A document that was changed in the database is not exported, neither as a file, nor as rows for FOCUS, nor in the books of its seller. The
answer has the sums, so that a person sees which one is another. `tollway verify` computes the document again; this compares what is stored.
"""

from collections.abc import Iterable, Sequence

from msgspec import DecodeError

from tollway.control.invoicing.booking import entries_of
from tollway.domain.currencies import get_currency
from tollway.domain.faults import STATE_CONFLICT, Fault
from tollway.domain.invoices import RECEIVABLE, Document, InvoiceKind, decode_document, digest_document, find_step
from tollway.domain.ledger import Entry
from tollway.domain.money import format_amount, format_minor
from tollway.storage import invoices as stored
from tollway.storage.database import Transaction
from tollway.storage.invoices import InvoiceFile, InvoiceTransaction, StoredInvoice

Booked = tuple[InvoiceTransaction, Sequence[Entry]]
"""The transaction of a document with its entries."""


def read_issued(tx: Transaction, invoice: StoredInvoice) -> Document:
    """Return an issued document that is as it was issued and booked. Raises STATE_CONFLICT for any other."""
    return check_issued(invoice, stored.list_transactions(tx, [invoice.id]).get(invoice.id))


def check_issued(invoice: StoredInvoice, booked: Booked | None) -> Document:
    """Return an issued document whose digest, lines and entries agree. Raises STATE_CONFLICT with what each of them comes to."""
    assert invoice.issue is not None, "an issued document was issued"
    try:
        document = decode_document(invoice.document)
    except DecodeError:
        raise _refusal(invoice.id, "its document cannot be read") from None
    sign, totals = -1 if document.kind is InvoiceKind.CREDIT_NOTE else 1, document.totals
    lines_minor = sum(line.net_minor for line in document.lines) - sum(each.net_minor for each in document.allowances) + totals.tax_minor
    entries = () if booked is None else tuple(booked[1])
    owed_pico = sign * sum(entry.amount_pico for entry in entries if entry.account.kind == RECEIVABLE)
    if (lines_minor, owed_pico) != (totals.gross_minor, totals.gross_minor * find_step(document.currency)):
        units = get_currency(document.currency).minor_units
        said = f"its lines and its tax come to {format_minor(lines_minor, units)}, {format_minor(totals.gross_minor, units)} are to be paid"
        raise _refusal(document.number, f"{said}, and the ledger has {format_amount(owed_pico)} {document.currency}")
    booked_pico, right_pico = _sum_by_account(entries), _sum_by_account(entries_of(document))
    for account in sorted(booked_pico.keys() | right_pico.keys()):
        there, right = booked_pico.get(account, 0), right_pico.get(account, 0)
        if there != right:
            said = f"the ledger has {format_amount(there)} on {account}, where it says {format_amount(right)}"
            raise _refusal(document.number, f"{said} {document.currency}")
    digest = digest_document(invoice.document.encode())
    if digest != invoice.issue.digest:
        raise _refusal(document.number, f"its document has the digest {digest}, and was issued with {invoice.issue.digest}")
    return document


def check_file(document: Document, file: InvoiceFile) -> bytes:
    """Return the content of an archived file that is as it was archived. Raises STATE_CONFLICT for any other."""
    digest = digest_document(file.content)
    if digest != file.digest:
        raise _refusal(document.number, f"its file '{file.format}' has the digest {digest}, and was archived with {file.digest}")
    return file.content


def _sum_by_account(entries: Iterable[Entry]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for entry in entries:
        sums[entry.account.id] = sums.get(entry.account.id, 0) + entry.amount_pico
    return sums


def _refusal(name: str, reason: str) -> Fault:
    return Fault(STATE_CONFLICT, message=f"{name} is not exported: {reason}. `tollway verify` shows the difference.")
