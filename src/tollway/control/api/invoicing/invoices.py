"""Invoices: operators set up sellers and buyers, draft, issue and correct documents; tenants read their own issued ones."""

import json
from enum import StrEnum
from typing import Annotated, Any, Literal

from fastapi import Depends, Query
from pydantic import Field
from starlette.responses import Response

from tollway.control.api import routes
from tollway.control.api.invoicing.party_schemas import (
    BillingAccountOut,
    BillingAccountWrite,
    LegalEntityOut,
    LegalEntityWrite,
    account_out,
    entity_out,
)
from tollway.control.api.money.periods import OrganizationId
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, In, ListOut, Out, PageQuery, Reason, Sum, find_seconds, list_out, seconds
from tollway.control.identity.access import Tenant
from tollway.control.invoicing import documents, dunning, parties, pdf, vies
from tollway.control.invoicing.documents import InvoiceView
from tollway.control.money import periods
from tollway.domain import ids, money
from tollway.domain.currencies import get_currency
from tollway.domain.faults import RESOURCE_UNKNOWN, Fault
from tollway.domain.invoices import Document, InvoiceState, encode_document
from tollway.domain.keys import Operator
from tollway.domain.roles import Permission

router = routes.router(tags=["invoices"])

OperatorReader = Annotated[Operator, Depends(may(Permission.PLATFORM_INVOICES_READ))]
OperatorWriter = Annotated[Operator, Depends(may(Permission.PLATFORM_INVOICES_WRITE))]
Reader = Annotated[Tenant, Depends(may(Permission.INVOICES_READ))]


class FileFormat(StrEnum):
    """Form in which a document is downloaded."""

    JSON = "json"  # the canonical document, of which everything else is made
    UBL = "ubl"
    CII = "cii"
    PDF = "pdf"


MEDIA_TYPES = {
    FileFormat.JSON: "application/json",
    FileFormat.UBL: "application/xml",
    FileFormat.CII: "application/xml",
    FileFormat.PDF: "application/pdf",
}


class InvoiceOut(Identified):
    """An invoice or a credit note. Amounts are decimal strings in its currency; those of a credit note are what is given back."""

    object: Literal["invoice"] = "invoice"
    organization_id: str
    kind: Annotated[str, Field(description="`invoice` or `credit_note`.", examples=["invoice"])]
    state: Annotated[str, Field(description="`draft`, `issued` or `void`.", examples=["issued"])]
    number: Annotated[str | None, Field(description="Its number; null until it is issued.", examples=["RE-2026-000001"])]
    legal_entity_id: Annotated[str, Field(description="The seller.", examples=["entity_0"])]
    period_id: Annotated[str | None, Field(description="The closed billing period that it bills; null for none.", examples=["period_0"])]
    corrects_id: Annotated[str | None, Field(description="The document that it corrects; null for none.", examples=[None])]
    cancels: Annotated[bool, Field(description="Whether it takes the whole of that document back.", examples=[False])]
    currency: str
    net: Annotated[str, Field(description="Before tax.", examples=["100.00"])]
    tax: Annotated[str, Field(description="Tax.", examples=["19.00"])]
    gross: Annotated[str, Field(description="With tax.", examples=["119.00"])]
    digest: Annotated[str | None, Field(description="SHA-256 of the canonical document; null until it is issued.", examples=[None])]
    created_at: int
    issue_at: Annotated[
        int | None,
        Field(description="When a draft is issued without an approval, in Unix seconds (UTC); null for never.", examples=[None]),
    ]
    issued_at: Annotated[int | None, Field(description="When it was issued, in Unix seconds (UTC).", examples=[1790812800])]
    issued_by: Annotated[
        str | None, Field(description="For operators: the key that issued it, or `automatic`. Null for organizations.", examples=["key_0"])
    ]
    due_on: Annotated[
        str | None,
        Field(
            description="The day on which it is to be paid; null for a draft, a credit note, and a total of zero.", examples=["2026-12-15"]
        ),
    ]


