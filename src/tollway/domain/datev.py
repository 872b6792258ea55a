"""DATEV: issued documents as a batch of postings ("Buchungsstapel") that accounting programs in Germany import.

Source: DATEV format, header version 700, category 21 (Buchungsstapel), format version 13,
https://developer.datev.de/de/file-format/details/datev-format. One posting for each document: its gross amount from the debtor to the
account of revenue that the seller names for its tax. Those accounts compute the tax themselves ("Automatikkonten"), so no posting has a tax
key. Text is Windows-1252, numbers have a comma, lines end in CRLF.
"""

import re
from calendar import monthrange
from collections.abc import Sequence
from datetime import date
from typing import Final, NamedTuple

from tollway.domain.billing_parties import Bookkeeping
from tollway.domain.invoices import Document, InvoiceKind
from tollway.domain.money import format_minor
from tollway.domain.tax import TaxCategory

ENCODING: Final = "cp1252"

_INFORMATION: Final = [name for number in range(1, 9) for name in (f"Beleginfo - Art {number}", f"Beleginfo - Inhalt {number}")]
_ADDITIONAL: Final = [name for at in range(1, 21) for name in (f"Zusatzinformation - Art {at}", f"Zusatzinformation - Inhalt {at}")]

COLUMNS: Final = (
    "Umsatz (ohne Soll/Haben-Kz)",
    "Soll/Haben-Kennzeichen",
    "WKZ Umsatz",
    "Kurs",
    "Basis-Umsatz",
    "WKZ Basis-Umsatz",
    "Konto",
    "Gegenkonto (ohne BU-Schlüssel)",
    "BU-Schlüssel",
    "Belegdatum",
    "Belegfeld 1",
    "Belegfeld 2",
    "Skonto",
    "Buchungstext",
    "Postensperre",
    "Diverse Adressnummer",
    "Geschäftspartnerbank",
    "Sachverhalt",
    "Zinssperre",
    "Beleglink",
    *_INFORMATION,
    "KOST1 - Kostenstelle",
    "KOST2 - Kostenstelle",
    "Kost-Menge",
    "EU-Land u. UStID (Bestimmung)",
    "EU-Steuersatz (Bestimmung)",
    "Abw. Versteuerungsart",
    "Sachverhalt L+L",
    "Funktionsergänzung L+L",
    "BU 49 Hauptfunktionstyp",
    "BU 49 Hauptfunktionsnummer",
    "BU 49 Funktionsergänzung",
    *_ADDITIONAL,
    "Stück",
    "Gewicht",
    "Zahlweise",
    "Forderungsart",
    "Veranlagungsjahr",
    "Zugeordnete Fälligkeit",
    "Skontotyp",
    "Auftragsnummer",
    "Buchungstyp",
    "USt-Schlüssel (Anzahlungen)",
    "EU-Land (Anzahlungen)",
    "Sachverhalt L+L (Anzahlungen)",
    "EU-Steuersatz (Anzahlungen)",
    "Erlöskonto (Anzahlungen)",
    "Herkunft-Kz",
    "Buchungs GUID",
    "KOST-Datum",
    "SEPA-Mandatsreferenz",
    "Skontosperre",
    "Gesellschaftername",
    "Beteiligtennummer",
    "Identifikationsnummer",
    "Zeichnernummer",
    "Postensperre bis",
    "Bezeichnung SoBil-Sachverhalt",
    "Kennzeichen SoBil-Buchung",
    "Festschreibung",
    "Leistungsdatum",
    "Datum Zuord. Steuerperiode",
    "Fälligkeit",
    "Generalumkehr (GU)",
    "Steuersatz",
    "Land",
    "Abrechnungsreferenz",
    "BVV-Position",
    "EU-Land u. UStID (Ursprung)",
    "EU-Steuersatz (Ursprung)",
    "Abw. Skontokonto",
)
"""The 125 columns of a posting, in their order."""

_AT: Final = {name: at for at, name in enumerate(COLUMNS)}
_NOT_OF_A_NUMBER = re.compile(r"[^A-Za-z0-9$&%*+\-/]")


class Posting(NamedTuple):
    """One document, and who owes it in the accounting program. `debtor`: the number of its account."""

    document: Document
    debtor: int


