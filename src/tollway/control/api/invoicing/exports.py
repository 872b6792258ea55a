"""Exports of issued documents: for tools that compare costs (FOCUS), and for the seller's accountants."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

from fastapi import Query
from pydantic import StringConstraints
from starlette.responses import Response, StreamingResponse

from tollway.control.api import routes
from tollway.control.api.invoicing.invoices import OperatorReader, Reader, known_entity, known_invoice
from tollway.control.api.routes import Plane
from tollway.control.invoicing import books, documents, focus_export

router = routes.router(tags=["invoices"])

Month = Annotated[str, StringConstraints(pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])$"), Query(description="The month, as YYYY-MM.")]


class Granularity(StrEnum):
    """Length of a charge of usage."""

    DAILY = "daily"
    MONTHLY = "monthly"


ChargeLength = Annotated[Granularity, Query(description="Whether a charge of usage is for a day or for the whole period.")]


@router.get("/v1/platform/invoices/{invoice_id}/focus", response_class=StreamingResponse)
def export_focus(
    _caller: OperatorReader, plane: Plane, invoice_id: str, granularity: ChargeLength = Granularity.DAILY
) -> StreamingResponse:
    """Return the charges of an issued document as CSV in the form of FOCUS 1.2, usage by project and day (or for the whole period)."""
    with plane.database.platform(write=False) as tx:
        invoice = documents.get_invoice(tx, known_invoice(invoice_id))
        return _csv(focus_export.write(tx, invoice, is_daily=granularity is Granularity.DAILY), invoice_id)


@router.get("/v1/organization/invoices/{invoice_id}/focus", response_class=StreamingResponse)
def export_own_focus(caller: Reader, plane: Plane, invoice_id: str, granularity: ChargeLength = Granularity.DAILY) -> StreamingResponse:
    """Return the charges of one of the organization's documents as CSV in the form of FOCUS 1.2, usage by project and day (or for the
    whole period)."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        invoice = documents.get_own_invoice(tx, known_invoice(invoice_id))
        return _csv(focus_export.write(tx, invoice, is_daily=granularity is Granularity.DAILY), invoice_id)


@router.get("/v1/platform/legal_entities/{entity_id}/books", response_class=Response)
def export_books(_caller: OperatorReader, plane: Plane, entity_id: str, month: Month) -> Response:
    """Return what a seller issued in a month as a ZIP archive: documents, double entries, a batch for DATEV where it has `bookkeeping`, and
    a manifest with sums and digests. Each document is compared with the ledger first."""
    with plane.database.platform(write=False) as tx:
        content = books.export(tx, known_entity(entity_id), month)
    return Response(content, media_type="application/zip", headers=_attachment(f"books-{month}.zip"))


def _csv(rows: Iterator[str], invoice_id: str) -> StreamingResponse:
    return StreamingResponse(rows, media_type="text/csv", headers=_attachment(f"{invoice_id}.focus.csv"))


def _attachment(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}"'}