class InvoicePreviewOut(Out):
    """The documents by which a period would be billed now. Each is a canonical document without a number."""

    object: Literal["billing_period.invoice_preview"] = "billing_period.invoice_preview"
    period_id: str
    data: Annotated[list[dict[str, Any]], Field(description="Documents, as `files/json` shows them.", examples=[[]])]


class CreditNoteCreate(In):
    """A credit note to an issued invoice."""

    amount: Annotated[
        Sum | None,
        Field(description="What is given back before tax, as a decimal string; null for all of it, which cancels it.", examples=["10.00"]),
    ] = None
    reason: Annotated[Reason, Field(description="The reason, which stands on the document.", examples=["as agreed"])]


def invoice_out(view: InvoiceView) -> InvoiceOut:
    """Return a document as the API shows it."""
    invoice, document = view.invoice, view.document
    issue, units, totals = invoice.issue, get_currency(document.currency).minor_units, document.totals
    return InvoiceOut(
        id=invoice.id,
        organization_id=invoice.organization_id,
        kind=invoice.kind,
        state=invoice.state,
        number=document.number or None,
        legal_entity_id=invoice.legal_entity_id,
        period_id=invoice.period_id,
        corrects_id=invoice.corrects_id,
        cancels=invoice.cancels,
        currency=document.currency.lower(),
        net=money.format_minor(totals.net_minor, units),
        tax=money.format_minor(totals.tax_minor, units),
        gross=money.format_minor(totals.gross_minor, units),
        digest=None if issue is None else issue.digest,
        created_at=seconds(invoice.created_at),
        issue_at=find_seconds(invoice.issue_at) if invoice.state is InvoiceState.DRAFT else None,
        issued_at=None if issue is None else seconds(issue.issued_at),
        issued_by=None if issue is None else issue.issued_by,
        due_on=issue.due_on if issue is not None and document.is_to_be_paid else None,
    )


def own_invoice_out(view: InvoiceView) -> InvoiceOut:
    """Return a document as its organization sees it: without the operator's key."""
    return invoice_out(view).model_copy(update={"issued_by": None})


def known_invoice(invoice_id: str) -> str:
    """Return the id of an invoice from a path. Raises RESOURCE_UNKNOWN for what cannot be one."""
    if not ids.is_id(ids.INVOICE, invoice_id):
        raise Fault(RESOURCE_UNKNOWN, message=documents.UNKNOWN)
    return invoice_id


def known_entity(entity_id: str) -> str:
    """Return the id of a legal entity from a path. Raises RESOURCE_UNKNOWN for what cannot be one."""
    if not ids.is_id(ids.LEGAL_ENTITY, entity_id):
        raise Fault(RESOURCE_UNKNOWN, message=parties.UNKNOWN_ENTITY)
    return entity_id


def _known_period(period_id: str) -> str:
    if not ids.is_id(ids.PERIOD, period_id):
        raise Fault(RESOURCE_UNKNOWN, message=periods.UNKNOWN)
    return period_id


# ---- Parties ------------------------------------------------------------------------------------------------------------


@router.post("/v1/platform/legal_entities")
def create_legal_entity(_caller: OperatorWriter, plane: Plane, body: LegalEntityWrite) -> LegalEntityOut:
    """Set up a seller, whose invoices are numbered by its own series."""
    with plane.database.platform() as tx:
        entity = parties.put_entity(tx, body.value(plane.new_id(ids.LEGAL_ENTITY), plane.now()), plane.now())
    return entity_out(entity)


