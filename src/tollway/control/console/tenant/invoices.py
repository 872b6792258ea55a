"""Invoices of an organization with what is open of them; one document with its files; and the credit that is left, with its bookings."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.invoicing import exports, invoices, payments
from tollway.control.api.invoicing.invoices import FileFormat
from tollway.control.api.money import credits
from tollway.control.api.schemas import PageQuery
from tollway.control.console import rendering
from tollway.control.console.routing import TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.console.tenant.projects import name_projects
from tollway.control.console.texts import mark
from tollway.domain.credits import CreditMove

router = new_router()

PATH = "/console/organizations/{organization_id}/invoices"
ONE = PATH + "/{invoice_id}"
CREDITS = "/console/organizations/{organization_id}/credits"

FILES: dict[str, str] = {
    FileFormat.PDF: mark("PDF, to read"),
    FileFormat.UBL: mark("XRechnung (UBL)"),
    FileFormat.CII: mark("XRechnung (CII)"),
    FileFormat.JSON: mark("canonical document (JSON), for the verifier"),
}
"""Files of a document, by what they are called."""

MOVES: dict[str, str] = {
    CreditMove.GRANT: mark("granted"),
    CreditMove.BURN: mark("used"),
    CreditMove.EXPIRE: mark("expired"),
    CreditMove.VOID: mark("taken back"),
}
"""Names of bookings of credit."""

Listing = Annotated[PageQuery, Query()]


@router.get(PATH, include_in_schema=False)
def show_invoices(page: TenantPage, query: Listing) -> Response:
    """Issued invoices and credit notes, and the balance."""
    return page.show(
        "tenant/invoices.html",
        invoices=page.call(invoices.list_own_invoices, query=query),
        account=page.call(payments.retrieve_own_statement_of_account),
    )


@router.get(ONE, include_in_schema=False)
def show_invoice(page: TenantPage, invoice_id: str) -> Response:
    """One document and its files."""
    return page.show("tenant/invoice.html", invoice=page.call(invoices.retrieve_own_invoice, invoice_id=invoice_id), files=FILES)


@router.get(ONE + "/files/{format}", include_in_schema=False)
def download_invoice(page: TenantPage, invoice_id: str, format: FileFormat) -> Response:
    """One file of a document."""
    return _protect(page.call(invoices.download_own_invoice, invoice_id=invoice_id, format=format))


@router.get(ONE + "/focus", include_in_schema=False)
def download_charges(page: TenantPage, invoice_id: str) -> Response:
    """The charges of a document as CSV in the form of FOCUS."""
    return _protect(page.call(exports.export_own_focus, invoice_id=invoice_id))


def _protect(file: Response) -> Response:
    """Return a file of the API with the headers of the console."""
    file.headers.update(rendering.HEADERS)
    return file


@router.get(CREDITS, include_in_schema=False)
def show_credits(page: TenantPage, query: Listing) -> Response:
    """Grants of which something may be left, in the order in which they burn, and what was booked."""
    return page.show(
        "tenant/credits.html",
        credits=page.call(credits.retrieve_credits),
        transactions=page.call(credits.list_credit_transactions, query=query),
        projects=name_projects(page),
        moves=MOVES,
    )
