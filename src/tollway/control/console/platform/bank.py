"""Bank statements: operators upload them (camt.053), see what each one paid, and match by hand what names no invoice."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.invoicing import payments
from tollway.control.api.invoicing.payments import BankEntryMatch, BankImportOut, BankStatementImport
from tollway.control.api.schemas import PageQuery
from tollway.control.console.forms import Form, form, make_body, upload
from tollway.control.console.routing import Page, PlatformPage
from tollway.control.console.routing import router as new_router
from tollway.domain.faults import Fault

router = new_router()

PATH = "/console/platform/bank"


@router.get(PATH, include_in_schema=False)
def show_bank(page: PlatformPage, query: Annotated[PageQuery, Query()]) -> Response:
    """Credits for which no invoice was found, and the form for a statement."""
    return _show(page, query)


def _show(page: Page, query: PageQuery, imported: BankImportOut | None = None, fault: Fault | None = None) -> Response:
    return page.show(
        "platform/bank.html",
        fault=fault,
        entries=page.call(payments.list_bank_entries, query=query),
        imported=imported,
        may_write=page.allows(payments.import_bank_statement),
    )


@router.post(PATH, include_in_schema=False)
def upload_statement(page: PlatformPage, content: Annotated[str, upload(payments.import_bank_statement, "content")]) -> Response:
    """Import a bank statement, and show what it paid."""
    try:
        imported = page.call(payments.import_bank_statement, body=make_body(BankStatementImport, {"content": content}))
    except Fault as fault:
        return _show(page, PageQuery(), fault=fault)
    return _show(page, PageQuery(), imported)


@router.post(f"{PATH}/{{entry_id}}/match", include_in_schema=False)
def match_entry(page: PlatformPage, entry_id: str, fields: Annotated[Form, form(payments.match_bank_entry, "invoice_id")]) -> Response:
    """Record a credit as the payment of an invoice."""
    try:
        page.call(payments.match_bank_entry, entry_id=entry_id, body=make_body(BankEntryMatch, fields))
    except Fault as fault:
        return _show(page, PageQuery(), fault=fault)
    return page.lead("/bank", "payment_recorded")