@router.get("/v1/platform/legal_entities")
def list_legal_entities(_caller: OperatorReader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[LegalEntityOut]:
    """Sellers in the order in which they were set up."""
    with plane.database.platform(write=False) as tx:
        page = parties.list_entities(tx, query.window())
    return list_out(page, entity_out)


@router.get("/v1/platform/legal_entities/{entity_id}")
def retrieve_legal_entity(_caller: OperatorReader, plane: Plane, entity_id: str) -> LegalEntityOut:
    """One seller."""
    with plane.database.platform(write=False) as tx:
        return entity_out(parties.get_entity(tx, known_entity(entity_id)))


@router.put("/v1/platform/legal_entities/{entity_id}")
def update_legal_entity(_caller: OperatorWriter, plane: Plane, entity_id: str, body: LegalEntityWrite) -> LegalEntityOut:
    """Change a seller. Issued documents keep what they say of it."""
    with plane.database.platform() as tx:
        created_at = parties.get_entity(tx, known_entity(entity_id)).created_at
        entity = parties.put_entity(tx, body.value(entity_id, created_at), plane.now())
    return entity_out(entity)


@router.get("/v1/platform/organizations/{organization_id}/billing_account")
def retrieve_billing_account(_caller: OperatorReader, plane: Plane, organization_id: str) -> BillingAccountOut:
    """Return the billing account of an organization."""
    with plane.database.platform(write=False) as tx:
        return account_out(parties.get_account(tx, routes.organization(organization_id)))


@router.put("/v1/platform/organizations/{organization_id}/billing_account")
def put_billing_account(_caller: OperatorWriter, plane: Plane, organization_id: str, body: BillingAccountWrite) -> BillingAccountOut:
    """Set how an organization is invoiced. Issued documents keep what they say of it. Where VIES is asked, a VAT id without evidence on
    which the tax depends is looked up first, and refused if it is not valid."""
    account = body.value(routes.organization(organization_id))
    if plane.vies is not None:
        account = vies.check_new_account(plane.vies, plane.database, account, plane.now())
    with plane.database.platform() as tx:
        return account_out(parties.put_account(tx, account, plane.now()))


# ---- Documents ----------------------------------------------------------------------------------------------------------


@router.get("/v1/platform/periods/{period_id}/invoice_preview")
def preview_invoices(_caller: OperatorReader, plane: Plane, period_id: str) -> InvoicePreviewOut:
    """Return the documents by which a billing period would be billed now, open or closed. Nothing is stored."""
    with plane.database.platform(write=False) as tx:
        found = documents.preview_period(tx, periods.get_period(tx, _known_period(period_id)))
    return InvoicePreviewOut(period_id=period_id, data=[json.loads(encode_document(each)) for each in found])


@router.post("/v1/platform/periods/{period_id}/invoices")
def draft_invoices(_caller: OperatorWriter, plane: Plane, period_id: str) -> ListOut[InvoiceOut]:
    """Draft the documents of a closed billing period, in place of drafts that it has."""
    with plane.database.platform() as tx:
        drafts = documents.draft_period(tx, _known_period(period_id), lambda: plane.new_id(ids.INVOICE), plane.now())
    data = [invoice_out(InvoiceView.of(each)) for each in drafts]
    return ListOut(data=data, first_id=data[0].id, last_id=data[-1].id, has_more=False)


@router.get("/v1/platform/invoices")
def list_invoices(
    _caller: OperatorReader,
    plane: Plane,
    query: Annotated[PageQuery, Query()],
    organization_id: OrganizationId | None = None,
    state: InvoiceState | None = None,
) -> ListOut[InvoiceOut]:
    """Invoices and credit notes in the order in which they were made, of everyone or of one organization."""
    with plane.database.platform(write=False) as tx:
        page = documents.list_invoices(tx, query.window(), organization_id=organization_id, state=state)
    return list_out(page, lambda each: invoice_out(InvoiceView.of(each)))


@router.get("/v1/platform/invoices/{invoice_id}")
def retrieve_invoice(_caller: OperatorReader, plane: Plane, invoice_id: str) -> InvoiceOut:
    """One invoice or credit note."""
    with plane.database.platform(write=False) as tx:
        return invoice_out(InvoiceView.of(documents.get_invoice(tx, known_invoice(invoice_id))))


@router.get("/v1/platform/invoices/{invoice_id}/files/{format}", response_class=Response)
def download_invoice(_caller: OperatorReader, plane: Plane, invoice_id: str, format: FileFormat) -> Response:
    """Return a document as JSON (canonical), XRechnung (`ubl`, `cii`: once it is issued) or PDF."""
    with plane.database.platform(write=False) as tx:
        invoice = documents.get_invoice(tx, known_invoice(invoice_id))
        document = documents.read_document(tx, invoice)
        content = None if format is FileFormat.PDF else documents.read_file(tx, invoice, format)
    return _file(document, format, content)


@router.post("/v1/platform/invoices/{invoice_id}/issue")
def issue_invoice(caller: OperatorWriter, plane: Plane, invoice_id: str) -> InvoiceOut:
    """Issue a draft: it gets the next number of its series and never changes again. One that is issued stays as it is."""
    with plane.database.platform() as tx:
        invoice = documents.issue(tx, known_invoice(invoice_id), actor=caller.key_id, now=plane.now())
    dunning.release(plane.database, [invoice.organization_id], plane.now(), plane.log)  # a credit note may have settled what was overdue
    return invoice_out(InvoiceView.of(invoice))


@router.post("/v1/platform/invoices/{invoice_id}/void")
def void_invoice(_caller: OperatorWriter, plane: Plane, invoice_id: str) -> InvoiceOut:
    """Void a draft: it is never issued."""
    with plane.database.platform() as tx:
        invoice = documents.void_draft(tx, known_invoice(invoice_id), plane.now())
    return invoice_out(InvoiceView.of(invoice))


@router.post("/v1/platform/invoices/{invoice_id}/credit_notes")
def create_credit_note(_caller: OperatorWriter, plane: Plane, invoice_id: str, body: CreditNoteCreate) -> InvoiceOut:
    """Draft a credit note to an issued invoice: about an amount, or about all of it, which cancels the invoice."""
    amount_pico = None if body.amount is None else money.parse_sum(body.amount)
    with plane.database.platform() as tx:
        note = documents.draft_credit_note(
            tx, known_invoice(invoice_id), amount_pico=amount_pico, reason=body.reason, id=plane.new_id(ids.INVOICE), now=plane.now()
        )
    return invoice_out(InvoiceView.of(note))


# ---- For tenants --------------------------------------------------------------------------------------------------------


@router.get("/v1/organization/billing_account")
def retrieve_own_billing_account(caller: Reader, plane: Plane) -> BillingAccountOut:
    """Return the billing account of the organization."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return account_out(parties.get_account(tx, caller.organization_id))


@router.get("/v1/organization/invoices")
def list_own_invoices(caller: Reader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[InvoiceOut]:
    """The organization's issued invoices and credit notes, in the order in which they were made."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        page = documents.list_own_invoices(tx, query.window())
    return list_out(page, lambda each: own_invoice_out(InvoiceView.of(each)))


@router.get("/v1/organization/invoices/{invoice_id}")
def retrieve_own_invoice(caller: Reader, plane: Plane, invoice_id: str) -> InvoiceOut:
    """One of the organization's issued invoices and credit notes."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return own_invoice_out(InvoiceView.of(documents.get_own_invoice(tx, known_invoice(invoice_id))))


@router.get("/v1/organization/invoices/{invoice_id}/files/{format}", response_class=Response)
def download_own_invoice(caller: Reader, plane: Plane, invoice_id: str, format: FileFormat) -> Response:
    """Return one of the organization's documents as JSON (canonical, for `tollway_invoice_verifier.py`), XRechnung (`ubl`, `cii`) or
    PDF."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        invoice = documents.get_own_invoice(tx, known_invoice(invoice_id))
        document = documents.read_document(tx, invoice)
        content = None if format is FileFormat.PDF else documents.read_file(tx, invoice, format)
    return _file(document, format, content)


def _file(document: Document, format: FileFormat, content: bytes | None) -> Response:
    """Return a file as an answer. The PDF is made here, outside of the transaction, one at a time: hundreds of lines take a second."""
    suffix = "xml" if format in (FileFormat.UBL, FileFormat.CII) else format
    headers = {"content-disposition": f'attachment; filename="{document.number or document.id}.{suffix}"'}
    return Response(pdf.render(document) if content is None else content, media_type=MEDIA_TYPES[format], headers=headers)
