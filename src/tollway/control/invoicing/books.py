"""Books of a seller: what it issued in a month, for its accountants, as one archive.

Before anything is written, each document is held to its lines and to the ledger (`export_checks`). The manifest names the files with
their SHA-256 and the sums, so what was imported can be compared with what was made.
"""

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from tollway.control.invoicing.export_checks import check_issued
from tollway.control.invoicing.parties import get_entity
from tollway.domain import datev
from tollway.domain.billing_parties import Bookkeeping, LegalEntity
from tollway.domain.csv_cells import escape_text
from tollway.domain.currencies import get_currency
from tollway.domain.faults import STATE_CONFLICT, Fault
from tollway.domain.invoices import Document, InvoiceKind
from tollway.domain.ledger import Entry
from tollway.domain.money import format_amount, format_minor
from tollway.domain.periods import find_zone
from tollway.storage import billing_parties as stored_parties
from tollway.storage import invoices as stored
from tollway.storage.database import PlatformTx

FORMAT: Final = "tollway-books-1"

DOCUMENTS_MAX: Final = 100_000
"""Documents of one month of a seller."""

DATEV_CURRENCY: Final = "EUR"
"""Other currencies need the rate of the day, which nobody gives us."""

DOCUMENT_COLUMNS: Final = (
    "number",
    "kind",
    "issued_on",
    "due_on",
    "organization_id",
    "buyer",
    "currency",
    "net",
    "tax",
    "gross",
    "tax_category",
    "tax_rate_percent",
    "tax_country",
    "cost_centre",
    "purchase_order",
    "digest",
)
ENTRY_COLUMNS: Final = ("issued_on", "document", "transaction_id", "owner", "account", "debit", "credit", "currency")

_PLAIN_TIME: Final = (1980, 1, 1, 0, 0, 0)
"""The time of every file in an archive: the same books always give the same bytes."""


class BookedDocument(NamedTuple):
    """An issued document with its transaction in the ledger."""

    document: Document
    digest: str
    transaction_id: str
    entries: Sequence[Entry]


def export(tx: PlatformTx, entity_id: str, month: str) -> bytes:
    """Return the books of a seller for a month (YYYY-MM, of its time zone) as a ZIP archive: `manifest.json`, `documents.csv`,
    `entries.csv` and, where the seller has `bookkeeping`, `datev.csv`. The same books always give the same bytes.

    Raises RESOURCE_UNKNOWN, or STATE_CONFLICT where there are too many documents, one is not booked as it says, or the seller names no
    account for a tax.
    """
    entity = get_entity(tx, entity_id)
    booked = _read_booked(tx, entity, month)
    files = {"documents.csv": _write_documents(booked), "entries.csv": _write_entries(booked)}
    if entity.bookkeeping is not None:
        files["datev.csv"] = _write_datev(tx, entity, entity.bookkeeping, month, booked)
    manifest = {
        "format": FORMAT,
        "seller": {"id": entity.id, "name": entity.name},
        "month": month,
        "documents": len(booked),
        "totals": _sum_documents(booked),
        "files": {name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in files.items()},
    }
    encoded = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    return _pack({"manifest.json": encoded, **files})


def _read_booked(tx: PlatformTx, entity: LegalEntity, month: str) -> list[BookedDocument]:
    """Return the documents that a seller issued in a month, each held to the ledger."""
    found = stored.list_issued(tx, entity.id, _bounds_of(entity, month), limit=DOCUMENTS_MAX + 1)
    if len(found) > DOCUMENTS_MAX:
        raise Fault(STATE_CONFLICT, message=f"The month has more than {DOCUMENTS_MAX} documents.")
    transactions = stored.list_transactions(tx, [each.id for each in found])
    booked = []
    for each in found:
        transaction = transactions.get(each.id)
        document = check_issued(each, transaction)
        assert each.issue is not None and transaction is not None, "what was checked is issued and booked"
        booked.append(BookedDocument(document, each.issue.digest, transaction[0].id, transaction[1]))
    return booked


