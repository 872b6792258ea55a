"""The PDF of a document, set by typst: PDF/A-3b with the XML attached, the same bytes for the same document.

The page is `invoice.typ`; here every text and number is made ready in the language of the document. It is made when it is asked for, from
the archived document: the XML is the original, the PDF shows it.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from functools import cache
from importlib.resources import files
from threading import BoundedSemaphore
from typing import Any, Final

import typst

from tollway.control.invoicing import cii
from tollway.control.invoicing.texts import TEXTS, describe_line, describe_proof, describe_terms, show_day, show_days, show_iban, title_of
from tollway.control.invoicing.xml_elements import FACTUR_X, MINOR_UNITS_MAX, line_percent
from tollway.domain.billing_parties import Language
from tollway.domain.currencies import get_currency
from tollway.domain.faults import RENDERING_BUSY, STATE_CONFLICT, Fault
from tollway.domain.invoices import Document, InvoiceKind, InvoiceLine
from tollway.domain.money import format_amount, format_minor

STANDARD: Final = "a-3b"

DRAFT_DAY = "1970-01-01"
"""Date in the metadata of the PDF of a draft, which has none of its own."""

TURN_SECONDS: Final = 10
"""Longest wait for the PDFs before: one of thousands of lines takes seconds."""

WAITING_MAX: Final = 4
"""PDFs that wait for their turn, each in a thread of the API."""

_places, _turn = BoundedSemaphore(WAITING_MAX + 1), BoundedSemaphore(1)

FONT: Final = "Libertinus Serif"

_PROBE: Final = b'#set document(title: "-")\n#set text(font: sys.inputs.font)\n#sys.inputs.text'

Rows = list[tuple[str, str]]


@cache
def _template() -> bytes:
    return files("tollway.control.invoicing").joinpath("invoice.typ").read_bytes()


def render(document: Document) -> bytes:
    """Return a document as PDF, one at a time in this process. That of a draft says so, and has no XML. Raises RENDERING_BUSY where too
    many wait, and STATE_CONFLICT for text that the font does not have."""
    inputs = {"data": json.dumps(describe(document), ensure_ascii=False), "font": FONT}
    if document.number and get_currency(document.currency).minor_units <= MINOR_UNITS_MAX:
        inputs["xml"] = cii.render(document, FACTUR_X).decode()
    day = date.fromisoformat(document.issued_on or DRAFT_DAY)
    at = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    with _take_turn():
        try:
            return _compile(_template(), inputs, at)
        except typst.TypstError as error:
            unshown = _name_unshown(error)
            message = f"The document cannot be set as PDF: the font has no {unshown!r}. It can be downloaded in its other formats."
            raise Fault(STATE_CONFLICT, message=message) from error


@contextmanager
def _take_turn() -> Iterator[None]:
    """Wait for the documents before. Raises RENDERING_BUSY where too many wait already, or for too long."""
    if not _places.acquire(blocking=False):
        raise Fault(RENDERING_BUSY, retry_after_seconds=TURN_SECONDS)
    try:
        if not _turn.acquire(timeout=TURN_SECONDS):
            raise Fault(RENDERING_BUSY, retry_after_seconds=TURN_SECONDS)
        try:
            yield
        finally:
            _turn.release()
    finally:
        _places.release()


def find_unshown(text: str) -> str:
    """Return the first text that the font of the page does not have; empty if it has all."""
    try:
        _compile(_PROBE, {"text": text, "font": FONT}, 0)
    except typst.TypstError as error:
        return _name_unshown(error)
    return ""


def _compile(source: bytes, inputs: dict[str, str], at: int) -> bytes:
    return typst.compile(source, None, format="pdf", sys_inputs=inputs, pdf_standards=STANDARD, timestamp=at, ignore_system_fonts=True)


def _name_unshown(error: typst.TypstError) -> str:
    """Return the text that an error of typst is about. Raises the error if it is about something else."""
    found = re.search(r'the text `"(.*?)"` could not be displayed', str(error))
    if found is None:
        raise error
    return found[1]


def describe(document: Document) -> dict[str, Any]:
    """Return all that the page shows, in the language of the document."""
    texts, seller, buyer = TEXTS[document.language], document.seller, document.buyer
    day = date.fromisoformat(document.issued_on or DRAFT_DAY)
    return {
        "texts": texts,
        "language": str(document.language),
        "title": title_of(document),
        "number": document.number,
        "is_draft": not document.number,
        "year": day.year,
        "month": day.month,
        "day": day.day,
        "seller": {"name": seller.name},
        "sender": f"{seller.name} · {seller.address.street} · {seller.address.postal_code} {seller.address.city}",
        "recipient": [
            buyer.name,
            *([buyer.contact.name] if buyer.contact.name else []),
            buyer.address.street,
            f"{buyer.address.postal_code} {buyer.address.city}",
            buyer.address.country,
        ],
        "facts": _list_facts(document),
        "subtitle": document.reason if document.kind is InvoiceKind.CREDIT_NOTE else "",
        "lines": [_describe_row(document, line) for line in document.lines],
        "totals": _list_totals(document),
        "notes": [
            *([describe_terms(document)] if document.number else []),
            *([texts[document.tax.reason_code]] if document.tax.reason_code else []),
        ],
        "proof": describe_proof(document),
        "footer": _list_footer(document),
    }


def _list_facts(document: Document) -> Rows:
    texts = TEXTS[document.language]
    corrects = document.corrects
    rows = [
        (texts["number"], document.number),
        (texts["issued_on"], show_day(document.issued_on, document.language)),
        (texts["due_on"], show_day(document.due_on, document.language) if document.is_to_be_paid else ""),
        (texts["service"], show_days(document.service, document.language)),
        (
            texts["corrects"],
            "" if corrects is None else f"{corrects.number} {texts['of']} {show_day(corrects.issued_on, document.language)}",
        ),
        (texts["your_vat_id"], document.buyer.vat_id),
        (texts["buyer_reference"], document.buyer_reference),
        (texts["purchase_order"], document.purchase_order),
        (texts["cost_centre"], document.cost_centre),
    ]
    return [(name, value) for name, value in rows if value]


def _list_totals(document: Document) -> list[tuple[str, str, bool]]:
    texts, totals = TEXTS[document.language], document.totals
    rows = [(texts["lines_total"], _money(document, totals.lines_minor), False)] if document.allowances else []
    rows += [(texts[f"allowance_{each.kind}"], _money(document, -each.net_minor), False) for each in document.allowances]
    rate = line_percent(document)
    tax = f"{texts['tax']} {_number(document, rate)} %" if rate else texts["tax"]
    gross = texts["credit_gross" if document.kind is InvoiceKind.CREDIT_NOTE else "gross"]
    return [
        *rows,
        (texts["net"], _money(document, totals.net_minor), False),
        (tax, _money(document, totals.tax_minor), False),
        (gross, _money(document, totals.gross_minor), True),
    ]


def _list_footer(document: Document) -> list[list[str]]:
    texts, seller, bank = TEXTS[document.language], document.seller, document.bank_account
    contact = seller.contact
    return [
        [
            seller.name,
            seller.address.street,
            f"{seller.address.postal_code} {seller.address.city}",
            seller.address.country,
            *([seller.registration] if seller.registration else []),
        ],
        [
            *([f"{texts['vat_id']} {seller.vat_id}"] if seller.vat_id else []),
            *([f"{texts['tax_number']} {seller.tax_number}"] if seller.tax_number else []),
            *(each for each in (contact.name, contact.phone, contact.email) if each),
        ],
        [bank.holder, f"IBAN {show_iban(bank.iban)}", *([f"BIC {bank.bic}"] if bank.bic else [])],
    ]


def _describe_row(document: Document, line: InvoiceLine) -> dict[str, str]:
    texts = TEXTS[document.language]
    units = get_currency(document.currency).minor_units
    unit = texts.get(f"{'one' if line.price_base == 1 else 'unit'}_{line.unit}", line.unit)
    base = f"{_grouped(document, str(line.price_base))} " if line.price_base != 1 else ""
    price = _number(document, _pad(format_amount(line.unit_price_pico * line.price_base), units))
    return {
        "number": str(line.number),
        "description": describe_line(line, document.language),
        "note": "" if line.service == document.service else show_days(line.service, document.language),
        "quantity": _grouped(document, str(line.quantity)),
        "price": f"{price} {texts['per']} {base}{unit}" if unit else price,
        "amount": _money(document, line.net_minor),
    }


def _pad(decimal: str, units: int) -> str:
    """Return a decimal with at least as many decimals as the currency has."""
    whole, _, fraction = decimal.partition(".")
    return f"{whole}.{fraction.ljust(units, '0')}" if units or fraction else whole


def _money(document: Document, minor: int) -> str:
    return f"{_number(document, format_minor(minor, get_currency(document.currency).minor_units))} {document.currency}"


def _number(document: Document, decimal: str) -> str:
    """Return a decimal as the language writes it: 1.234,50 or 1,234.50."""
    whole, point, fraction = decimal.partition(".")
    separator = "," if document.language is Language.GERMAN else "."
    return f"{_grouped(document, whole)}{separator if point else ''}{fraction}"


def _grouped(document: Document, digits: str) -> str:
    grouped = f"{int(digits):,}"
    sign = "-" if digits.startswith("-") and not grouped.startswith("-") else ""
    return sign + (grouped.replace(",", ".") if document.language is Language.GERMAN else grouped)
