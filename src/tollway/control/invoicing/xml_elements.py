"""Parts that the two syntaxes of electronic invoices share: amounts, codes, and writing elements in a fixed form.

Bytes are the same for the same document: elements are written in the order in which they stand, without white space between them, and
with nothing of the time or the machine.
"""

from xml.sax.saxutils import escape, quoteattr

from tollway.domain.currencies import get_currency
from tollway.domain.faults import STATE_CONFLICT, Fault
from tollway.domain.invoices import Document, InvoiceKind, InvoiceLine
from tollway.domain.money import format_amount, format_minor
from tollway.domain.tax import TaxCategory

SPECIFICATION = "urn:cen.eu:en16931:2017#compliant#urn:xeinkauf.de:kosit:xrechnung_3.0"
"""BT-24: XRechnung 3.0, a core invoice usage specification of EN 16931."""

FACTUR_X = "urn:cen.eu:en16931:2017"
"""BT-24 of the XML that a PDF carries: the profile EN 16931 of Factur-X and ZUGFeRD."""

PROCESS = "urn:fdc:peppol.eu:2017:poacc:billing:01:1.0"
"""BT-23: the business process."""

MINOR_UNITS_MAX = 2
"""Decimals of an amount in EN 16931 (BR-DEC-*)."""

CREDIT_TRANSFER, DIRECT_DEBIT = "58", "59"
"""BT-81: SEPA credit transfer and direct debit (UNTDID 4461)."""

DISCOUNT = "95"
"""BT-98: reason of an allowance (UNTDID 5189)."""

UNITS = {"second": "SEC"}
"""Codes of units (UN/ECE Recommendation 20); everything else is counted in pieces."""

PIECE = "C62"


def element(name: str, content: str, **attributes: str) -> str:
    """Return an element with text. An empty one is not written (R008)."""
    if not content:
        return ""
    listed = "".join(f" {attribute}={quoteattr(value)}" for attribute, value in attributes.items())
    return f"<{name}{listed}>{escape(content)}</{name}>"


def group(name: str, *children: str) -> str:
    """Return an element with the elements in it. One without any is not written (R008)."""
    inner = "".join(children)
    return f"<{name}>{inner}</{name}>" if inner else ""


def type_code(document: Document) -> str:
    """Return the code of the kind of a document (UNTDID 1001)."""
    return "381" if document.kind is InvoiceKind.CREDIT_NOTE else "380"


def unit_code(line: InvoiceLine) -> str:
    """Return the code of the unit of a line. The quantity and the base of the price have the same one (R130)."""
    return UNITS.get(line.unit, PIECE)


def amount(document: Document, minor: int) -> str:
    """Return an amount with the decimals of the currency. Raises STATE_CONFLICT for currencies with more than two."""
    units = get_currency(document.currency).minor_units
    if units > MINOR_UNITS_MAX:
        raise Fault(STATE_CONFLICT, message=f"Electronic invoices have two decimals, and {document.currency} has {units}.")
    return format_minor(minor, units)


def price(line: InvoiceLine) -> str:
    """Return the price of a line for its base quantity, exact."""
    return format_amount(line.unit_price_pico * line.price_base)


def line_percent(document: Document) -> str:
    """Return the rate of the tax of lines and allowances; empty where what is sold is not subject to tax (BR-O-05)."""
    return "" if document.tax.category == TaxCategory.OUTSIDE else percent(document)


def percent(document: Document) -> str:
    """Return the rate of the tax in percent, which the sum by rates always has (BR-DE-14)."""
    whole, rest = divmod(document.tax.rate_bp, 100)
    return f"{whole}.{rest:02d}"


def names_vat_ids(document: Document) -> bool:
    """Return whether the parties are named with their VAT ids: not where what is sold is not subject to tax (BR-O-02)."""
    return document.tax.category != TaxCategory.OUTSIDE


def sku_of(line: InvoiceLine) -> str:
    """Return what the seller calls a line by (BT-155): model and billing class; empty where it has none."""
    return f"{line.model}/{line.billing_class}" if line.billing_class else ""