def _bounds_of(entity: LegalEntity, month: str) -> range:
    """Return the time of a month in the time zone of a seller, in UTC microseconds."""
    zone = find_zone(entity.time_zone) or UTC
    year, number = (int(part) for part in month.split("-"))
    starts = (datetime(year, number, 1, tzinfo=zone), datetime(year + number // 12, number % 12 + 1, 1, tzinfo=zone))
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return range(*((each - epoch) // timedelta(microseconds=1) for each in starts))


def _sum_documents(booked: Iterable[BookedDocument]) -> dict[str, dict[str, str]]:
    """Return what documents come to by currency: credit notes count against invoices."""
    sums: dict[str, dict[str, int]] = {}
    for each in booked:
        document, sign = each.document, -1 if each.document.kind is InvoiceKind.CREDIT_NOTE else 1
        of_currency = sums.setdefault(document.currency, {"net": 0, "tax": 0, "gross": 0})
        for name in of_currency:
            of_currency[name] += sign * getattr(document.totals, f"{name}_minor")
    return {
        currency: {name: format_minor(minor, get_currency(currency).minor_units) for name, minor in of_currency.items()}
        for currency, of_currency in sorted(sums.items())
    }


def _write_documents(booked: Iterable[BookedDocument]) -> bytes:
    """Return a table of documents. Amounts of a credit note are below zero."""
    rows = []
    for each in booked:
        document = each.document
        sign, units = -1 if document.kind is InvoiceKind.CREDIT_NOTE else 1, get_currency(document.currency).minor_units
        totals = document.totals
        rows.append(
            {
                "number": document.number,
                "kind": document.kind,
                "issued_on": document.issued_on,
                "due_on": document.due_on,
                "organization_id": document.organization_id,
                "buyer": escape_text(document.buyer.name),
                "currency": document.currency,
                "net": format_minor(sign * totals.net_minor, units),
                "tax": format_minor(sign * totals.tax_minor, units),
                "gross": format_minor(sign * totals.gross_minor, units),
                "tax_category": document.tax.category,
                "tax_rate_percent": format_minor(document.tax.rate_bp, 2),
                "tax_country": document.tax.country,
                "cost_centre": escape_text(document.cost_centre),
                "purchase_order": escape_text(document.purchase_order),
                "digest": each.digest,
            }
        )
    return _write_table(DOCUMENT_COLUMNS, rows)


def _write_entries(booked: Iterable[BookedDocument]) -> bytes:
    """Return the double entries of documents, exact to 10⁻¹² of the currency. `owner`: the organization, or the platform."""
    rows = [
        {
            "issued_on": each.document.issued_on,
            "document": each.document.number,
            "transaction_id": each.transaction_id,
            "owner": entry.account.owner,
            "account": entry.account.kind,
            "debit": format_amount(entry.amount_pico) if entry.amount_pico > 0 else "",
            "credit": format_amount(-entry.amount_pico) if entry.amount_pico < 0 else "",
            "currency": each.document.currency,
        }
        for each in booked
        for entry in each.entries
    ]
    return _write_table(ENTRY_COLUMNS, rows)


def _write_datev(tx: PlatformTx, entity: LegalEntity, bookkeeping: Bookkeeping, month: str, booked: Sequence[BookedDocument]) -> bytes:
    """Return a batch for DATEV of the documents in euros that ask for something."""
    debtors: dict[str, int] = {}
    postings = []
    for each in booked:
        document = each.document
        if document.currency != DATEV_CURRENCY or not document.totals.gross_minor:
            continue
        if document.organization_id not in debtors:
            account = stored_parties.find_account(tx, document.organization_id)
            own = None if account is None else account.debtor_account
            debtors[document.organization_id] = bookkeeping.debtor_account if own is None else own
        postings.append(datev.Posting(document, debtors[document.organization_id]))
    try:
        return datev.write_batch(month, DATEV_CURRENCY, bookkeeping, entity.address.country, postings)
    except ValueError as error:
        raise Fault(STATE_CONFLICT, message=f"The books cannot be written for DATEV: {error}.") from error


def _write_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows as CSV (RFC 4180) in UTF-8."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _pack(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _PLAIN_TIME), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
