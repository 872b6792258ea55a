"""Invoices of an organization with what is open of them, and one document with its files."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.invoicing import exports, invoices, payments
from tollway.control.api.invoicing.invoices import FileFormat
from tollway.control.api.invoicing.payments import OpenInvoicesQuery
from tollway.control.api.schemas import PageQuery
from tollway.control.console import rendering
from tollway.control.console.routing import TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.languages.texts import mark

router = new_router()

PATH = "/console/organizations/{organization_id}/invoices"
ONE = PATH + "/{invoice_id}"

FILES: dict[str, str] = {
    FileFormat.PDF: mark("PDF, to read"),
    FileFormat.UBL: mark("XRechnung (UBL)"),
    FileFormat.CII: mark("XRechnung (CII)"),
    FileFormat.JSON: mark("canonical document (JSON), for the verifier"),
}
"""Files of a document, by what they are called."""

Listing = Annotated[PageQuery, Query()]


@router.get(PATH, include_in_schema=False)
def show_invoices(page: TenantPage, query: Listing) -> Response:
    """Issued invoices and credit notes, and the balance."""
    return page.show(
        "tenant/invoices.html",
        invoices=page.call(invoices.list_own_invoices, query=query),
        account=page.call(payments.retrieve_own_statement_of_account, query=OpenInvoicesQuery()),
    )


@router.get(ONE, include_in_schema=False)
def show_invoice(page: TenantPage, invoice_id: str) -> Response:
    """One document and its files."""
    return page.show("tenant/invoice.html", invoice=page.call(invoices.retrieve_own_invoice, invoice_id=invoice_id), files=FILES)


@router.get(ONE + "/files/{format}", include_in_schema=False)
def download_invoice(page: TenantPage, invoice_id: str, format: FileFormat) -> Response:
    """One file of a document."""
    return rendering.protect(page.call(invoices.download_own_invoice, invoice_id=invoice_id, format=format))


@router.get(ONE + "/focus", include_in_schema=False)
def download_charges(page: TenantPage, invoice_id: str) -> Response:
    """The charges of a document as CSV in the form of FOCUS."""
    return rendering.protect(page.call(exports.export_own_focus, invoice_id=invoice_id))