def name_tax(document: Document, seller_country: str) -> str:
    """Return the name under which a seller states its account for the tax of a document: a category of EN 16931, and the country where it
    is another's tax, such as `S:FR`."""
    category = document.tax.category
    return f"{category}:{document.tax.country}" if category == TaxCategory.STANDARD and document.tax.country != seller_country else category


def write_batch(month: str, currency: str, bookkeeping: Bookkeeping, seller_country: str, postings: Sequence[Posting]) -> bytes:
    """Return a batch of the documents that were issued in a month (YYYY-MM), all in one currency, as a file. Raises ValueError where the
    seller has no account for a tax."""
    lines = [_header(month, currency, bookkeeping), ";".join(COLUMNS), *(_line(each, bookkeeping, seller_country) for each in postings)]
    return "".join(f"{line}\r\n" for line in lines).encode(ENCODING, errors="replace")


def _header(month: str, currency: str, bookkeeping: Bookkeeping) -> str:
    """Return the first line. It is made "at" the end of its month: the same batch always gives the same bytes."""
    first = date.fromisoformat(f"{month}-01")
    last = first.replace(day=monthrange(first.year, first.month)[1])
    fiscal_year = first.year if first.month >= bookkeeping.fiscal_year_month else first.year - 1
    fields = [
        _quote("EXTF"),
        "700",
        "21",
        _quote("Buchungsstapel"),
        "13",
        f"{last:%Y%m%d}235959000",
        "",
        _quote("TW"),
        _quote(""),
        _quote(""),
        str(bookkeeping.consultant),
        str(bookkeeping.client),
        f"{fiscal_year}{bookkeeping.fiscal_year_month:02d}01",
        str(bookkeeping.account_digits),
        f"{first:%Y%m%d}",
        f"{last:%Y%m%d}",
        _quote(f"Rechnungen {month}"),
        _quote(""),
        "1",
        "0",
        "0",
        _quote(currency),
        "",
        _quote(""),
        "",
        "",
        _quote(""),
        "",
        "",
        _quote(""),
        _quote(""),
    ]
    return ";".join(fields)


def _line(posting: Posting, bookkeeping: Bookkeeping, seller_country: str) -> str:
    document = posting.document
    tax = name_tax(document, seller_country)
    account = bookkeeping.revenue_accounts.get(tax)
    if account is None:
        raise ValueError(f"the seller names no account of revenue for the tax {tax}, which {document.number} has")
    is_abroad = (tax != TaxCategory.OUTSIDE and document.tax.country != seller_country) or tax == TaxCategory.REVERSE_CHARGE
    day = document.issued_on  # YYYY-MM-DD
    fields = [""] * len(COLUMNS)
    for name, value in {
        "Umsatz (ohne Soll/Haben-Kz)": format_minor(document.totals.gross_minor, 2).replace(".", ","),
        "Soll/Haben-Kennzeichen": _quote("H" if document.kind is InvoiceKind.CREDIT_NOTE else "S"),
        "WKZ Umsatz": _quote(document.currency),
        "Konto": str(posting.debtor),
        "Gegenkonto (ohne BU-Schlüssel)": str(account).rjust(bookkeeping.account_digits, "0"),
        "BU-Schlüssel": _quote(""),
        "Belegdatum": f"{day[8:10]}{day[5:7]}",
        "Belegfeld 1": _quote(_NOT_OF_A_NUMBER.sub("-", document.number)[:36]),
        "Buchungstext": _quote(document.buyer.name[:60]),
        "KOST1 - Kostenstelle": _quote(document.cost_centre[:36]),
        "EU-Land u. UStID (Bestimmung)": _quote(document.buyer.vat_id or document.tax.country) if is_abroad else "",
        "EU-Steuersatz (Bestimmung)": format_minor(document.tax.rate_bp, 2).replace(".", ",") if is_abroad and document.tax.rate_bp else "",
        "Festschreibung": "0",
        "Leistungsdatum": f"{document.service.last[8:10]}{document.service.last[5:7]}{document.service.last[:4]}",
        "Fälligkeit": f"{document.due_on[8:10]}{document.due_on[5:7]}{document.due_on[:4]}",
    }.items():
        fields[_AT[name]] = value
    return ";".join(fields)


def _quote(text: str) -> str:
    return '"' + text.replace('"', '""').replace("\r", " ").replace("\n", " ") + '"'
