"""Invoices and credit notes of all organizations: what a period would be billed by, drafts, their issue, and credit notes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.invoicing import invoices, payments
from tollway.control.api.invoicing.invoices import CreditNoteCreate, FileFormat
from tollway.control.api.money import periods
from tollway.control.api.money.periods import OrganizationId
from tollway.control.api.schemas import PageQuery
from tollway.control.console import rendering
from tollway.control.console.forms import Form, form, make_body, require_typed
from tollway.control.console.routing import Page, PlatformPage
from tollway.control.console.routing import router as new_router
from tollway.domain import money
from tollway.domain.currencies import get_currency
from tollway.domain.faults import Fault
from tollway.domain.invoices import InvoiceKind, InvoiceState
from tollway.domain.periods import PeriodState

router = new_router()

PATH = "/console/platform/invoices"
ONE = PATH + "/{invoice_id}"
OF_PERIOD = "/console/platform/periods/{period_id}/invoices"


@dataclass(frozen=True, slots=True)
class PreviewLine:
    """A line of a document that is not made yet. `net`: a decimal string."""

    description: str
    quantity: int
    unit: str
    net: str


@dataclass(frozen=True, slots=True)
class PreviewDocument:
    """A document that is not made yet. Amounts are decimal strings in `currency`."""

    kind: str
    buyer: str
    currency: str
    lines: Sequence[PreviewLine]
    net: str
    tax: str
    gross: str


@router.get(PATH, include_in_schema=False)
def show_invoices(
    page: PlatformPage,
    query: Annotated[PageQuery, Query()],
    organization_id: OrganizationId | None = None,
    state: InvoiceState | None = None,
) -> Response:
    """Invoices and credit notes, of every organization or of one."""
    return page.show(
        "platform/invoices.html",
        invoices=page.call(invoices.list_invoices, query=query, organization_id=organization_id, state=state),
        organization_id=organization_id,
        state=state,
        states=list(InvoiceState),
        may_see_payments=page.allows(payments.list_payments),
    )


@router.get(ONE, include_in_schema=False)
def show_invoice(page: PlatformPage, invoice_id: str) -> Response:
    """One invoice or credit note."""
    return _show(page, invoice_id)


def _show(page: Page, invoice_id: str, fault: Fault | None = None) -> Response:
    invoice = page.call(invoices.retrieve_invoice, invoice_id=invoice_id)
    is_issued, may_write = invoice.state == InvoiceState.ISSUED, page.allows(invoices.issue_invoice)
    return page.show(
        "platform/invoice.html",
        fault=fault,
        invoice=invoice,
        formats=[each for each in FileFormat if is_issued or each in (FileFormat.JSON, FileFormat.PDF)],
        may_issue=may_write and invoice.state == InvoiceState.DRAFT,
        may_correct=may_write and is_issued and invoice.kind == InvoiceKind.INVOICE,
    )


@router.get(f"{ONE}/files/{{format}}", include_in_schema=False)
def download_invoice_file(page: PlatformPage, invoice_id: str, format: FileFormat) -> Response:
    """A document as a file."""
    return rendering.protect(page.call(invoices.download_invoice, invoice_id=invoice_id, format=format))


@router.post(f"{ONE}/issue", include_in_schema=False)
def issue_draft(page: PlatformPage, invoice_id: str, fields: Annotated[Form, form(invoices.issue_invoice, "confirmation")]) -> Response:
    """Issue a draft, after its amount was typed."""
    try:
        require_typed(fields["confirmation"], page.call(invoices.retrieve_invoice, invoice_id=invoice_id).gross)
        page.call(invoices.issue_invoice, invoice_id=invoice_id)
    except Fault as fault:
        return _show(page, invoice_id, fault)
    return page.lead(f"/invoices/{invoice_id}", "invoice_issued")


@router.post(f"{ONE}/void", include_in_schema=False)
def void_draft(page: PlatformPage, invoice_id: str, _fields: Annotated[Form, form(invoices.void_invoice)]) -> Response:
    """Void a draft; its period can be drafted again."""
    try:
        page.call(invoices.void_invoice, invoice_id=invoice_id)
    except Fault as fault:
        return _show(page, invoice_id, fault)
    return page.lead(f"/invoices/{invoice_id}", "invoice_voided")


@router.post(f"{ONE}/credit_notes", include_in_schema=False)
def draft_credit_note(
    page: PlatformPage, invoice_id: str, fields: Annotated[Form, form(invoices.create_credit_note, "amount", "reason")]
) -> Response:
    """Draft a credit note to an issued invoice."""
    try:
        note = page.call(invoices.create_credit_note, invoice_id=invoice_id, body=make_body(CreditNoteCreate, fields))
    except Fault as fault:
        return _show(page, invoice_id, fault)
    return page.lead(f"/invoices/{note.id}", "created")


@router.get(OF_PERIOD, include_in_schema=False)
def show_preview(page: PlatformPage, period_id: str) -> Response:
    """Preview of what a billing period would be billed by now. Nothing is stored."""
    return _show_preview(page, period_id)


def _show_preview(page: Page, period_id: str, fault: Fault | None = None) -> Response:
    period = page.call(periods.retrieve_period, period_id=period_id)
    found, missing = None, None
    try:
        found = [_read_document(each) for each in page.call(invoices.preview_invoices, period_id=period_id).data]
    except Fault as refused:
        missing = refused.message
    return page.show(
        "platform/invoice_preview.html",
        fault=fault,
        period=period,
        documents=found,
        missing=missing,
        may_draft=period.state == PeriodState.CLOSED and found is not None and page.allows(invoices.draft_invoices),
    )


def _read_document(document: dict[str, Any]) -> PreviewDocument:
    """Return what of a canonical document a page shows."""
    units = get_currency(document["currency"]).minor_units
    totals = document["totals"]
    return PreviewDocument(
        kind=document["kind"],
        buyer=document["buyer"]["name"],
        currency=document["currency"],
        lines=[
            PreviewLine(line["description"], int(line["quantity"]), line["unit"], money.format_minor(line["net_minor"], units))
            for line in document["lines"]
        ],
        net=money.format_minor(totals["net_minor"], units),
        tax=money.format_minor(totals["tax_minor"], units),
        gross=money.format_minor(totals["gross_minor"], units),
    )


@router.post(OF_PERIOD, include_in_schema=False)
def draft_period(page: PlatformPage, period_id: str, _fields: Annotated[Form, form(invoices.draft_invoices)]) -> Response:
    """Draft the documents of a closed billing period, in place of drafts that it has."""
    try:
        organization_id = page.call(periods.retrieve_period, period_id=period_id).organization_id
        page.call(invoices.draft_invoices, period_id=period_id)
    except Fault as fault:
        return _show_preview(page, period_id, fault)
    return page.lead(f"/invoices?organization_id={organization_id}&state={InvoiceState.DRAFT}", "invoices_drafted")
